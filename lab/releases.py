"""Releases of the lab's application: archives that differ in what is wrong with them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

from pydantic import Field

from rules.change import ReleaseArchive
from rules.frozen import Frozen, PositiveSeconds, Ratio, Seconds

_SOURCE = Path(__file__).with_name("app.py")
#: Where a staged release keeps the checksum of the archive it came from.
_CHECKSUM_FILE = ".sha256"


class Behaviour(Frozen):
    """How a release behaves; by default it is a good one."""

    error_ratio: Ratio = Field(default=0.0, description="share of answers other than /health that are 500")
    errors_after_s: Seconds = Field(default=0.0, description="the errors begin this long after its start")
    latency_s: Seconds = Field(default=0.0, description="every answer but /health takes this long")
    ready_after_s: Seconds = Field(default=0.0, description="answers 503 for this long, also on /health")
    dies_after_s: PositiveSeconds | None = Field(default=None, description="exits by itself after this")
    fails_to_start: bool = Field(default=False, description="exits 1 at once")
    abrupt_stop: bool = Field(default=False, description="drops its open requests at SIGTERM")
    wrong_version: bool = Field(default=False, description="says on /health that it is `<release>-wrong`")


GOOD = Behaviour()


def build_release(directory: Path, release: str, behaviour: Behaviour = GOOD) -> ReleaseArchive:
    """Write `<directory>/<release>.tar.gz` and return it; the same input gives the same bytes.

    Raises:
        OSError: `directory` cannot be written.
    """
    files = {
        "app.py": _SOURCE.read_bytes(),
        "behaviour.json": json.dumps({"release": release, **behaviour.model_dump()}, indent=2).encode(),
    }
    # no names and no times in it: neither gzip's nor tar's
    packed = gzip.compress(_tar(files), mtime=0)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory.absolute() / f"{release}.tar.gz"
    path.write_bytes(packed)
    return ReleaseArchive(path=str(path), sha256=hashlib.sha256(packed).hexdigest())


def install_release(archive: ReleaseArchive, root: Path, release: str) -> None:
    """Unpack a release below `root` and link to it: how an instance looks before any deployment.

    Raises:
        FileExistsError: the instance has this release, or another link, already.
    """
    target = root / "releases" / release
    target.mkdir(parents=True)
    with tarfile.open(archive.path) as packed:
        unpack(packed, target)
    (target / _CHECKSUM_FILE).write_text(f"{archive.sha256}\n")
    (root / "current").symlink_to(f"releases/{release}")


def unpack(packed: tarfile.TarFile, target: Path) -> None:
    """Unpack without owners, links that lead outside and the like, where this Python can refuse them.

    Debian 12's Python 3.11.2 does not yet take `extractall(filter="data")`.
    """
    packed.extraction_filter = getattr(tarfile, "data_filter", None)
    packed.extractall(target)  # noqa: S202 - our own archive, and filtered where that can be had


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
