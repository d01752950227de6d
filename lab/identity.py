"""Which process is which: a pid alone may have been given to another since.

Apart from the rest because `lab.service` starts hundreds of times in the crash tests and needs only this.
"""

from __future__ import annotations

from pathlib import Path

#: Environment variable that all the lab's processes inherit: the directory they belong to.
MARK = "SOVEREIGN_LAB"


def started_ticks(pid: int, *, even_zombie: bool = False) -> int | None:
    """Return when a process started, in clock ticks since boot; None when there is none.

    A process that has ended and only waits for its parent to notice counts when `even_zombie`.
    """
    try:
        # the second field, the program's name, is in parentheses and may hold anything
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # a first thread that has ended is a zombie while others still end, and hold the sockets open
    has_ended = fields[0] in "ZX" and int(fields[17]) <= 1
    return int(fields[19]) if even_zombie or not has_ended else None
