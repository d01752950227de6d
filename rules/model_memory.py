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
    running_flags: Mapping[str, FlagValue] | None = None,
) -> tuple[MemoryLimit, ...]:
    """Return for each GPU how much may be in use once the new release serves; one that does not say has none.

    A server that runs has claimed its memory already: what is in use now, more where the new weights are
    larger or the new flags claim more. One that does not will claim its share of what is free.
    `max_memory_growth_ratio` of the GPU's total comes on top.

    Args:
        gpus: those that the server uses, as they are now.
        flags: of the new release.
        limits: what is declared.
        more_weights_bytes: by how much its weights are larger than those that run; None: no server runs.
        running_flags: what the server that runs was started with; None: the same.
    """
    claim = claimed_ratio(flags)
    found: list[MemoryLimit] = []
    for gpu in gpus:
        used, total = gpu.memory_used_bytes, gpu.memory_total_bytes
        if used is None or not total:
            continue
        if more_weights_bytes is None:
            expected, words = round(claim * (total - used)), f" and {claim:g} of what is free"
        else:
            before = claim if running_flags is None else claimed_ratio(running_flags)
            weights = max(0, more_weights_bytes) // len(gpus)
            expected, words = _expected(weights, max(0, round((claim - before) * total)))
        growth = round(limits.max_memory_growth_ratio * total)
        words = f"{used:,} in use now{words}; {limits.max_memory_growth_ratio:g} of {total:,} on top"
        found.append(MemoryLimit(gpu=gpu.index, most_bytes=min(total, used + expected + growth), words=words))
    return tuple(found)


def _expected(weights_bytes: int, claimed_bytes: int) -> tuple[int, str]:
    """Return what a server that runs may take in addition once it has the new release, and why."""
    words = f", {weights_bytes:,} more weights" if weights_bytes else ""
    words += f", {claimed_bytes:,} more by {CLAIM_FLAG}" if claimed_bytes else ""
    return weights_bytes + claimed_bytes, words


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
