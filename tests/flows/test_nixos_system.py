"""Releases of NixOS systems on real profiles and channels: bad ones come back byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flows.deploy import deploy
from flows.guard import TakenBackError
from flows.nixos_system import update_systems
from flows.recover import roll_back
from lab.nixos import FIRST_VERSION, NEXT_VERSION, LabNixos
from lab.prefect_server import PrefectServer
from lab.register import save_blocks
from rules.journal import JournalView
from rules.strategy import InPlace, Rolling, Strategy
from rules.system_change import NixosChannel, NixosClosures, SystemRelease
from tasks.finish import finish_due
from tasks.settings import Settings
from tests.flows.host import become_host, complete, notes_of, views_of
from tests.requirements import need

HOSTS = ("alpha", "beta")
ALPHA = InPlace(instance="alpha")
BOTH = Rolling(observe_s=0.2)


class Hosts(NamedTuple):
    """Two hosts, known to Prefect."""

    lab: LabNixos
    journal_dir: Path
    before: dict[str, Any]

    def change(self, **options: Any) -> SystemRelease:
        """Return the release of systems that are built already, with the same options for both hosts."""
        return self.closures(dict.fromkeys(HOSTS, options))

    def closures(self, options: dict[str, dict[str, Any]]) -> SystemRelease:
        paths = {name: self.lab.build(name, **options[name]) for name in HOSTS}
        return self.release(source=NixosClosures(paths=paths))

    def release(self, **fields: Any) -> SystemRelease:
        return SystemRelease(hosts=self.lab.fleet.application, release=NEXT_VERSION, **fields)

    def deploy(self, change: SystemRelease, strategy: Strategy = ALPHA) -> None:
        deploy(change, strategy, environment="nixos")

    def observed(self) -> dict[str, Any]:
        return {name: self.lab.observed(name) for name in HOSTS}

    def view(self) -> JournalView:
        return views_of(self.journal_dir)[-1]

    def is_new(self, name: str, change: SystemRelease) -> bool:
        """Whether a host boots and runs what a release of closures says."""
        assert isinstance(change.source, NixosClosures)
        seen, wanted = self.lab.observed(name), change.source.paths[name]
        return {seen["profile"], seen["current"], seen["boot_default"]} == {wanted}


@pytest.fixture
def hosts(prefect_api: PrefectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    need("nix-env", package="nix-bin")
    become_host(monkeypatch, tmp_path / "journal", environment="nixos")
    with LabNixos(tmp_path / "nixos", hosts=HOSTS) as lab:
        save_blocks(lab.fleet)
        yield Hosts(lab, tmp_path / "journal", {name: lab.observed(name) for name in HOSTS})


def test_a_system_from_the_channel_is_promoted_and_comes_back_with_its_channel(hosts: Hosts) -> None:
    hosts.lab.publish_channel(NEXT_VERSION)
    hosts.lab.configure("alpha", restarts=("web.service",), packages=("openssl-3.0.14",))
    hosts.deploy(hosts.release(source=NixosChannel()))
    view = hosts.view()
    assert view.state == "promoted", view.reason
    seen = hosts.lab.observed("alpha")
    assert seen["profile"] == seen["current"] == seen["boot_default"] != hosts.before["alpha"]["profile"]
    assert seen["channels"] != hosts.before["alpha"]["channels"]
    assert seen["guard_units"] == ()
    assert view.plan is not None
    shown = " ".join((*view.plan.notes, *view.plan.interruptions))
    assert "openssl" in shown
    assert "web.service" in shown
    assert any(NEXT_VERSION in words for words in notes_of(view, "system_verified"))

    roll_back(view.opened.deployment, "a person wants it back")
    assert hosts.view().state == "rolled_back", hosts.view().reason
    assert hosts.observed() == hosts.before


def test_a_fleet_is_rolled_host_by_host_and_what_was_kept_goes_after_the_bake(hosts: Hosts) -> None:
    change = hosts.change()
    hosts.deploy(change, BOTH)
    assert hosts.view().state == "promoted", hosts.view().reason
    assert all(hosts.is_new(name, change) for name in HOSTS)
    assert finish_due(Settings()) == ()
    assert all(hosts.lab.observed(name)["roots"] for name in HOSTS)
    complete(hosts.journal_dir)
    assert len(finish_due(Settings())) == len(HOSTS)
    assert not any(hosts.lab.observed(name)["roots"] for name in HOSTS)


def test_a_unit_that_fails_on_the_second_host_takes_both_back(hosts: Hosts) -> None:
    change = hosts.closures({"alpha": {}, "beta": {"failing_units": ("web.service",)}})
    with pytest.raises(TakenBackError, match=r"web\.service.*Rolled back and verified"):
        hosts.deploy(change, BOTH)
    assert hosts.view().state == "rolled_back"
    assert hosts.observed() == hosts.before


def test_another_kernel_is_booted_and_the_old_one_again_on_the_way_back(hosts: Hosts) -> None:
    change = hosts.change(kernel="6.12.40")
    hosts.deploy(change)
    view = hosts.view()
    assert view.state == "promoted", view.reason
    assert hosts.is_new("alpha", change)
    assert hosts.lab.observed("alpha")["booted"] == hosts.lab.observed("alpha")["profile"]
    roll_back(view.opened.deployment, "a person wants it back")
    assert hosts.view().state == "rolled_back", hosts.view().reason
    assert hosts.observed() == hosts.before


def test_a_dead_channel_server_is_found_out_before_anything_is_touched(hosts: Hosts) -> None:
    hosts.lab.stop_channel_server()
    with pytest.raises(TakenBackError, match="Nothing was touched"):
        hosts.deploy(hosts.release(source=NixosChannel()))
    assert hosts.view().intents == ()
    assert hosts.observed() == hosts.before


def test_a_system_that_is_not_what_was_asked_for_is_refused(hosts: Hosts) -> None:
    paths = {name: hosts.lab.build(name, version="26.05.3000.cccccccccccc") for name in HOSTS}
    with pytest.raises(TakenBackError, match=r"26\.05\.3000.*Nothing was touched"):
        hosts.deploy(hosts.release(source=NixosClosures(paths=paths)), BOTH)
    assert hosts.observed() == hosts.before


def test_an_update_flow_alone_brings_one_host_and_says_when_there_is_nothing_to_do(hosts: Hosts) -> None:
    change = hosts.change()
    assert update_systems(change, ALPHA).state == "promoted"
    assert hosts.is_new("alpha", change)
    assert hosts.lab.observed("beta") == hosts.before["beta"]
    again = update_systems(change, ALPHA)
    assert (again.state, FIRST_VERSION in again.reason) == ("aborted", False)
