"""The real SGLang 0.5.23, on the CPU: installed once into `.lab/sglang`, which takes 1.7 GB.

`lab/sglang-requirements.lock` names every package with its hashes; the file beside it says how it is made. It
has the CPU build of torch, which is published beside the package registry, not in it: pip finds it where its
own settings point, such as PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL. The registry's own torch would bring 19
packages for CUDA, 3 GB of them, so it is never taken in its place: the installation then fails and says so.
What SGLang asks for beyond these packages is for GPUs alone; `lab.sglang_stand_ins` is imported instead.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from lab.locked_venv import LockedVenv

_PYTHON = (3, 11)
_HERE = Path(__file__).parent
_ENVIRONMENT = LockedVenv(
    name="the real SGLang",
    home=_HERE.parent / ".lab" / "sglang",
    lock=_HERE / "sglang-requirements.lock",
    imported_first=_HERE / "sglang_stand_ins.py",
)
#: How SGLang serves a tiny model on a CPU; a release's own flags come after these, and win.
_CPU_FLAGS = {
    "--device": "cpu",
    "--attention-backend": "torch_native",
    "--max-total-tokens": "4096",
    "--mem-fraction-static": "0.1",
}


def why_not() -> str:
    """Say why the real SGLang cannot be had here; empty: it can, where a registry has its packages."""
    here = (platform.python_implementation(), sys.version_info[:2], platform.system(), platform.machine())
    if here == ("CPython", _PYTHON, "Linux", "x86_64"):
        return ""
    return f"the lock of the real SGLang is for CPython 3.11 on Linux x86_64, and this is {here}"


def install() -> None:
    """Install it unless that is done.

    Raises:
        LabError: a package could not be had; says which.
    """
    _ENVIRONMENT.python()


def launch_argv() -> tuple[str, ...]:
    """Return the command that starts it, to which flags are added."""
    flags = (part for pair in _CPU_FLAGS.items() for part in pair)
    return (str(_ENVIRONMENT.python()), "-m", "sglang.launch_server", *flags, "--sleep-on-idle")


def launch_environment() -> dict[str, str]:
    """Return all of its environment: nothing of who starts it, and nothing outside `.lab`."""
    home = _ENVIRONMENT.home
    return {
        "PATH": f"{home / 'venv' / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        # a path that does not exist would be asked for in the hub
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "SGLANG_USE_CPU_ENGINE": "0",
    }
