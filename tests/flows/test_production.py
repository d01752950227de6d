"""The whole way of a production deployment: staging, gate, approval, backup, canary, 24 hours of watch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from blocks.environment import Environment
from lab.application import LabApplication
from lab.processes import wait_until
from lab.register import save_blocks
from lab.releases import Behaviour
from lab.surroundings import ERROR_RATIO, LabSurroundings
from rules.change import ApplicationRelease
from rules.entries import Noted
from rules.environment import Monitoring, Stage
from rules.final_checklist import judge_final
from rules.finding import Result
from rules.items import GUIDE
from rules.journal import JournalView
from rules.strategy import Canary, CanaryLimits, InPlace, Strategy, Watching
from tests.flows.caller import Caller
from tests.flows.site import EASY, PATIENCE_S, Site
from tests.requirements import need

#: One worker of Prefect is enough for all processes of a session.
pytestmark = pytest.mark.xdist_group("worker")
#: 24 hours in two minutes: each run watches its window as it would for real.
SHORT = Monitoring(every_s=20, for_s=120, probe_every_s=1, min_requests=20)
STAGED = Monitoring(every_s=1, for_s=1, probe_every_s=0.5)
CANARY = Canary(
    steps_percent=(20, 100),
    watch=Watching(tick_s=0.5, deadline_s=90, limits=CanaryLimits(min_observation_s=3)),
)
RELEASE = "2.0.0"
#: After the promotion, and long before the monitoring ends.
TURNS_BAD_AFTER_S = 75.0


class Outage(NamedTuple):
    """How long Prometheus is away, what is to be done then, and what comes of it."""

    policy: str
    patience_s: float
    ends: str
    is_over_soon: bool = False


@pytest.fixture
def staging(site: Site, tmp_path: Path) -> Iterator[LabApplication]:
    """The staging application, known to Prefect."""
    with LabApplication(tmp_path / "s", blue=1, green=1, name=f"{site.application.name}-staging") as running:
        save_blocks(running.fleet)
        yield running


@pytest.fixture
def surroundings(site: Site, tmp_path: Path) -> Iterator[LabSurroundings]:
    """Monitoring, forge, dashboards, webhook and repository of both environments."""
    need("prometheus", package="prometheus")
    need("prometheus-alertmanager", package="prometheus-alertmanager")
    need("prometheus-node-exporter", package="prometheus-node-exporter")
    need("restic", package="restic")
    with LabSurroundings(tmp_path / "around", site.application.haproxy, release=RELEASE) as running:
        yield running


def parameters(
    change: ApplicationRelease, strategy: Strategy, environment: str, surroundings: LabSurroundings
) -> dict[str, Any]:
    """Return what a pipeline sends."""
    return {
        "change": change.model_dump(mode="json"),
        "strategy": strategy.model_dump(mode="json"),
        "environment": environment,
        **surroundings.papers().model_dump(mode="json"),
    }


def answer(caller: Caller, run: str, **words: Any) -> None:
    """Answer a run that waits for approval."""
    caller.begins_to_be(run, "PAUSED")
    caller.site.ask("POST", f"flow_runs/{run}/resume", {"run_input": words}).raise_for_status()


def deployed(caller: Caller, sent: dict[str, Any]) -> str:
    """Start a deployment; return its flow run."""
    return str(caller.post("deploy/deploy", sent).raise_for_status().json()["id"])


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("monitored")
def test_the_whole_way_of_a_production_deployment_whose_release_turns_bad_later(
    caller: Caller, staging: LabApplication, surroundings: LabSurroundings
) -> None:
    site = caller.site
    surroundings.save(staging=STAGED, production=SHORT)
    change = site.change(RELEASE, Behaviour(error_ratio=0.4, errors_after_s=TURNS_BAD_AFTER_S))
    production = parameters(change, CANARY, "production", surroundings)

    # without a record of staging the gate is shut, and says what is missing
    blocked = deployed(caller, production)
    assert caller.ended(blocked) == "FAILED"
    assert "staging-record" in caller.view(blocked).reason
    assert [check.id for check in gate(caller.view(blocked)).blocking] == ["staging-record"]
    assert site.application.observed() == site.before

    in_staging = change.model_copy(update={"application": staging.name})
    first = deployed(caller, parameters(in_staging, InPlace(instance="blue-1"), "staging", surroundings))
    assert caller.ended(first) == "COMPLETED"

    run = deployed(caller, production)
    answer(caller, run, approved=True, by="Ada Lovelace", words="seen in staging")
    assert caller.ended(run) == "COMPLETED"
    view = caller.view(run)
    assert_went_the_whole_way(view)
    assert_everybody_knows(surroundings, ("planned", "approval needed", "started", "promoted"))
    assert [row["tags"][1] for row in surroundings.grafana.annotations][-2:] == ["started", "promoted"]

    wait_until(lambda: caller.view(run).is_terminal, timeout_s=200, what="the scheduled run that sees it")
    after = caller.view(run)
    assert after.state == "rolled_back"
    assert "Monitoring: " in after.cause
    assert "HighErrorRate" in after.cause or "immediate_error_ratio" in after.cause
    wait_until(lambda: site.owner() is None, timeout_s=10, what="the lock to be free")
    assert site.application.observed() == site.before
    assert_everybody_knows(surroundings, ("rolled back", "incident"))
    wait_until(
        lambda: "P2" in site.artifact(f"incident-{after.opened.deployment}"),
        timeout_s=20,
        what="the incident",
    )
    wait_until(lambda: failed_monitoring(site, after), timeout_s=20, what="the run to say so")


def gate(view: JournalView) -> Any:
    assert view.gate
    return view.gate


def assert_went_the_whole_way(view: JournalView) -> None:
    """Everything that the guide asks for is in the journal."""
    assert view.state == "promoted"
    found = {check.id: check.result for check in gate(view).checks}
    assert {found[item.id] for item in GUIDE} == {Result.PASSED, Result.NOT_APPLICABLE, Result.WAIVED}
    assert [check.id for check in gate(view).checks if check.result is Result.WAIVED] == ["offsite-backup"]
    assert view.approval
    assert view.approval.by == "Ada Lovelace"
    before, after = view.baseline("before"), view.baseline("after")
    assert before
    assert after
    assert before.window_s == after.window_s
    for name in ("cpu_ratio", "memory_ratio", "error_ratio", "latency_p50_s", ERROR_RATIO.name):
        assert before.reading(name).status == "ok", before.reading(name)
    assert before.reading("gpu_ratio").status in ("absent", "ok")
    (backup,) = view.backups
    assert backup.verified.result is Result.PASSED
    assert view.comparisons
    assert view.monitoring
    assert view.monitoring.runs == 6
    assert judge_final(view, Stage.PRODUCTION).blocking == ()


def assert_everybody_knows(surroundings: LabSurroundings, events: tuple[str, ...]) -> None:
    """Wait until people were told of these: the process that ended it tells them last."""

    def untold() -> list[str]:
        titles = [str(message.get("title", "")).lower() for message in surroundings.webhook.received]
        return [event for event in events if not any(event in title for title in titles)]

    wait_until(lambda: not untold(), timeout_s=30, what=f"people to be told of {events}")


def failed_monitoring(site: Site, view: JournalView) -> bool:
    """Whether the monitoring run that took it back says so by its state."""
    wanted = {"flow_runs": {"tags": {"all_": ["sovereign-monitor", view.opened.deployment]}}}
    runs = site.ask("POST", "flow_runs/filter", wanted).json()
    return any(run["state_type"] == "FAILED" and "rolled_back" in run["state"]["message"] for run in runs)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "outage",
    [
        pytest.param(Outage("roll_back", patience_s=6, ends="rolled_back"), id="policy roll_back"),
        pytest.param(Outage("go_on", patience_s=6, ends="promoted"), id="policy go_on"),
        pytest.param(
            Outage("roll_back", patience_s=40, ends="promoted", is_over_soon=True), id="back in time"
        ),
    ],
)
def test_prometheus_killed_in_mid_canary_is_held_told_and_decided_by_policy(
    site: Site, surroundings: LabSurroundings, outage: Outage
) -> None:
    surroundings.save(staging=STAGED, production=SHORT)
    Environment(
        prometheus="lab",
        alertmanager="lab",
        notifications="lab",
        metrics=[ERROR_RATIO],
        monitoring=SHORT,
        baseline_s=5.0,
        provider_patience_s=outage.patience_s,
        on_provider_error=outage.policy,
    ).save("metered", overwrite=True)
    slow = EASY.model_copy(update={"min_observation_s": 5.0})
    strategy = Canary(steps_percent=(50, 100), watch=Watching(tick_s=0.5, deadline_s=60, limits=slow))
    process = site.deploying(site.change(), strategy, where="metered")
    site.wait_until_halfway("2.0.0", process)
    surroundings.monitoring.prometheus.kill()
    wait_until(lambda: bool(notes(site, "held")), timeout_s=PATIENCE_S, what="the hold", process=process)
    assert site.application.observed()["route_map"] == {site.application.name: "blue:green:5000"}
    alertmanager = surroundings.monitoring.alertmanager.url
    wait_until(lambda: held_alert(alertmanager), timeout_s=20, what="the alert")
    if outage.is_over_soon:
        time.sleep(2)
        surroundings.monitoring.prometheus.start()
    site.ended(process, within_s=2 * PATIENCE_S)

    view = site.view()
    assert view.state == outage.ends, view.reason
    assert_everybody_knows(surroundings, ("held",))
    if outage.ends == "rolled_back":
        assert "PROVIDER_ERROR" in view.cause
        assert "patience is over" in view.cause
        assert site.application.observed() == site.before
    assert bool(notes(site, "released")) is outage.is_over_soon


def notes(site: Site, about: str) -> list[str]:
    entries = site.view().entries
    return [entry.words for entry in entries if isinstance(entry, Noted) and entry.about == about]


def held_alert(alertmanager: str) -> bool:
    alerts = httpx.get(f"{alertmanager}/api/v2/alerts", timeout=5).json()
    return any(alert["labels"]["alertname"] == "SovereignDeploymentHeld" for alert in alerts)
