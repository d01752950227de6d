"""The lab's NixOS hosts: real Nix, and stand-ins that are held to what the real programs do."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lab.nixos import FIRST_VERSION, NEXT_VERSION, LabNixos
from lab.nixos_contract import CHECKS, Systemd
from lab.nixos_machine import in_words, seconds
from lab.processes import marked, wait_until
from lab.systemd import LabSystemd
from tasks.host import HostUnreachableError, read_link, run, write_file
from tests.requirements import need

TOPLEVEL = "config.system.build.toplevel"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabNixos]:
    need("nix-build", "nix-env", "nix-channel", package="nix-bin")
    need("sshd", package="openssh-server")
    with LabNixos(tmp_path_factory.mktemp("nixos"), ("alpha", "beta"), ssh=True) as running:
        yield running


@pytest.fixture
def alpha(lab: LabNixos) -> LabNixos:
    """The lab with the host alpha as it was installed."""
    lab.publish_channel(FIRST_VERSION)
    lab.configure("alpha")
    host, first = lab.host("alpha"), lab.build("alpha", FIRST_VERSION)
    default = host.root / "boot-default"
    default.unlink()
    default.symlink_to(first)
    lab.reboot("alpha")
    host.run("nix-env", "-p", str(host.profile), "--set", first)
    return lab


def activate(system: str, mode: str = "test") -> subprocess.CompletedProcess[str]:
    argv = [f"{system}/bin/switch-to-configuration", mode]
    return subprocess.run(argv, check=False, capture_output=True, text=True)


def set_profile(lab: LabNixos, system: str) -> None:
    lab.host("alpha").run("nix-env", "-p", str(lab.host("alpha").profile), "--set", system)


def differing(lab: LabNixos, before: dict[str, object]) -> set[str]:
    now = lab.observed("alpha")
    return {what for what in now if now[what] != before[what]}


def places(lab: LabNixos) -> tuple[object, object]:
    """What alpha runs, and what it boots by default."""
    seen = lab.observed("alpha")
    return seen["current"], seen["boot_default"]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_stand_in_holds_to_the_contract(
    lab: LabNixos, check: Callable[[Systemd], None], tmp_path: Path
) -> None:
    host = lab.host("beta")
    programs = host.root / "programs"
    check(Systemd(lambda name: (str(programs / name),), host.guard_units, tmp_path))


@pytest.mark.xdist_group("systemd")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_real_systemd_holds_to_the_contract(machine: LabSystemd, check: Callable[[Systemd], None]) -> None:
    scratch = machine.directory / "scratch" / check.__name__
    scratch.mkdir(parents=True, exist_ok=True)
    check(Systemd(lambda name: (*machine._inside(), "--", name), machine.directory / "units", scratch))


def test_a_host_is_installed_with_the_first_version_of_the_channel(alpha: LabNixos) -> None:
    seen, first = alpha.observed("alpha"), alpha.build("alpha", FIRST_VERSION)
    assert {seen[what] for what in ("profile", "current", "booted", "boot_default")} == {first}
    assert (seen["failed_units"], seen["guard_units"], seen["roots"]) == ((), (), ())
    assert alpha.channel_url in str(seen["channel_urls"])
    said = alpha.host("alpha").run("nix-instantiate", "--eval", "-E", "builtins.readFile <nixpkgs/version>")
    assert said == f'"{FIRST_VERSION}"'
    assert httpx.get(alpha.url("alpha"), trust_env=False).json() == {"version": FIRST_VERSION}


@pytest.mark.parametrize(
    ("mode", "changed"),
    [
        ("check", set()),
        ("dry-activate", set()),
        ("test", {"current"}),
        ("boot", {"boot_default"}),
        ("switch", {"current", "boot_default"}),
    ],
)
def test_an_activation_changes_what_its_mode_says(alpha: LabNixos, mode: str, changed: set[str]) -> None:
    new = alpha.build("alpha")
    set_profile(alpha, new)
    before = alpha.observed("alpha")
    assert activate(new, mode).returncode == 0
    assert differing(alpha, before) == changed


#: Options of a system, the mode it is activated in: exit code, what is changed, what is said.
FAILURES: tuple[tuple[dict[str, Any], str, int, set[str], str], ...] = (
    ({"fail": "PRESWITCH"}, "switch", 1, set(), "Pre-switch checks failed"),
    ({"fail": "PRESWITCH"}, "boot", 0, {"boot_default"}, ""),
    ({"fail": "BOOTLOADER"}, "switch", 1, set(), "Failed to install bootloader"),
    ({"fail": "ACTIVATE"}, "test", 2, {"current"}, "Failed to run activate script"),
    ({"fail": "RELOAD"}, "test", 3, {"current"}, "activating the configuration..."),
    ({"fail": "RELOAD_TIMEOUT"}, "test", 1, {"current"}, "Error: systemd daemon reload failed"),
    (
        {"failing_units": ["b.service", "A.service"]},
        *("test", 4, {"current", "failed_units"}),
        "warning: the following units failed: A.service, b.service\n",
    ),
    # the boot loader comes first
    ({"init": "systemd 258"}, "switch", 100, {"boot_default"}, "until you reboot the system"),
)


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: f"{failure[0]}-{failure[1]}")
def test_each_failure_has_its_exit_code_its_words_and_its_state(
    alpha: LabNixos, failure: tuple[dict[str, Any], str, int, set[str], str]
) -> None:
    options, mode, code, changed, words = failure
    new = alpha.build("alpha", **options)
    set_profile(alpha, new)
    before = alpha.observed("alpha")
    ended = activate(new, mode)
    assert ended.returncode == code
    assert words in ended.stderr
    assert differing(alpha, before) == changed
    assert alpha.failed_units("alpha") == tuple(sorted(options.get("failing_units", ())))


def test_units_that_failed_are_forgotten_with_the_next_activation(alpha: LabNixos) -> None:
    assert activate(alpha.build("alpha", failing_units=["web.service"])).returncode == 4
    assert activate(alpha.build("alpha", FIRST_VERSION)).returncode == 0
    assert alpha.failed_units("alpha") == ()


def test_a_build_that_fails_touches_nothing_and_exits_with_nixs_own_code(alpha: LabNixos) -> None:
    before = alpha.observed("alpha")
    alpha.configure("alpha", fail="BUILD")
    ended = alpha.nixos_rebuild("alpha", "switch")
    assert (ended.returncode, "configuration check failed" in ended.stderr) == (100, True)
    assert alpha.observed("alpha") == before


def test_a_dry_activation_says_what_it_would_do_to_units(alpha: LabNixos) -> None:
    new = alpha.build(
        "alpha", stops=["old.service"], reloads=["dbus.service"], restarts=["web.service", "Db.service"],
        starts=["new.timer"],
    )  # fmt: skip
    assert activate(new, "dry-activate").stderr.splitlines() == [
        "would stop the following units: old.service",
        "would activate the configuration...",
        "would reload the following units: dbus.service",
        "would restart the following units: Db.service, web.service",
        "would start the following units: new.timer",
    ]


def test_one_activation_at_a_time_has_the_lock(alpha: LabNixos) -> None:
    new = alpha.build("alpha", activation_s="2")
    first = subprocess.Popen(
        [f"{new}/bin/switch-to-configuration", "test"], stderr=subprocess.PIPE, text=True
    )
    assert first.stderr is not None
    assert first.stderr.readline() == "activating the configuration...\n"
    second = activate(new)
    assert (second.returncode, second.stderr) == (1, "Could not acquire lock\n")
    first.communicate()
    assert (first.returncode, places(alpha)[0]) == (0, new)


def test_an_activation_whose_words_nobody_reads_ends_half_way(alpha: LabNixos) -> None:
    """As the real one, which panics: the system is the active one, and no unit was started."""
    new = alpha.build("alpha", activation_s="0.5", failing_units=["web.service"])
    child = subprocess.Popen([f"{new}/bin/switch-to-configuration", "test"], stderr=subprocess.PIPE)
    assert child.stderr is not None
    child.stderr.readline()
    child.stderr.close()
    assert child.wait(timeout=30) == 101
    assert (places(alpha)[0], alpha.failed_units("alpha")) == (new, ())


def test_a_dead_channel_server_is_no_error_to_nix_channel(lab: LabNixos) -> None:
    host = lab.host("beta")
    lab.publish_channel(NEXT_VERSION)
    before = lab.observed("beta")["channels"]
    # what it has answers for an hour
    host.run("nix-channel", "--update", "nixos")
    assert lab.observed("beta")["channels"] == before
    now = ("--option", "tarball-ttl", "0")
    lab.stop_channel_server()
    ended = host.finish("nix-channel", "--update", "nixos", *now)
    assert (ended.returncode, "using cached version" in ended.stderr) == (0, True)
    assert lab.observed("beta")["channels"] == before
    lab.publish_channel(NEXT_VERSION)
    host.run("nix-channel", "--update", "nixos", *now)
    assert lab.observed("beta")["channels"] != before
    built = host.run("nix-build", "<nixpkgs/nixos>", "-A", TOPLEVEL, "--no-out-link")
    assert built.endswith(NEXT_VERSION)


@pytest.mark.parametrize(
    ("verb", "changed"),
    [
        ("build", set()),
        ("dry-build", set()),
        ("dry-activate", set()),
        ("test", {"current"}),
        ("boot", {"generation", "profile", "boot_default"}),
        ("switch", {"generation", "profile", "boot_default", "current"}),
    ],
)
def test_nixos_rebuild_changes_what_its_verb_says(alpha: LabNixos, verb: str, changed: set[str]) -> None:
    before = alpha.observed("alpha")
    alpha.configure("alpha", note=f"for {verb}")
    ended = alpha.nixos_rebuild("alpha", verb)
    assert ended.returncode == 0, ended.stderr
    assert differing(alpha, before) == changed


def test_rolling_back_relatively_lands_elsewhere(alpha: LabNixos) -> None:
    """The traps that deployments must not walk into."""
    systems: dict[str, object] = {}
    for note in ("two", "three, bad"):
        alpha.configure("alpha", note=note)
        assert alpha.nixos_rebuild("alpha", "switch").returncode == 0
        systems[note] = alpha.observed("alpha")["current"]
    # a test that fails leaves the profile alone, so going back from it goes one too far
    alpha.configure("alpha", note="tested", fail="ACTIVATE")
    assert alpha.nixos_rebuild("alpha", "test").returncode == 2
    assert alpha.nixos_rebuild("alpha", "switch", "--rollback").returncode == 0
    assert alpha.observed("alpha")["current"] == systems["two"]
    # back at two, and four is the fixed one: going back from it is back to the bad one
    alpha.configure("alpha", note="four, fixed")
    assert alpha.nixos_rebuild("alpha", "switch").returncode == 0
    assert alpha.nixos_rebuild("alpha", "switch", "--rollback").returncode == 0
    assert alpha.observed("alpha")["current"] == systems["three, bad"]


def test_setting_the_newest_generations_own_path_makes_no_generation(alpha: LabNixos) -> None:
    host = alpha.host("alpha")
    set_profile(alpha, alpha.build("alpha"))
    link = host.profile.readlink()
    set_profile(alpha, alpha.build("alpha"))
    assert host.profile.readlink() == link


def test_generations_are_listed_as_nixos_rebuild_does(alpha: LabNixos) -> None:
    alpha.configure("alpha", revision="0123abcd", kernel="6.12.40")
    assert alpha.nixos_rebuild("alpha", "switch").returncode == 0
    listed = json.loads(alpha.nixos_rebuild("alpha", "list-generations", "--json").stdout)
    assert listed[0] == {
        "generation": listed[0]["generation"],
        "date": listed[0]["date"],
        "nixosVersion": FIRST_VERSION,
        "kernelVersion": "6.12.40",
        "configurationRevision": "0123abcd",
        "specialisations": [],
        "current": True,
    }
    assert [each["current"] for each in listed[1:]] == [False] * (len(listed) - 1)


def test_the_boot_loader_knows_generations_only(alpha: LabNixos) -> None:
    """As systemd-boot's: what is in no generation is not made the default, and that is no error."""
    before, new = places(alpha)[1], alpha.build("alpha", note="in no generation")
    assert activate(new, "boot").returncode == 0
    assert places(alpha)[1] == before


def test_a_flake_builds_what_the_host_would(alpha: LabNixos) -> None:
    flake = alpha.flake({"alpha": {"revision": "deadbeef01"}})
    attribute = f"path:{flake}#nixosConfigurations.alpha.{TOPLEVEL}"
    built = json.loads(alpha.host("alpha").run("nix", "build", attribute, "--no-link", "--json"))
    system = built[0]["outputs"]["out"]
    said = subprocess.run([f"{system}/sw/bin/nixos-version", "--json"], check=True, capture_output=True)
    names = json.loads(said.stdout)
    assert (names["nixosVersion"], names["configurationRevision"]) == (NEXT_VERSION, "deadbeef01")
    assert activate(system).returncode == 0


def test_a_reboot_brings_the_default_and_takes_run_away(alpha: LabNixos) -> None:
    host, new = alpha.host("alpha"), alpha.build("alpha", kernel="6.12.40", boot_s="1")
    set_profile(alpha, new)
    assert activate(new, "boot").returncode == 0
    marker = host.root / "run" / "sovereign-deploy" / "marker"
    marker.parent.mkdir()
    marker.touch()
    host.run("systemctl", "reboot")
    wait_until(lambda: not marker.exists(), timeout_s=20, what="the reboot")
    wait_until(lambda: not (host.root / "down").exists(), timeout_s=20, what="the boot")
    assert (alpha.observed("alpha")["booted"], places(alpha)) == (new, (new, new))
    host.finish("systemctl", "is-system-running", "--wait")
    assert host.run("systemctl", "is-system-running") == "running"


def test_a_timer_that_is_wanted_begins_anew_with_each_boot(alpha: LabNixos, tmp_path: Path) -> None:
    host, fired = alpha.host("alpha"), tmp_path / "fired"
    wanted = host.guard_units / "timers.target.wants"
    wanted.mkdir(exist_ok=True)
    (host.guard_units / "g.timer").write_text("[Timer]\nOnActiveSec=500ms\n")
    service = f"[Service]\nType=oneshot\nExecStart=/bin/sh -c ': >{fired}'\n"
    (host.guard_units / "g.service").write_text(service)
    (wanted / "g.timer").symlink_to("../g.timer")
    assert alpha.reboot("alpha")
    wait_until(fired.exists, timeout_s=20, what="the timer")
    for file in ("g.timer", "g.service", "timers.target.wants/g.timer"):
        (host.guard_units / file).unlink()


def test_a_system_that_does_not_boot_stays_down_until_another_is_chosen(alpha: LabNixos) -> None:
    first, new = alpha.build("alpha", FIRST_VERSION), alpha.build("alpha", breaks_boot=True)
    set_profile(alpha, new)
    assert activate(new, "switch").returncode == 0
    assert not alpha.reboot("alpha")
    assert alpha.host("alpha").finish("systemctl", "is-system-running").returncode != 0
    with pytest.raises(HostUnreachableError):
        run(alpha.instance("alpha").host, ("true",))
    assert alpha.boot("alpha", first)
    assert places(alpha) == (first, new)


def test_a_system_that_cuts_the_network_is_out_of_reach_until_another_is_active(alpha: LabNixos) -> None:
    host, current = alpha.instance("alpha").host, alpha.host("alpha").places.current
    first, new = alpha.build("alpha", FIRST_VERSION), alpha.build("alpha", cuts_network=True)
    assert read_link(host, current) == first
    with pytest.raises(HostUnreachableError):
        run(host, (f"{new}/bin/switch-to-configuration", "test"))
    with pytest.raises(HostUnreachableError):
        run(host, ("true",))
    assert activate(first).returncode == 0
    assert read_link(host, current) == first


def test_one_host_collects_nothing_that_another_keeps(alpha: LabNixos) -> None:
    kept = [alpha.observed(name)["profile"] for name in ("alpha", "beta")]
    gone = alpha.build("alpha", note="kept by nobody")
    alpha.host("alpha").run("nix-store", "--gc")
    assert all(Path(str(path)).exists() for path in kept)
    assert not Path(gone).exists()


def test_a_host_with_a_store_of_its_own_knows_what_it_was_given(tmp_path: Path) -> None:
    need("nix-build", package="nix-bin")
    with LabNixos(tmp_path / "nixos", own_store=True) as lab:
        host, new = lab.host("alpha"), lab.build("alpha")
        assert host.finish("nix-store", "--query", "--hash", new).returncode != 0
        worker = {**os.environ, **lab.environment}
        closure = subprocess.run(
            ["nix-store", "--query", "--requisites", new],
            check=True,
            capture_output=True,
            text=True,
            env=worker,
        ).stdout.split()
        packed = subprocess.run(
            ["nix-store", "--export", *closure], check=True, capture_output=True, env=worker
        ).stdout
        subprocess.run(
            [host.root / "programs" / "nix-store", "--import"], check=True, capture_output=True, input=packed
        )
        host.run("nix-store", "--query", "--hash", new)


def test_nothing_runs_when_the_lab_is_stopped(tmp_path: Path) -> None:
    need("nix-build", package="nix-bin")
    with LabNixos(tmp_path / "nixos") as lab:
        host = lab.host("alpha")
        (host.guard_units / "g.timer").write_text("[Timer]\nOnActiveSec=1h\n")
        (host.guard_units / "g.service").write_text("[Service]\nType=oneshot\nExecStart=/bin/true\n")
        host.run("systemctl", "start", "g.timer")
        assert list(marked(lab.directory))
    assert not list(marked(lab.directory))


@pytest.mark.parametrize(
    ("span", "expected_s"), [("300", 300.0), ("5min 20s", 320.0), ("1h 2min 3.5s", 3723.5), ("500ms", 0.5)]
)
def test_time_spans_are_read_and_shown_as_systemd_does(span: str, expected_s: float) -> None:
    assert seconds(span) == expected_s
    assert seconds(in_words(expected_s)) == expected_s


@pytest.mark.xdist_group("systemd")
def test_a_host_in_a_container_has_a_real_systemd(machine: LabSystemd) -> None:
    need("nix-build", package="nix-bin")
    with LabNixos(machine.directory / "nixos", systemd=machine) as lab:
        host, address = lab.host("alpha"), lab.instance("alpha").host
        programs, first = host.places.programs, lab.build("alpha", FIRST_VERSION)
        new = lab.build("alpha", failing_units=["lab-web.service"])
        start = (
            "--unit=sovereign-activate-x",
            "--collect",
            "--pipe",
            "--wait",
            "--quiet",
            "--service-type=exec",
        )

        def switch(system: str) -> int | None:
            words = (f"{programs}/systemd-run", *start, f"{system}/bin/switch-to-configuration", "test")
            return run(address, words, check=False).returncode

        assert switch(new) == 4
        assert (lab.observed("alpha")["current"], lab.failed_units("alpha")) == (new, ("lab-web.service",))
        # it is cut off in the middle, and that is all that the other side learns
        with pytest.raises(HostUnreachableError):
            switch(lab.build("alpha", cuts_network=True))
        with pytest.raises(HostUnreachableError):
            run(address, ("true",))
        assert lab.reboot("alpha")
        assert read_link(address, host.places.current) == first
        # the guard's units are found where product code puts them
        unit = f"{host.places.guard_units}/sovereign-x.service"
        write_file(address, unit, b"[Service]\nExecStart=/bin/true\n")
        run(address, (f"{programs}/systemctl", "daemon-reload"))
        shown = run(address, (f"{programs}/systemctl", "show", "-p", "LoadState", "sovereign-x.service"))
        assert shown.stdout == "LoadState=loaded\n"
        assert lab.observed("alpha")["guard_units"] == ("sovereign-x.service",)
    assert machine.run("systemctl", "list-units", "--state=failed", "--plain", "--no-legend") == ""
