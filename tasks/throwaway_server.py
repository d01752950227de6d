"""A PostgreSQL server of our own on a copied cluster: reachable by us alone, harmless, and gone with us."""

from __future__ import annotations

import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psycopg

from rules.database import Database
from rules.errors import CommandError, DeployError
from rules.hosts import HostAddress
from tasks.host import run

#: How the names of the directories begin that hold our servers' sockets.
PRIVATE_PREFIX = "sovereign-server-"

_HERE = HostAddress()
_PORT = 5432  # of no meaning but in the socket's name
_LONGEST_SOCKET = 107  # bytes, by the kernel
_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.02
_TAIL_BYTES = 3000
_DEBIAN_PROGRAMS = Path("/usr/lib/postgresql")
#: Of our environment only what programs may need to start: nothing there is a secret.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LOCALE_ARCHIVE", "TZDIR", "NIX_LD", "NIX_LD_LIBRARY_PATH")
_CAPABILITY = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search")

#: Whatever the copy's own configuration says: nobody is reached, waited for or told, and nothing is
#: written outside the copy. No background worker runs: it could be a scheduler with jobs, or a subscriber.
_HARMLESS = {
    "port": str(_PORT),
    "listen_addresses": "",
    "unix_socket_group": "",
    "unix_socket_permissions": "0700",
    "ssl": "off",
    "logging_collector": "off",
    "log_destination": "stderr",
    "lc_messages": "C",
    "archive_mode": "off",
    "archive_command": "",
    "restore_command": "",
    "primary_conninfo": "",
    "primary_slot_name": "",
    "synchronous_standby_names": "",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_worker_processes": "0",
    "max_logical_replication_workers": "0",
    "autovacuum": "off",
    "shared_buffers": "32MB",
    "huge_pages": "off",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "restart_after_crash": "off",
    "cluster_name": "sovereign-throwaway",
}
#: The same for settings that came later: major version -> settings.
_HARMLESS_SINCE: dict[int, dict[str, str]] = {
    14: {"client_connection_check_interval": "1000"},
    15: {"archive_library": ""},
    17: {"summarize_wal": "off", "sync_replication_slots": "off"},
}


class ThrowawayServerError(DeployError):
    """No server could be had on the copy: the copy may be spoilt, and nothing else was touched."""


@contextmanager
def throwaway_server(
    database: Database, cluster: Path, *, programs: Path, private_directory: Path
) -> Iterator[Database]:
    """Run a server on `cluster`, a copy on this host, and give the database there; it ends with the block.

    It listens on a socket in `private_directory` alone, where it trusts whoever gets in, and runs as the
    owner of the copy. Where the kernel allows it has no network, so that also what a migration itself
    would reach, by a foreign table for instance, stays untouched. It ends when this process is killed.

    Args:
        database: what the cluster is a copy of.
        cluster: a stopped data directory, also one that was copied while its server ran. It is spoilt:
            replication slots and signs of a standby are removed.
        programs: PostgreSQL's programs, of the copy's major version.
        private_directory: made for it and removed afterwards; see `new_private_directory`.

    Raises:
        ThrowawayServerError: it does not start; carries the end of its log.
    """
    _make_harmless(cluster)
    command = (*as_owner(cluster, programs), "setpriv", "--pdeathsig", "QUIT", "--")
    private_directory.mkdir(mode=0o700)
    try:
        owner = cluster.stat()
        _write_configuration(private_directory, owner)
        with (private_directory / "log").open("w+b") as log:
            os.chown(private_directory, owner.st_uid, owner.st_gid)
            start_timeout_s = database.server.start_timeout_s if database.server else _START_TIMEOUT_S
            argv = (*command, str(programs / "postgres"), "-D", str(cluster))
            with _started(argv, _attempts(cluster, private_directory), log, timeout_s=start_timeout_s):
                yield _pointing_to(database, private_directory, programs)
    finally:
        shutil.rmtree(private_directory, ignore_errors=True)


def new_private_directory() -> Path:
    """Return a path for a directory that no one has, short enough for a socket in it; nothing is made.

    Raises:
        ThrowawayServerError: the system's temporary directories have too long names.
    """
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - made by us with mode 0700, or not at all
        place = Path(parent) / f"{PRIVATE_PREFIX}{secrets.token_hex(8)}"
        if len(os.fsencode(place / f".s.PGSQL.{_PORT}")) <= _LONGEST_SOCKET:
            return place
    raise ThrowawayServerError(f"a socket's path below {parent} would be too long; set TMPDIR to a short one")


def server_programs(database: Database, *, major: int) -> Path:
    """Return the directory of PostgreSQL's programs of this major version.

    Without `database.programs`: from PATH, else where Debian keeps them.

    Raises:
        ThrowawayServerError: there are none.
    """
    if database.programs:
        places = [Path(database.programs)]
    else:
        found = shutil.which("postgres")
        on_path = [Path(found).resolve().parent] if found else []
        places = [*on_path, *sorted(_DEBIAN_PROGRAMS.glob("*/bin"))]
    versions = {place: _major(place) for place in places if (place / "postgres").exists()}
    for place, version in versions.items():
        if version == major:
            return place
    seen = ", ".join(f"{place} has {version}" for place, version in versions.items()) or "none was found"
    raise ThrowawayServerError(
        f"no server program of PostgreSQL {major} on the worker ({seen}): set `programs` of the database's "
        "block to the directory that has it"
    )


def as_owner(directory: Path, programs: Path) -> tuple[str, ...]:
    """Return what to put before a command so that it runs as the owner of `directory`, never as root.

    Root's own directory is used from a user namespace, where root is somebody else to itself.

    Raises:
        ThrowawayServerError: this process may not become the owner.
    """
    owner = directory.stat()
    # not by `test`, which passes over capabilities
    words = ("env", f"--chdir={directory}", str(programs / "postgres"), "--version")
    for candidate in _candidates(owner):
        with suppress(CommandError):
            run(_HERE, (*candidate, *words))
            return candidate
    raise ThrowawayServerError(
        f"{directory} belongs to user {owner.st_uid}, and user {os.geteuid()} cannot run PostgreSQL as that "
        "one there: run the worker as root or as the owner of the cluster"
    )


def end_servers_in(directory: Path) -> None:
    """Kill what still runs with its working directory in `directory`, as every process of a server has."""
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while _kill_all_in(directory) and time.monotonic() < deadline:
        pass  # again: one of them may have started another meanwhile


def _kill_all_in(directory: Path) -> bool:
    """Return whether there was any."""
    found = False
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile, or another user's
            found |= _kill_in(directory, int(process.name))
    return found


def _kill_in(directory: Path, pid: int) -> bool:
    descriptor = os.pidfd_open(pid)  # first: from now on the number cannot become another's unnoticed
    try:
        if not Path(f"/proc/{pid}/cwd").readlink().is_relative_to(directory):
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        select.select([descriptor], [], [], _STOP_TIMEOUT_S)
        return True
    finally:
        os.close(descriptor)


def _candidates(owner: os.stat_result) -> tuple[tuple[str, ...], ...]:
    """Return the ways to become the owner, those without a network and without a right too many first."""
    if owner.st_uid == 0:
        stranger = ("--user", "--map-user=1000", "--map-group=1000", "--")
        return (("unshare", "--net", *stranger), ("unshare", *stranger))
    if owner.st_uid == os.geteuid():
        return (("unshare", "--user", "--map-current-user", "--net", "--"), ())
    become = ("setpriv", f"--reuid={owner.st_uid}", f"--regid={owner.st_gid}", "--clear-groups")
    offline = ("unshare", "--net", "--")
    # directories that only root may pass can lie above the copy or the programs
    passing = (*become, *_CAPABILITY, "--")
    return ((*offline, *become, "--"), (*become, "--"), (*offline, *passing), passing)


def _make_harmless(cluster: Path) -> None:
    """Remove from the copy what forbids a start, and refuse one that leads to the original's files."""
    for place in (cluster, *(each for each in cluster.iterdir() if each.is_dir())):
        for entry in place.iterdir():
            if entry.is_symlink() and (place != cluster or entry.is_dir()):
                raise ThrowawayServerError(
                    f"{entry} of the copy leads to {entry.readlink()}, outside of it: a server on the copy "
                    "would write there. Clusters with tablespaces or a pg_wal elsewhere cannot be used so."
                )
    for name in ("postmaster.pid", "standby.signal", "recovery.signal"):
        (cluster / name).unlink(missing_ok=True)
    for slot in (cluster / "pg_replslot").iterdir():
        shutil.rmtree(slot)


def _write_configuration(private_directory: Path, owner: os.stat_result) -> None:
    contents = {"hba.conf": "local all all trust\n", "ident.conf": "", "empty.conf": ""}
    for name, content in contents.items():
        path = private_directory / name
        path.write_text(content)
        os.chown(path, owner.st_uid, owner.st_gid)


def _attempts(cluster: Path, private_directory: Path) -> Iterator[dict[str, str]]:
    """Yield the settings to start with: as the copy is configured, then with less and less of that."""
    major = int((cluster / "PG_VERSION").read_text())
    later = {
        name: value
        for since, more in _HARMLESS_SINCE.items()
        if major >= since
        for name, value in more.items()
    }
    harmless = _HARMLESS | later
    harmless |= {
        "data_directory": str(cluster),
        "unix_socket_directories": str(private_directory),
        "hba_file": str(private_directory / "hba.conf"),
        "ident_file": str(private_directory / "ident.conf"),
        "external_pid_file": str(private_directory / "pid"),
    }
    own = cluster / "postgresql.conf"
    empty = str(private_directory / "empty.conf")
    first = {"config_file": str(own) if own.is_file() else empty} | harmless
    yield first
    # a library that is not installed for these programs, or that wants what a copy has not
    yield first | {"shared_preload_libraries": ""}
    yield harmless | {"config_file": empty, "shared_preload_libraries": "", "wal_level": "replica"}


@contextmanager
def _started(
    argv: tuple[str, ...], attempts: Iterator[Mapping[str, str]], log: IO[bytes], *, timeout_s: float
) -> Iterator[None]:
    """Start the server with the first settings that it takes, and stop it afterwards."""
    for settings in attempts:
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        process = subprocess.Popen(
            (*argv, *options),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={"LC_ALL": "C", **{name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}},
            cwd="/",
        )
        try:
            if _answers(process, settings["unix_socket_directories"], timeout_s):
                yield
                return
        finally:
            _stop(process, Path(settings["data_directory"]))
    log.seek(max(0, log.tell() - _TAIL_BYTES))
    raise ThrowawayServerError(
        f"no server starts on the copy {settings['data_directory']}; its log ends:\n"
        f"{log.read().decode(errors='replace').strip()}"
    )


def _answers(process: subprocess.Popen[bytes], directory: str, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    place = f"host={directory} port={_PORT}".encode()
    while process.poll() is None and time.monotonic() < deadline:
        if psycopg.pq.PGconn.ping(place) == psycopg.pq.Ping.OK:
            return True
        time.sleep(_POLL_S)
    return False


def _stop(process: subprocess.Popen[bytes], cluster: Path) -> None:
    """End it at once: QUIT makes it kill its backends and give its shared memory back, saving nothing."""
    try:
        process.send_signal(signal.SIGQUIT)
        process.wait(_STOP_TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
        end_servers_in(cluster)


def _pointing_to(database: Database, directory: Path, programs: Path) -> Database:
    address = database.address.model_copy(update={"host": str(directory), "port": _PORT, "passfile": None})
    return database.model_copy(update={"address": address, "server": None, "programs": str(programs)})


def _major(programs: Path) -> int:
    said = run(_HERE, (str(programs / "postgres"), "--version"), env={"LC_ALL": "C"}).stdout
    return int(re.findall(r"\d+", said)[0])
