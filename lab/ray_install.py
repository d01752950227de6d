"""Ray for the lab: in an environment of its own, because what is deployed never imports it.

`lab/ray-requirements.lock` names every package with its hashes; it is made anew by

    echo 'ray[default]==2.60.*' | uv pip compile --universal --python-version 3.11 --generate-hashes \
        --no-strip-extras --no-emit-index-url --no-annotate --no-header -q - -o lab/ray-requirements.lock
"""

from __future__ import annotations

import functools
import platform
import sys
from pathlib import Path

from lab.locked_venv import LockedVenv
from lab.processes import LabError

_LOWEST, _HIGHEST = (3, 10), (3, 14)
_MACHINES = {("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64")}
_VENV = LockedVenv(
    name="Ray",
    home=Path(__file__).parents[1] / ".lab" / "ray",
    lock=Path(__file__).with_name("ray-requirements.lock"),
)


def why_not() -> str:
    """Say why Ray cannot be installed here; empty: it can, where a package registry is reached.

    Ray is published as wheels only: CPython 3.10 to 3.14 on Linux with glibc (x86_64 and aarch64) and on
    macOS (arm64). Those for Windows are left out: the lab does not run there.
    """
    here = (
        f"{platform.python_implementation()} {platform.python_version()} on {platform.system()} "
        f"{platform.machine()} {''.join(platform.libc_ver())}"
    )
    is_published = (
        platform.python_implementation() == "CPython"
        and _LOWEST <= sys.version_info[:2] <= _HIGHEST
        and (platform.system(), platform.machine()) in _MACHINES
        and (platform.system() != "Linux" or platform.libc_ver()[0] == "glibc")
    )
    return "" if is_published else f"there is no wheel of Ray for {here.strip()}"


@functools.cache
def ray_program() -> Path:
    """Return Ray's program `ray`; the first call of all installs it, which takes about a minute.

    Raises:
        LabError: there is no wheel of Ray for this machine, or it could not be installed.
    """
    return ray_python().with_name("ray")


@functools.cache
def ray_python() -> Path:
    """Return the interpreter that can import Ray; see `ray_program`."""
    if words := why_not():
        raise LabError(words)
    return _VENV.python()
