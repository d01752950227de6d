"""Real reports of real tools: what a pipeline would hand over for a good and a bad change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_SOURCE = """\
def add(a, b):
    return a + b


def rarely(a):
    if a:
        return 1
    return 2


def never(a):
    x = a
    x += 1
    x += 2
    return x
"""

_GOOD = """\
import pytest
import code_under_test as code


@pytest.mark.parametrize("n", range(20))
def test_adds(n):
    assert code.add(n, 1) == n + 1


def test_all_branches():
    assert code.rarely(0) == 2 and code.rarely(1) == 1 and code.never(1) == 4


def test_speed(benchmark):
    benchmark.pedantic(code.add, args=(1, 2), rounds=5)


@pytest.mark.skip
def test_left_out():
    raise AssertionError
"""

_BAD = _GOOD.replace("n + 1", "(n + 1 if n % 2 else 0)").replace(" and code.never(1) == 4", "")


def run_tests(directory: Path, *, good: bool) -> Path:
    """Run pytest there, and leave junit.xml, coverage.xml, coverage.json and benchmarks.json."""
    directory.mkdir()
    (directory / "code_under_test.py").write_text(_SOURCE)
    (directory / "test_code.py").write_text(_GOOD if good else _BAD)
    plugins = ["-p", "pytest_cov.plugin", "-p", "pytest_benchmark.plugin"]
    argv = [sys.executable, "-m", "pytest", "-q", *plugins]
    argv += ["--cov=code_under_test", "--cov-report=xml:coverage.xml", "--cov-report=json:coverage.json"]
    argv += ["--benchmark-json=benchmarks.json", "--junitxml=junit.xml", "--rootdir=.", "-c", os.devnull]
    # the coverage of the calling run is none of its business
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("COV", "PYTEST"))}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # all others only take time
    done = subprocess.run(argv, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if good else 1), done.stdout + done.stderr
    return directory


def run_ruff(directory: Path, source: str) -> Path:
    """Run ruff over `source`, and leave ruff.json and ruff.sarif."""
    directory.mkdir()
    (directory / "checked.py").write_text(source)
    for form, name in (("json", "ruff.json"), ("sarif", "ruff.sarif")):
        argv = [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--isolated",
            "--no-cache",
            "--select",
            "F,S",
            "--exit-zero",
        ]
        done = subprocess.run(
            [*argv, "--output-format", form, "checked.py"], cwd=directory, capture_output=True, check=True
        )
        (directory / name).write_bytes(done.stdout)
    return directory
