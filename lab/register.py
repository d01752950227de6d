"""Make a lab's applications known to Prefect: the blocks that deployments read, and the deployments."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from blocks.application import Application, Member
from blocks.haproxy import HAProxy
from lab.processes import LabError
from rules.fleet import Fleet

_PROJECT = Path(__file__).parents[1]
_TIMEOUT_S = 120


def save_blocks(fleet: Fleet) -> None:
    """Save the blocks that describe `fleet`, under its application's name; saved already is replaced."""
    balancer = f"{fleet.application}-balancer"
    if fleet.route:
        address = fleet.route.balancer
        HAProxy(socket=address.socket, route_map=address.route_map, server_state=address.server_state).save(
            balancer, overwrite=True
        )
    Application(
        members=[Member.model_validate(i.model_dump(exclude={"host"})) for i in fleet.instances],
        balancer=balancer if fleet.route else "",
        route=fleet.route.key if fleet.route else "",
        smoke_tests=list(fleet.smoke_tests),
        smoke_script=fleet.smoke_script,
    ).save(fleet.application, overwrite=True)


def register_deployments(environment: Mapping[str, str]) -> None:
    """Register the deployments of prefect.yaml, the block types and the automation, as a new user would.

    Raises:
        LabError: a command failed; carries what it said.
    """
    _run([sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"], environment)
    _run([sys.executable, "-m", "triggers.register"], environment)


def _run(argv: list[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        argv,
        check=False,
        capture_output=True,
        text=True,
        cwd=_PROJECT,
        env=dict(environment),
        timeout=_TIMEOUT_S,
    )
    if done.returncode != 0:
        raise LabError(f"{argv[1:]} exited {done.returncode}: {done.stdout[-2000:]} {done.stderr[-2000:]}")


if __name__ == "__main__":
    for path in sys.argv[1:]:
        save_blocks(Fleet.model_validate_json(Path(path).read_text()))
