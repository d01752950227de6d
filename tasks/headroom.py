"""Is there room for a deployment on the fleet's hosts, and are they reached fast enough."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

from rules.database import Database
from rules.environment import GateLimits
from rules.errors import CommandError, DeployError
from rules.finding import Finding, Result, worst
from rules.fleet import Fleet
from rules.headroom import judge_bandwidth, judge_headroom
from rules.host_metrics import HostUse, use_between
from rules.hosts import HostAddress
from tasks.host import run
from tasks.host_metrics import paths_by_host, read_host
from tasks.settings import Settings

#: CPU in use is seen over this long.
_LOOK_S = 1.0
_MOST_CONNECTIONS = 16
_SENT_BYTES = 8 << 20


def headroom_findings(
    fleet: Fleet, *, limits: GateLimits, settings: Settings, database: Database | None = None
) -> dict[str, Finding]:
    """Return the findings for `headroom` and `network-bandwidth`, each over all hosts concerned.

    A host that cannot be asked is unknown, with the reason. Takes a second, and sends each remote host 8 MiB.
    """
    hosts = paths_by_host(fleet, database)
    if not hosts:
        unseen = Finding.not_applicable("no host is declared: neither an application's nor the database's.")
        return {"headroom": unseen, "network-bandwidth": unseen}
    return {
        "headroom": worst(_headroom_of_all(hosts, limits, fleet)),
        # one after the other: together they would share the worker's own link
        "network-bandwidth": worst(tuple(_bandwidth(host, limits, settings) for host in hosts)),
    }


def _headroom_of_all(
    hosts: dict[HostAddress, tuple[str, ...]], limits: GateLimits, fleet: Fleet
) -> tuple[Finding, ...]:
    with ThreadPoolExecutor(min(_MOST_CONNECTIONS, len(hosts))) as threads:
        return tuple(threads.map(lambda host: _headroom(host, hosts[host], limits, fleet), hosts))


def _headroom(host: HostAddress, paths: tuple[str, ...], limits: GateLimits, fleet: Fleet) -> Finding:
    try:
        used = _use(host, paths)
        return judge_headroom(used, limits, own_gpus=_own_gpus(fleet, host, used))
    except DeployError as error:
        return Finding.unknown(f"{host.name} cannot be asked what it has in use: {error}")


def _own_gpus(fleet: Fleet, host: HostAddress, used: HostUse) -> frozenset[int]:
    """Return the GPUs of a host that the servers of a model use; one that names none uses all."""
    if fleet.serving is None:
        return frozenset()
    every = tuple(gpu.index for gpu in used.gpus)
    return frozenset(gpu for i in fleet.instances if i.host == host for gpu in i.gpus or every)


def _use(host: HostAddress, paths: tuple[str, ...]) -> HostUse:
    began_s, earlier = time.monotonic(), read_host(host, paths)
    time.sleep(_LOOK_S)
    later = read_host(host, paths)
    return use_between(earlier, later, time.monotonic() - began_s)


def _bandwidth(host: HostAddress, limits: GateLimits, settings: Settings) -> Finding:
    """Return how fast bytes that nobody can compress reach the host, by the way that releases take."""
    if not host.address:
        return Finding.not_applicable(f"{host.name} is the worker's own host: nothing is sent")
    try:
        took_s = _send(host, os.urandom(_SENT_BYTES), settings.command_timeout_s)
        found = judge_bandwidth(host.name, _SENT_BYTES, took_s, limits)
        if found.result is Result.PASSED:
            return found
        # so small a transfer may be mostly its connection, which says nothing of the bandwidth
        connecting_s = _send(host, b"", settings.command_timeout_s)
        if took_s <= connecting_s:  # a busy moment: what is not shown does not pass
            return found
        return judge_bandwidth(host.name, _SENT_BYTES, took_s - connecting_s, limits)
    except CommandError as error:
        return _not_sent(host, error, limits, timeout_s=settings.command_timeout_s)


def _not_sent(host: HostAddress, error: CommandError, limits: GateLimits, *, timeout_s: float) -> Finding:
    too_slow = _SENT_BYTES / timeout_s < limits.min_bandwidth_bytes_per_s
    if error.returncode is None and too_slow:
        return Finding.failed(f"{host.name}: {_SENT_BYTES >> 20} MiB were not sent within {timeout_s:g} s")
    return Finding.unknown(f"{host.name}: nothing could be sent: {error}")


def _send(host: HostAddress, content: bytes, timeout_s: float) -> float:
    """Return how many seconds it took until the host had read all of `content`."""
    began_s = time.monotonic()
    run(host, ("sh", "-c", "cat >/dev/null"), timeout_s=timeout_s, stdin=content)
    return time.monotonic() - began_s
