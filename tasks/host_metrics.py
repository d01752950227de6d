"""What a host has in use: psutil and NVML on this machine, /proc, df and nvidia-smi behind ssh."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import psutil

from rules.database import Database
from rules.errors import DeployError
from rules.fleet import Fleet, Instance, NixProfile, ReleaseDirectory
from rules.host_metrics import HostSample, HostUse, network_bytes, parse_proc, use_between
from rules.hosts import HostAddress
from tasks.gpu import SMI_SCRIPT, read_gpus
from tasks.host import run

_TIMEOUT_S = 30.0
_MOST_CONNECTIONS = 16

# A path that is not there yet stands for the directory it will be made in.
_SCRIPT = f"""\
set -eu
export LC_ALL=C
echo '== stat'; head -n 1 /proc/stat
echo '== meminfo'; grep -E '^Mem(Total|Available):' /proc/meminfo
echo '== net'; cat /proc/net/dev
echo '== df'
for path in "$@"; do
    there=$path
    while [ ! -e "$there" ]; do there=$(dirname -- "$there"); done
    echo "$path $(df -B1 --output=size,avail -- "$there" | tail -n 1)"
done
echo '== gpu'
{SMI_SCRIPT}"""


class HostMetricsError(DeployError):
    """A host does not say what it has in use; nothing was changed."""


def paths_by_host(fleet: Fleet, database: Database | None = None) -> dict[HostAddress, tuple[str, ...]]:
    """Return each host once, with the paths whose file systems matter there: `/`, roots and the cluster."""
    paths: dict[HostAddress, dict[str, None]] = {}
    for instance in fleet.instances:
        paths.setdefault(instance.host, {"/": None})[root_of(instance)] = None
    if database and database.server:
        paths.setdefault(database.server.host, {"/": None})[database.server.cluster] = None
    return {host: tuple(found) for host, found in paths.items()}


def root_of(instance: Instance) -> str:
    """Return the directory that an instance's releases are kept in."""
    match instance.layout:
        case ReleaseDirectory():
            return instance.layout.root
        case NixProfile():
            # on a file system with the store, wherever that is
            return str(PurePosixPath(instance.layout.profile).parent)


def read_host(host: HostAddress, paths: Sequence[str] = ("/",)) -> HostSample:
    """Return what a host says of itself now.

    Args:
        host: which one.
        paths: of each, the file system that holds it is looked at.

    Raises:
        HostMetricsError: it says something we cannot read.
        CommandError: the remote host cannot be asked.
        GpuError: its GPU's driver fails.
    """
    if not host.address:
        return _local(host.name, paths)
    said = run(host, ("sh", "-c", _SCRIPT, "read-host", *paths), timeout_s=_TIMEOUT_S).stdout
    try:
        return parse_proc(host.name, said)
    except ValueError as error:
        raise HostMetricsError(f"{error}. It needs /proc, coreutils and grep.") from error


def read_hosts(hosts: Mapping[HostAddress, Sequence[str]]) -> dict[HostAddress, HostSample]:
    """Return a sample of each host, taken at the same time.

    Raises:
        DeployError: see `read_host`.
    """
    with ThreadPoolExecutor(min(_MOST_CONNECTIONS, max(1, len(hosts)))) as threads:
        samples = threads.map(read_host, hosts, hosts.values())
        return dict(zip(hosts, samples, strict=True))


def use_over(fleet: Fleet, window_s: float) -> tuple[HostUse, ...]:
    """Return what each host of a fleet had in use over the next `window_s` seconds.

    Raises:
        DeployError: see `read_host`.
    """
    hosts = paths_by_host(fleet)
    began_s, earlier = time.monotonic(), read_hosts(hosts)
    time.sleep(window_s)
    later = read_hosts(hosts)
    elapsed_s = time.monotonic() - began_s
    return tuple(use_between(earlier[host], later[host], elapsed_s) for host in hosts)


def _local(name: str, paths: Sequence[str]) -> HostSample:
    cpu, memory = psutil.cpu_times(), psutil.virtual_memory()
    # guests are counted within user and nice already
    total_s = sum(cpu) - getattr(cpu, "guest", 0.0) - getattr(cpu, "guest_nice", 0.0)
    cards = psutil.net_io_counters(pernic=True)
    gpus, note = read_gpus(HostAddress(name=name))
    return HostSample(
        host=name,
        cpu_busy_s=total_s - cpu.idle - getattr(cpu, "iowait", 0.0),
        cpu_total_s=total_s,
        memory_ratio=1 - memory.available / memory.total,
        disks={path: _used_ratio(path) for path in paths},
        network_bytes=network_bytes({card: io.bytes_recv + io.bytes_sent for card, io in cards.items()}),
        gpus=gpus,
        gpu_note=note,
    )


def _used_ratio(path: str) -> float:
    there = next(place for place in (Path(path), *Path(path).parents) if place.exists())
    usage = psutil.disk_usage(str(there))
    return 1 - usage.free / usage.total
