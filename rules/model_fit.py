"""Does a model fit: into the server that runs, onto the GPUs, onto the disk; and what it may grow by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rules.host_metrics import Gpu
from rules.model_facts import ModelFacts, Tensor, listed

_GIB = 1 << 30
#: What says where a configuration comes from, and nothing of the model.
_ORIGIN = ("_name_or_path", "transformers_version", "_from_model_config", "_commit_hash")
#: Two names of one key, of older and newer files.
_RENAMED = {"torch_dtype": "dtype"}


# --- into the server that runs ---------------------------------------------------------------------


def swap_refusals(
    new: ModelFacts, running: ModelFacts, *, flags_differ: tuple[str, ...], served_name: str, model_path: str
) -> tuple[str, ...]:
    """Say why the new weights must not be loaded into the running server; empty: it is safe.

    A server reads only weights then, and is killed by those that do not fit the memory it has laid out for
    the running model. What else differs keeps the running model's: tokenizer, configuration, flags.

    Args:
        new: what is to be loaded.
        running: what the server runs.
        flags_differ: names of the server's flags that the new release changes.
        served_name: what the server calls its model now.
        model_path: what it would be told to load; its name becomes that.
    """
    return tuple(_refusals(new, running, flags_differ, served_name=served_name, model_path=model_path))


def _refusals(
    new: ModelFacts, running: ModelFacts, flags_differ: tuple[str, ...], *, served_name: str, model_path: str
) -> Iterator[str]:
    if "gguf" in (new.format, running.format):
        yield "a server swaps safetensors only, and one of the models is GGUF"
    if new.architectures != running.architectures:
        yield (
            f"the architecture is {'/'.join(new.architectures)}, the running one's "
            f"{'/'.join(running.architectures)}"
        )
    if new.quantization or running.quantization:
        # SGLang repacks such weights when it starts, and crashes on the originals: sglang pull request 30749
        yield (
            f"quantized weights ({new.quantization or 'none'}, running {running.quantization or 'none'}) "
            "were repacked when the server started, and cannot be loaded over"
        )
    yield from _tensor_refusals(new.tensors, running.tensors)
    if keys := _differing(new.config, running.config):
        yield f"config.json differs in {listed(keys)}, which is not read again"
    if keys := _differing(new.generation, running.generation):
        yield f"generation_config.json differs in {listed(keys)}, which is not read again"
    yield from _file_refusals(new, running)
    if flags_differ:
        yield f"the server's flags differ in {listed(flags_differ)}, which are read only when it starts"
    if served_name != model_path:
        yield f"the served name would change from {served_name} to {model_path}"


def _tensor_refusals(new: Mapping[str, Tensor], running: Mapping[str, Tensor]) -> Iterator[str]:
    if missing := running.keys() - new.keys():
        yield (
            f"{len(missing)} tensors of the running model are missing ({listed(missing)}): its own would stay"
        )
    if more := new.keys() - running.keys():
        yield f"{len(more)} tensors are not in the running model ({listed(more)})"
    both = new.keys() & running.keys()
    if unlike := sorted(name for name in both if _form(new[name]) != _form(running[name])):
        first = unlike[0]
        yield (
            f"{len(unlike)} tensors have another type or shape, such as {first}: {_words(new[first])}, "
            f"running {_words(running[first])}"
        )


def _form(tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    return tensor.dtype, tensor.shape


def _words(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _differing(new: Mapping[str, Any], running: Mapping[str, Any]) -> list[str]:
    """Return the keys that two configurations do not have alike."""
    news, olds = ({_RENAMED.get(key, key): value for key, value in one.items()} for one in (new, running))
    keys = sorted((news.keys() | olds.keys()).difference(_ORIGIN))
    return [key for key in keys if news.get(key) != olds.get(key)]


def _file_refusals(new: ModelFacts, running: ModelFacts) -> Iterator[str]:
    names = new.files.keys() | running.files.keys()
    differing = [name for name in names if new.files.get(name) != running.files.get(name)]
    if differing:
        yield f"{listed(differing)} differs, which is read only when the server starts"
    elif (new.tokenizer and new.tokenizer.sha256) != (running.tokenizer and running.tokenizer.sha256):
        yield "the tokenizer differs, which is read only when the server starts"


# --- into memory and onto the disk -----------------------------------------------------------------


def memory_fault(
    need_bytes: int,
    gpus: tuple[Gpu, ...],
    *,
    freed_bytes: int,
    reserve_ratio: float,
    ram_bytes: int | None = None,
) -> str | None:
    """Say with its arithmetic why a model does not fit into the memory it is served from; None: it does.

    Args:
        need_bytes: of its weights.
        gpus: those that share it, each an equal part (tensor parallel); none: it is served from RAM. One that
            shares the host's memory has none of its own: RAM is compared then too.
        freed_bytes: what is in use now and is given back before, in all.
        reserve_ratio: what is needed, as a multiple of the weights: 1 or more.
        ram_bytes: what the host can give without swapping; None: unknown.
    """
    if gpus and all(_says_memory(gpu) for gpu in gpus):
        short = [_short_gpu(gpu, need_bytes, freed_bytes, reserve_ratio, gpus=gpus) for gpu in gpus]
        return "; ".join(filter(None, short)) or None
    why = "no memory of its own on a GPU" if gpus else "no GPU"
    if ram_bytes is None:
        return f"whether {_gib(need_bytes)} fit cannot be told: {why}, and the host's memory is unknown"
    return _short(f"the host's memory ({why})", need_bytes, reserve_ratio, _Room(ram_bytes, freed_bytes))


def disk_fault(need_bytes: int, *, free_bytes: int, reserve_ratio: float, place: str) -> str | None:
    """Say with its arithmetic why a copy does not fit on the disk of `place`; None: it does.

    Args:
        need_bytes: of all its files.
        free_bytes: what may be written there now.
        reserve_ratio: what is needed, as a multiple of the files: 1 or more.
        place: the directory.
    """
    return _short(f"the disk of {place}", need_bytes, reserve_ratio, _Room(free_bytes, 0))


class _Room(NamedTuple):
    free_bytes: int
    freed_bytes: int


def _says_memory(gpu: Gpu) -> bool:
    return gpu.memory_total_bytes is not None and gpu.memory_used_bytes is not None


def _short_gpu(
    gpu: Gpu, need_bytes: int, freed_bytes: int, reserve_ratio: float, *, gpus: tuple[Gpu, ...]
) -> str | None:
    total, used = gpu.memory_total_bytes or 0, gpu.memory_used_bytes or 0
    room = _Room(max(0, total - used), min(used, freed_bytes // len(gpus)))
    what = f"GPU {gpu.index} ({gpu.name}, {_gib(total)})"
    if len(gpus) > 1:
        what = f"{what}, one of {len(gpus)} that share {_gib(need_bytes)}"
    return _short(what, math.ceil(need_bytes / len(gpus)), reserve_ratio, room)


def _short(what: str, need_bytes: int, reserve_ratio: float, room: _Room) -> str | None:
    need, there = math.ceil(need_bytes * reserve_ratio), room.free_bytes + room.freed_bytes
    if need <= there:
        return None
    freed = f" and {_gib(room.freed_bytes)} given back before" if room.freed_bytes else ""
    return (
        f"{what}: {_gib(need)} needed ({_gib(need_bytes)} x {reserve_ratio:g}), {_gib(there)} there: "
        f"{_gib(room.free_bytes)} free{freed}"
    )


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.2f} GiB"
