"""Lines of systemd's journal: every form that a field can have."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.fleet import SystemdService
from rules.hosts import HostAddress
from rules.journal_errors import JournalError, group, parse_errors, parse_line, units_by_host
from tests.rules.builders import instance

AT = datetime(2026, 11, 25, 14, 0, 0, 123_456, tzinfo=UTC)


def entry(**fields: object) -> str:
    known = {
        "__REALTIME_TIMESTAMP": str(round(AT.timestamp() * 1_000_000)),
        "__CURSOR": "s=1;i=2",
        "PRIORITY": "3",
        "MESSAGE": "no database",
        "_SYSTEMD_UNIT": "web.service",
    }
    return json.dumps({**known, **fields})


def test_an_error_says_unit_time_and_words():
    line = parse_line(entry())
    assert line is not None
    assert line.cursor == "s=1;i=2"
    assert line.error == JournalError(unit="web.service", at=AT, message="no database", priority=3)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("plain", "plain"),
        (list("ünï".encode()), "ünï"),
        ([104, 105, 255], "hi�"),
        (["first", "second"], "first"),
        ([[104, 105], "second"], "hi"),
        ([], ""),
        (None, "(longer than journalctl shows)"),
        ("x" * 10_000, "x" * 500),
    ],
)
def test_a_message_has_many_forms(message, words):
    (error,) = parse_errors(entry(MESSAGE=message))
    assert error.message == words


def test_an_entry_without_a_message_is_an_error_all_the_same():
    without = json.loads(entry())
    del without["MESSAGE"]
    assert parse_errors(json.dumps(without))[0].message == ""


@pytest.mark.parametrize(
    ("fields", "unit"),
    [
        ({"UNIT": "web.service", "_SYSTEMD_UNIT": "init.scope"}, "web.service"),
        ({"USER_UNIT": "web.service", "_SYSTEMD_UNIT": "user@1.service"}, "web.service"),
        ({"_SYSTEMD_USER_UNIT": "web.service", "_SYSTEMD_UNIT": "user@1.service"}, "web.service"),
        ({"COREDUMP_UNIT": "web.service", "_SYSTEMD_UNIT": "systemd-coredump@1.service"}, "web.service"),
        ({"_SYSTEMD_UNIT": None}, "unknown"),
    ],
)
def test_the_unit_is_the_one_that_the_message_is_about(fields, unit):
    assert parse_errors(entry(**fields))[0].unit == unit


@pytest.mark.parametrize("priority", ["4", "6", "7", "", None, "err", "-1", "٣"])
def test_what_is_less_than_an_error_is_none_but_moves_the_cursor(priority):
    line = parse_line(entry(PRIORITY=priority))
    assert line is not None
    assert line.error is None
    assert line.cursor == "s=1;i=2"


@pytest.mark.parametrize("text", ["", "-- No entries --", "{", "[1]", "3", "null", '{"MESSAGE": "x"}', '"x"'])
def test_what_is_no_entry_is_passed_over(text):
    assert parse_line(text) is None
    assert len(parse_errors(f"{text}\n{entry()}\n{text}")) == 1


ODD_VALUES = (
    None,
    True,
    -1,
    3,
    10**30,
    1.5,
    "",
    "٣",
    "9" * 5_000,
    [],
    [[]],
    [256, 1],
    [None],
    {},
    {"a": [1]},
)
FIELDS = ("__REALTIME_TIMESTAMP", "PRIORITY", "MESSAGE", "__CURSOR", "UNIT")


@given(st.binary(max_size=40))
def test_no_line_breaks_the_reader(line):
    parse_line(line)


@given(st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(ODD_VALUES)))
def test_no_field_breaks_the_reader(fields):
    line = parse_line(entry(**fields))
    assert line is not None


def test_one_message_logged_often_is_one_group():
    def error(message: str, second: int, unit: str = "web.service") -> JournalError:
        return JournalError(unit=unit, at=AT + timedelta(seconds=second), message=message, priority=3)

    groups = group([error("once", 0), error("often", 2), error("often", 1), error("often", 3, "api.service")])
    assert [(one.unit, one.message, one.times) for one in groups] == [
        ("web.service", "often", 2),
        ("web.service", "once", 1),
        ("api.service", "often", 1),
    ]
    assert groups[0].last_at - groups[0].first_at == timedelta(seconds=1)


def test_only_systemd_units_are_followed_and_each_once():
    away = HostAddress(name="db", address="10.0.0.7")
    unit = SystemdService(unit="web.service")
    members = [
        instance("a").model_copy(update={"service": unit}),
        instance("b").model_copy(update={"service": unit}),
        instance("c").model_copy(update={"service": SystemdService(unit="api.service")}),
        instance("d"),
        instance("e").model_copy(update={"service": unit, "host": away}),
    ]
    assert units_by_host(members) == {
        HostAddress(): ("web.service", "api.service"),
        away: ("web.service",),
    }
    assert units_by_host([instance("d")]) == {}
