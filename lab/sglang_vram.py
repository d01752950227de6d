"""What a simulated server uses of the GPU that `lab.gpu` pretends to have; standard library only."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from lab.identity import started_ticks


def claim_vram(mib: int) -> None:
    """Say that this process uses so much of the first GPU; nothing happens where there is none."""
    with _claims() as claims:
        claims[str(os.getpid())] = [started_ticks(os.getpid()), mib]


def release_vram() -> None:
    """Say that this process uses nothing of it."""
    with _claims() as claims:
        claims.pop(str(os.getpid()), None)


@contextlib.contextmanager
def _claims() -> Iterator[dict[str, list[int | None]]]:
    """Let one process at a time change who uses what, and have the GPU say the sum.

    Those who ended without a word are left out: a driver frees what a dead process had.
    """
    says = Path(os.environ.get("LAB_NVML", "/nonexistent"))
    if not says.is_file():
        yield {}
        return
    with says.with_suffix(".claims").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        claims = json.loads(file.read() or "{}")
        before = sum(mib for _, mib in claims.values())
        claims = {pid: claim for pid, claim in claims.items() if started_ticks(int(pid)) == claim[0]}
        yield claims
        file.truncate(0)
        file.write(json.dumps(claims))
        file.flush()
        _add_used(says, sum(mib for _, mib in claims.values()) - before)


def _add_used(says: Path, mib: int) -> None:
    first, *others = says.read_text().splitlines(keepends=True) or [""]
    total, used, load = map(int, first.split())
    new = says.with_suffix(".changed")
    new.write_text(f"{total} {min(total, max(0, used + mib))} {load}\n" + "".join(others))
    new.replace(says)
