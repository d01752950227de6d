"""Systems that were kept for a way back are let go once nothing leads back, each host by itself."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import pytest

from lab.ports import LOCALHOST, free_port, give_back
from rules.entries import Planned, line
from rules.fleet import Fleet, Instance
from rules.hosts import HostAddress
from rules.nixos import NixosPlaces
from rules.nixos_actions import ReleaseRoots
from rules.strategy import Rolling
from tasks.finish import finish_due
from tasks.journal import JournalFile
from tasks.nixos_roots import roots_of
from tasks.settings import Settings
from tests.requirements import need
from tests.rules import nixos_hosts
from tests.tasks.deploying import opening, settings_in
from tests.tasks.releasing import moved

NAMES = ("node-1", "node-2")


class Kept(NamedTuple):
    """What a deployment has kept on two hosts, which are directories here, and its journal."""

    journal: JournalFile
    settings: Settings
    fleet: Fleet

    @property
    def left(self) -> list[str]:
        """The hosts that still have its roots."""
        directories = {one.name: Path(roots_of(one, self.journal.deployment)) for one in self.fleet.instances}
        return [name for name, directory in directories.items() if directory.exists()]

    def make(self) -> None:
        """Have roots on each host, as if a deployment had made them."""
        for one in self.fleet.instances:
            root = Path(roots_of(one, self.journal.deployment), "before-0")
            root.parent.mkdir(parents=True)
            root.symlink_to(nixos_hosts.system(one.name, 1))


def host(name: str, directory: Path) -> Instance:
    made = nixos_hosts.host(name, places=NixosPlaces(state=str(directory / name)))
    return made.model_copy(update={"host": HostAddress(name=name)})


def kept_on(fleet: Fleet, directory: Path, *states: str) -> Kept:
    settings, opened = settings_in(directory), opening(fleet, target="nixos-nodes")
    plan = nixos_hosts.planned(Rolling(), nixos_hosts.bare(2))
    plan = plan.model_copy(update={"finish": tuple(ReleaseRoots(instance=name) for name in NAMES)})
    journal = JournalFile(settings.journal_dir, opened.deployment)
    journal.adopt(line(opened) + line(Planned(plan=plan)))
    moved(journal, *states)  # type: ignore[arg-type]
    return Kept(journal, settings, fleet)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(application="nodes", instances=tuple(host(name, tmp_path) for name in NAMES))


def test_systems_are_kept_as_long_as_something_leads_back_and_no_longer(fleet: Fleet, tmp_path: Path) -> None:
    kept = kept_on(fleet, tmp_path, "promoted")
    kept.make()
    assert finish_due(kept.settings) == ()
    assert kept.left == list(NAMES)
    moved(kept.journal, "completed")
    assert len(finish_due(kept.settings)) == len(NAMES)
    assert kept.left == []
    assert finish_due(kept.settings) == ()
    assert finish_due(kept.settings, again=True) == (), "a snapshot of a database brings no roots back"


def test_a_later_change_of_the_same_hosts_keeps_them_through_its_own_bake(
    fleet: Fleet, tmp_path: Path
) -> None:
    kept = kept_on(fleet, tmp_path, "promoted", "superseded")
    kept.make()
    later = kept_on(fleet, tmp_path, "promoted")
    assert finish_due(kept.settings) == ()
    assert kept.left == list(NAMES)
    moved(later.journal, "rolling_back", "rolled_back")
    assert finish_due(kept.settings)
    assert kept.left == []


def test_a_host_that_is_gone_for_ever_keeps_no_other_waiting(
    fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    need("ssh", package="openssh-client")
    port = free_port()
    address = HostAddress(name="node-1", address=LOCALHOST, port=port)
    gone = fleet.instances[0].model_copy(update={"host": address})
    kept = kept_on(
        fleet.model_copy(update={"instances": (gone, fleet.instances[1])}),
        tmp_path,
        "promoted",
        "completed",
    )
    kept.make()
    try:
        with caplog.at_level(logging.WARNING):
            assert len(finish_due(kept.settings)) == 1
    finally:
        give_back(port)
    assert kept.left == ["node-1"]
    assert "is still there and is removed later" in caplog.text
