"""What NixOS's programs say, and what is made of it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.nixos import SystemNames, UnitsAffected
from rules.nixos_activation import (
    activation_of,
    channels_listed,
    closure_difference,
    end_of_log,
    generation_of,
    system_names,
    units_affected,
    units_listed,
)

STORE = "/nix/store"
OLD, NEW = "0" * 32, "1" * 32


# --- how an activation ended ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returncode", "stderr", "outcome", "is_active"),
    [
        (0, "activating the configuration...\n", "done", True),
        (0, "warning: the following units failed: odd.service\n", "done", True),
        (1, "Pre-switch check 'switchInhibitors' failed\nPre-switch checks failed\n", "refused", False),
        (1, "Failed to install bootloader\n", "refused", False),
        (1, "Could not acquire lock\n", "refused", False),
        (1, "", "refused", False),
        (2, "Failed to run activate script\n", "script_failed", True),
        (3, "Failed to reload daemon\n", "reload_failed", True),
        (
            1,
            "activating the configuration...\nError: systemd daemon reload failed, timeout\n",
            "reload_failed",
            True,
        ),
        (1, "activating the configuration...\nError: connection closed\n", "unknown", False),
        (4, "warning: the following units failed: web.service\n", "units_failed", True),
        (100, "won't take effect until you reboot the system.\n", "reboot_needed", False),
        (101, "thread 'main' panicked at src/main.rs\n", "unknown", False),
        (203, "", "unknown", False),
        (-9, "", "unknown", False),
        (None, "", "unknown", False),
    ],
)
def test_each_exit_code_has_its_own_meaning(returncode, stderr, outcome, is_active):
    found = activation_of(returncode, stderr)
    assert (found.outcome, found.is_active) == (outcome, is_active)


@pytest.mark.parametrize(
    ("returncode", "stderr", "words"),
    [
        (1, "Pre-switch checks failed\nPre-switch check 'x' failed", "`activate: boot` reboots into it"),
        (1, "Failed to install bootloader", "the boot loader could not be installed"),
        (1, "Could not acquire lock", "another activation runs on this host"),
        (1, "Usage: switch-to-configuration", "It said: Usage: switch-to-configuration"),
        (1, "activating the configuration...\n", "it gave up after it had begun to activate"),
        (2, "Failed to run activate script", "part of its activation script failed"),
        (3, "", "systemd could not read its units anew"),
        (4, "", "units failed: it did not say which"),
        (100, "", "`activate: boot` does that"),
        (-9, "", "killed by signal 9: what is active must be read"),
        (None, "", "killed before it could say how it ended, or never began"),
        (101, "thread 'main' panicked", "unknown exit code 101"),
    ],
)
def test_words_tell_the_reason_and_what_to_do(returncode, stderr, words):
    assert words in activation_of(returncode, stderr).words


def test_units_that_failed_are_named_once_and_sorted():
    stderr = (
        "activating the configuration...\n"
        "Job for web.service failed because the control process exited with error code.\n"
        "Failed to start gone@1.service: Unit gone@1.service not found.\n"
        "warning: the following units failed: web.service, a\\x2db.mount\n"
        "● web.service - Web\n     Active: failed\n"
    )
    found = activation_of(4, stderr)
    assert found.failed_units == ("a\\x2db.mount", "gone@1.service", "web.service")
    assert "a\\x2db.mount, gone@1.service, web.service" in found.words


def test_failed_units_do_not_hide_that_the_activation_script_failed_too():
    """The exit code is that of the last fault."""
    stderr = "Failed to run activate script\nwarning: the following units failed: web.service\n"
    found = activation_of(4, stderr)
    assert (found.outcome, found.failed_units) == ("script_failed", ("web.service",))


@given(st.one_of(st.none(), st.integers(-64, 255)), st.text())
def test_anything_that_is_said_is_understood_somehow(returncode, stderr):
    found = activation_of(returncode, stderr)
    assert (found.outcome == "done") == (returncode == 0)
    assert len(found.words) < 20_000


def test_a_long_log_is_cut_at_its_beginning():
    log = "\n".join(f"line {number}" for number in range(10_000))
    assert end_of_log(log).splitlines() == [f"line {number}" for number in range(9_988, 10_000)]
    assert end_of_log("x" * 100_000) == "x" * 1500
    assert end_of_log("\n \n") == ""


# --- what an activation would do -----------------------------------------------------------------------


def test_a_dry_activation_tells_what_it_would_do_to_units():
    stderr = (
        "would stop the following units: b.service, a.socket\n"
        "would NOT stop the following changed units: systemd-journald.service\n"
        "would activate the configuration...\n"
        "would restart systemd\n"
        "would reload the following units: dbus.service\n"
        "would restart the following units: web.service, b.service\n"
        "would start the following units: new.service, b.service\n"
        "would restart the following units: web.service\n"
    )
    assert units_affected(stderr) == UnitsAffected(
        stopped=("a.socket", "b.service"),
        started=("b.service", "new.service"),
        restarted=("b.service", "web.service"),
        reloaded=("dbus.service",),
    )
    assert units_affected("would activate the configuration...\n") == UnitsAffected()


# --- lists ---------------------------------------------------------------------------------------------


def test_units_and_channels_are_read_from_their_lists():
    listed = "web.service loaded failed failed Web\na.mount not-found failed failed a.mount\n\n"
    assert units_listed(listed) == ("a.mount", "web.service")
    assert units_listed("") == ()
    channels = "nixos https://channels.example/nixos-26.05\nhome-manager file:///srv/home\n\n"
    assert channels_listed(channels) == {
        "nixos": "https://channels.example/nixos-26.05",
        "home-manager": "file:///srv/home",
    }


@pytest.mark.parametrize(("revision", "expected"), [("abc1234", "abc1234"), (None, None), ("", None)])
def test_a_system_says_its_version_and_perhaps_its_revision(revision, expected):
    said = json.dumps({"nixosVersion": "26.05.1", "configurationRevision": revision, "nixpkgsRevision": "f"})
    assert system_names(said) == SystemNames(version="26.05.1", revision=expected)
    assert system_names('{"nixosVersion": "26.05.1"}').revision is None


@pytest.mark.parametrize("said", ["", "26.05.1 (Yarara)", "[]", "{}", '{"nixosVersion": null}'])
def test_what_names_no_version_is_an_error(said):
    with pytest.raises(ValueError, match=r"."):
        system_names(said)


@pytest.mark.parametrize(
    ("link", "number"),
    [("system-42-link", 42), ("/nix/var/nix/profiles/system-7-link", 7), ("my-system-10-link", 10)],
)
def test_a_generation_is_known_by_its_link(link, number):
    assert generation_of(link) == number


@pytest.mark.parametrize("link", ["/nix/store/abc-nixos-system", "system", "system-x-link", "-4-link", ""])
def test_a_profile_that_leads_elsewhere_has_no_generation(link):
    with pytest.raises(ValueError, match="is no generation of a profile"):
        generation_of(link)


# --- closures ------------------------------------------------------------------------------------------


def closure(*rows: tuple[str, str, int]) -> str:
    """As `nix path-info --recursive --size` prints it: digest, name, bytes."""
    return "\n".join(f"{STORE}/{digest}-{name}\t{size:12}" for digest, name, size in rows)


def test_packages_that_change_come_go_and_grow_are_listed_by_name():
    before = closure(
        (OLD, "openssl-3.0.13", 1_000_000),
        (OLD, "openssl-3.0.13-man", 1000),
        (OLD, "gone-1.0", 500),
        (OLD, "unit-web.service", 700),
        (OLD, "etc", 4096),
        ("2" * 32, "same-2.0", 9000),
    )
    after = closure(
        (NEW, "openssl-3.0.14", 1_012_595),
        (NEW, "openssl-3.0.14-man", 1000),
        (NEW, "come-1.0", 3 << 20),
        (NEW, "unit-web.service", 710),
        (NEW, "etc", 4096 + 8192),
        ("2" * 32, "same-2.0", 9000),
    )
    found = closure_difference(before, after)
    assert found.packages == (
        "come: ∅ → 1.0, +3.0 MiB",
        "etc: +8.0 KiB",
        "gone: 1.0 → ∅",
        "openssl: 3.0.13 → 3.0.14, +12.3 KiB",
    )
    assert found.removed_bytes == 1_000_000 + 1000 + 500 + 700 + 4096
    assert found.added_bytes == 1_012_595 + 1000 + (3 << 20) + 710 + 4096 + 8192


def test_several_versions_of_a_package_are_told_together():
    before = closure((OLD, "python3-3.12.4", 1), (NEW, "python3-3.11.9", 1))
    after = closure((OLD, "python3-3.12.4", 1), ("2" * 32, "python3-3.13.0", 1))
    assert closure_difference(before, after).packages == ("python3: 3.11.9, 3.12.4 → 3.12.4, 3.13.0",)


def test_a_closure_does_not_differ_from_itself():
    same = closure((OLD, "nixos-system-web-26.05.1", 10), (NEW, "linux-6.12.1", 20_000))
    found = closure_difference(same, same)
    assert (found.packages, found.added_bytes, found.removed_bytes) == ((), 0, 0)


def test_a_whole_other_system_does_not_make_an_endless_list():
    after = closure(*((f"{number:032}", f"package{number}-1.0", 1) for number in range(1000)))
    found = closure_difference("", after)
    assert len(found.packages) == 301
    assert found.packages[-1] == "… and 700 more"
    assert found.added_bytes == 1000


@given(st.dictionaries(st.text("abz09.-_+", min_size=1, max_size=9), st.integers(0, 9**9)))
def test_what_comes_in_one_direction_goes_in_the_other(paths):
    rows = "\n".join(f"{STORE}/{OLD}-{name} {size}" for name, size in paths.items())
    there, back = closure_difference("", rows), closure_difference(rows, "")
    assert there.added_bytes == back.removed_bytes == sum(paths.values())
    assert there.removed_bytes == back.added_bytes == 0
    assert len(there.packages) == len(back.packages)
