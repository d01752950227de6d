"""The texts of a host's guard: every value stays a value, in the shell and in the unit file."""

from __future__ import annotations

import shlex
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.nixos import NixosPlaces
from rules.nixos_actions import RestoreSystem
from rules.nixos_guard import Guard

OLD = f"/nix/store/{'0' * 32}-nixos-system-web-1"
TESTED = f"/nix/store/{'1' * 32}-nixos-system-web-2"
BACK = RestoreSystem(instance="web", release=OLD, running=OLD, generation=7, booted=None)
GUARD = Guard(deployment="nixos-web-1", places=NixosPlaces())


def values(script: str) -> dict[str, str]:
    """The variables that the script's head sets, as a shell reads them."""
    head = script.split("\nexport PATH", maxsplit=1)[0]
    assert all(line.split("=")[0].replace("_", "a").isalpha() for line in head.split("\n"))
    return {name: value for name, _, value in (word.partition("=") for word in shlex.split(head))}


def test_the_script_knows_what_was_recorded_and_where_it_is():
    said = values(GUARD.script_text(BACK, "/bin/sh"))
    assert (said["generation"], said["release"], said["running"], said["booted_before"]) == (
        "7",
        OLD,
        OLD,
        "",
    )
    assert said["here"] == "/var/lib/sovereign-deploy/guard/nixos-web-1"
    assert said["units"] == "/etc/systemd/system.control"


def test_its_programs_are_those_of_the_recorded_systems_before_any_of_the_new_one():
    back = BACK.model_copy(update={"running": TESTED})
    path = values(GUARD.script_text(back, "/bin/sh"))["PATH"].split(":")
    assert path[:3] == [f"{TESTED}/sw/bin", f"{OLD}/sw/bin", "/run/current-system/sw/bin"]


def test_it_is_a_script_that_every_shell_can_read():
    subprocess.run(["sh", "-n"], input=GUARD.script_text(BACK, "/bin/sh"), text=True, check=True)


@given(st.text(st.characters(exclude_characters="\x00\n\r", exclude_categories=["Cs"]), max_size=30))
def test_no_place_is_ever_read_as_shell(text):
    guard = Guard(deployment="web-1", places=NixosPlaces(state=f"/{text}"))
    said = values(guard.script_text(BACK, "/bin/sh"))
    assert said["here"] == f"/{text}/guard/web-1"
    assert said.keys() == values(GUARD.script_text(BACK, "/bin/sh")).keys()


def test_a_place_is_one_word_of_the_units_command_and_nothing_in_it_is_replaced():
    guard = Guard(deployment="web-1", places=NixosPlaces(state='/a b/%n$HOME"\\'))
    (line,) = [line for line in guard.service_text("/bin/sh").splitlines() if line.startswith("ExecStart=")]
    assert line == 'ExecStart=/bin/sh "/a b/%%n$$HOME\\"\\\\/guard/web-1/restore.sh"'


@pytest.mark.parametrize(
    ("guard_s", "written"),
    [(300, "300s"), (2.5, "2.5s"), (0.0015, "0.002s"), (1e7, "10000000s"), (20, "20s")],
)
def test_a_time_is_written_as_systemd_reads_it(guard_s, written):
    assert f"\nOnActiveSec={written}\n" in GUARD.timer_text(guard_s)
