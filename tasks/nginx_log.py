"""What the sides behind nginx have answered, counted from an access log: nginx has no such counters.

The log has the format that the route's file defines, one line for each answer: side, upstream, status,
seconds.
"""

from __future__ import annotations

import threading
from pathlib import PurePosixPath

from rules.errors import BalancerError, CommandError
from rules.frozen import Frozen
from rules.traffic import Counts, NginxAddress
from tasks.host import run

_TIMEOUT_S = 120.0
#: As many answers as HAProxy's mean is of, and how many lines may lie between them.
_MEAN_OF = 1024
_NEWEST_LINES = 20_000

# Adds up the whole lines among so many bytes: side and last upstream -> answers, errors. A client that left
# before its answer (499) is none. The last line may be half written: it is counted when it is whole.
_ADD_UP = """\
BEGIN { FS = "\\t" }
function add(   upstreams, n, key) {
    if (fields != 4 || status == 499) return
    key = side "\\t" upstream
    if (index(upstream, " ")) {
        n = split(upstream, upstreams, /, | : /)
        key = side "\\t" upstreams[n]
    }
    requests[key]++
    if (status >= 500) errors[key]++
}
NR > 1 { add() }
{ fields = NF; side = $1; upstream = $2; status = $3; size = length($0) + 1; bytes += size }
END {
    if (NR && bytes <= whole) add()
    else bytes -= size
    print "read\\t" (NR ? bytes : 0)
    for (key in requests) print key "\\t" requests[key] "\\t" errors[key] + 0
}
"""
# $1 log, $2 its directory, $3 inode that was read last, $4 how far, $5 the program. The rest of a log that
# was renamed meanwhile comes first. nginx writes to a renamed log until it is told to open the new one.
_READ = """\
set -eu
LC_ALL=C; export LC_ALL
part() {
    [ -r "$1" ] || { echo "$1 may not be read" >&2; exit 1; }
    size=$(stat -c %s -- "$1")
    [ "$size" -ge "$2" ] || set -- "$1" 0 "$3"
    printf 'file\\t%s\\t%s\\n' "$(stat -c %i -- "$1")" "$2"
    tail -c "+$(($2 + 1))" -- "$1" | head -c "$(($size - $2))" | awk -v "whole=$(($size - $2))" "$3"
}
now=$(stat -c %i -- "$1" 2>/dev/null || true)
old=
if [ "$3" != 0 ] && [ "$now" != "$3" ]; then
    old=$(find "$2" -maxdepth 1 -type f -inum "$3" 2>/dev/null | head -n 1)
fi
[ -z "$old" ] || part "$old" "$4" "$5"
if [ -n "$now" ]; then
    if [ "$now" = "$3" ]; then part "$1" "$4" "$5"; else part "$1" 0 "$5"; fi
elif [ -z "$old" ]; then
    echo "$1 is not there" >&2
    exit 1
fi
"""
_MEAN = """\
set -eu
LC_ALL=C; export LC_ALL
[ -r "$1" ] || { echo "$1 is not there, or may not be read" >&2; exit 1; }
tail -n "$2" -- "$1" | awk -F '\\t' -v "side=$3" -v "most=$4" '
    NF == 4 && $1 == side && $3 != 499 { took[n++ % most] = $4 }
    END { m = n < most ? n : most; for (i = 0; i < m; i++) sum += took[i]; if (m) printf "%.6f\\n", sum / m }'
"""

_Totals = dict[tuple[str, str], Counts]


class _Place(Frozen):
    """How far a log was read: its inode and bytes, 0 before the first look."""

    inode: int = 0
    offset_bytes: int = 0


class _Reader:
    """Adds up one log, from its beginning as this process found it, over its renaming."""

    def __init__(self, address: NginxAddress, path: str) -> None:
        self._host, self._path = address.host, path
        self._place, self._totals = _Place(), _Totals()
        # a watch and what looks beside it may ask at once
        self._lock = threading.Lock()

    def totals(self) -> _Totals:
        """Return what was answered so far: side and upstream address -> counts."""
        with self._lock:
            self._read()
            return dict(self._totals)

    def _read(self) -> None:
        directory = str(PurePosixPath(self._path).parent)
        place = (str(self._place.inode), str(self._place.offset_bytes))
        argv = ("sh", "-c", _READ, "read-log", self._path, directory, *place, _ADD_UP)
        for line in run(self._host, argv, timeout_s=_TIMEOUT_S).stdout.splitlines():
            match line.split("\t"):
                case ["file", inode, offset]:
                    self._place = _Place(inode=int(inode), offset_bytes=int(offset))
                case ["read", size]:
                    whole = self._place.offset_bytes + int(size)
                    self._place = self._place.model_copy(update={"offset_bytes": whole})
                case [side, upstream, requests, errors]:
                    counted = Counts(int(requests), int(errors))
                    self._totals[side, upstream] = self._totals.get((side, upstream), Counts()) + counted


_readers: dict[tuple[str, str | None, int, str], _Reader] = {}


def counts(address: NginxAddress, side: str) -> Counts | None:
    """Return what the side has answered, as far back as its log goes; None: no log is declared.

    Requests are all answers but those that nobody waited for; errors are the 5xx, with the 502 and 504 that
    nginx itself answers. A log that is renamed is read to its end. One that is cut off (copytruncate) loses
    what was written since the last look, and a process that looks for the first time begins with the log as
    it is: the counter is then lower than before, which reads as one that began anew.

    Raises:
        BalancerError: the log is declared but cannot be read, or there is no such side.
    """
    _refuse_unknown(address, side)
    if address.access_log is None:
        return None
    totals = _totals(address, address.access_log)
    return sum((counted for (of, _), counted in totals.items() if of == side), Counts())


def server_counts(address: NginxAddress, side: str) -> dict[str, Counts] | None:
    """Return what each server of the side has answered; see `counts`.

    A request that was sent on to another server counts for the last one.
    """
    _refuse_unknown(address, side)
    if address.access_log is None:
        return None
    totals = _totals(address, address.access_log)
    return {server: totals.get((side, where), Counts()) for server, where in address.sides[side].items()}


def mean_response_s(address: NginxAddress, side: str) -> float | None:
    """Return the side's mean response time over its last 1,024 answers at most; None: no answer, or no log.

    Raises:
        BalancerError: the log is declared but cannot be read, or there is no such side.
    """
    _refuse_unknown(address, side)
    if address.access_log is None:
        return None
    argv = ("sh", "-c", _MEAN, "mean", address.access_log, str(_NEWEST_LINES), side, str(_MEAN_OF))
    try:
        said = run(address.host, argv, timeout_s=_TIMEOUT_S).stdout.strip()
    except CommandError as error:
        raise _unreadable(address.access_log, error) from error
    return float(said) if said else None


def _totals(address: NginxAddress, path: str) -> _Totals:
    host = address.host
    reader = _readers.setdefault((host.name, host.address, host.port, path), _Reader(address, path))
    try:
        return reader.totals()
    except CommandError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: CommandError) -> BalancerError:
    said = error.output.strip() or "its host does not answer in time"  # the command itself is a page long
    return BalancerError(
        f"nginx's log {path} cannot be read, so nobody knows what was answered: {said}; nothing was "
        "changed. Look at the balancer's access_log, and whether the user that deploys may read it."
    )


def _refuse_unknown(address: NginxAddress, side: str) -> None:
    if side not in address.sides:
        raise BalancerError(f"nginx has no side {side}; nothing was changed. It has {sorted(address.sides)}")
