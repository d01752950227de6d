"""How much of its GPUs' memory a server may have in use once the new release serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rules.host_metrics import Gpu
from rules.model_actions import MemoryLimit
from rules.serving import FlagValue, ServingLimits

#: What SGLang claims of the free memory where no flag says how much (0.83 to 0.9, by the GPU).
DEFAULT_CLAIM = 0.9
CLAIM_FLAG = "mem-fraction-static"


def gpus_of(indexes: Sequence[int], gpus: Sequence[Gpu], flags: Mapping[str, FlagValue]) -> tuple[Gpu, ...]:
    """Return those of a host's GPUs that a server uses; none where it is told to run on the CPU.

    Args:
        indexes: NVML's, of those it uses; empty: all.
        gpus: all that the host has.
        flags: the server's.
    """
    if str(flags.get("device", "")).startswith("cpu"):
        return ()
    return tuple(gpu for gpu in gpus if not indexes or gpu.index in indexes)


def memory_limits(
    gpus: Sequence[Gpu],
    flags: Mapping[str, FlagValue],
    limits: ServingLimits,
    *,
    more_weights_bytes: int | None,
) -> tuple[MemoryLimit, ...]:
    """Return for each GPU how much may be in use once the new release serves; one that does not say has none.

    A server that runs has claimed its memory already: what is in use now, more where the new weights are
    larger. One that does not will claim its share of what is free. `max_memory_growth_ratio` of the GPU's
    total comes on top.

    Args:
        gpus: those that the server uses, as they are now.
        flags: of the new release.
        limits: what is declared.
        more_weights_bytes: by how much its weights are larger than those that run; None: no server runs.
    """
    found = (_limit(gpu, len(gpus), flags, limits, more_weights_bytes=more_weights_bytes) for gpu in gpus)
    return tuple(limit for limit in found if limit is not None)


def _limit(
    gpu: Gpu,
    count: int,
    flags: Mapping[str, FlagValue],
    limits: ServingLimits,
    *,
    more_weights_bytes: int | None,
) -> MemoryLimit | None:
    used, total = gpu.memory_used_bytes, gpu.memory_total_bytes
    if used is None or not total:
        return None
    growth = round(limits.max_memory_growth_ratio * total)
    if more_weights_bytes is None:
        claim = claimed_ratio(flags)
        expected = used + round(claim * (total - used))
        words = f"{used:,} in use now and {claim:g} of what is free"
    else:
        more = max(0, more_weights_bytes) // count
        expected = used + more
        words = f"{used:,} in use now" + (f", {more:,} more weights" if more else "")
    words = f"{words}; {limits.max_memory_growth_ratio:g} of {total:,} on top"
    return MemoryLimit(gpu=gpu.index, most_bytes=min(total, expected + growth), words=words)


def claimed_ratio(flags: Mapping[str, FlagValue]) -> float:
    """Return which part of a GPU's free memory a server claims when it starts."""
    declared = flags.get(CLAIM_FLAG)
    if isinstance(declared, int | float) and not isinstance(declared, bool) and 0 < declared <= 1:
        return float(declared)
    return DEFAULT_CLAIM


def freed_bytes(gpus: Sequence[Gpu], flags: Mapping[str, FlagValue]) -> int:
    """Return how much of these GPUs' memory a server with such flags gives back when it stops, at most."""
    claim = claimed_ratio(flags)
    return sum(min(gpu.memory_used_bytes or 0, round(claim * (gpu.memory_total_bytes or 0))) for gpu in gpus)
