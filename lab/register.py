"""Make a lab's applications known to Prefect: the blocks that deployments read, and the deployments.

As a program, `python -m lab.register FLEET.json …` saves the blocks of fleets written as JSON: in a process
of its own, because Prefect reads its settings once, when it is imported.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab.processes import LabError
from rules.fleet import Fleet

_PROJECT = Path(__file__).parents[1]
_TIMEOUT_S = 180


def register_all(fleets: Sequence[Fleet], environment: Mapping[str, str]) -> None:
    """Save the fleets' blocks and register deployments, block types and automation, as a new user would.

    Args:
        fleets: the applications.
        environment: of a client of the Prefect server.

    Raises:
        LabError: a command failed; carries what it said.
    """
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor() as both:
        paths = [Path(directory) / f"{fleet.application}.json" for fleet in fleets]
        for path, fleet in zip(paths, fleets, strict=True):
            path.write_text(fleet.model_dump_json())
        blocks = both.submit(_run, ["lab.register", *map(str, paths)], environment)
        deployments = both.submit(register_deployments, environment)
        blocks.result()
        deployments.result()


def register_deployments(environment: Mapping[str, str]) -> None:
    """Register the deployments of prefect.yaml, then the block types and the automation.

    Raises:
        LabError: a command failed; carries what it said.
    """
    _run(["prefect", "--no-prompt", "deploy", "--all"], environment)
    _run(["triggers.register"], environment)


def save_blocks(fleet: Fleet) -> None:
    """Save the blocks that describe `fleet`, under its application's name; saved already is replaced."""
    # Prefect reads its settings when it is imported: not before somebody asks for it
    from blocks.application import Application, Member  # noqa: PLC0415
    from blocks.haproxy import HAProxy  # noqa: PLC0415

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


def _run(module: list[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *module],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=_PROJECT,
        env=dict(environment),
        timeout=_TIMEOUT_S,
    )
    if done.returncode != 0:
        said = f"{done.stdout[-2000:]} {done.stderr[-2000:]}"
        raise LabError(f"python -m {' '.join(module)} exited {done.returncode}: {said}")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        save_blocks(Fleet.model_validate_json(Path(argument).read_text()))
