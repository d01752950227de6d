"""The dashboard made by code: what is in it, whether Prometheus understands it, and that Grafana takes it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.grafana import LabGrafana
from lab.ports import free_port, give_back
from rules.exposition import exposition_of
from tests.requirements import need
from triggers.dashboards import TAG, TOKEN_VARIABLE, UID, deployments_dashboard, main

#: What Grafana puts in the place of its variables, in promtool's eyes.
VARIABLES = {"$__rate_interval": "1m", "$__range": "1h", "$target": ".*", "${datasource}": "prometheus"}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in deployments_dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> dict[str, str]:
    """Return each query, by panel and letter, as Grafana sends it."""
    found = {}
    for panel in panels():
        for target in panel["targets"]:
            text = target["expr"]
            for variable, value in VARIABLES.items():
                text = text.replace(variable, value)
            found[f"{panel['title']} {target['refId']}"] = text
    return found


def test_it_is_the_same_each_time():
    assert json.dumps(deployments_dashboard()) == json.dumps(deployments_dashboard())


def test_it_has_what_a_person_looks_for():
    model = deployments_dashboard()
    assert (model["uid"], model["title"], model["tags"]) == (UID, "Deployments", [TAG])
    assert model["schemaVersion"] >= 36
    titles = {panel["title"] for panel in panels()}
    assert titles >= {
        "By outcome", "Rollbacks, by whom", "Deployments", "Error ratio", "p95 latency", "CPU", "Memory",
        "Disk, the fullest", "GPU memory",
    }  # fmt: skip


def test_each_panel_has_its_number_its_place_and_the_chosen_source():
    model = deployments_dashboard()
    numbers = [panel["id"] for panel in model["panels"]]
    assert len(set(numbers)) == len(numbers)
    assert 0 not in numbers
    taken: set[tuple[int, int]] = set()
    for panel in model["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert all(panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for panel in panels())
    assert [one["name"] for one in model["templating"]["list"]] == ["datasource", "target"]


def test_it_shows_what_deployments_leave_under_their_tag():
    (annotations,) = deployments_dashboard()["annotations"]["list"]
    assert annotations["datasource"]["uid"] == "-- Grafana --"
    assert annotations["target"]["tags"] == [TAG]
    assert annotations["enable"]


def test_nothing_in_it_is_null():
    assert "null" not in json.dumps(deployments_dashboard())


def test_it_asks_for_no_metric_of_ours_that_is_not_exported():
    exposition = exposition_of([])
    exported = {
        f"{family.name}_total" if family.kind == "counter" else family.name for family in exposition.families
    }
    exported |= {f"{family.name}_bucket" for family in exposition.histograms}
    asked = set(re.findall(r"\bsovereign_\w+", " ".join(expressions().values())))
    assert asked == exported


def test_prometheus_understands_every_query(tmp_path):
    need("promtool", package="prometheus")
    rules = [{"record": f"panel:{n}", "expr": text} for n, text in enumerate(expressions().values())]
    assert len(rules) >= 15
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    checked = subprocess.run(
        ["promtool", "check", "rules", path], check=False, capture_output=True, text=True, timeout=60
    )
    assert checked.returncode == 0, checked.stderr
    assert f"{len(rules)} rules found" in checked.stdout


def test_the_first_deployment_of_its_kind_is_counted_and_counts_are_whole(tmp_path):
    need("promtool", package="prometheus")
    queries = expressions()
    series = {
        'sovereign_deployments_total{target="a",outcome="promoted"}': "3x120 4x59",
        'sovereign_deployments_total{target="b",outcome="promoted"}': "_x150 1x29",
        'sovereign_deployments_total{target="b",outcome="rolled_back"}': "2x180",
        'sovereign_rollback_duration_seconds_bucket{component="application",le="1"}': "0x180",
        'sovereign_rollback_duration_seconds_bucket{component="application",le="5"}': "_x150 10x29",
        'sovereign_rollback_duration_seconds_bucket{component="application",le="+Inf"}': "_x150 10x29",
    }
    asked = {
        queries["By outcome A"]: [('{outcome="promoted"}', 2), ('{outcome="rolled_back"}', 0)],
        queries["Rollbacks B"]: [('{component="application"}', 1 + 4 * 0.95)],
    }
    told(tmp_path, series, asked)


def test_shares_are_shares(tmp_path):
    need("promtool", package="prometheus")
    queries = expressions()
    series = {
        'node_cpu_seconds_total{instance="h",cpu="0",mode="idle"}': "0+15x60",
        'node_cpu_seconds_total{instance="h",cpu="0",mode="user"}': "0+45x60",
        'node_memory_MemAvailable_bytes{instance="h"}': "30x60",
        'node_memory_MemTotal_bytes{instance="h"}': "100x60",
        'http_requests_total{status="200"}': "0+90x60",
        'http_requests_total{status="503"}': "0+10x60",
    }
    asked = {
        queries["CPU A"]: [('{instance="h"}', 0.75)],
        queries["Memory A"]: [('{instance="h"}', 0.7)],
        queries["Error ratio A"]: [("{}", 0.1)],
    }
    told(tmp_path, series, asked, minutes=50)


def told(
    directory: Path, series: dict[str, str], asked: dict[str, list[tuple[str, float]]], *, minutes: int = 175
) -> None:
    """Have Prometheus's own engine answer each query over made-up series, one value a minute."""
    tests = [
        {
            "expr": text.replace("[1m]", "[5m]"),
            "eval_time": f"{minutes}m",
            "exp_samples": [{"labels": labels, "value": value} for labels, value in expected],
        }
        for text, expected in asked.items()
    ]
    given = [{"series": name, "values": values} for name, values in series.items()]
    test = {"interval": "1m", "input_series": given, "promql_expr_test": tests}
    path = directory / "test.yml"
    path.write_text(yaml.safe_dump({"rule_files": [], "evaluation_interval": "1m", "tests": [test]}))
    checked = subprocess.run(
        ["promtool", "test", "rules", path], check=False, capture_output=True, text=True, timeout=60
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.fixture
def grafana() -> Iterator[LabGrafana]:
    with LabGrafana() as running:
        yield running


def test_the_command_prints_it_and_nothing_else():
    printed = subprocess.run(
        [sys.executable, "-m", "triggers.dashboards"],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    assert printed.returncode == 0
    assert json.loads(printed.stdout) == deployments_dashboard()
    assert printed.stderr == ""


def test_the_command_saves_it_to_a_grafana_twice_over(grafana, monkeypatch, capsys):
    monkeypatch.setenv(TOKEN_VARIABLE, str(grafana.token))
    for version in (1, 2):
        assert main(["--url", grafana.url]) == 0
        said = capsys.readouterr()
        assert (said.out, said.err) == (f"saved: {grafana.url}/d/{UID}/deployments\n", "")
        assert grafana.dashboards[UID]["version"] == version
    assert grafana.dashboards[UID]["panels"] == deployments_dashboard()["panels"]


def test_a_wrong_token_is_said_and_exits_otherwise(grafana, monkeypatch, capsys):
    monkeypatch.setenv(TOKEN_VARIABLE, "wrong-token")
    assert main(["--url", grafana.url]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "not saved: " in said.err
    assert "check the token" in said.err
    assert "wrong-token" not in said.err


def test_a_grafana_that_is_down_is_said_and_exits_otherwise(capsys):
    port = free_port()
    assert main(["--url", f"http://127.0.0.1:{port}"]) == 1
    give_back(port)
    assert "does not answer" in capsys.readouterr().err


def test_an_address_that_is_none_is_said_and_exits_otherwise(capsys):
    assert main(["--url", "grafana"]) == 1
    assert "not saved: " in capsys.readouterr().err


def test_it_is_saved_to_the_grafana_of_a_block(prefect_api, grafana, capsys):
    from pydantic import SecretStr  # noqa: PLC0415

    from blocks.grafana import Grafana  # noqa: PLC0415

    Grafana(url=grafana.url, token=SecretStr(str(grafana.token))).save("dashboards", overwrite=True)
    assert main(["--block", "dashboards"]) == 0
    assert list(grafana.dashboards) == [UID]
    assert main(["--block", "no-such-block"]) == 1
    assert "no-such-block" in capsys.readouterr().err
