"""The service of a server: a real systemd unit on a host of its own, and commands."""

from __future__ import annotations

import os

import pytest

from rules.errors import CommandError
from rules.fleet import CommandService, SystemdService
from rules.hosts import HostAddress
from tasks import server_service

HERE = HostAddress()
LIMIT_S = 30.0
UNIT = """\
[Unit]
StartLimitIntervalSec=300
StartLimitBurst=3
[Service]
ExecStart=/bin/sh -c '[ ! -e {broken} ] || exit 1; exec sleep 600'
Type=exec
Restart=on-failure
RestartSec=50ms
"""


@pytest.mark.xdist_group("systemd")
def test_a_unit_is_started_and_stopped_and_so_already_is_fine(machine):
    broken = machine.directory / "broken"
    unit = f"server-{os.urandom(4).hex()}.service"
    remove = machine.add_unit(unit, UNIT.format(broken=broken))
    service = SystemdService(unit=unit)
    assert not server_service.is_running(machine.host, service)
    for _ in range(2):
        server_service.start(machine.host, service, timeout_s=LIMIT_S)
        assert server_service.is_running(machine.host, service)
    for _ in range(2):
        server_service.stop(machine.host, service, timeout_s=LIMIT_S)
        assert not server_service.is_running(machine.host, service)
    # many starts used up the unit's limit: it starts all the same
    for _ in range(4):
        server_service.start(machine.host, service, timeout_s=LIMIT_S)
        server_service.stop(machine.host, service, timeout_s=LIMIT_S)
    remove()


@pytest.mark.xdist_group("systemd")
def test_a_unit_that_is_not_there_is_an_error(machine):
    with pytest.raises(CommandError, match="nowhere"):
        server_service.start(machine.host, SystemdService(unit="nowhere.service"), timeout_s=LIMIT_S)


@pytest.fixture
def commands(tmp_path) -> CommandService:
    """A service that refuses what is so already, as `pg_ctl` does, and keeps book."""
    flag, book = tmp_path / "runs", tmp_path / "book"
    start = f"[ ! -e {flag} ] && touch {flag} && echo start >>{book}"
    stop = f"rm {flag} && echo stop >>{book}"
    return CommandService(
        start=("sh", "-c", start), stop=("sh", "-c", stop), status=("sh", "-c", f"[ -e {flag} ] || exit 3")
    )


def test_commands_are_run_only_where_something_is_to_change(commands, tmp_path):
    for _ in range(2):
        server_service.start(HERE, commands, timeout_s=LIMIT_S)
        assert server_service.is_running(HERE, commands)
    for _ in range(2):
        server_service.stop(HERE, commands, timeout_s=LIMIT_S)
        assert not server_service.is_running(HERE, commands)
    assert (tmp_path / "book").read_text() == "start\nstop\n"


def test_a_status_that_says_neither_yes_nor_no_is_an_error(commands):
    unsure = commands.model_copy(update={"status": ("sh", "-c", "exit 4")})
    with pytest.raises(CommandError, match="exited 4"):
        server_service.is_running(HERE, unsure)
