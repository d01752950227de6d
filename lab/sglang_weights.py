"""The weights that the simulated SGLang loads, and what it makes of files that are not sound."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lab.model_weights import Tensors, read_tensors

_SPLIT_BY_ROWS = tuple(f".{layer}_proj.weight" for layer in ("q", "k", "v", "gate", "up"))
_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I64": 8, "I32": 4, "U8": 1}


class NoModelError(Exception):
    """Nothing at the model's path can be a model; a running server keeps the one it has."""


class CorruptWeightsError(Exception):
    """A weights file cannot be read; the real server does not survive it."""


def read_model(path: Path) -> Tensors:
    """Return the weights in a model's directory, or in a GGUF file as one tensor.

    Raises:
        NoModelError: there are none.
        CorruptWeightsError: a file is not whole.
    """
    if path.is_file() and path.suffix == ".gguf":
        content = path.read_bytes()
        return {"gguf": ("U8", (len(content),), content)}
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise NoModelError(f"Repo id must be in the form 'repo_name' or 'namespace/repo_name': '{path}'.")
    tensors: Tensors = {}
    for file in files:
        try:
            tensors |= read_tensors(file)
        except (ValueError, KeyError) as error:
            raise CorruptWeightsError(f"Error while deserializing header: {error}") from error
        if any(len(data) != _BYTES[dtype] * math.prod(shape) for dtype, shape, data in tensors.values()):
            raise CorruptWeightsError(
                "Error while deserializing header: incomplete metadata, file not fully covered"
            )
    return tensors


def shapes_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a Llama's tensors, by the end of their names; empty for anything else."""
    if config.get("model_type") != "llama":
        return {}
    width, wide, vocab = (int(config[key]) for key in ("hidden_size", "intermediate_size", "vocab_size"))
    head = int(config["head_dim"])
    queries, keys = head * int(config["num_attention_heads"]), head * int(config["num_key_value_heads"])
    return {
        "embed_tokens.weight": (vocab, width),
        "lm_head.weight": (vocab, width),
        "norm.weight": (width,),
        "q_proj.weight": (queries, width),
        "k_proj.weight": (keys, width),
        "v_proj.weight": (keys, width),
        "o_proj.weight": (width, queries),
        "gate_proj.weight": (wide, width),
        "up_proj.weight": (wide, width),
        "down_proj.weight": (width, wide),
    }


def fitted(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    """Return tensors as they are copied to where there is room for them.

    Of layers that are split by rows, rows beyond that are left out in silence: a trap of the real server.

    Raises:
        CorruptWeightsError: a shape is another than the model's configuration has.
    """
    shapes = shapes_of(config)
    taken: Tensors = {}
    for name, (dtype, shape, data) in tensors.items():
        room = next((room for end, room in shapes.items() if name.endswith(end)), shape)
        if shape != room:
            is_split = name.endswith(_SPLIT_BY_ROWS) and shape[0] > room[0] and shape[1:] == room[1:]
            if not is_split:
                raise CorruptWeightsError(f"{name}: loaded shape {shape}, expected {room}")
            data = data[: len(data) * room[0] // shape[0]]  # noqa: PLW2901 - what is left of it
        taken[name] = (dtype, room, data)
    return taken
