"""Releases of a real Ray cluster's nodes under a running workload: no task is lost, bad ones come back."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from flows.deploy import deploy
from flows.guard import TakenBackError
from flows.ray_node import update_ray_nodes
from flows.recover import roll_back
from lab.prefect_server import PrefectServer
from lab.ray_cluster import FIRST_RELEASE, LabRay, ObservedNode, RayBehaviour
from lab.ray_workload import RayWorkload
from lab.register import save_blocks
from rules.change import RayRelease
from rules.journal import JournalView
from rules.strategy import BlueGreen, InPlace, Rolling, Strategy
from tests.flows.host import become_host, notes_of, views_of
from tests.requirements import need_ray

log = logging.getLogger(__name__)
pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(600)]
BATCHES = Rolling(observe_s=0.3)


class Cluster(NamedTuple):
    """A cluster at work, known to Prefect."""

    lab: LabRay
    journal_dir: Path
    before: dict[str, ObservedNode]

    def change(self, release: str = "r2", behaviour: RayBehaviour = "good", **fields) -> RayRelease:
        archive = self.lab.archive(release, behaviour)
        return RayRelease(cluster=self.lab.name, release=release, artefact=archive, **fields)

    def deploy(self, change: RayRelease, strategy: Strategy = BATCHES) -> None:
        began = time.monotonic()
        try:
            deploy(change, strategy, environment="ray")
        finally:
            log.info("%s: %.1f s", change.release, time.monotonic() - began)

    def views(self) -> list[JournalView]:
        return views_of(self.journal_dir)

    def view(self) -> JournalView:
        return self.views()[-1]

    def notes(self, about: str) -> list[str]:
        return notes_of(self.view(), about)

    def releases(self) -> dict[str, str]:
        seen = self.lab.snapshot()
        return {name: node["labels"]["release"] for name, node in seen.items() if node["labels"]}


@pytest.fixture(scope="module")
def kept_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabRay]:
    """A head, two workers and a spare for all tests here: each leaves them as they were."""
    need_ray()
    with LabRay(tmp_path_factory.mktemp("ray"), workers=2, spares=1) as running:
        yield running


@pytest.fixture
def cluster(
    kept_cluster: LabRay, prefect_api: PrefectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    """The cluster; a deployment that a test leaves is taken back."""
    become_host(monkeypatch, tmp_path / "journal", environment="ray")
    save_blocks(kept_cluster.fleet)
    running = Cluster(kept_cluster, tmp_path / "journal", kept_cluster.snapshot())
    yield running
    for view in running.views():
        if view.state == "promoted":
            roll_back(view.opened.deployment, "the test is over")
    assert kept_cluster.snapshot() == running.before


def test_a_rolling_update_loses_no_task_and_its_way_back_neither(cluster: Cluster) -> None:
    with RayWorkload(cluster.lab, actors=2) as work:
        cluster.deploy(cluster.change())
        view = cluster.view()
        assert view.state == "promoted", view.reason
        assert cluster.releases() == {"node-1": "r2", "node-2": "r2"}
        for words in (*cluster.notes("drained"), *cluster.notes("node_verified"), *cluster.notes("restart")):
            log.info("%s", words)

        roll_back(view.opened.deployment, "a person wants it back")
        assert cluster.view().state == "rolled_back"
        assert cluster.lab.snapshot() == cluster.before
        report = work.finish()
    log.info("%s", report)
    assert report.errors == ()
    assert report.missing == 0
    assert report.done == report.submitted > 0


@pytest.mark.parametrize("behaviour", ["import error", "crash at start"])
def test_a_bad_release_is_taken_back_and_no_task_is_lost(cluster: Cluster, behaviour: RayBehaviour) -> None:
    with RayWorkload(cluster.lab) as work:
        with pytest.raises(TakenBackError, match="Rolled back and verified"):
            cluster.deploy(cluster.change("r3", behaviour))
        assert cluster.lab.snapshot() == cluster.before
        report = work.finish()
    log.info("%s: %s", behaviour, report)
    assert (report.errors, report.missing) == ((), 0)
    # the second node was never touched
    assert not any(
        getattr(i.undo, "instance", "") == "node-2" for i in cluster.view().intents if i.number > 1
    )


def test_nodes_are_added_with_the_new_release_and_others_drained_and_taken_out(cluster: Cluster) -> None:
    with RayWorkload(cluster.lab) as work:
        cluster.deploy(cluster.change(nodes=("node-2", "node-3")))
        assert cluster.view().state == "promoted", cluster.view().reason
        assert cluster.releases() == {"node-2": "r2", "node-3": "r2"}
        roll_back(cluster.view().opened.deployment, "a person wants it back")
        assert cluster.lab.snapshot() == cluster.before
        report = work.finish()
    assert (report.errors, report.missing) == ((), 0)


def test_an_update_flow_alone_updates_one_node(cluster: Cluster) -> None:
    record = update_ray_nodes(cluster.change(), InPlace(instance="node-2"))
    assert record.state == "promoted"
    assert cluster.releases() == {"node-1": FIRST_RELEASE, "node-2": "r2"}


def test_an_actor_that_ray_would_not_start_again_stops_the_deployment(cluster: Cluster) -> None:
    with (
        RayWorkload(cluster.lab, mortal=True),
        pytest.raises(TakenBackError, match=r"for good.*mortal.*Nothing was touched"),
    ):
        cluster.deploy(cluster.change())
    assert cluster.view().intents == ()


def test_tasks_that_take_longer_than_the_drain_stop_it_and_are_not_lost(cluster: Cluster) -> None:
    fleet = cluster.lab.fleet
    short = fleet.ray_cluster.model_copy(update={"drain_s": 2.0})
    save_blocks(fleet.model_copy(update={"ray": short}))
    with RayWorkload(cluster.lab, task_s=8.0) as work:
        with pytest.raises(TakenBackError, match="still runs tasks after"):
            cluster.deploy(cluster.change())
        assert cluster.lab.snapshot() == cluster.before
        report = work.finish()
    # tasks with retries are repeated elsewhere, if the way back cannot wait for them either
    assert (report.errors, report.missing) == ((), 0)


def test_sides_make_no_sense_for_nodes_and_nothing_to_do_is_said(cluster: Cluster) -> None:
    with pytest.raises(TakenBackError, match="no sides for blue_green"):
        cluster.deploy(cluster.change(), BlueGreen())
    cluster.deploy(cluster.change(FIRST_RELEASE))
    assert cluster.view().state == "aborted"
    assert "in place already" in cluster.view().reason
