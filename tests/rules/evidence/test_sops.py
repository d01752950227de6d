"""Secrets: every leaf is encrypted or exempt, and a leak is found wherever it is."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.sops import AgeKey, decrypted, encrypted
from rules.evidence.sops import is_encrypted, judge_sops
from rules.evidence.tree import leaves
from rules.finding import Result

KEY, OTHER = AgeKey(), AgeKey()
PLAIN = {
    "db": {"password": "hunter2", "port": 5432, "tls": True, "empty": "", "none": None},
    "tokens": ["alpha", {"name": "beta"}],
    "host_unencrypted": "db.local",
}

names = st.text("abcdefgh", min_size=1, max_size=6)
values = st.one_of(st.text(min_size=1, max_size=8), st.integers(), st.booleans())
trees = st.dictionaries(
    names,
    st.recursive(
        values,
        lambda inner: (
            st.lists(inner, min_size=1, max_size=3) | st.dictionaries(names, inner, min_size=1, max_size=3)
        ),
        max_leaves=6,
    ),
    min_size=1,
    max_size=4,
)


def judge(tree, *recipients):
    return judge_sops(tree, name="secrets.yaml", recipients=recipients)


def made(metadata=()):
    tree = encrypted(PLAIN, [KEY.recipient])
    tree["sops"] = {**tree["sops"], **dict(metadata)}
    return tree


def put(tree, path, value):
    node = tree
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value


def test_the_labs_files_open_with_their_key_and_hold_what_was_put_in():
    assert decrypted(encrypted(PLAIN, [KEY.recipient, OTHER.recipient]), OTHER) == PLAIN


def test_an_encrypted_file_passes_and_says_for_whom():
    found = judge(made(), KEY.recipient)
    assert found.result is Result.PASSED
    assert "5 values are encrypted for 1 age recipients, 1 are exempt by its rules" in found.evidence


@settings(deadline=None)  # a busy machine is no fault
@given(trees, st.data())
def test_one_clear_leaf_is_always_found_and_named_and_never_shown(plain, data):
    tree = encrypted(plain, [KEY.recipient])
    assert judge(tree).result is Result.PASSED
    paths = [path for path, _ in leaves({k: v for k, v in tree.items() if k != "sops"})]
    path = data.draw(st.sampled_from(paths))
    put(tree, path, "Zq9-leaked-value")
    found = judge(tree)
    assert found.result is Result.FAILED
    assert "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in path)[1:] in found.evidence
    assert "Zq9" not in found.evidence


@settings(deadline=None)  # a busy machine is no fault
@given(trees, values)
def test_a_leaf_added_anywhere_in_clear_is_found(plain, value):
    tree = encrypted(plain, [KEY.recipient])
    assert judge({"added": value, **tree}).result is Result.FAILED
    assert judge({**tree, "added": {"deep": [[value]]}}).result is Result.FAILED


@pytest.mark.parametrize("recipient", [KEY.recipient, OTHER.recipient], ids=["first", "second"])
def test_each_required_recipient_must_hold_a_key(recipient):
    found = judge(encrypted(PLAIN, [KEY.recipient]), KEY.recipient, recipient)
    assert (found.result is Result.PASSED) == (recipient == KEY.recipient)


def test_a_recipient_that_was_only_written_down_holds_no_key():
    tree = made()
    tree["sops"]["age"].append({"recipient": OTHER.recipient, "enc": "later"})
    found = judge(tree, OTHER.recipient)
    assert found.result is Result.FAILED
    assert OTHER.recipient in found.evidence


def test_recipients_in_key_groups_count():
    tree = made()
    tree["sops"]["key_groups"] = [{"age": tree["sops"].pop("age")}]
    assert judge(tree, KEY.recipient).result is Result.PASSED


@pytest.mark.parametrize("missing", ["mac", "lastmodified", "version", "age"])
def test_metadata_must_be_complete(missing):
    tree = made()
    del tree["sops"][missing]
    assert judge(tree).result is Result.FAILED


@pytest.mark.parametrize(
    "changed",
    [
        {"mac": "x"},
        {"age": []},
        {"age": "x"},
        {"version": ""},
        {"unencrypted_suffix": None, "unencrypted_regex": "("},
        {"password": "hunter2"},  # clear, in the one place where nobody looks
        {1: "x", "b": "y"},
    ],
)
def test_metadata_must_be_those_of_sops(changed):
    found = judge(made(changed))
    assert found.result is Result.FAILED
    assert "hunter2" not in found.evidence


@pytest.mark.parametrize("tree", [PLAIN, {}, [], None, "text", {"sops": "x"}, {"sops": {}}])
def test_plain_text_fails(tree):
    assert judge(tree).result is Result.FAILED


@pytest.mark.parametrize(
    ("rules", "path", "is_exempt"),
    [
        ({"unencrypted_suffix": "_clear"}, ("db", "port_clear"), True),
        ({"unencrypted_suffix": "_clear"}, ("db_clear", "deep"), True),
        ({"unencrypted_suffix": "_clear"}, ("host_unencrypted",), False),
        ({"encrypted_suffix": "_secret"}, ("host",), True),
        ({"encrypted_suffix": "_secret"}, ("host_secret",), False),
        ({"unencrypted_regex": "^(kind|metadata)$"}, ("metadata", "name"), True),
        ({"unencrypted_regex": "^kind$"}, ("kinder",), False),
        ({"encrypted_regex": "^(data|stringData)$"}, ("kind",), True),
        ({"encrypted_regex": "^(data|stringData)$"}, ("data", "password"), False),
        ({"encrypted_regex": "^0$"}, ("hosts", "0"), False),
    ],
)
def test_the_files_own_rules_exempt_what_sops_would_leave(rules, path, is_exempt):
    tree = made({"unencrypted_suffix": None, **rules})
    del tree["host_unencrypted"]
    inner = "clear"
    for step in reversed(path):
        inner = {step: inner}
    tree |= {path[0]: {**tree.get(path[0], {}), **inner[path[0]]} if len(path) > 1 else "clear"}
    assert (judge(tree).result is Result.PASSED) == is_exempt


def test_rules_that_exempt_everything_do_not_make_it_encrypted():
    found = judge({"password": "hunter2", "sops": {**made()["sops"], "encrypted_regex": "^nothing$"}})
    assert found.result is Result.FAILED
    assert "no encrypted value" in found.evidence


def test_rules_over_comments_cannot_be_told():
    assert judge(made({"unencrypted_comment_regex": "^clear"})).result is Result.UNKNOWN


@pytest.mark.parametrize(
    "value",
    [
        "ENC[AES256_GCM,data:hunter2,iv:AAAA,tag:AAAA,type:str]",
        "ENC[AES256_GCM,data:x,iv:x,tag:x,type:str]",
        "ENC[AES256_GCM]",
        # encrypted anew in each process: the names of tests must not differ
        pytest.param(encrypted({"a": "b"}, [KEY.recipient])["a"] + "\nhunter2", id="clear after"),
        pytest.param("hunter2 " + encrypted({"a": "b"}, [KEY.recipient])["a"], id="clear before"),
        b"bytes",
        5,
    ],
)
def test_what_only_looks_encrypted_is_not(value):
    assert not is_encrypted(value)


def test_a_part_that_contains_itself_ends():
    tree = made()
    tree["db"]["again"] = tree["db"]
    assert judge(tree).result is Result.PASSED


def test_judging_leaves_the_tree_as_it_was():
    tree = made()
    before = copy.deepcopy(tree)
    judge(tree)
    assert json.dumps(tree) == json.dumps(before)
