"""Ask, start and stop a service on its host: a systemd unit, or commands of its own."""

from __future__ import annotations

from rules.errors import CommandError, StepFailedError
from rules.fleet import CommandService, HostService, SystemdService
from rules.hosts import HostAddress
from tasks.host import run

#: A host as a whole is deployed to by steps of its own: see `tasks.nixos_activate`.
Service = SystemdService | CommandService | HostService
_STOPPED = 3


def is_running(host: HostAddress, service: Service) -> bool:
    """Return whether the service runs, by its own status command; a whole host: whether it can be asked.

    Raises:
        CommandError: the status command said neither yes nor no.
    """
    match service:
        case SystemdService():
            argv: tuple[str, ...] = (*systemctl(service), "is-active", "--quiet", service.unit)
        case CommandService():
            argv = service.status
        case HostService():
            argv = ("true",)
    finished = run(host, argv, check=False)
    if finished.returncode not in (0, _STOPPED):
        raise CommandError(argv, host.name, finished.returncode, finished.output)
    return finished.returncode == 0


def start(host: HostAddress, service: Service, *, timeout_s: float) -> None:
    """Start the service; running already is fine.

    Raises:
        StepFailedError: it is a whole host.
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
        case HostService():
            raise whole_host(host)


def stop(host: HostAddress, service: Service, *, timeout_s: float) -> None:
    """Stop the service; stopped already is fine.

    Raises:
        StepFailedError: it is a whole host.
        CommandError: it did not stop, or not in time.
    """
    match service:
        case SystemdService():
            run(host, (*systemctl(service), "stop", service.unit), timeout_s=timeout_s)
        case CommandService():
            if is_running(host, service):
                run(host, service.stop, timeout_s=timeout_s)
        case HostService():
            raise whole_host(host)


def whole_host(host: HostAddress) -> StepFailedError:
    """Return the error of who would start or stop a host as if it were a service."""
    return StepFailedError(f"{host.name} is deployed to as a whole, and has no service to start or stop.")


def systemctl(service: SystemdService) -> tuple[str, ...]:
    """Return how systemd is asked about a unit."""
    return ("systemctl", "--user") if service.scope == "user" else ("systemctl",)
