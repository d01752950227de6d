"""The crash matrix, every n-th point of it; all points: `python -m lab.crash --strategy canary`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.requirements import need, need_ray, need_zfs

_PROJECT = Path(__file__).parents[2]
#: So many that four or five points are left: the more steps a strategy has, the further apart.
_EVERY = {
    ("application", "blue_green"): 11,
    ("application", "canary"): 17,
    ("application", "rolling"): 23,
    ("pgvector_index", "in_place"): 17,
    ("ipfs_content", "in_place"): 17,
    ("nixos_system", "in_place"): 19,
    ("ray_node", "in_place"): 23,
    ("release", "failing"): 71,
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("component", "strategy"),
    [
        ("application", "in_place"),
        ("application", "blue_green"),
        ("application", "canary"),
        ("application", "rolling"),
        ("postgres_schema", "down"),
        pytest.param("postgres_schema", "snapshot", marks=pytest.mark.xdist_group("zfs")),
        ("pgvector_index", "in_place"),
        ("sglang_model", "hot_swap"),
        ("sglang_model", "in_place"),
        ("ipfs_content", "in_place"),
        ("nixos_system", "in_place"),
        pytest.param("ray_node", "in_place", marks=pytest.mark.xdist_group("ray")),
        ("release", "failing"),
    ],
)
def test_a_deployment_killed_anywhere_is_recovered(component: str, strategy: str) -> None:
    if strategy == "snapshot":
        need_zfs()
    if component == "ray_node":
        need_ray()
    if component == "nixos_system":
        need("nix-env", package="nix-bin")
    command = (sys.executable, "-m", "lab.crash", "--component", component, "--strategy", strategy)
    done = subprocess.run(
        (*command, "--every", str(_EVERY.get((component, strategy), 11)), "--json"),
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=_PROJECT,
        timeout=880,
    )
    assert done.stdout, done.stderr[-4000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["failures"] == []
    assert report["recovered"] == report["points"] >= 3
