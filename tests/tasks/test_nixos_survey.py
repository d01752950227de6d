"""What is read of NixOS hosts, and built for them, before a plan is made; nothing live is touched."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.nixos import FIRST_VERSION, NEXT_VERSION, LabNixos
from rules.errors import InvalidRequestError
from rules.fleet import Fleet, FleetState, InstanceState
from rules.nixos import HostFacts, NixosSituation, SystemNames, UnitsAffected
from rules.strategy import InPlace, Rolling, Strategy
from rules.system_change import NixosChannel, NixosClosures, NixosFlake, SystemRelease
from tasks.application import current_release
from tasks.nixos_survey import survey_nixos
from tasks.nixos_verify import running_system
from tests.requirements import need

HOST, OTHER = "alpha", "beta"
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def nixos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabNixos]:
    """Two hosts for the module; nobody waits for a channel's server that is down."""
    need("nix-build", "nix-env", package="nix-bin")
    with LabNixos(tmp_path_factory.mktemp("nixos"), hosts=(HOST, OTHER)) as running:
        configuration = running.directory / "etc" / "nix.conf"
        configuration.write_text(f"{configuration.read_text()}download-attempts = 1\n")
        yield running


@pytest.fixture
def lab(nixos: LabNixos) -> LabNixos:
    """The hosts at the first version, of which nothing is pending; the channel has the next one."""
    nixos.publish_channel(FIRST_VERSION)
    for name in (HOST, OTHER):
        nixos.configure(name)
    nixos.install(HOST)
    nixos.publish_channel(NEXT_VERSION)
    return nixos


def channel(release: str = NEXT_VERSION, **more: Any) -> SystemRelease:
    return SystemRelease(hosts="lab-nixos", release=release, source=NixosChannel(), **more)


def closures(paths: dict[str, str], release: str = NEXT_VERSION, **more: Any) -> SystemRelease:
    return SystemRelease(hosts="lab-nixos", release=release, source=NixosClosures(paths=paths), **more)


def flake(reference: str, release: str = NEXT_VERSION) -> SystemRelease:
    return SystemRelease(hosts="lab-nixos", release=release, source=NixosFlake(flake=reference))


def observed(fleet: Fleet) -> FleetState:
    return FleetState(
        instances={
            instance.name: InstanceState(
                release=current_release(instance),
                running=running_system(instance.host, instance.probe),
            )
            for instance in fleet.instances
        }
    )


def survey(
    lab: LabNixos, change: SystemRelease, strategy: Strategy | None = None, fleet: Fleet | None = None
) -> NixosSituation:
    fleet = fleet or lab.fleet
    return survey_nixos(
        change, strategy or InPlace(instance=HOST), fleet, observed(fleet), deployment="nixos-1"
    )


def survey_one(lab: LabNixos, change: SystemRelease) -> HostFacts:
    return survey(lab, change)[HOST]


def activate(system: str, mode: str = "test") -> None:
    """Let somebody activate a system by hand; units of it may fail."""
    argv = (f"{system}/bin/switch-to-configuration", mode)
    assert subprocess.run(argv, check=False, capture_output=True).returncode in (0, 4)


def changed(fleet: Fleet, **places: str) -> Fleet:
    """Return the fleet with other places of its first host."""
    first = fleet.instances[0]
    assert first.nixos
    other = first.nixos.model_copy(update={"places": first.nixos.places.model_copy(update=places)})
    instances = (first.model_copy(update={"nixos": other}), *fleet.instances[1:])
    return fleet.model_copy(update={"instances": instances})


# --- what is found -------------------------------------------------------------------------------------


def test_a_channels_system_is_built_and_compared_and_nothing_is_touched(lab):
    lab.configure(
        HOST,
        kernel="6.12.40",
        packages=("openssl-3.0.14",),
        restarts=("web.service", "a.service"),
        stops=("old.service",),
        revision=REVISION,
    )
    before = lab.observed(HOST)
    found = survey_one(lab, channel())
    assert found.generation == int(before["generation"].split("-")[1])
    assert (found.profile, found.running, found.booted) == tuple(
        before[key] for key in ("profile", "current", "booted")
    )
    assert found.names == SystemNames(version=NEXT_VERSION, revision=REVISION)
    assert found.built.endswith(f"-nixos-system-alpha-{NEXT_VERSION}")
    assert found.units == UnitsAffected(stopped=("old.service",), restarted=("a.service", "web.service"))
    assert (found.reboot_for, found.reboot_due_for) == (("kernel", "initrd", "kernel-modules"), ())
    assert not found.init_changes
    assert found.closure.packages[-1] == "openssl: ∅ → 3.0.14, +20.0 KiB"
    assert found.closure.added_bytes > 20_000
    assert (found.failed_units, found.answering) == ((), (lab.url(HOST),))
    assert (found.channels, found.channel_url) == (before["channels"], lab.channel_url)
    assert found.channel_generation == int(before["channels_link"].split("-")[1])
    assert len(found.channel_content or "") == 64
    assert lab.observed(HOST) == before


def test_a_revision_names_a_system_too(lab):
    lab.configure(HOST, revision=REVISION)
    assert survey_one(lab, channel(REVISION[:8])).names.revision == REVISION


def test_each_host_concerned_gets_a_system_of_its_own_from_one_flake(lab):
    reference = f"path:{lab.flake({HOST: {}, OTHER: {'note': 'of its own'}})}"
    found = survey(lab, flake(reference), Rolling(max_unavailable=2))
    assert {name: facts.names.version for name, facts in found.items()} == dict.fromkeys(
        (HOST, OTHER), NEXT_VERSION
    )
    assert found[HOST].built != found[OTHER].built
    assert found[HOST].channel_content is None
    assert list(survey(lab, flake(reference))) == [HOST]


def test_a_host_may_have_another_name_in_the_flake(lab):
    reference = f"path:{lab.flake({OTHER: {}})}"
    first = lab.instance(HOST)
    assert first.nixos
    renamed = first.model_copy(update={"nixos": first.nixos.model_copy(update={"attribute": OTHER})})
    fleet = lab.fleet.model_copy(update={"instances": (renamed,)})
    assert survey(lab, flake(reference), InPlace(), fleet)[HOST].names.version == NEXT_VERSION
    with pytest.raises(
        InvalidRequestError, match=r'(?s)nixosConfigurations\."alpha".*evaluated.*Nothing was'
    ):
        survey(lab, flake(reference))


def test_closures_are_taken_as_they_are(lab):
    path = lab.build(HOST, init="systemd 258", restarts=("web.service",))
    found = survey_one(lab, closures({HOST: path, OTHER: path}))
    assert found.built == path
    # it is not activated, so it does nothing to units
    assert (found.init_changes, found.units) == (True, UnitsAffected())


def test_a_host_in_the_middle_of_something_is_read_as_it_is(lab):
    """Another system is active than boots by default, units fail, and its page does not answer."""
    tried = lab.build(HOST, version=FIRST_VERSION, failing_units=("odd.service",), answers=False)
    activate(tried)
    found = survey_one(lab, closures({HOST: lab.build(HOST)}))
    assert found.running == tried
    assert found.profile != tried
    assert (found.failed_units, found.answering) == (("odd.service",), ())


def test_a_reboot_that_is_due_already_is_told(lab):
    newer = lab.build(HOST, version=FIRST_VERSION, kernel="6.12.40")
    lab.host(HOST).run("nix-env", "--profile", lab.instance(HOST).nixos_host.places.profile, "--set", newer)
    activate(newer, "switch")
    found = survey_one(lab, closures({HOST: lab.build(HOST)}))
    assert found.reboot_due_for == ("kernel", "initrd", "kernel-modules")
    assert found.reboot_for == ()


def test_a_host_that_does_not_say_what_it_booted_needs_no_reboot(lab):
    path = lab.build(HOST, kernel="6.12.40")
    fleet = changed(lab.fleet, booted="/nowhere/booted-system")
    found = survey(lab, closures({HOST: path}), fleet=fleet)[HOST]
    assert (found.booted, found.reboot_for) == (None, ())


def test_a_system_that_may_only_be_booted_into_is_found_out_before_it_is_tried(lab):
    path = lab.build(HOST, fail="PRESWITCH")
    with pytest.raises(
        InvalidRequestError, match=r"(?s)Pre-switch checks failed.*`activate: boot`.*Nothing was"
    ):
        survey(lab, closures({HOST: path}))
    found = survey_one(lab, closures({HOST: path}, activate="boot"))
    assert (found.built, found.units) == (path, UnitsAffected())
    # where it is active already, nothing is activated
    lab.host(HOST).run("nix-env", "--profile", lab.instance(HOST).nixos_host.places.profile, "--set", path)
    activate(path, "boot")
    lab.reboot(HOST)
    assert survey_one(lab, closures({HOST: path})).running == path


# --- what is refused -----------------------------------------------------------------------------------


def refused(lab: LabNixos, change: SystemRelease, words: str, fleet: Fleet | None = None) -> None:
    before = lab.observed(HOST)
    with pytest.raises(InvalidRequestError, match=rf"(?s){words}.*Nothing was touched\.$"):
        survey(lab, change, fleet=fleet)
    assert lab.observed(HOST) == before


def test_a_build_that_fails_is_told_with_the_end_of_its_log(lab):
    lab.configure(HOST, fail="BUILD")
    refused(lab, channel(), r"could not be built .*exit code 100.*services\.web\.port is no port")


def test_a_configuration_that_is_no_nix_is_told_apart_from_a_failed_build(lab):
    Path(lab.instance(HOST).nixos_host.places.configuration).write_text("{ lab = ")
    refused(lab, channel(), r"could not be evaluated or fetched .*syntax error")


def test_another_release_than_asked_for_is_refused(lab):
    refused(lab, channel("26.05.2000"), rf"was built, and is {NEXT_VERSION}, not 26\.05\.2000\.")
    lab.configure(HOST, revision=REVISION)
    refused(lab, channel("fedcba9876"), rf"\(revision {REVISION}\), not fedcba9876")


def test_a_channel_whose_server_is_down_is_refused(lab):
    survey(lab, channel())
    lab.stop_channel_server()
    refused(lab, channel(), "cannot fetch http://")


def test_a_host_without_a_closure_is_refused_before_anything_is_built(lab):
    refused(lab, closures({OTHER: lab.build(OTHER)}), "no system for alpha among the closures, only for beta")


def test_a_closure_that_cannot_be_had_is_refused(lab):
    nowhere = str(Path(lab.observed(HOST)["profile"]).with_name(f"{'0' * 32}-nixos-system-alpha-1"))
    refused(lab, closures({HOST: nowhere}), "nor to be had from its substituters")


def test_a_flake_that_cannot_be_read_is_refused(lab, tmp_path):
    refused(lab, flake(f"path:{tmp_path}"), "cannot be read on local")


def test_a_flake_whose_inputs_are_not_locked_is_refused_and_gets_no_lock_file(lab):
    """What they lead to may be something else when it is deployed."""
    directory, other = lab.flake({HOST: {}}, place="unlocked"), lab.flake({HOST: {}}, place="input")
    text = (directory / "flake.nix").read_text().replace("{ self }:", "{ self, other }:")
    (directory / "flake.nix").write_text(text.replace("{", f'{{ inputs.other.url = "path:{other}";', 1))
    refused(lab, flake(f"path:{directory}"), "cannot be read on local.*requires lock file changes")
    assert not (directory / "flake.lock").exists()


def test_a_flake_with_uncommitted_changes_is_refused_and_a_committed_one_is_not(lab):
    directory = lab.flake({HOST: {}}, place="committed")
    author = ("-c", "user.name=lab", "-c", "user.email=lab@localhost")
    for words in (("init", "--quiet"), ("add", "."), (*author, "commit", "--quiet", "--message", "all")):
        subprocess.run(("git", *words), check=True, cwd=directory)
    reference = f"git+file://{directory}"
    assert survey_one(lab, flake(reference)).names.version == NEXT_VERSION
    (directory / "version").write_text(FIRST_VERSION)
    refused(lab, flake(reference), "not committed")


def test_a_host_that_cannot_be_asked_is_refused(lab):
    before = FleetState(instances={name: InstanceState(release=None, running=None) for name in (HOST, OTHER)})
    with pytest.raises(InvalidRequestError, match=r"alpha cannot be asked .*\nNothing was touched"):
        survey_nixos(channel(), InPlace(instance=HOST), lab.fleet, before, deployment="nixos-1")


def test_a_host_that_somebody_else_is_changing_is_refused(lab):
    before = observed(lab.fleet)
    activate(lab.build(HOST, version=FIRST_VERSION, note="by hand"))
    with pytest.raises(InvalidRequestError, match=r"being changed by somebody else.*\nNothing was touched"):
        survey_nixos(channel(), InPlace(instance=HOST), lab.fleet, before, deployment="nixos-1")


def test_a_profile_that_is_no_generation_is_refused(lab, tmp_path):
    profile = tmp_path / "system"
    profile.symlink_to(lab.observed(HOST)["profile"])
    refused(lab, channel(), "is no generation of a profile", changed(lab.fleet, profile=str(profile)))


@pytest.mark.parametrize("place", ["profile", "current", "programs"])
def test_a_host_that_has_nothing_in_its_places_is_no_nixos(lab, place):
    fleet = changed(lab.fleet, **{place: "/nowhere/at-all"})
    refused(lab, channel(), "does not look like a NixOS host.*/nowhere/at-all", fleet)
