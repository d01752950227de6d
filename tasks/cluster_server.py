"""The server of a cluster that is brought back: stopped for it, proven stopped, and started again."""

from __future__ import annotations

import logging
import time

from rules.errors import CommandError, UndoFailedError
from tasks import server_service
from tasks.base_backup import remove_stale_pid_file, server_is_stopped
from tasks.cluster_files import Restorable, ensure_mounted
from tasks.postgres import DatabaseUnreachableError, connection
from tasks.settings import Settings

log = logging.getLogger(__name__)

_PAUSE_S = 0.2
_STOP_PATIENCE_S = 10.0


def is_stopped(way: Restorable) -> bool:
    """Return whether no process has the cluster open.

    Raises:
        CommandError: it cannot be told.
    """
    return server_is_stopped(way.server.host, way.server.cluster)


def stop_server(way: Restorable, *, settings: Settings) -> None:
    """Stop the service, and prove that no process has the cluster open; clients are cut off.

    Raises:
        UndoFailedError: a process that the service does not know of still has.
        CommandError: the service does not stop.
    """
    server_service.stop(way.server.host, way.server.service, timeout_s=settings.command_timeout_s)
    deadline = time.monotonic() + _STOP_PATIENCE_S
    while not is_stopped(way):
        if time.monotonic() > deadline:
            raise UndoFailedError(
                f"A server still has {way.server.cluster} open on {way.server.host.name}, though its service "
                "is stopped: the service does not know of it. Nothing was brought back, as that would "
                f"destroy it. Stop the process named in {way.server.cluster}/postmaster.pid, then roll back "
                "again."
            )
        time.sleep(_PAUSE_S)


def start_server(way: Restorable, *, settings: Settings) -> None:
    """Start the service; running already is fine.

    Raises:
        CommandError: it does not start.
    """
    ensure_mounted(way.zfs, settings=settings)
    if is_stopped(way):
        # a snapshot of a running server holds its pid file
        remove_stale_pid_file(way.server.host, way.server.cluster)
    server_service.start(way.server.host, way.server.service, timeout_s=way.server.start_timeout_s)


def comes_up(way: Restorable, *, deployment: str, settings: Settings) -> bool:
    """Return whether the server answers, or does so in time once its service is started."""
    if _answers(way, deployment):
        return True
    deadline = time.monotonic() + way.server.start_timeout_s
    try:
        start_server(way, settings=settings)
    except CommandError as error:
        log.warning("%s does not start: %s", way.database.name, error)
        return _answers(way, deployment)
    while not (answers := _answers(way, deployment)) and time.monotonic() < deadline:
        time.sleep(_PAUSE_S)
    return answers


def _answers(way: Restorable, deployment: str) -> bool:
    try:
        with connection(way.database, deployment=deployment, autocommit=True) as session:
            session.execute("SELECT 1")
    except DatabaseUnreachableError:
        return False
    return True
