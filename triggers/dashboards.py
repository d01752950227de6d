"""The Grafana dashboard of deployments, made by code: `python -m triggers.dashboards > sovereign.json`.

It shows what `metrics_file` exports, what users have (the application's and the balancer's metrics), what the
hosts have in use, and each deployment's annotations. With `--url` or `--block` it is saved to a Grafana.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, cast

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    VariableRefresh,
    VariableSort,
)
from pydantic import SecretStr

from blocks.grafana import Grafana
from tasks.grafana import GrafanaError, save_dashboard

UID = "sovereign-deploy"
#: The tag of every annotation that a deployment leaves.
TAG = "sovereign-deploy"
TOKEN_VARIABLE = "GRAFANA_TOKEN"  # noqa: S105 - the name of a variable

_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_ANNOTATIONS = DataSourceRef(type_val="grafana", uid="-- Grafana --")
_ROW_WIDTH, _HEIGHT = 24, 8
_FOR = 'target=~"$target"'
_CODE = 'code=~"5.."'
_REAL_DISKS = 'fstype!~"tmpfs|ramfs|overlay|squashfs"'

Query = tuple[str, str]
AnyPanel = stat.Panel | timeseries.Panel


def deployments_dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana's JSON model; the same each time."""
    built = (
        dashboard.Dashboard("Deployments")
        .uid(UID)
        .description("Deployments of sovereign-deploy, and what users and hosts had meanwhile.")
        .tags([TAG])
        .timezone("browser")
        .refresh("30s")
        .time("now-24h", "now")
        .editable()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .annotation(_annotations())
    )
    for variable in _variables():
        built = built.with_variable(variable)
    for title, panels in _rows().items():
        built = built.with_row(dashboard.Row(title))
        for panel in panels:
            built = built.with_panel(panel.span(_ROW_WIDTH // len(panels)).height(_HEIGHT))
    model = _known(json.loads(json.dumps(built.build(), cls=JSONEncoder)))
    # the builders leave them out, and rows would all be number 0
    for number, panel in enumerate(model["panels"], start=1):
        panel["id"] = number
    return cast("dict[str, Any]", model)


def _known(value: Any) -> Any:
    """Return the value without keys that are null: Grafana has its own defaults for what is not there."""
    if isinstance(value, dict):
        return {key: _known(one) for key, one in value.items() if one is not None}
    return [_known(one) for one in value] if isinstance(value, list) else value


def _annotations() -> dashboard.AnnotationQuery:
    by_tag = dashboard.AnnotationTarget().type("tags").tags([TAG]).limit(100).match_any(match_any=False)
    return (
        dashboard.AnnotationQuery()
        .name("Deployments")
        .datasource(_ANNOTATIONS)
        .enable(enable=True)
        .icon_color("blue")
        .target(by_tag)
    )


def _variables() -> tuple[dashboard.DatasourceVariable | dashboard.QueryVariable, ...]:
    source = dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    target = (
        dashboard.QueryVariable("target")
        .label("Target")
        .datasource(_SOURCE)
        .query("label_values(sovereign_deployments_total, target)")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .include_all(include_all=True)
        .all_value(".*")
        .multi(multi=True)
    )
    return source, target


def _rows() -> dict[str, tuple[AnyPanel, ...]]:
    return {
        "Deployments": (
            _number("By outcome", _gained(f"sovereign_deployments_total{{{_FOR}}}", by="outcome")),
            _number("Rollbacks, by whom", _gained(f"sovereign_rollbacks_total{{{_FOR}}}", by="by")),
            _number("Open now", "sum by (state) (sovereign_deployment_state)"),
            _number(
                "Since the newest",
                f"time() - max(sovereign_last_deployment_timestamp_seconds{{{_FOR}}})",
                unit="s",
            ),
        ),
        "How long it takes": (
            _quantiles("Deployments", "sovereign_deployment_duration_seconds"),
            _quantiles("Rollbacks", "sovereign_rollback_duration_seconds"),
        ),
        "What users have": (_error_ratio(), _p95(), _traffic()),
        "What hosts have in use": (
            _share(
                "CPU", '1 - avg by (instance) (rate(node_cpu_seconds_total{mode="idle"}[$__rate_interval]))'
            ),
            _share("Memory", "1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes"),
            _share("Disk, the fullest", f"1 - min by (instance) ({_free_disk()})"),
            _share(
                "GPU memory",
                "DCGM_FI_DEV_FB_USED / (DCGM_FI_DEV_FB_USED + DCGM_FI_DEV_FB_FREE)",
                "GPU {{gpu}}",
            ),
        ),
    }


def _gained(counter: str, *, by: str) -> str:
    """Return by how much a counter rose over the time shown.

    Deployments are rare: increase() would not count the first of its kind, as its series begins at 1, and
    would make fractions of the others. Our counts never fall, so that their difference is exact.
    """
    now = f"sum by ({by}) ({counter})"
    return f"{now} - (sum by ({by}) ({counter} offset $__range) or {now} * 0)"


def _free_disk() -> str:
    return f"node_filesystem_avail_bytes{{{_REAL_DISKS}}} / node_filesystem_size_bytes{{{_REAL_DISKS}}}"


def _error_ratio() -> timeseries.Panel:
    application = (
        'sum(rate(http_requests_total{status=~"5.."}[$__rate_interval])) '
        "/ sum(rate(http_requests_total[$__rate_interval]))"
    )
    balancer = (
        f"sum by (proxy) (rate(haproxy_backend_http_responses_total{{{_CODE}}}[$__rate_interval])) "
        "/ sum by (proxy) (rate(haproxy_backend_http_responses_total[$__rate_interval]))"
    )
    panel = _lines(
        "Error ratio", (application, "application"), (balancer, "side {{proxy}}"), unit="percentunit"
    )
    return panel.min(0)


def _p95() -> timeseries.Panel:
    query = (
        "histogram_quantile(0.95, sum by (le) (rate(http_request_duration_seconds_bucket[$__rate_interval])))"
    )
    return _lines("p95 latency", (query, "p95"), unit="s").min(0)


def _traffic() -> timeseries.Panel:
    sides = "sum by (proxy) (rate(haproxy_backend_http_responses_total[$__rate_interval]))"
    return _lines("Requests", (sides, "side {{proxy}}"), unit="reqps").min(0)


def _quantiles(title: str, histogram: str) -> timeseries.Panel:
    buckets = _gained(f"{histogram}_bucket", by="le, component")
    queries = [
        (f"histogram_quantile({q}, {buckets})", f"{{{{component}}}} p{q * 100:.0f}") for q in (0.5, 0.95)
    ]
    return _lines(title, *queries, unit="s").min(0)


def _share(title: str, expression: str, legend: str = "{{instance}}") -> timeseries.Panel:
    return _lines(title, (expression, legend), unit="percentunit").min(0).max(1)


def _number(title: str, expression: str, *, unit: str = "none") -> stat.Panel:
    query = prometheus.Dataquery().expr(expression).instant().ref_id("A").legend_format("__auto")
    return stat.Panel().title(title).datasource(_SOURCE).unit(unit).decimals(0).with_target(query)


def _lines(title: str, *queries: Query, unit: str) -> timeseries.Panel:
    panel = timeseries.Panel().title(title).datasource(_SOURCE).unit(unit).fill_opacity(8)
    for letter, (expression, legend) in zip("ABCD", queries, strict=False):
        panel = panel.with_target(
            prometheus.Dataquery().expr(expression).ref_id(letter).legend_format(legend)
        )
    return panel


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the dashboard, or save it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m triggers.dashboards", description=__doc__)
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--url", help=f"save to the Grafana at this address; its token comes from {TOKEN_VARIABLE}"
    )
    where.add_argument("--block", help="save to the Grafana that this Sovereign Grafana block names")
    given = parser.parse_args(arguments)
    model = deployments_dashboard()
    if not (given.url or given.block):
        sys.stdout.write(json.dumps(model, indent=2) + "\n")
        return 0
    try:
        grafana = cast("Grafana", Grafana.load(given.block)) if given.block else _at(given.url)
        path = save_dashboard(grafana, model)
    except (GrafanaError, ValueError) as error:
        sys.stderr.write(f"not saved: {error}\n")
        return 1
    sys.stdout.write(f"saved: {grafana.url.rstrip('/')}{path}\n")
    return 0


def _at(url: str) -> Grafana:
    token = os.environ.get(TOKEN_VARIABLE)
    return Grafana(url=url, token=SecretStr(token) if token else None)


if __name__ == "__main__":
    sys.exit(main())
