"""Copies of a database to rehearse on, with a server: a ZFS clone, a base backup, or its schema alone."""

from __future__ import annotations

import logging
import os
import pwd
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psycopg

from rules.backup import ZfsDataset, moved
from rules.database import Database
from rules.errors import CommandError, DeployError, InvalidRequestError, LockHeldError
from rules.hosts import HostAddress
from tasks import zfs
from tasks.database import libpq_environment
from tasks.host import run
from tasks.postgres import connection, quoted
from tasks.rehearsal_remains import (
    MARK,
    clone_prefix,
    dataset_here,
    destroy,
    label_prefix,
    place,
    remove_directory,
    remove_left,
    turn,
)
from tasks.settings import Settings
from tasks.throwaway_server import (
    ThrowawayServerError,
    as_owner,
    new_private_directory,
    server_programs,
    throwaway_server,
)

log = logging.getLogger(__name__)

Where = Literal["zfs_clone", "base_backup", "schema_copy"]

_HERE = HostAddress()
_COPY_TIMEOUT_S = 4 * 3600.0
#: A rehearsal can write every table anew.
_ROOM = 2.0
#: No role of the copied server: all of its roles are made beside it.
_BOOTSTRAP_USER = "sovereign_rehearsal"
_SIZE = "SELECT sum(pg_database_size(oid))::bigint FROM pg_database"
_FACTS = """
SELECT current_setting('server_version_num')::int / 10000,
    ARRAY(SELECT spcname::text FROM pg_tablespace WHERE pg_tablespace_location(oid) <> ''),
    (SELECT setting FROM pg_settings WHERE name = 'shared_preload_libraries')
"""


@dataclass(frozen=True)
class Copy:
    """A copy with its own server: `database` points to it."""

    where: Where
    database: Database


@dataclass(frozen=True)
class _Original:
    """What is copied, for whom, and the directory that all of the copy lies in."""

    database: Database
    deployment: str
    directory: Path
    settings: Settings

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def inside(self) -> tuple[str, ...]:
        """What to put before a command that starts others, so that they are found when we were killed."""
        return ("env", f"--chdir={self.directory}")

    def serve(self, cluster: Path, programs: Path) -> AbstractContextManager[Database]:
        """Run a server on the copied `cluster`; where its socket is, is written down before it is there."""
        private = new_private_directory()
        (self.directory / "private").symlink_to(private)
        return throwaway_server(self.database, cluster, programs=programs, private_directory=private)


@contextmanager
def copy_of(database: Database, *, deployment: str, settings: Settings) -> Iterator[Copy]:
    """Make a copy of the database, the best that can be had, and remove it afterwards.

    Nothing is written to the original. Why a better way could not be had is logged.

    Raises:
        InvalidRequestError: there is no way to copy it, or not the one that is asked for.
        LockHeldError: another rehearsal of this database goes on.
    """
    with turn(database, settings, patience_s=settings.command_timeout_s) as is_ours:
        if not is_ours:
            raise LockHeldError(
                f"migrations of {database.name} are being rehearsed by another process on this host. Nothing "
                "was touched. Try again when that has ended."
            )
        try:
            remove_left(database, settings)
        except DeployError as error:
            log.warning("what an earlier rehearsal of %s left stays: %s", database.name, error)
        directory = place(settings) / f"{database.name}_{secrets.token_hex(4)}"
        directory.mkdir(mode=0o711)
        try:
            with ExitStack() as stack:
                yield _best(_Original(database, deployment, directory, settings), stack)
        finally:
            try:
                remove_directory(directory)
            except DeployError as error:  # a clone that stays busy is no reason to stop
                log.warning("a copy of %s is left until the next rehearsal: %s", database.name, error)


def _best(original: _Original, stack: ExitStack) -> Copy:
    wanted = original.database.rehearsal
    reasons = []
    for where, way in _WAYS.items():
        if wanted not in {None, where}:
            continue
        try:
            copied = stack.enter_context(way(original))
        except (DeployError, OSError) as error:
            reasons.append(f"{where}: {error}")
            remove_directory(original.directory)
            original.directory.mkdir(mode=0o711)
        else:
            log.info("rehearsing on a %s%s", where, "".join(f"; not on a {reason}" for reason in reasons))
            return Copy(where, copied)
    raise InvalidRequestError(
        f"The migrations of {original.database.name} cannot be rehearsed: no copy of it can be had. "
        f"{' / '.join(reasons)}. Nothing was touched. Remove one of these reasons and try again."
    )


# --- a clone of its file system --------------------------------------------------------------------


@contextmanager
def _zfs_clone(original: _Original) -> Iterator[Database]:
    dataset, settings = dataset_here(original.database), original.settings
    server = original.database.server
    if not dataset or not server:
        raise ThrowawayServerError("its cluster is on no ZFS dataset of this host")
    cluster = Path(server.cluster).resolve()
    programs = server_programs(original.database, major=int((cluster / "PG_VERSION").read_text()))
    mounted_at = zfs.mountpoints(dataset, settings=settings).get(dataset.dataset, "")
    try:
        copied = moved(str(cluster), mounted_at, str(original.data))
    except ValueError as error:
        raise ThrowawayServerError(f"the dataset does not hold the cluster: {error}") from error
    number = secrets.token_hex(4)
    snapshot = f"{dataset.dataset}@{label_prefix(original.database)}{number}"
    clone = f"{clone_prefix(original.database, dataset)}{number}"
    properties = ("-o", "readonly=off", "-o", f"mountpoint={original.data}")
    try:
        zfs.command(dataset, ("snapshot", snapshot), settings)
        zfs.command(dataset, ("clone", *properties, snapshot, clone), settings)
        mounted = zfs.command(dataset, ("get", "-Hp", "-o", "value", "mounted", clone), settings).stdout
        if mounted.strip() != "yes":
            zfs.mount(dataset, clone, settings=settings)
        with original.serve(Path(copied), programs) as served:
            yield served
    finally:
        for name in (clone, snapshot):
            _destroy_or_leave(dataset, name, settings)


def _destroy_or_leave(dataset: ZfsDataset, name: str, settings: Settings) -> None:
    """Destroy it; what stays busy is nobody's obstacle, and is removed before the next rehearsal."""
    try:
        destroy(dataset, name, settings)
    except CommandError as error:
        log.warning("%s is left until the next rehearsal: %s", name, error)


# --- a base backup ---------------------------------------------------------------------------------


@contextmanager
def _base_backup(original: _Original) -> Iterator[Database]:
    database = original.database
    with connection(database, deployment=original.deployment, autocommit=True, read_only=True) as session:
        major, tablespaces, _ = session.execute(_FACTS).fetchall()[0]
        size_bytes = int(session.execute(_SIZE).fetchall()[0][0])
    programs = server_programs(database, major=major)
    if tablespaces:
        raise ThrowawayServerError(
            f"its tablespaces {tablespaces} would be written to their originals' paths"
        )
    free_bytes = shutil.disk_usage(original.directory).free
    if free_bytes < _ROOM * size_bytes:
        raise ThrowawayServerError(
            f"{original.directory.parent} has {free_bytes} bytes free, and the server holds {size_bytes}: "
            f"{_ROOM:g} times as many are needed, as migrations write tables anew"
        )
    how = ("--checkpoint=fast", "--wal-method=stream", "--no-sync", "--no-manifest", "--label=" + MARK)
    program = (*original.inside, str(programs / "pg_basebackup"), "--no-password")
    argv = (*program, f"--pgdata={original.data}", *how)
    run(_HERE, argv, timeout_s=_COPY_TIMEOUT_S, env=libpq_environment(database))
    _hand_over(original.data, database, programs)
    with original.serve(original.data, programs) as served:
        yield served


def _hand_over(cluster: Path, database: Database, programs: Path) -> None:
    """Give a copy that root made to somebody who may run it: the original's owner, or a nobody."""
    if os.geteuid() != 0:
        return
    for user, group in _owners(database):
        os.chown(cluster, user, group)
        with suppress(ThrowawayServerError):
            as_owner(cluster, programs)
            run(_HERE, ("chown", "-R", f"{user}:{group}", "--", str(cluster)), timeout_s=_COPY_TIMEOUT_S)
            return
    raise ThrowawayServerError("root can run PostgreSQL on this host neither as another user nor as itself")


def _owners(database: Database) -> Iterator[tuple[int, int]]:
    if database.server and not database.server.host.address:
        with suppress(OSError):
            found = Path(database.server.cluster).stat()
            if found.st_uid:
                yield found.st_uid, found.st_gid
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            user = pwd.getpwnam(name)
            yield user.pw_uid, user.pw_gid
    yield 0, 0


# --- its schema alone ------------------------------------------------------------------------------


@contextmanager
def _schema_copy(original: _Original) -> Iterator[Database]:
    database = original.database
    with connection(database, deployment=original.deployment, autocommit=True, read_only=True) as session:
        major, _, libraries = session.execute(_FACTS).fetchall()[0]
    programs = server_programs(database, major=major)
    _make_cluster(original, programs, libraries or "")
    with original.serve(original.data, programs) as served:
        dumps = original.directory / "dumps"
        dumps.mkdir(mode=0o700)
        named = f"--database={database.address.database}"
        roles = ("--roles-only", "--no-role-passwords", named, f"--file={dumps / 'roles'}")
        _dump(database, programs / "pg_dumpall", roles)
        # roles that others cannot be made members of are no reason to give up
        _load(served, dumps / "roles", on_error="continue")
        schema = ("--schema-only", "--create", "--clean", "--if-exists", f"--file={dumps / 'schema'}")
        _dump(database, programs / "pg_dump", schema)
        _load(served, dumps / "schema", on_error="stop")
        shutil.rmtree(dumps)
        _copy_versions(original, served)
        yield served


def _make_cluster(original: _Original, programs: Path, libraries: str) -> None:
    if not (programs / "initdb").exists():
        raise ThrowawayServerError(f"{programs} has no initdb")
    original.data.mkdir(mode=0o700)
    _hand_over(original.data, original.database, programs)
    prefix = (*as_owner(original.data, programs), *original.inside, "LC_ALL=C")
    how = ("--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", f"--username={_BOOTSTRAP_USER}")
    run(_HERE, (*prefix, str(programs / "initdb"), f"--pgdata={original.data}", *how))
    with (original.data / "postgresql.conf").open("a") as configuration:
        quoted_libraries = libraries.replace("'", "''")
        configuration.write(f"shared_preload_libraries = '{quoted_libraries}'\n")


def _dump(database: Database, program: Path, words: tuple[str, ...]) -> None:
    argv = (str(program), "--no-password", *words)
    run(_HERE, argv, timeout_s=_COPY_TIMEOUT_S, env=libpq_environment(database))


def _load(served: Database, file: Path, *, on_error: Literal["stop", "continue"]) -> None:
    address = served.address.model_copy(update={"user": _BOOTSTRAP_USER, "database": "template1"})
    environment = libpq_environment(served.model_copy(update={"address": address}))
    stop = ("--set=ON_ERROR_STOP=1",) if on_error == "stop" else ()
    argv = (f"{served.programs}/psql", "--no-password", "--no-psqlrc", "--quiet", *stop, f"--file={file}")
    run(_HERE, argv, timeout_s=_COPY_TIMEOUT_S, env=environment)


def _copy_versions(original: _Original, served: Database) -> None:
    """Copy the rows of the version tables: what is applied is a part of the schema's state."""
    with (
        connection(original.database, deployment=original.deployment, read_only=True) as source,
        connection(served, deployment=original.deployment) as target,
    ):
        for table in original.database.version_tables:
            name = quoted(table)
            found = source.execute("SELECT to_regclass(%s)", (name.as_string(source),)).fetchone()
            if not found or found[0] is None:
                continue
            out = psycopg.sql.SQL("COPY {} TO STDOUT").format(name)
            into = psycopg.sql.SQL("COPY {} FROM STDIN").format(name)
            with source.cursor().copy(out) as rows, target.cursor().copy(into) as copied:
                for row in rows:
                    copied.write(row)


#: The best first.
_WAYS: dict[Where, Callable[[_Original], AbstractContextManager[Database]]] = {
    "zfs_clone": _zfs_clone,
    "base_backup": _base_backup,
    "schema_copy": _schema_copy,
}
