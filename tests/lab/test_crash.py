"""The crash matrix, every n-th point of it; all points: `python -m lab.crash --strategy canary`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

_PROJECT = Path(__file__).parents[2]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategy", ["in_place", "blue_green", "canary", "rolling"])
def test_a_deployment_killed_anywhere_is_recovered(strategy: str) -> None:
    command = (sys.executable, "-m", "lab.crash", "--component", "application", "--strategy", strategy)
    done = subprocess.run(
        (*command, "--every", "9", "--json"),
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
    assert report["recovered"] == report["points"] >= 7
