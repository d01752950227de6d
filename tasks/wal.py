"""The write-ahead log of a cluster, read from its files: where it ends, and what was committed since."""

from __future__ import annotations

from rules.cluster_loss import (
    Commits,
    Control,
    WalEnd,
    commits_after,
    parse_control,
    parse_record,
    position,
)
from rules.errors import CommandError
from rules.frozen import AbsolutePath, Frozen
from rules.hosts import HostAddress
from tasks.host import run
from tasks.process import Finished

# Programs read a cluster of their own major version only: PATH comes after the directory that was declared,
# then where Debian and PostgreSQL's own packages keep each version. All values come as arguments.
_WITH_PROGRAMS = """\
read -r version <"$2/PG_VERSION" || exit
PATH="${1:+$1:}$PATH"
for directory in "" "/usr/lib/postgresql/$version/bin/" "/usr/pgsql-$version/bin/"; do
    case $("${directory}pg_waldump" --version 2>/dev/null) in
        "pg_waldump (PostgreSQL) $version"[!0-9]*) found=yes; break ;;
    esac
done
[ "${found-}" ] || { echo "no pg_waldump $version here: declare the programs of the database" >&2; exit 1; }
"""
_CONTROL = _WITH_PROGRAMS + 'exec "${directory}pg_controldata" -D "$2"\n'
# It ends where the log ends, and calls that an error. Millions of records are not carried to us.
_LAST_RECORD = (
    _WITH_PROGRAMS + '"${directory}pg_waldump" --path="$3" --timeline="$4" --start="$5" | tail -n 1\n'
)
# Checkpoints prove that nothing was left out up to them. The first line is the number of commits.
_COMMITS = (
    _WITH_PROGRAMS
    + r"""
"${directory}pg_waldump" --path="$3" --timeline="$4" --start="$5" --rmgr=Transaction --rmgr=XLOG |
awk -v known="lsn: $5," '
    / desc: CHECKPOINT_/ { print }
    / desc: COMMIT(_PREPARED)? / && !index($0, known) { commits++; last = $0 }
    END { if (last) print last; print commits + 0 }
'
"""
)


class ClusterFiles(Frozen):
    """Where a cluster's files lie: the live one's, or those of a copy of it."""

    host: HostAddress = HostAddress()
    cluster: AbsolutePath
    wal: AbsolutePath
    programs: AbsolutePath | None = None


def control(files: ClusterFiles, *, timeout_s: float) -> Control:
    """Return what the cluster's control file says; the server may run.

    Raises:
        CommandError: it cannot be read.
        ValueError: it does not say what is needed.
    """
    return parse_control(_script(files, _CONTROL, timeout_s=timeout_s).stdout)


def end(files: ClusterFiles, *, timeout_s: float) -> WalEnd:
    """Return where the WAL of a cluster ends whose server does not run: up to there a start would recover.

    Raises:
        CommandError: the WAL cannot be read.
        ValueError: it does not reach from the control file's redo position to its checkpoint.
    """
    start = control(files, timeout_s=timeout_s)
    argv = (files.wal, str(start.timeline), start.redo)
    read = _script(files, _LAST_RECORD, *argv, timeout_s=timeout_s)
    if not read.stdout.strip():
        raise ValueError(f"the WAL of {files.cluster} cannot be read: {read.stderr.strip()[-500:]}")
    last = parse_record(read.stdout)
    if position(last.position) < position(start.checkpoint):
        raise ValueError(f"the WAL of {files.cluster} ends at {last.position}, before its latest checkpoint")
    return WalEnd(control=start, last=last)


def commits_since(files: ClusterFiles, ended: WalEnd, *, timeout_s: float) -> Commits:
    """Return what was committed in the live cluster since; exact, once its server is stopped.

    Args:
        files: the live cluster's.
        ended: where the snapshot's own WAL ends.
        timeout_s: for each command.

    Raises:
        CommandError: the control file or the WAL cannot be read, or not in time.
        ValueError: what they say cannot be understood.
    """
    now = control(files, timeout_s=timeout_s)
    argv = (files.wal, str(ended.control.timeline), ended.last.position)
    read = _script(files, _COMMITS, *argv, timeout_s=timeout_s)
    *listed, count = read.stdout.splitlines()
    return commits_after(ended, "\n".join(listed), count=int(count), now=now)


def _script(files: ClusterFiles, script: str, *argv: str, timeout_s: float) -> Finished:
    words = ("sh", "-c", script, "read-wal", files.programs or "", files.cluster, *argv)
    finished = run(files.host, words, timeout_s=timeout_s, env={"LC_ALL": "C", "TZ": "UTC"}, check=False)
    if finished.returncode:
        raise CommandError(
            ("read-wal", files.cluster, *argv), files.host.name, finished.returncode, finished.output
        )
    return finished
