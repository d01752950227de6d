"""The weights of the lab's tiny models, and the safetensors files that hold them."""

from __future__ import annotations

import itertools
import json
import random
import struct
from pathlib import Path

#: Heads of attention, and of its keys and values.
HEADS, KV_HEADS = 4, 2

_BF16_BYTES = 2

#: Name -> type, shape and raw little-endian bytes, as they stand in a safetensors file.
Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def weights(chance: random.Random, follows: list[int], *, hidden: int, layers: int) -> Tensors:
    """Return a Llama's tensors in bfloat16 that say, after each token, the one that `follows` it.

    Args:
        chance: decides all that does not matter.
        follows: token -> the next one; as many as the embedding has rows.
        hidden: width, a multiple of 8.
        layers: how many.
    """
    vocab = len(follows)
    signs = [[chance.choice((-1.0, 1.0)) for _ in range(hidden)] for _ in range(vocab)]
    head = [[0.0] * hidden for _ in range(vocab)]
    for token, following in enumerate(follows):
        head[following] = [a + b for a, b in zip(head[following], signs[token], strict=True)]
    kv, wide = hidden // HEADS * KV_HEADS, 2 * hidden
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }
    ones = ("BF16", (hidden,), _bf16([1.0] * hidden))
    tensors: Tensors = {
        "model.embed_tokens.weight": ("BF16", (vocab, hidden), _bf16(list(itertools.chain(*signs))))
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        tensors[f"{prefix}.input_layernorm.weight"] = ones
        for name, shape in shapes.items():
            tensors[f"{prefix}.{name}.weight"] = ("BF16", shape, _next_to_nothing(chance, shape))
        tensors[f"{prefix}.post_attention_layernorm.weight"] = ones
    tensors["model.norm.weight"] = ones
    tensors["lm_head.weight"] = ("BF16", (vocab, hidden), _bf16(list(itertools.chain(*head))))
    return tensors


def read_tensors(path: Path) -> Tensors:
    """Return all tensors of a whole safetensors file."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    header.pop("__metadata__", None)
    body = content[8 + size :]
    return {
        name: (one["dtype"], tuple(one["shape"]), body[slice(*one["data_offsets"])])
        for name, one in header.items()
    }


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Write tensors as one safetensors file, in the order given."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    packed = json.dumps(header, separators=(",", ":")).encode()
    packed += b" " * (-len(packed) % 8)
    path.write_bytes(struct.pack("<Q", len(packed)) + packed + b"".join(t[2] for t in tensors.values()))


def _bf16(numbers: list[float]) -> bytes:
    """Return the upper halves of float32, which is what bfloat16 is; exact for small whole numbers."""
    packed = struct.pack(f"<{len(numbers)}f", *numbers)
    return b"".join(packed[at + 2 : at + 4] for at in range(0, len(packed), 4))


def _next_to_nothing(chance: random.Random, shape: tuple[int, int]) -> bytes:
    """Return numbers of about 0.001, with either sign: too small to be heard, and different in each model."""
    count = shape[0] * shape[1]
    data = bytearray(_BF16_BYTES * count)
    data[0::2] = chance.randbytes(count)
    data[1::2] = bytes(0x3A if byte % 2 else 0xBA for byte in chance.randbytes(count))
    return bytes(data)
