"""Ask, start and stop a service on its host: a systemd unit, or commands of its own."""

from __future__ import annotations

from rules.errors import CommandError
from rules.fleet import CommandService, SystemdService
from rules.hosts import HostAddress
from tasks.host import run

_STOPPED = 3


def is_running(host: HostAddress, service: SystemdService | CommandService) -> bool:
    """Return whether the service runs, by its own status command.

    Raises:
        CommandError: the status command said neither yes nor no.
    """
    match service:
        case SystemdService():
            argv: tuple[str, ...] = (*systemctl(service), "is-active", "--quiet", service.unit)
        case CommandService():
            argv = service.status
    finished = run(host, argv, check=False)
    if finished.returncode not in (0, _STOPPED):
        raise CommandError(argv, host.name, finished.returncode, finished.output)
    return finished.returncode == 0


def start(host: HostAddress, service: SystemdService | CommandService, *, timeout_s: float) -> None:
    """Start the service; running already is fine.

    Raises:
        CommandError: it did not start, or not in time.
    """
    match service:
        case SystemdService():
            # failed starts before this one may have used up the unit's limit
            run(host, (*systemctl(service), "reset-failed", service.unit), check=False)
            run(host, (*systemctl(service), "start", service.unit), timeout_s=timeout_s)
        case CommandService():
            if not is_running(host, service):
                run(host, service.start, timeout_s=timeout_s)


def stop(host: HostAddress, service: SystemdService | CommandService, *, timeout_s: float) -> None:
    """Stop the service; stopped already is fine.

    Raises:
        CommandError: it did not stop, or not in time.
    """
    match service:
        case SystemdService():
            run(host, (*systemctl(service), "stop", service.unit), timeout_s=timeout_s)
        case CommandService():
            if is_running(host, service):
                run(host, service.stop, timeout_s=timeout_s)


def systemctl(service: SystemdService) -> tuple[str, ...]:
    """Return how systemd is asked about a unit."""
    return ("systemctl", "--user") if service.scope == "user" else ("systemctl",)
