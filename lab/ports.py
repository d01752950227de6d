"""Ports on 127.0.0.1 that nobody else uses, also when several labs start at once.

A port that is merely free now may be gone a moment later: taken by another lab, or by the kernel as the
local end of an outgoing connection. So ports are chosen outside the kernel's own range, and each is
reserved between processes by an abstract Unix socket, which leaves no file and ends with its process.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

from lab.processes import LabError

LOCALHOST = "127.0.0.1"

_LOWEST = 10_240
_TRIES = 200
_reserved: dict[int, socket.socket] = {}


def free_port() -> int:
    """Return a port that is free on 127.0.0.1 and stays reserved until this process ends or gives it back.

    Raises:
        LabError: hundreds of tries found none.
    """
    for _ in range(_TRIES):
        # the operating system's randomness: pytest-randomly seeds the module's own before each test
        port = random.SystemRandom().randrange(_LOWEST, _first_ephemeral_port())
        if _reserve(port):
            if not is_listening(port) and _can_bind(port):
                return port
            give_back(port)
    raise LabError(f"no free port between {_LOWEST} and {_first_ephemeral_port()} on {LOCALHOST}")


def give_back(port: int) -> None:
    """End this process's reservation of a port; a port that was not reserved is fine."""
    if reservation := _reserved.pop(port, None):
        reservation.close()


def is_listening(port: int) -> bool:
    """Return whether something accepts connections on a port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOCALHOST, port)) == 0


def _first_ephemeral_port() -> int:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    return lowest if lowest > _LOWEST + _TRIES else 65_536


def _reserve(port: int) -> bool:
    reservation = socket.socket(socket.AF_UNIX)
    try:
        reservation.bind(f"\0sovereign-deploy-lab-port-{port}")
    except OSError:
        reservation.close()
        return False
    _reserved[port] = reservation
    return True


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOCALHOST, port))
        except OSError:
            return False
    return True
