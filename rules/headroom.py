"""Is there room for a deployment: what hosts have in use, and how fast they are reached, against limits."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from rules.environment import GateLimits
from rules.finding import Finding, worst
from rules.host_metrics import Gpu, HostUse

_MIB = 1 << 20


def judge_headroom(used: HostUse, limits: GateLimits, *, own_gpus: Collection[int] = ()) -> Finding:
    """Return whether one host has headroom; what it cannot say is unknown, and no GPU is fine.

    CPU, memory, the file systems in `used.disks` and each GPU's memory are judged, without the GPUs that a
    model's own servers claim: they are full by design, and the plan compares them with what it needs.
    """
    return worst(tuple(_judged(used, limits, own_gpus)))


def _judged(used: HostUse, limits: GateLimits, own_gpus: Collection[int]) -> Iterator[Finding]:
    yield _at_most(f"{used.host}: CPU in use", used.cpu_ratio, limits.max_cpu_ratio)
    yield _free(f"{used.host}: memory", used.memory_ratio, limits.min_memory_free_ratio)
    for path, ratio in sorted(used.disks.items()):
        yield _free(f"{used.host}: disk of {path}", ratio, limits.min_disk_free_ratio)
    for gpu in used.gpus:
        if gpu.index in own_gpus:
            yield Finding.passed(f"{used.host}: GPU {gpu.index} is the model's own, judged by the plan")
        else:
            yield _judged_gpu(used.host, gpu, limits)
    if not used.gpus:
        yield Finding.passed(f"{used.host}: no GPU ({used.gpu_note or 'none found'})")


def _judged_gpu(host: str, gpu: Gpu, limits: GateLimits) -> Finding:
    return _free(
        f"{host}: memory of GPU {gpu.index} ({gpu.name})", gpu.memory_ratio, limits.min_gpu_memory_free_ratio
    )


def _at_most(what: str, ratio: float | None, limit: float) -> Finding:
    if ratio is None:
        return Finding.unknown(f"{what}: the host cannot say")
    return Finding.judged(f"{what} {ratio:.1%} (at most {limit:.0%})", ok=ratio <= limit)


def _free(what: str, used_ratio: float | None, min_free_ratio: float) -> Finding:
    if used_ratio is None:
        return Finding.unknown(f"{what}: the host cannot say")
    free = max(0.0, 1 - used_ratio)
    # free is computed: 1 - 0.85 must count as 0.15
    return Finding.judged(
        f"{what} {free:.1%} free (at least {min_free_ratio:.0%})", ok=free >= min_free_ratio - 1e-9
    )


def judge_bandwidth(host: str, size_bytes: int, elapsed_s: float, limits: GateLimits) -> Finding:
    """Return whether `size_bytes` reached `host` fast enough in `elapsed_s` seconds."""
    rate = size_bytes / max(elapsed_s, 1e-6)
    limit = limits.min_bandwidth_bytes_per_s
    words = (
        f"{host}: {size_bytes / _MIB:g} MiB sent in {elapsed_s:.2f} s, {rate / 1e6:.1f} MB/s "
        f"(at least {limit / 1e6:g} MB/s)"
    )
    return Finding.judged(words, ok=rate >= limit)
