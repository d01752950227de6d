"""`python -m lab.nixos_systemd ROOT systemctl|systemd-run …`: stand-ins for one of the lab's NixOS hosts.

The verbs and options that deployments use, with the real ones' words and exit codes; all others are refused.
`lab.nixos_contract` holds them to the real ones.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import re
import sys
import time
from pathlib import Path
from typing import NoReturn

from lab.nixos_boot import come_up, go_down, reboot_later
from lab.nixos_machine import RUNNING, Failure, Machine
from lab.nixos_supervisor import Command, supervise, supervise_command
from lab.nixos_units import Units

#: Exit codes of systemctl.
_NOT_ACTIVE, _NO_SUCH_UNIT = 3, 4
_POLL_S = 0.02
_FLAGS = {
    *("--plain", "--no-legend", "--no-pager", "--full", "--quiet", "-q", "--all", "--wait", "--value"),
    *("--system", "--no-ask-password", "--failed"),
}


class Words:
    """A command line: options apart from the rest."""

    def __init__(self, words: list[str]) -> None:
        self.rest: list[str] = []
        self.flags: set[str] = set()
        self.states: list[str] = []
        self.shown: list[str] = []
        left = list(words)
        while left:
            word = left.pop(0)
            if word in ("-p", "--property"):
                self.shown += left.pop(0).split(",")
            elif word.startswith(("--property=", "-p")):
                self.shown += word.removeprefix("--property=").removeprefix("-p").split(",")
            elif word.startswith("--state="):
                self.states += word.removeprefix("--state=").split(",")
            elif word in _FLAGS:
                self.flags.add(word)
            elif word.startswith("-"):
                raise Failure(f"systemctl: unrecognized option '{word}'")
            else:
                self.rest.append(word)
        if "--failed" in self.flags:
            self.states.append("failed")


def systemctl(machine: Machine, given: list[str]) -> int:
    """Do what systemctl does; return its exit code.

    Raises:
        Failure: it fails; says its words.
    """
    words, units = Words(given), Units(machine)
    verb, *names = words.rest or ["list-units"]
    match verb:
        case "daemon-reload":
            units.reload()
            return 0
        case "start" | "stop" | "restart":
            for name in names:
                try:
                    getattr(units, verb)(name)
                except Failure as error:
                    starts = verb != "stop" and error.words.endswith("not found.")
                    raise Failure(
                        f"Failed to {verb} {name}: {error.words}" if starts else error.words, error.code
                    ) from error
            return 0
        case "is-active" | "is-failed":
            return _ask(machine, verb, names, quiet=bool(words.flags & {"--quiet", "-q"}))
        case "is-system-running":
            return _say_state(machine, wait="--wait" in words.flags)
        case "list-units":
            return _list(machine, words, names)
        case "reset-failed":
            return _reset(machine, names)
        case "show":
            return _show(units, words, names)
        case "reboot":
            reboot_later(machine)
            return 0
    raise Failure(f"Unknown command verb '{verb}', did you mean something else?")


def _ask(machine: Machine, verb: str, names: list[str], *, quiet: bool) -> int:
    states = [machine.read(name)["active"] for name in names]
    if not quiet:
        print("\n".join(states))
    wanted = ("active", "reloading") if verb == "is-active" else ("failed",)
    if any(state in wanted for state in states):
        return 0
    there = any(machine.file(name) or name in machine.known() for name in names)
    return 1 if verb == "is-failed" else _NOT_ACTIVE if there else _NO_SUCH_UNIT


def _say_state(machine: Machine, *, wait: bool) -> int:
    until = float((machine.root / "run" / "booted-until").read_text())
    while wait and time.monotonic() < until:
        time.sleep(_POLL_S)
    if time.monotonic() < until:
        print("starting")
        return 1
    failed = any(machine.read(unit)["active"] == "failed" for unit in machine.known())
    print("degraded" if failed else "running")
    return 1 if failed else 0


def _list(machine: Machine, words: Words, patterns: list[str]) -> int:
    for unit in machine.known():
        known = machine.read(unit)
        shown = words.states or (["--all"] if "--all" in words.flags else [*RUNNING, "failed"])
        states = {known["active"], known["sub"], "--all"}
        if states & set(shown) and (not patterns or any(fnmatch.fnmatch(unit, p) for p in patterns)):
            loaded = "loaded" if machine.file(unit) or known["sub"] == "running" else "not-found"
            print(f"{unit} {loaded} {known['active']} {known['sub']} {unit}")
    return 0


def _reset(machine: Machine, names: list[str]) -> int:
    for name in names:
        if name not in machine.known():
            raise Failure(f"Failed to reset failed state of unit {name}: Unit {name} not loaded.")
    with machine.alone():
        for unit in machine.known():
            if machine.read(unit)["active"] == "failed" and (not names or unit in names):
                machine.forget(unit)
    return 0


def _show(units: Units, words: Words, names: list[str]) -> int:
    for number, name in enumerate(names):
        properties = units.properties(name)
        if number:
            print()
        for key in words.shown or properties:
            if key in properties:
                print(properties[key] if "--value" in words.flags else f"{key}={properties[key]}")
    return 0


def systemd_run(machine: Machine, given: list[str]) -> int:
    """Run a command as a transient unit and wait for it; return its exit code.

    Raises:
        Failure: it cannot be started.
    """
    left, flags, environment, unit = list(given), set(), {}, ""
    while left and left[0].startswith("-"):
        word = left.pop(0)
        if word == "--":
            break
        if word in ("-E", "--setenv"):
            name, _, value = left.pop(0).partition("=")
            environment[name] = value
        elif word.startswith("--setenv="):
            name, _, value = word.removeprefix("--setenv=").partition("=")
            environment[name] = value
        elif word.startswith("--unit="):
            unit = word.removeprefix("--unit=").removesuffix(".service") + ".service"
        elif word in ("--collect", "--pipe", "--wait", "--quiet", "--service-type=exec", "--no-ask-password"):
            flags.add(word)
        else:
            raise Failure(f"systemd-run: unrecognized option '{word}'")
    if not unit or not left or not flags >= {"--pipe", "--wait"}:
        raise Failure("the lab's systemd-run wants --unit=, --pipe, --wait and a command")
    if not Path(left[0]).is_file():
        raise Failure(f"Failed to find executable {left[0]}: No such file or directory")
    command = Command(
        tuple(_expanded(word, environment) for word in left), environment, collect="--collect" in flags
    )
    with machine.alone():
        if unit in machine.known() or machine.file(unit):
            already = f"Unit {unit} was already loaded or has a fragment file."
            raise Failure(f"Failed to start transient service unit: {already}")
        work = functools.partial(supervise_command, machine, unit, command)
        pid = supervise(machine, unit, work, pipe=True, active="active", sub="running")
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _expanded(word: str, environment: dict[str, str]) -> str:
    """Return a word as a unit file's: `${NAME}` and a whole `$NAME` are variables, `$$` is a dollar."""
    if re.fullmatch(r"\$[A-Za-z_]\w*", word):
        return environment.get(word[1:], "")
    return re.sub(
        r"\$(\$|\{(\w+)\})", lambda found: "$" if found[1] == "$" else environment.get(found[2], ""), word
    )


def main() -> int:
    """Be the program that the arguments name."""
    root, verb, *words = sys.argv[1:]
    machine = Machine(Path(root))
    match verb:
        case "systemctl":
            return systemctl(machine, words)
        case "systemd-run":
            return systemd_run(machine, words)
        case "go-down":
            go_down(machine)
        case "come-up":
            return 0 if come_up(machine, words[0] if words else None) else 1
    return 0


def _fail(error: Failure) -> NoReturn:
    print(error.words, file=sys.stderr)
    sys.exit(error.code)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        _fail(failure)
