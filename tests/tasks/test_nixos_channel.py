"""A real channel of a NixOS host: looked at, updated and put back, with and without its server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.nixos import FIRST_VERSION, NEXT_VERSION, LabNixos
from rules.errors import InvalidRequestError, StepFailedError, UndoFailedError
from rules.nixos_actions import RestoreChannel, UpdateChannel
from rules.system_change import NixosChannel, NixosFlake, SystemRelease
from tasks.nixos_build import build_system, ensure_system
from tasks.nixos_channel import candidate, live_source, read_channel, restore_channel, update_channel
from tests.tasks.nixing import HOST, host, nixos

__all__ = ["nixos"]  # a fixture

LATER_VERSION = "26.05.3000.cccccccccccc"


@pytest.fixture
def lab(nixos: LabNixos) -> Iterator[LabNixos]:
    """A host with a channel at the first version, just updated; nobody waits for a server that is down."""
    configuration = nixos.directory / "etc" / "nix.conf"
    configuration.write_text(f"{configuration.read_text()}download-attempts = 1\n")
    nixos.publish_channel(FIRST_VERSION)
    nixos.configure(HOST)
    nixos.host(HOST).run("nix-channel", "--add", nixos.channel_url, "nixos")
    nixos.host(HOST).run("nix-channel", "--update", "nixos", "--option", "tarball-ttl", "0")
    assert version(nixos) == FIRST_VERSION
    return nixos


def version(lab: LabNixos) -> str:
    return Path(profile(lab), "nixos", "version").read_text()


def profile(lab: LabNixos) -> str:
    return host(lab).nixos_host.places.channels


def change(url: str = "", release: str = NEXT_VERSION) -> SystemRelease:
    return SystemRelease(hosts="lab-nixos", release=release, source=NixosChannel(url=url))


def update(lab: LabNixos, url: str = "") -> UpdateChannel:
    """Return the update that brings what the channel's server has now."""
    content = candidate(host(lab), change(url))[1]
    return UpdateChannel(instance=HOST, channel="nixos", url=url, content=content)


def recorded(lab: LabNixos) -> RestoreChannel:
    """Return the way back to what the channel is now."""
    facts = read_channel(host(lab))
    return RestoreChannel(
        instance=HOST, channel="nixos", generation=facts.generation, path=facts.path, url=facts.url
    )


# --- what it would bring -------------------------------------------------------------------------------


def test_what_a_channel_would_bring_is_fetched_without_touching_it(lab):
    before = lab.observed(HOST)
    directory, content = candidate(host(lab), change())
    assert (Path(directory) / "version").read_text() == FIRST_VERSION
    # published within the hour in which Nix would believe that it has the newest
    lab.publish_channel(NEXT_VERSION)
    newer, other = candidate(host(lab), change())
    assert (Path(newer) / "version").read_text() == NEXT_VERSION
    assert other != content
    assert lab.observed(HOST) == before


def test_another_address_is_asked_when_the_change_names_one(lab):
    url = lab.channel_url.replace("26.05", "unstable")
    lab.publish_channel(NEXT_VERSION)
    for address in (url, f"{url}/", f"{url}/nixexprs.tar.xz"):
        directory, _ = candidate(host(lab), change(address))
        assert (Path(directory) / "version").read_text() == NEXT_VERSION
    assert read_channel(host(lab)).url == lab.channel_url


def test_a_server_that_is_down_is_an_error_although_nix_has_an_old_answer(lab):
    candidate(host(lab), change())
    lab.stop_channel_server()
    with pytest.raises(
        InvalidRequestError, match=r"cannot fetch http://.*nixexprs\.tar\.xz.*Couldn't connect"
    ):
        candidate(host(lab), change())


def test_only_a_channels_release_has_a_candidate(lab):
    flake = change().model_copy(update={"source": NixosFlake(flake="path:/srv/infra")})
    with pytest.raises(InvalidRequestError, match="comes from no channel"):
        candidate(host(lab), flake)


def test_a_host_without_such_a_channel_has_no_way_back_and_is_refused(lab):
    with pytest.raises(
        InvalidRequestError, match=r"no channel unstable to update: .* names nixos, .*not there"
    ):
        read_channel(host(lab, channel="unstable"))


def test_the_live_channel_builds_what_its_candidate_built(lab):
    """So what a plan showed is what is deployed, to the byte of its path."""
    lab.publish_channel(NEXT_VERSION)
    directory, _ = candidate(host(lab), change())
    planned = build_system(host(lab), change(), channel=directory)
    assert NEXT_VERSION in planned
    assert live_source(host(lab)) != directory
    update_channel(host(lab), update(lab))
    assert live_source(host(lab)) == directory
    assert build_system(host(lab), change(), channel=None) == planned
    ensure_system(host(lab), change(), planned)


# --- its update ----------------------------------------------------------------------------------------


def test_an_update_brings_the_planned_content_and_repeating_it_does_nothing(lab):
    lab.publish_channel(NEXT_VERSION)
    action = update(lab)
    update_channel(host(lab), action)
    after = lab.observed(HOST)
    assert version(lab) == NEXT_VERSION
    lab.stop_channel_server()
    update_channel(host(lab), action)
    assert lab.observed(HOST) == after


def test_an_update_to_another_address_follows_it_from_then_on(lab):
    url = lab.channel_url.replace("26.05", "unstable")
    before = lab.observed(HOST)
    # the same content: that alone is no reason not to follow the address
    update_channel(host(lab), update(lab, url))
    assert lab.observed(HOST)["channel_urls"] == f"{url} nixos\n"
    assert before["channel_urls"] == f"{lab.channel_url} nixos\n"


def test_an_update_with_the_server_down_is_found_out_though_nix_channel_exits_0(lab):
    lab.publish_channel(NEXT_VERSION)
    action, before = update(lab), lab.observed(HOST)
    lab.stop_channel_server()
    assert lab.host(HOST).finish("nix-channel", "--update", "nixos").returncode == 0
    with pytest.raises(StepFailedError, match=r"was not changed, although nix-channel exited 0") as failed:
        update_channel(host(lab), action)
    assert "using cached version" in str(failed.value)
    assert lab.observed(HOST) == before
    assert version(lab) == FIRST_VERSION


def test_an_update_to_something_newer_than_planned_is_found_out(lab):
    lab.publish_channel(NEXT_VERSION)
    action = update(lab)
    lab.publish_channel(LATER_VERSION)
    with pytest.raises(StepFailedError, match="published anew since the plan was made"):
        update_channel(host(lab), action)
    assert version(lab) == LATER_VERSION


def test_an_update_from_an_address_that_has_nothing_says_that_the_system_was_not_touched(lab):
    action = UpdateChannel(instance=HOST, channel="nixos", url="file:///nowhere/nixos", content="0" * 64)
    with pytest.raises(StepFailedError, match=r"could not be updated.*that boots were not touched"):
        update_channel(host(lab), action)


# --- its way back --------------------------------------------------------------------------------------


def test_the_way_back_is_the_recorded_generation_however_many_updates_there_were(lab):
    before, back = lab.observed(HOST), recorded(lab)
    for newer in (NEXT_VERSION, LATER_VERSION):
        lab.publish_channel(newer)
        update_channel(host(lab), update(lab))
    assert version(lab) == LATER_VERSION
    lab.stop_channel_server()
    for _ in range(2):
        restore_channel(host(lab), back)
        assert lab.observed(HOST) == before
        assert version(lab) == FIRST_VERSION


def test_the_way_back_changes_nothing_where_nothing_was_done(lab):
    before = lab.observed(HOST)
    restore_channel(host(lab), recorded(lab))
    assert lab.observed(HOST) == before


def test_the_way_back_leads_to_the_address_that_was_followed(lab):
    before, back = lab.observed(HOST), recorded(lab)
    lab.publish_channel(NEXT_VERSION)
    update_channel(host(lab), update(lab, lab.channel_url.replace("26.05", "unstable")))
    restore_channel(host(lab), back)
    assert lab.observed(HOST) == before


def test_a_recorded_generation_that_is_gone_is_made_again_from_its_content(lab):
    back = recorded(lab)
    lab.publish_channel(NEXT_VERSION)
    update_channel(host(lab), update(lab))
    lab.host(HOST).run("nix-env", "--profile", profile(lab), "--delete-generations", "old")
    for _ in range(2):
        restore_channel(host(lab), back)
        assert (read_channel(host(lab)).path, version(lab)) == (back.path, FIRST_VERSION)


def test_a_generation_that_leads_elsewhere_by_now_is_not_trusted(lab):
    back = recorded(lab)
    lab.publish_channel(NEXT_VERSION)
    update_channel(host(lab), update(lab))
    number = read_channel(host(lab)).generation
    restore_channel(host(lab), back.model_copy(update={"generation": number}))
    assert (read_channel(host(lab)).path, version(lab)) == (back.path, FIRST_VERSION)


def test_content_that_is_gone_for_good_is_said_and_nothing_is_changed(lab):
    back = recorded(lab)
    nowhere = Path(back.path).with_name(f"{'0' * 32}-user-environment")
    lost = back.model_copy(update={"path": str(nowhere), "generation": 99})
    before = lab.observed(HOST)
    with pytest.raises(UndoFailedError, match=r"generation 99 of .* is gone, .*nix-channel --add http://"):
        restore_channel(host(lab), lost)
    assert lab.observed(HOST) == before


def test_a_way_back_that_did_not_work_is_not_believed(lab, tmp_path):
    """Where nix-env works on another profile than the declared one, for instance."""
    programs = tmp_path / "programs"
    shutil.copytree(host(lab).nixos_host.places.programs, programs)
    (programs / "nix-env").write_text("#!/bin/sh\nexit 0\n")
    back = recorded(lab)
    lab.publish_channel(NEXT_VERSION)
    update_channel(host(lab), update(lab))
    places = host(lab).nixos_host.places.model_copy(update={"programs": str(programs)})
    with pytest.raises(UndoFailedError, match="although every command ended well"):
        restore_channel(host(lab, places=places), back)
