"""Files of keys and values: what is read, and that no error quotes a value."""

from __future__ import annotations

import pytest

from rules.evidence.tree import leaves, parse_dotenv, parse_ini, parse_json, parse_toml, spelled


def test_leaves_come_in_the_order_of_the_file_with_their_paths():
    tree = {"b": {"c": [1, {"d": 2}]}, "a": None, "e": {}}
    assert [(spelled(path), value) for path, value in leaves(tree)] == [
        ("b.c[0]", 1),
        ("b.c[1].d", 2),
        ("a", None),
    ]


def test_dotenv_is_read_without_its_quotes():
    text = "# comment\nexport A=1\n\nB = 'two words'\nC=\"x=y\"\nD=a\\nb\nE=\n"
    assert parse_dotenv(text) == {"A": "1", "B": "two words", "C": "x=y", "D": "a\nb", "E": ""}


def test_an_ini_file_may_begin_without_a_section():
    assert parse_ini("; comment\na = 1\n[Db]\nPassWord = x:y=%z\n") == {
        "DEFAULT": {"a": "1"},
        "Db": {"PassWord": "x:y=%z"},
    }


def test_toml_is_read_with_times_as_words():
    assert parse_toml("at = 2026-01-01T00:00:00Z\n[db]\nport = 1\n") == {
        "at": "2026-01-01 00:00:00+00:00",
        "db": {"port": 1},
    }


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_json, '{"password": "hunter2", "password": "ENC[]"}'),
        (parse_json, '{"password": hunter2}'),
        (parse_toml, 'password = "hunter2"\npassword = "x"\n'),
        (parse_toml, "password = hunter2\n"),
        (parse_dotenv, "PASSWORD=hunter2\nPASSWORD=x\n"),
        (parse_dotenv, "PASSWORD hunter2\n"),
        (parse_ini, "[db]\npassword = hunter2\npassword = x\n"),
        (parse_ini, "[db]\npassword hunter2\n"),
        (parse_ini, "[db]\na = 1\n[db]\nb = hunter2\n"),
    ],
)
def test_a_key_twice_and_bad_syntax_are_value_errors_that_quote_no_value(parse, text):
    with pytest.raises(ValueError, match=r".") as caught:
        parse(text)
    assert "hunter2" not in str(caught.value)
