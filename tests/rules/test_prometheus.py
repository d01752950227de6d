"""Answers of Prometheus and Alertmanager as they are published, and what is no answer."""

import contextlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.alerts import SENDER, begun_since
from rules.baseline import MetricQuery
from rules.prometheus import (
    Sources,
    alert_rules,
    alertmanager_alerts,
    application_queries,
    declared_query,
    duration,
    exists_query,
    firing_alerts,
    host_queries,
    points,
    single_value,
)
from rules.provider import ProviderError, QueryRefusedError

SOURCES = Sources(
    node_selector='job="node"',
    selector='app="web"',
    request_metric="http_requests_total",
    status_label="status",
    duration_metric="http_request_duration_seconds_bucket",
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def answer(kind: str, result: object) -> dict[str, object]:
    return {"status": "success", "data": {"resultType": kind, "result": result}}


def vector(*values: str) -> dict[str, object]:
    rows = [{"metric": {"node": str(n)}, "value": [1700000000.1, v]} for n, v in enumerate(values)]
    return answer("vector", rows)


@pytest.mark.parametrize(
    ("given_answer", "value"),
    [
        (vector("0.25"), 0.25),
        (vector("0"), 0.0),
        (vector("1e-3"), 0.001),
        (answer("scalar", [1700000000, "3"]), 3.0),
        (vector(), None),
        (vector("NaN"), None),
        (vector("+Inf"), None),
        (vector("-Inf"), None),
        (answer("scalar", [1700000000, "NaN"]), None),
    ],
)
def test_one_value_is_read_and_nan_inf_and_nothing_are_no_data(given_answer, value):
    assert single_value(given_answer) == value


@pytest.mark.parametrize("count", [2, 5])
def test_several_series_are_refused_and_named(count):
    with pytest.raises(QueryRefusedError, match=rf"has {count} series .*'node': '0'.*Aggregate it"):
        single_value(vector(*["1"] * count))


def test_a_range_is_no_single_value():
    with pytest.raises(QueryRefusedError, match="is a matrix"):
        single_value(answer("matrix", []))


def test_a_range_has_its_points_in_order():
    row = {"metric": {}, "values": [[0, "1"], [15.5, "NaN"]]}
    at = [datetime(1970, 1, 1, tzinfo=UTC), datetime(1970, 1, 1, 0, 0, 15, 500_000, tzinfo=UTC)]
    assert points(answer("matrix", [row])) == ((at[0], 1.0), (at[1], None))
    assert points(answer("matrix", [])) == ()
    with pytest.raises(QueryRefusedError, match="has 2 series"):
        points(answer("matrix", [row, row]))


def test_alert_rules_are_found_in_all_groups_and_recording_rules_are_none():
    groups = [
        {
            "rules": [
                {"name": "HighErrorRate", "type": "alerting"},
                {"name": "job:errors", "type": "recording"},
            ]
        },
        {"rules": [{"name": "HighResponseTime", "type": "alerting"}]},
        {"rules": []},
    ]
    said = {"status": "success", "data": {"groups": groups}}
    assert alert_rules(said) == {"HighErrorRate", "HighResponseTime"}


def test_pending_alerts_are_not_firing():
    rows = [
        {
            "labels": {"alertname": name, "severity": "critical"},
            "annotations": {"description": "broken"},
            "state": state,
            "activeAt": "2026-01-02T03:04:05.123456789Z",
        }
        for name, state in (("A", "firing"), ("B", "pending"))
    ]
    (alert,) = firing_alerts({"status": "success", "data": {"alerts": rows}})
    assert (alert.name, alert.severity, alert.summary) == ("A", "critical", "broken")
    assert alert.starts_at == datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=UTC)
    assert alert.in_words == "A (critical): broken"


def row(name: str, minute: int, state: str = "active", **labels: str) -> dict[str, object]:
    return {
        "labels": {"alertname": name, **labels},
        "annotations": {},
        "startsAt": f"2026-01-02T03:{minute:02}:00.000Z",
        "endsAt": "2026-01-02T04:00:00.000Z",
        "status": {"state": state, "silencedBy": [], "inhibitedBy": []},
    }


def test_alerts_since_a_moment_are_active_not_ours_and_oldest_first():
    label, sender = SENDER
    rows = [
        row("Late", 30),
        row("AtOnce", 10),
        row("Before", 9),
        row("Silenced", 20, "suppressed"),
        row("Ours", 20, **{label: sender}),
    ]
    since = datetime(2026, 1, 2, 3, 10, tzinfo=UTC)
    assert [alert.name for alert in begun_since(alertmanager_alerts(rows), since)] == ["AtOnce", "Late"]


@pytest.mark.parametrize(
    "parse", [single_value, points, alert_rules, firing_alerts, alertmanager_alerts], ids=lambda f: f.__name__
)
@pytest.mark.parametrize(
    "said",
    [
        None,
        "Bad Gateway",
        {},
        {"status": "error", "error": "boom"},
        {"status": "success"},
        {"status": "success", "data": None},
        {"status": "success", "data": {"resultType": "vector", "result": [{"value": []}]}},
        {"status": "success", "data": {"groups": [{}], "alerts": [{}]}},
        [{"labels": {}}],
    ],
)
def test_what_is_no_answer_is_the_providers_error(parse, said):
    with pytest.raises(ProviderError):
        parse(said)


@given(JSON)
def test_no_json_makes_a_parser_fail_in_any_other_way(said):
    for parse in (single_value, points, alert_rules, firing_alerts, alertmanager_alerts):
        for given_answer in (said, {"status": "success", "data": said}, answer("vector", said)):
            with contextlib.suppress(ProviderError):
                parse(given_answer)


@pytest.mark.parametrize(
    ("seconds", "words"), [(300, "300s"), (0.2, "200ms"), (2.5, "2500ms"), (1.0, "1s"), (0.0001, "1ms")]
)
def test_a_window_is_written_as_promql_writes_it(seconds, words):
    assert duration(seconds) == words


def test_the_window_stands_in_a_users_query_wherever_it_is_wanted():
    metric = MetricQuery(name="q", query="sum(rate(a[$window])) / sum(rate(b[$window]))")
    assert declared_query(metric, 300) == "sum(rate(a[300s])) / sum(rate(b[300s]))"


def test_errors_before_the_first_error_are_0_and_not_missing():
    assert application_queries(SOURCES, 60)["error_ratio"] == (
        'clamp((sum(rate(http_requests_total{app="web",status=~"5.."}[60s])) or vector(0))'
        ' / sum(rate(http_requests_total{app="web"}[60s])), 0, 1)'
    )


def test_matchers_that_are_empty_are_left_out():
    bare = SOURCES.model_copy(update={"selector": "", "node_selector": ""})
    assert exists_query("up", "") == "count(up{})"
    assert "{," not in "".join([*host_queries(bare, 5).values(), *application_queries(bare, 5).values()])
