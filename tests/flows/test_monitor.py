"""After a promotion: runs that watch without a gap, take back what turns bad, and end by themselves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from blocks.environment import Environment
from flows.deploy import deploy
from flows.monitor import TakenBackByMonitoringError, monitor
from lab.prefect_server import Worker
from lab.processes import wait_until
from lab.prometheus import LabAlertmanager
from lab.releases import GOOD, Behaviour
from rules.entries import Monitored, Noted, line
from rules.environment import Monitoring
from rules.journal import JournalView
from rules.monitoring import monitor_times
from rules.strategy import BlueGreen, Watching
from tasks import haproxy
from tasks.journal import journals
from tasks.monitor import Known
from tasks.monitoring import cancel_monitoring, schedule_monitoring
from tasks.prefect_api import PrefectApi
from tasks.recover import recover_all
from tests.flows.site import EASY, Site
from tests.requirements import need

QUICK = BlueGreen(watch=Watching(tick_s=0.2, deadline_s=20, limits=EASY))
#: What else runs on the machine moves these.
HOST = ("cpu_ratio ", "memory_ratio ", "disk_ratio ", "network_bytes_per_s ")
#: 24 hours in seconds: the same number of windows would only take longer.
SHORT = Monitoring(every_s=3, for_s=6, probe_every_s=1, min_requests=20)


@pytest.fixture
def watched(site: Site, workers: list[Worker]) -> Iterator[Site]:
    """A site in an environment that is watched, by hand: nobody runs what is scheduled."""
    for worker in workers:
        worker.stop()
    save(SHORT)
    made = []
    for name in ("monitor", "delayed-roll-back"):
        if site.ask("GET", f"deployments/name/{name}/{name}").is_success:
            continue
        flow = site.ask("POST", "flows/", {"name": name}).json()["id"]
        of_flow = {"name": name, "flow_id": flow}
        made.append(site.ask("POST", "deployments/", of_flow).raise_for_status().json()["id"])
    yield site
    for one in made:  # with it each promotion schedules 96 runs
        site.ask("DELETE", f"deployments/{one}").raise_for_status()
    with PrefectApi(site.settings()) as api:
        for view in site.views():
            cancel_monitoring(api, view.opened.deployment)


def save(policy: Monitoring) -> None:
    Environment(monitoring=policy).save("watched", overwrite=True)


def promoted(site: Site, behaviour: Behaviour = GOOD) -> JournalView:
    """Deploy a release into the watched environment."""
    deploy(site.change(behaviour=behaviour), QUICK, environment="watched")
    return site.view()


def monitor_all(deployment: str, *, windows: int) -> None:
    """Watch through each window, one after the other."""
    for number in range(windows):
        monitor(deployment, number)


def waiting(site: Site, deployment: str) -> list[dict[str, Any]]:
    """Return the monitoring runs that have not begun, earliest first."""
    wanted = {"flow_runs": {"tags": {"all_": ["sovereign-monitor", deployment]}}, "limit": 200}
    runs = site.ask("POST", "flow_runs/filter", wanted).json()
    return sorted(
        (run for run in runs if run["state_type"] == "SCHEDULED"), key=lambda run: run["expected_start_time"]
    )


def test_a_promotion_schedules_runs_that_cover_the_time_without_a_gap(watched: Site) -> None:
    save(Monitoring())
    view = promoted(watched)
    promoted_at = view.moved_at("promoted")
    assert promoted_at
    runs = waiting(watched, view.opened.deployment)
    assert len(runs) == 96
    starts = [datetime.fromisoformat(run["expected_start_time"]) for run in runs]
    assert starts == [window.start for window in monitor_times(promoted_at, Monitoring())]
    assert starts[-1] + timedelta(seconds=900) == promoted_at + timedelta(hours=24)
    assert view.monitoring
    assert view.monitoring.runs == 96


def test_scheduling_again_makes_no_second_runs(watched: Site) -> None:
    view = promoted(watched)
    (journal,) = journals(watched.journal_dir)
    without = [entry for entry in view.entries if entry.entry != "monitoring_scheduled"]
    journal.path.write_bytes(b"".join(line(entry) for entry in without))
    with PrefectApi(watched.settings()) as api:
        assert schedule_monitoring(journal, api, watched.settings())
    assert len(waiting(watched, view.opened.deployment)) == 2


def test_what_is_good_to_the_end_is_completed_by_its_last_run(watched: Site) -> None:
    # longer than most: on a busy machine the answers of an instant tell little of how long they take
    Environment(monitoring=SHORT, baseline_s=2.0).save("watched", overwrite=True)
    view = promoted(watched)
    name = view.opened.deployment
    for number in range(2):
        monitor(name, number)
    after = watched.view()
    assert after.state == "completed"
    warned = [reason for one in after.monitored for reason in one.reasons if one.action != "fine"]
    # a busy machine is worth a warning; of the release itself nothing is
    assert all(reason.startswith(HOST) for reason in warned), warned
    first, second = after.monitored
    assert second.since <= first.at  # no gap
    assert first.requests + second.requests > 200
    assert first.errors + second.errors == 0
    assert "watched to the end" in watched.artifact(f"record-{name}")


def test_each_answer_is_counted_once_over_all_runs(watched: Site) -> None:
    view = promoted(watched)
    began = view.monitoring
    assert began
    assert began.counters
    for number in range(2):
        monitor(view.opened.deployment, number)
    first, last = watched.view().monitored
    assert last.counters
    assert first.requests + last.requests == last.counters.since(began.counters).requests


def test_a_release_that_turns_bad_is_taken_back_at_once(watched: Site) -> None:
    save(SHORT.model_copy(update={"for_s": 60}))
    view = promoted(watched, Behaviour(error_ratio=0.3, errors_after_s=8))
    with pytest.raises(TakenBackByMonitoringError, match=r"above immediate_error_ratio 0\.1"):
        monitor_all(view.opened.deployment, windows=20)

    after = watched.view()
    assert after.state == "rolled_back"
    assert after.cause.startswith("Monitoring: ")
    assert watched.application.observed() == watched.before
    assert watched.owner() is None
    assert waiting(watched, view.opened.deployment) == []
    assert "P2" in watched.artifact(f"incident-{view.opened.deployment}")


@pytest.mark.parametrize("began", ["before the rollout", "in its last seconds", "after the promotion"])
def test_a_critical_alert_since_the_rollout_takes_it_back(watched: Site, tmp_path: Path, began: str) -> None:
    need("prometheus-alertmanager", package="prometheus-alertmanager")
    with LabAlertmanager(tmp_path / "alertmanager") as alertmanager:
        alertmanager.block.save("watched", overwrite=True)
        Environment(alertmanager="watched", monitoring=SHORT).save("watched", overwrite=True)
        view = promoted(watched)
        promoted_at = view.moved_at("promoted")
        assert promoted_at
        moments = {
            "before the rollout": view.intents[0].at - timedelta(seconds=5),
            "in its last seconds": promoted_at - timedelta(milliseconds=1),  # nobody looks that late
            "after the promotion": promoted_at + timedelta(milliseconds=1),
        }
        labels = {"alertname": "HighErrorRate", "severity": "critical"}
        alert = {"labels": labels, "startsAt": moments[began].isoformat()}
        httpx.post(f"{alertmanager.url}/api/v2/alerts", json=[alert], timeout=5).raise_for_status()
        if began == "before the rollout":
            monitor(view.opened.deployment, 0)
            assert watched.view().state == "promoted"
            return
        with pytest.raises(TakenBackByMonitoringError, match="HighErrorRate"):
            monitor(view.opened.deployment, 0)
    assert watched.view().state == "rolled_back"
    assert watched.application.observed() == watched.before


def test_instances_that_die_are_noticed_without_any_request(watched: Site) -> None:
    save(SHORT.model_copy(update={"min_requests": 10_000, "probe_every_s": 0.3, "tolerated_probes": 1}))
    view = promoted(watched)
    watched.application.kill("green-1")
    with pytest.raises(TakenBackByMonitoringError, match="green-1: most of the live side failed"):
        monitor(view.opened.deployment, 0)
    assert watched.view().state in ("rolled_back", "rollback_failed")
    watched.serve_again("green-1")


def test_a_rollback_that_would_lead_over_somebodys_changes_is_refused_and_people_are_called(
    watched: Site,
) -> None:
    save(SHORT.model_copy(update={"for_s": 60}))
    view = promoted(watched, Behaviour(error_ratio=0.4, errors_after_s=8))
    address = watched.application.haproxy.address
    haproxy.set_admin(address, "blue", "blue-2", "maint")  # somebody's, and none of ours
    try:
        with pytest.raises(TakenBackByMonitoringError, match="the system has changed since it was"):
            monitor_all(view.opened.deployment, windows=20)
    finally:
        haproxy.set_admin(address, "blue", "blue-2", "ready")
    after = watched.view()
    assert after.state == "promoted"
    # the window in which the errors began may have proposed one
    (note,) = [e for e in after.entries if isinstance(e, Noted) and e.about == "rollback_refused"]
    assert "blue-2: balancer state is maint, not ready" in note.words


def test_what_is_not_urgent_is_proposed_to_a_person_once(watched: Site) -> None:
    patient = {"immediate_error_ratio": 0.9, "delayed_error_ratio": 0.1}
    save(SHORT.model_copy(update={**patient, "for_s": 60}))
    view = promoted(watched, Behaviour(error_ratio=0.4, errors_after_s=8))
    name = view.opened.deployment
    number = 0
    while not any(entry.entry == "noted" for entry in watched.view().entries):
        monitor(name, number)
        number += 1
    monitor(name, number)  # is as bad, and asks for nothing new
    after = watched.view()
    assert after.state == "promoted"
    assert [entry.entry for entry in after.entries].count("noted") == 1
    wanted = {"flow_runs": {"name": {"any_": [f"proposal for {name}"]}}}
    (proposal,) = watched.ask("POST", "flow_runs/filter", wanted).json()
    assert proposal["parameters"]["approval"] is True
    assert "above delayed_error_ratio" in proposal["parameters"]["reason"]


def test_runs_of_a_deployment_that_is_over_end_by_themselves(watched: Site) -> None:
    first = promoted(watched)
    deploy(watched.change("3.0.0"), QUICK, environment="watched")
    assert watched.views()[0].state == "superseded"
    assert waiting(watched, first.opened.deployment) == []
    assert "there is nothing to watch" in monitor(first.opened.deployment, 1)


def test_a_run_that_begins_late_looks_once_over_all_that_was_missed(watched: Site) -> None:
    view = promoted(watched)
    time.sleep(SHORT.for_s)
    monitor(view.opened.deployment, 0)
    (entry,) = watched.view().monitored
    assert entry.requests > 200
    assert entry.since <= view.entries[-1].at


def test_a_killed_run_is_continued_by_the_next(watched: Site) -> None:
    save(SHORT.model_copy(update={"every_s": 20, "for_s": 22}))  # long enough to be killed in
    view = promoted(watched)
    process = watched.run("flows.monitor.monitor", {"deployment": view.opened.deployment, "number": 0})
    (journal,) = journals(watched.journal_dir)
    state = journal.directory / "monitoring.json"
    wait_until(state.exists, timeout_s=30, what="a first look", process=process)
    process.kill()
    known = Known.model_validate_json(state.read_bytes())
    monitor(view.opened.deployment, 1)
    (entry,) = [entry for entry in watched.view().entries if isinstance(entry, Monitored)]
    assert entry.since >= known.at


def test_who_died_between_promotion_and_monitoring_is_made_up_for(watched: Site) -> None:
    view = promoted(watched)
    (journal,) = journals(watched.journal_dir)
    with PrefectApi(watched.settings()) as api:
        cancel_monitoring(api, view.opened.deployment)
    kept = [entry for entry in view.entries if entry.entry != "monitoring_scheduled"]
    journal.path.write_bytes(b"".join(line(entry) for entry in kept))
    recover_all(by="test", settings=watched.settings())
    assert watched.view().monitoring
    assert len(waiting(watched, view.opened.deployment)) == 2


def test_a_promotion_whose_time_is_over_is_completed_without_its_runs(watched: Site) -> None:
    save(Monitoring(every_s=1, for_s=1, probe_every_s=0.1))
    promoted(watched)
    time.sleep(1.5)
    recover_all(by="test", settings=watched.settings())
    assert watched.view().state == "completed"
