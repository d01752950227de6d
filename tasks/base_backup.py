"""PostgreSQL base backups: taken, verified, measured and pruned; and whether a server is stopped.

Each is a whole cluster that can be started, `<directory>/sovereign-<deployment>` on the worker's host.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from blocks.postgres import PostgresAccess
from rules.backup import BackupTaken, Loss, Stored, backup_name, end_of_backup, expired, from_epoch
from rules.environment import BlockReference
from rules.errors import CommandError, UndoFailedError
from rules.finding import Finding
from rules.frozen import Name
from rules.hosts import HostAddress
from tasks.host import run
from tasks.postgres_session import DatabaseError
from tasks.process import Finished

_MANIFEST = "backup_manifest"
_UNFINISHED = ".unfinished"
_HERE = HostAddress()
_CONNECT_TIMEOUT_S = 10
# Every process of a server has the cluster as its directory. Those of other users can be looked at by root
# alone, so that others must also see the pid file gone, or its process ended.
_IS_STOPPED = """\
cluster=$(readlink -f -- "$1") || exit 0
# all in one call: one for each process took half a second, while users waited
readlink -- /proc/[0-9]*/cwd 2>/dev/null | grep -Fxq -- "$cluster" && exit 1
[ "$(id -u)" != 0 ] && [ -e "$cluster/postmaster.pid" ] || exit 0
read -r pid <"$cluster/postmaster.pid" || exit 1
[ ! -e "/proc/$pid" ]
"""


def take(postgres: PostgresAccess, source: BlockReference, *, deployment: Name) -> BackupTaken:
    """Copy the whole server, or find the copy that the deployment has already; return it.

    A copy that was not finished is thrown away: its directory has another name until it is whole.

    Raises:
        CommandError: pg_basebackup failed; no copy is there.
        DatabaseError: the server has tablespaces, or does not answer.
    """
    done = Path(postgres.directory) / backup_name(deployment)
    if not done.exists():
        _refuse_tablespaces(postgres)
        unfinished = done.with_name(done.name + _UNFINISHED)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        target = ("--pgdata", str(unfinished), "--format=plain", "--wal-method=stream")
        how = ("--checkpoint=fast", "--manifest-checksums=SHA256", f"--label={done.name}")
        _run(postgres, ("pg_basebackup", *_server(postgres), *target, *how))
        unfinished.rename(done)
        _sync(done.parent)
    manifest = (done / _MANIFEST).read_text()
    return BackupTaken(
        source=source,
        kind="base_backup",
        identity=str(done),
        taken_at=from_epoch(str(int((done / _MANIFEST).stat().st_mtime))),
        size_bytes=sum(int(file["Size"]) for file in json.loads(manifest)["Files"]),
        position=end_of_backup(manifest),
        details={"deployment": deployment},
    )


def verify(postgres: PostgresAccess, taken: BackupTaken) -> Finding:
    """Read every file of the copy and compare it with the checksum that the server sent; parse its WAL."""
    argv = ("pg_verifybackup", "--exit-on-error", "--quiet", taken.identity)
    finished = _run(postgres, argv, check=False)
    if finished.returncode:
        return Finding.failed(f"{taken.identity} is not whole: {finished.output.strip()[-500:]}")
    manifest = json.loads((Path(taken.identity) / _MANIFEST).read_text())
    position = manifest["WAL-Ranges"][-1]["End-LSN"]
    if position != taken.position:
        return Finding.failed(f"{taken.identity} is another one: it ends at {position}, not {taken.position}")
    count = len(manifest["Files"])
    return Finding.passed(
        f"{taken.identity}: {count} files and the WAL up to {position} are as the server sent"
    )


def prune(postgres: PostgresAccess, *, now: datetime, keep_s: float) -> tuple[str, ...]:
    """Remove the copies of ours that are older than `keep_s`, and unfinished ones; return the former.

    Raises:
        OSError: one could not be removed; it has lost its name already.
    """
    for unfinished in Path(postgres.directory).glob(f"sovereign-*{_UNFINISHED}"):
        shutil.rmtree(unfinished)
    removed = []
    for old in expired(stored(postgres), now=now, keep_s=keep_s):
        # half a copy must not look like one
        gone = Path(old.identity + _UNFINISHED)
        Path(old.identity).rename(gone)
        shutil.rmtree(gone)
        removed.append(old.identity)
    return tuple(removed)


def stored(postgres: PostgresAccess) -> tuple[Stored, ...]:
    """Return the finished copies in the directory."""
    found = (manifest.parent for manifest in Path(postgres.directory).glob(f"sovereign-*/{_MANIFEST}"))
    return tuple(
        Stored(
            identity=str(path),
            label=path.name,
            taken_at=datetime.fromtimestamp((path / _MANIFEST).stat().st_mtime, UTC),
        )
        for path in found
        if not path.name.endswith(_UNFINISHED)
    )


def loss(postgres: PostgresAccess, taken: BackupTaken, *, now: datetime) -> Loss:
    """Return what going back to the copy would lose: the WAL that the server has written since.

    Raises:
        DatabaseError: the server does not answer.
    """
    query = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)::bigint"
    with _connection(postgres) as connection:
        row = connection.execute(query, (taken.position,)).fetchone()
    lost = max(0, int(row[0])) if row else None
    return Loss.of(taken, now=now, lost_bytes=lost, what="of changes (WAL) since")


def plan(postgres: PostgresAccess) -> Finding:
    """Return whether the server may be copied by this user to this directory; changes nothing."""
    try:
        version = _run(postgres, ("pg_basebackup", "--version")).stdout.split()[-1]
        _run(postgres, ("pg_verifybackup", "--version"))
        _refuse_tablespaces(postgres)
        with _connection(postgres) as connection:
            level, senders, may = connection.execute(
                "SELECT current_setting('wal_level'), current_setting('max_wal_senders')::int, "
                "(SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user)"
            ).fetchone() or ("", 0, False)
    except (CommandError, DatabaseError) as error:
        return Finding.failed(str(error))
    if level == "minimal" or senders < 2 or not may:  # noqa: PLR2004 - one sends the files, one the WAL
        return Finding.failed(
            f"the server cannot be copied: wal_level is {level}, max_wal_senders {senders} (2 are needed), "
            f"and {postgres.user} {'may' if may else 'may not'} replicate"
        )
    if not os.access(_nearest(Path(postgres.directory)), os.W_OK):
        return Finding.failed(f"{postgres.directory} cannot be written")
    return Finding.passed(f"{postgres.host}:{postgres.port} can be copied, by pg_basebackup {version}")


def needed_bytes(postgres: PostgresAccess) -> int:
    """Return how large the server's databases are together.

    Raises:
        DatabaseError: the server does not answer.
    """
    with _connection(postgres) as connection:
        row = connection.execute("SELECT sum(pg_database_size(oid))::bigint FROM pg_database").fetchone()
    return int(row[0]) if row else 0


def free_bytes(postgres: PostgresAccess) -> int:
    """Return how many bytes can still be written where the copies lie."""
    return shutil.disk_usage(_nearest(Path(postgres.directory))).free


def server_is_stopped(host: HostAddress, cluster: str) -> bool:
    """Return whether no process of a PostgreSQL server has `cluster`, its data directory, open on `host`.

    Raises:
        CommandError: it cannot be told.
    """
    argv = ("sh", "-c", _IS_STOPPED, "is-stopped", cluster)
    finished = run(host, argv, check=False)
    if finished.returncode not in {0, 1}:
        raise CommandError(argv, host.name, finished.returncode, finished.output)
    return finished.returncode == 0


def remove_stale_pid_file(host: HostAddress, cluster: str) -> None:
    """Remove the `postmaster.pid` that a snapshot of a running server holds; it can forbid a start.

    Raises:
        UndoFailedError: a server runs, and the file is its own: nothing was removed.
        CommandError: it could not be removed.
    """
    if not server_is_stopped(host, cluster):
        raise UndoFailedError(
            f"a server runs on {cluster}: its postmaster.pid was left. Stop the server first."
        )
    run(host, ("rm", "-f", "--", f"{cluster}/postmaster.pid"))


def _refuse_tablespaces(postgres: PostgresAccess) -> None:
    query = "SELECT array_agg(spcname) FROM pg_tablespace WHERE pg_tablespace_location(oid) <> ''"
    with _connection(postgres) as connection:
        row = connection.execute(query).fetchone()
    if row and row[0]:
        raise DatabaseError(
            f"the server has tablespaces {row[0]}, whose copies would land on the originals' paths; nothing "
            "was copied. Back it up by snapshots of its file systems."
        )


@contextmanager
def _connection(postgres: PostgresAccess) -> Iterator[psycopg.Connection]:
    try:
        with psycopg.connect(
            host=postgres.host,
            port=postgres.port,
            user=postgres.user,
            dbname=postgres.database,
            password=postgres.password.get_secret_value() or None,
            connect_timeout=_CONNECT_TIMEOUT_S,
            application_name="sovereign-deploy",
            autocommit=True,
        ) as connection:
            yield connection
    except psycopg.Error as error:
        raise DatabaseError(
            f"PostgreSQL on {postgres.host}:{postgres.port}: {error}. Nothing was changed."
        ) from error


def _server(postgres: PostgresAccess) -> tuple[str, ...]:
    place = (f"--host={postgres.host}", f"--port={postgres.port}")
    return (*place, f"--username={postgres.user}", "--no-password")


def _run(postgres: PostgresAccess, argv: tuple[str, ...], *, check: bool = True) -> Finished:
    program = str(Path(postgres.programs) / argv[0]) if postgres.programs else argv[0]
    environment = {"LC_ALL": "C"}
    if password := postgres.password.get_secret_value():
        environment["PGPASSWORD"] = password
    return run(_HERE, (program, *argv[1:]), timeout_s=postgres.timeout_s, env=environment, check=check)


def _nearest(path: Path) -> Path:
    """Return the directory itself, or the nearest one above it that is there."""
    return next(place for place in (path, *path.parents) if place.exists())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
