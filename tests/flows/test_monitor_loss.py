"""Monitoring calls for a way back that loses data: a person is asked, and nothing is lost before that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from blocks.environment import Environment
from flows.delayed_rollback import delayed_roll_back
from flows.deploy import deploy
from flows.monitor import TakenBackByMonitoringError, monitor
from lab.database import LabDatabase
from lab.database_migrations import good_contract
from lab.prefect_server import Worker
from lab.register import save_database
from lab.zfs import LabZfs
from rules.change import Served
from rules.cluster_loss import LossNotAcceptedError
from rules.entries import Noted
from rules.environment import Monitoring
from rules.journal import JournalView
from rules.strategy import InPlace
from tasks.assessment import assess
from tasks.monitoring import cancel_monitoring
from tasks.prefect_api import PrefectApi
from tasks.services import Services
from tests.flows.site import Site
from tests.tasks.backing_up import one_at_a_time, pool

pytestmark = one_at_a_time
__all__ = ["pool"]  # a fixture

QUICK = Monitoring(every_s=3, for_s=60, probe_every_s=0.3, tolerated_probes=1)
LIVE = ("blue-1", "blue-2")


@pytest.fixture(scope="module")
def lab(pool: LabZfs, tmp_path_factory: pytest.TempPathFactory, lab_cache: Path) -> Iterator[LabDatabase]:
    with LabDatabase(tmp_path_factory.mktemp("memories"), zfs=pool, cache=lab_cache) as running:
        yield running


class Bleeding(NamedTuple):
    """A promoted schema change whose only way back is a snapshot, and commits that came after it."""

    site: Site
    lab: LabDatabase
    name: str

    def view(self) -> JournalView:
        return self.site.view()

    def proposals(self) -> list[dict[str, Any]]:
        wanted = {"flow_runs": {"name": {"any_": [f"proposal for {self.name}"]}}}
        runs: list[dict[str, Any]] = self.site.ask("POST", "flow_runs/filter", wanted).json()
        return runs

    def seen(self) -> tuple[Any, ...]:
        """Return what a way back would change: the commit, the column, and how long the server has run."""
        (row,) = self.lab.query(
            "SELECT (SELECT count(*) FROM memories WHERE content = 'after the snapshot'), "
            "(SELECT count(*) FROM pg_attribute WHERE attrelid = 'memories'::regclass "
            "AND attname = 'source'), pg_postmaster_start_time()"
        )
        return row


@pytest.fixture
def bleeding(lab: LabDatabase, site: Site, tmp_path: Path, workers: list[Worker]) -> Iterator[Bleeding]:
    for worker in workers:
        worker.stop()
    save_database(lab.database)
    Environment(monitoring=QUICK).save("bleeding", overwrite=True)
    if site.ask("GET", "deployments/name/delayed-roll-back/delayed-roll-back").is_error:
        flow = site.ask("POST", "flows/", {"name": "delayed-roll-back"}).json()["id"]
        site.ask("POST", "deployments/", {"name": "delayed-roll-back", "flow_id": flow}).raise_for_status()
    change = good_contract(tmp_path / "m").change(
        lab.name, max_loss_s=0, phase="expand", serves=(Served(application=site.application.name),)
    )
    name = deploy(change, InPlace(), environment="bleeding").deployment
    lab.query("INSERT INTO memories (kind, content) VALUES ('by hand', 'after the snapshot')")
    yield Bleeding(site, lab, name)
    with PrefectApi(site.settings()) as api:
        cancel_monitoring(api, name)


def test_a_way_back_that_loses_more_than_it_may_is_proposed_and_nothing_is_changed(
    bleeding: Bleeding,
) -> None:
    before = bleeding.seen()
    assert before[:2] == (1, 0)
    for instance in LIVE:
        bleeding.site.application.kill(instance)
    try:
        for number in range(2):  # the second finds it as bad, and asks for nothing new
            with pytest.raises(TakenBackByMonitoringError, match="lose more than it may without asking"):
                monitor(bleeding.name, number)
    finally:
        for instance in LIVE:
            bleeding.site.serve_again(instance)

    view = bleeding.view()
    assert view.state == "promoted"
    assert [seen.action for seen in view.monitored] == ["immediate", "immediate"]
    assert bleeding.seen() == before
    notes = [entry for entry in view.entries if isinstance(entry, Noted)]
    (note,) = [note for note in notes if note.about == "rollback_proposed"]
    assert not [note for note in notes if note.about in {"loss", "rollback_refused"}]
    assert "most of the live side failed" in note.words
    (proposal,) = bleeding.proposals()
    assert proposal["parameters"]["approval"] is True
    # what the person is shown
    (loss,) = assess(view, Services(), bleeding.site.settings()).losses
    assert loss.lost_s > 0
    assert "commits" in loss.in_words

    # without a person it does not happen either
    with pytest.raises(LossNotAcceptedError, match="nothing was changed"):
        delayed_roll_back(bleeding.name, "answers are slow", approval=False)
    assert bleeding.view().state == "promoted"
    assert bleeding.seen() == before
