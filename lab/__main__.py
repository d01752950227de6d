"""A lab that stays: `python -m lab up`, `status` and `down`, in `.lab/up` of the current directory."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lab.identity import MARK
from lab.processes import LabError
from lab.production import Production, State, end, load_state, save_state

_HOME = Path(".lab")


def up(directory: Path, console: Console) -> int:
    """Start everything and leave it running; what runs already is only shown."""
    state = load_state(directory)
    if state and all(process.is_alive() for process in state.processes):
        return status(directory, console)
    end(directory)
    os.environ[MARK] = str(directory)  # inherited by every part, so that `down` finds all of them
    with console.status("starting PostgreSQL, Prefect, the application and its balancer"):
        production = Production(directory, cache=directory.parent / "cache")
        production.start()
    save_state(directory, production.state)
    lines = [f"{name}={shlex.quote(value)}" for name, value in production.environment().items()]
    (directory / "environment").write_text("\n".join(lines) + "\n")
    return status(directory, console)


def down(directory: Path, console: Console) -> int:
    """End everything and remove its files."""
    with console.status("stopping"):
        end(directory)
    console.print("The lab is down.")
    return 0


def status(directory: Path, console: Console) -> int:
    """Show what runs where; 0 when all of it does, 1 when a part has ended, 3 when there is no lab."""
    state = load_state(directory)
    if state is None:
        console.print("The lab is down. Start it: python -m lab up")
        return 3
    console.print(_table(state))
    ended = [process for process in state.processes if not process.is_alive()]
    for process in ended:
        console.print(f"[red]{process.name} has ended[/red]; its log: {process.log}")
    console.print(f"In a shell: set -a; . {directory / 'environment'}; set +a", soft_wrap=True)
    return 1 if ended else 0


def _table(state: State) -> Table:
    table = Table("part", "address", box=None, header_style="bold", pad_edge=False)
    for part, address in state.addresses.items():
        table.add_row(part, address)
    return table


def main() -> int:
    """Run one command and return its exit code."""
    arguments = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    arguments.add_argument("command", choices=("up", "down", "status"))
    commands = {"up": up, "down": down, "status": status}
    console = Console()
    try:
        return commands[arguments.parse_args().command]((_HOME / "up").absolute(), console)
    except LabError as error:
        Console(stderr=True).print(f"[red]The lab is not up:[/red] {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
