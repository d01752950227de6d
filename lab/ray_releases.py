"""Releases for Ray nodes: archives that differ in what is wrong with them."""

from __future__ import annotations

import hashlib
import io
import shlex
import tarfile
from pathlib import Path
from typing import Literal

from rules.change import ReleaseArchive

RayBehaviour = Literal["good", "import error", "crash at start", "wrong version"]

_GOOD = '"""What the jobs of this cluster import."""\n\nVERSION = {version!r}\n'
#: What the release has beside `appcode.py`, or instead of the good one.
_FILES: dict[RayBehaviour, dict[str, str]] = {
    "good": {},
    "import error": {"appcode.py": "import a_package_that_is_not_there\n"},
    # imported by each interpreter that has the release on its path, that of `ray start` first
    "crash at start": {"sitecustomize.py": "import os\n\nos._exit(70)\n"},
    "wrong version": {"appcode.py": _GOOD.format(version="another")},
}
_CANARY = (
    "import appcode, os, sys; print(appcode.VERSION); sys.exit(appcode.VERSION != os.environ['RELEASE'])"
)

#: Entrypoint of a job that exits 0 where the release that RELEASE names is imported.
CANARY = shlex.join(("python", "-c", _CANARY))


def build_ray_release(directory: Path, release: str, behaviour: RayBehaviour = "good") -> ReleaseArchive:
    """Write `<directory>/<release>.tar` and return it; the same input gives the same bytes.

    Raises:
        OSError: `directory` cannot be written.
    """
    files = {"appcode.py": _GOOD.format(version=release), **_FILES[behaviour]}
    directory.mkdir(parents=True, exist_ok=True)
    path = directory.absolute() / f"{release}.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as packed:
        for name, text in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o644
            packed.addfile(entry, io.BytesIO(text.encode()))
    return ReleaseArchive(path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
