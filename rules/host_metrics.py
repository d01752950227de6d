"""What a host has in use: samples, what /proc and nvidia-smi say, and the worst of several hosts."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from rules.baseline import Reading
from rules.frozen import Count, Frozen, Name, Ratio, Seconds

# counted twice otherwise: traffic of a container or a tunnel also passes the card beneath
VIRTUAL_INTERFACES = r"lo|(veth|docker|br-|virbr|cni|flannel|wg|tun|tailscale|ifb).*"

_MIB = 1 << 20
_TICKS_PER_S = 100  # of /proc/stat, on every Linux of today
_CPU_FIELDS = 8  # user nice system idle iowait irq softirq steal; guests are within user and nice
_IDLE, _IOWAIT = 3, 4
_NET_COLUMNS = 16
_SENT = 8
_SMI_FIELDS = 5


class Gpu(Frozen):
    """One GPU; None where it cannot say, such as the memory of a GPU that shares the host's."""

    index: Count
    name: str
    used_ratio: Ratio | None
    memory_used_bytes: Count | None
    memory_total_bytes: Count | None

    @property
    def memory_ratio(self) -> float | None:
        """The part of its memory that is in use."""
        if not self.memory_total_bytes or self.memory_used_bytes is None:
            return None
        return min(1.0, self.memory_used_bytes / self.memory_total_bytes)


class HostSample(Frozen):
    """A host at one moment; CPU and network are counters since it booted.

    `disks` is path -> part in use of the file system that holds it. `gpus` is empty where there is none.
    """

    host: Name
    cpu_busy_s: Seconds
    cpu_total_s: Seconds
    memory_ratio: Ratio
    disks: dict[str, Ratio]
    network_bytes: Count
    gpus: tuple[Gpu, ...] = ()
    gpu_note: str = ""


class HostUse(Frozen):
    """A host over a window: what two samples say together. None: it cannot be told."""

    host: Name
    cpu_ratio: Ratio | None
    memory_ratio: Ratio
    disks: dict[str, Ratio]
    network_bytes_per_s: float | None
    gpus: tuple[Gpu, ...] = ()
    gpu_note: str = ""

    @property
    def disk_ratio(self) -> float | None:
        """The fullest of its file systems."""
        return max(self.disks.values(), default=None)


def use_between(earlier: HostSample, later: HostSample, elapsed_s: float) -> HostUse:
    """Return what a host had in use between two samples, `elapsed_s` apart; a reboot leaves rates unknown."""
    total_s, busy_s = later.cpu_total_s - earlier.cpu_total_s, later.cpu_busy_s - earlier.cpu_busy_s
    sent = later.network_bytes - earlier.network_bytes
    return HostUse(
        host=later.host,
        cpu_ratio=min(1.0, max(0.0, busy_s / total_s)) if total_s > 0 else None,
        memory_ratio=(earlier.memory_ratio + later.memory_ratio) / 2,
        disks=later.disks,
        network_bytes_per_s=sent / elapsed_s if elapsed_s > 0 and sent >= 0 else None,
        gpus=_mean_load(earlier.gpus, later.gpus),
        gpu_note=later.gpu_note,
    )


def _mean_load(earlier: Sequence[Gpu], later: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Return the later GPUs with the mean of both loads: one moment says little of a GPU."""
    before = {gpu.index: gpu.used_ratio for gpu in earlier}

    def mean(gpu: Gpu) -> float | None:
        first = before.get(gpu.index)
        return gpu.used_ratio if first is None or gpu.used_ratio is None else (first + gpu.used_ratio) / 2

    return tuple(gpu.model_copy(update={"used_ratio": mean(gpu)}) for gpu in later)


# --- what hosts print ------------------------------------------------------------------------------


def parse_proc(host: str, text: str) -> HostSample:
    """Return the sample that the sections `== stat`, `== meminfo`, `== net`, `== df`, `== gpu` make.

    Args:
        host: its name.
        text: /proc/stat, /proc/meminfo, /proc/net/dev, lines of `path size available`, and nvidia-smi's CSV
            or nothing, each after its heading.

    Raises:
        ValueError: a section is missing or says something else.
    """
    sections = dict(re.findall(r"^== (\w+)\n(.*?)(?=^== |\Z)", text, re.MULTILINE | re.DOTALL))
    try:
        cpu = [int(word) for word in sections["stat"].split("\n", 1)[0].split()[1 : _CPU_FIELDS + 1]]
        memory = {line.split(":")[0]: int(line.split()[1]) for line in sections["meminfo"].splitlines()}
        total, idle = sum(cpu), cpu[_IDLE] + cpu[_IOWAIT]
        return HostSample(
            host=host,
            cpu_busy_s=(total - idle) / _TICKS_PER_S,
            cpu_total_s=total / _TICKS_PER_S,
            memory_ratio=1 - memory["MemAvailable"] / memory["MemTotal"],
            disks=_disks(sections["df"]),
            network_bytes=network_bytes(_interfaces(sections["net"])),
            gpus=parse_nvidia_smi(sections["gpu"]),
            gpu_note="" if sections["gpu"].strip() else "no nvidia-smi",
        )
    except (LookupError, ZeroDivisionError) as error:
        raise ValueError(f"host {host} does not say what it has in use: {text[:300]!r}") from error


def _disks(text: str) -> dict[str, float]:
    rows = [line.rsplit(maxsplit=2) for line in text.splitlines() if line.strip()]
    return {path: 1 - int(available) / int(size) for path, size, available in rows if int(size)}


def _interfaces(text: str) -> dict[str, int]:
    rows = {
        name.strip(): rest.split() for name, _, rest in (line.partition(":") for line in text.splitlines())
    }
    return {
        name: int(columns[0]) + int(columns[_SENT])
        for name, columns in rows.items()
        if len(columns) == _NET_COLUMNS
    }


def network_bytes(interfaces: Mapping[str, int]) -> int:
    """Return the sum over real interfaces: what a tunnel or container carries is in the card's own count."""
    return sum(n for name, n in interfaces.items() if not re.fullmatch(VIRTUAL_INTERFACES, name))


def parse_nvidia_smi(text: str) -> tuple[Gpu, ...]:
    """Return the GPUs in nvidia-smi's CSV: index, name, load in percent, MiB used, MiB in total.

    Raises:
        ValueError: a line has not these fields.
    """
    rows = [[field.strip() for field in row] for row in csv.reader(text.splitlines()) if row]
    if any(len(row) != _SMI_FIELDS for row in rows):
        raise ValueError(f"nvidia-smi said {text[:200]!r}")
    return tuple(
        Gpu(
            index=int(index),
            name=name,
            used_ratio=None if (load := _number(percent)) is None else min(1.0, load / 100),
            memory_used_bytes=None if (mib := _number(used)) is None else mib * _MIB,
            memory_total_bytes=None if (mib := _number(total)) is None else mib * _MIB,
        )
        for index, name, percent, used, total in rows
    )


def _number(field: str) -> int | None:
    return int(field) if field.isdigit() else None  # "[N/A]", "[Not Supported]"


# --- readings --------------------------------------------------------------------------------------


def host_readings(used: Sequence[HostUse]) -> tuple[Reading, ...]:
    """Return the hosts' metrics: of each the worst host's value, with its name. GPUs: see `gpu_readings`."""
    values: dict[str, tuple[str, Callable[[HostUse], float | None]]] = {
        "cpu_ratio": ("ratio", lambda use: use.cpu_ratio),
        "memory_ratio": ("ratio", lambda use: use.memory_ratio),
        "disk_ratio": ("ratio", lambda use: use.disk_ratio),
        "network_bytes_per_s": ("bytes/s", lambda use: use.network_bytes_per_s),
    }
    return tuple(_worst(name, unit, used, value) for name, (unit, value) in values.items())


def gpu_readings(used: Sequence[HostUse]) -> tuple[Reading, ...]:
    """Return load and memory of the busiest and the fullest GPU; without any GPU both are `absent`."""
    if not any(use.gpus for use in used):
        why = "; ".join(f"{use.host}: {use.gpu_note or 'no GPU'}" for use in used)
        return tuple(
            Reading(name=name, unit="ratio", status="absent", source="hosts", note=f"no GPU ({why})")
            for name in ("gpu_ratio", "gpu_memory_ratio")
        )
    with_gpu = [use for use in used if use.gpus]
    return (
        _worst("gpu_ratio", "ratio", with_gpu, lambda use: _most(gpu.used_ratio for gpu in use.gpus)),
        _worst(
            "gpu_memory_ratio", "ratio", with_gpu, lambda use: _most(gpu.memory_ratio for gpu in use.gpus)
        ),
    )


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _worst(
    name: str, unit: str, used: Sequence[HostUse], value: Callable[[HostUse], float | None]
) -> Reading:
    """Return the highest value; one host that cannot say makes the worst unknown."""
    values = [(use.host, value(use)) for use in used]
    known = [(found, host) for host, found in values if found is not None]
    if silent := [host for host, found in values if found is None]:
        return Reading(name=name, unit=unit, source="hosts", note=f"{', '.join(silent)} cannot say")
    worst, host = max(known)
    return Reading(name=name, unit=unit, value=worst, source="hosts", note=f"worst: {host}")
