"""Ask a running HAProxy by its socket, on this machine or behind ssh: one command, one answer."""

from __future__ import annotations

import socket
import time

from rules.errors import BalancerError, CommandError
from rules.traffic import HaproxyAddress
from tasks.host import run

_PAUSE_S = 0.05


def ask(address: HaproxyAddress, command: str) -> str:
    """Return the answer to one command, patiently while HAProxy restarts.

    Success is an empty answer to most commands: what is there is a complaint, and the caller's to judge.

    Raises:
        BalancerError: no answer within the address's `timeout_s`.
    """
    try:
        if address.host.address:
            argv = ("socat", f"-t{address.timeout_s:g}", "-", f"UNIX-CONNECT:{address.socket}")
            timeout_s = address.timeout_s + address.host.connect_timeout_s
            return run(address.host, argv, timeout_s=timeout_s, stdin=f"{command}\n".encode()).stdout
        return _ask_here(address, command)
    except (OSError, CommandError) as error:
        raise BalancerError(
            f"HAProxy did not answer `{command}` on {address.socket} of {address.host.name}: {error}. "
            "Whether it has done it is not known; a HAProxy that is down keeps the state of its files."
        ) from error


def _ask_here(address: HaproxyAddress, command: str) -> str:
    deadline = time.monotonic() + address.timeout_s
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(address.timeout_s)
        _connect(connection, address.socket, deadline)
        connection.sendall(f"{command}\n".encode())
        reply = bytearray()
        while chunk := connection.recv(65_536):
            reply += chunk
    return reply.decode(errors="replace")


def _connect(connection: socket.socket, path: str, deadline: float) -> None:
    """Connect, patiently while HAProxy restarts."""
    while True:
        try:
            return connection.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            if time.monotonic() >= deadline:
                raise
        time.sleep(_PAUSE_S)
