"""A system that is built on the worker, for a host that is reached by ssh and has a store of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.nixos import NEXT_VERSION, LabNixos
from rules.errors import CommandError
from rules.fleet import FleetState, Instance, InstanceState
from rules.hosts import HostAddress
from rules.nixos_actions import StageSystem
from rules.strategy import InPlace
from rules.system_change import NixosFlake, SystemRelease
from tasks.nixos_build import BuildFailedError, bring_system, build_system, builder
from tasks.nixos_roots import drop_roots, stage_system
from tasks.nixos_store import disk_hint, lacking, nix_of
from tasks.nixos_survey import survey_nixos
from tests.requirements import need
from tests.tasks.nixing import DEPLOYMENT, HOST, host


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabNixos]:
    """A host for the module; the worker's Nix is the one on PATH, with a store of its own."""
    need("nix-build", "nix-env", package="nix-bin")
    with (
        LabNixos(tmp_path_factory.mktemp("nixos"), hosts=(HOST,), own_store=True) as running,
        pytest.MonkeyPatch.context() as environment,
    ):
        for name, value in running.environment.items():
            environment.setenv(name, value)
        yield running


@pytest.fixture
def far(lab: LabNixos, remote: HostAddress) -> Instance:
    return host(lab, build_on="worker").model_copy(update={"host": remote})


def of_flake(lab: LabNixos, note: str) -> SystemRelease:
    reference = f"path:{lab.flake({HOST: {'note': note}}, place=note)}"
    return SystemRelease(hosts="lab-nixos", release=NEXT_VERSION, source=NixosFlake(flake=reference))


def with_programs(instance: Instance, directory: Path, **scripts: str) -> Instance:
    """Return the host with other programs of these names; `@real@` is what each does otherwise."""
    own = Path(instance.nixos_host.places.programs)
    directory.mkdir()
    for program in own.iterdir():
        place = directory / program.name
        script = scripts.get(program.name.replace("-", "_"))
        if script is None:
            place.symlink_to(program)
        else:
            place.write_text(f"#!/bin/sh\n{script.replace('@real@', str(program))}\n")
            place.chmod(0o755)
    places = instance.nixos_host.places.model_copy(update={"programs": str(directory)})
    return instance.model_copy(update={"nixos": instance.nixos_host.model_copy(update={"places": places})})


def test_what_the_host_lacks_is_copied_when_the_system_is_staged(lab, far):
    change = of_flake(lab, "staged")
    built = build_system(far, change, channel=None)
    assert lacking(nix_of(far), (built,)) == (built,)
    action = StageSystem(instance=HOST, path=built, before=(lab.observed(HOST)["current"],))
    stage_system(far, change, action, deployment=DEPLOYMENT)
    closure = lab.host(HOST).run("nix-store", "--query", "--requisites", built).split()
    assert len(closure) >= 3
    lab.host(HOST).run("nix-store", "--verify-path", *closure)
    bring_system(far, change, built)
    drop_roots(far, deployment=DEPLOYMENT)


def test_a_survey_has_it_on_the_host_where_it_says_what_it_would_do(lab, far):
    change, running = of_flake(lab, "surveyed"), lab.observed(HOST)["current"]
    before = FleetState(instances={HOST: InstanceState(release=running, running=running)})
    fleet = lab.fleet.model_copy(update={"instances": (far,)})
    found = survey_nixos(change, InPlace(), fleet, before, deployment=DEPLOYMENT)[HOST]
    assert lacking(nix_of(far), (found.built,)) == ()
    assert found.names.version == NEXT_VERSION


def test_a_copy_that_breaks_off_is_an_error(lab, far, tmp_path):
    # as ssh ends when it loses the host in the middle of it
    cut = with_programs(
        far, tmp_path / "programs", nix_store='[ "$1" != --import ] || exit 7; exec @real@ "$@"'
    )
    change = of_flake(lab, "cut")
    built = build_system(cut, change, channel=None)
    with pytest.raises(CommandError, match=rf"paths of {built}.*exited 7"):
        bring_system(cut, change, built)
    assert lacking(nix_of(cut), (built,)) == (built,)


def test_a_full_disk_is_told_with_what_is_free_and_what_to_do(lab, far, tmp_path):
    words = "error: writing to file: No space left on device"
    script = f'[ "$1" != --import ] || {{ echo "{words}" >&2; exit 1; }}; exec @real@ "$@"'
    full = with_programs(far, tmp_path / "programs", nix_store=script)
    change = of_flake(lab, "full")
    with pytest.raises(
        CommandError, match=r"(?s)No space left on device.* bytes are free in .*collect-garbage"
    ):
        bring_system(full, change, build_system(full, change, channel=None))
    assert disk_hint(far.host, "error: something else", near="/nix/var") == ""


def test_a_host_that_is_this_machine_builds_for_itself_wherever_that_is_declared(lab, far):
    change, here = of_flake(lab, "here"), host(lab, build_on="worker")
    assert builder(here, change) == nix_of(here)
    assert builder(far, change) != nix_of(far)


def test_a_build_that_takes_too_long_is_ended_and_said(lab):
    with pytest.raises(BuildFailedError, match=r"nix did not end within 0\.01 s and was ended"):
        build_system(host(lab, build_s=0.01), of_flake(lab, "late"), channel=None)
