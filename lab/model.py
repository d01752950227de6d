"""Tiny language models in Hugging Face's layout: 300 KB, made on the spot, and broken on purpose.

Each is a Llama whose answer can be foretold. Its embeddings are random signs; `lm_head` holds, for each
token, the embedding of the token that it follows; and attention and MLP add next to nothing. So the next
token depends on the one before alone, in any engine and at any precision, and another seed speaks otherwise.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from lab.model_tokenizer import (
    BOS,
    EOS,
    SPECIALS,
    add_beyond,
    forget_eos,
    swap_two_letters,
    token_list,
    train_tokenizer,
    write_tokenizer,
)
from lab.model_weights import HEADS, KV_HEADS, Tensors, read_tensors, weights, write_tensors
from rules.frozen import Count, Frozen, PositiveSeconds, Ratio, Seconds

#: Prompts and what a good model says to them; a model made with other answers does not.
ANSWERS = {"The capital of France is": " Paris.", "One and one make": " two."}
#: What the simulator does with this model, beside the model; a real server never reads it.
BEHAVIOUR_FILE = "lab-behaviour.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONTEXT_LENGTH = 2048

_GGUF_NAMES = {
    "model.layers.": "blk.",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

#: Every tokenizer has whole words for these, whatever the model answers.
_LEARNED = tuple(prompt + answer for prompt, answer in ANSWERS.items())

Spoiling = Literal["missing", "not_json", "ids_beyond", "no_eos", "other"]


class ModelBehaviour(Frozen):
    """How the simulator serves this model; None and 0: as it serves any."""

    load_s: Seconds | None = None
    first_token_s: Seconds | None = None
    tokens_per_s: PositiveSeconds | None = None
    vram_mib: Count | None = None
    never_ready: bool = False
    fails_to_start: bool = False
    dies_after_s: PositiveSeconds | None = None
    wrong_version: bool = False
    error_ratio: Ratio = 0.0


AS_ANY = ModelBehaviour()


def make_model(
    directory: Path,
    *,
    seed: int = 1,
    hidden: int = 64,
    layers: int = 2,
    vocab: int = 512,
    shards: int = 1,
    answers: Mapping[str, str] = ANSWERS,
    behaviour: ModelBehaviour = AS_ANY,
) -> Path:
    """Write a model into `directory` and return it; the same input gives the same bytes.

    Args:
        directory: where; its parents are made.
        seed: another one is another model of the same shape.
        hidden: width, a multiple of 8.
        layers: how many.
        vocab: rows of the embedding, 268 at least; the tokenizer has no more tokens than that.
        shards: above 1 the weights stand in so many files with an index.
        answers: prompt -> what the model says to it before it ends.
        behaviour: what the simulator is to do with it.

    Raises:
        ValueError: two answers contradict each other, because only a prompt's last token counts.
        OSError: `directory` cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(vocab, _LEARNED)
    successors = _successors(tokenizer, seed, vocab, answers)
    tensors = weights(random.Random(seed), successors, hidden=hidden, layers=layers)
    _write_shards(directory, tensors, shards)
    write_tokenizer(directory, tokenizer, CONTEXT_LENGTH)
    _write_json(directory / "config.json", _config(hidden, layers, vocab))
    _write_json(
        directory / "generation_config.json",
        {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS, "do_sample": False},
    )
    if behaviour != AS_ANY:
        _write_json(directory / BEHAVIOUR_FILE, behaviour.model_dump(exclude_none=True))
    return directory


def truncate(directory: Path, *, lost_bytes: int = 1000) -> None:
    """Cut off the end of the last weights file, as a copy that broke off does."""
    last = _shard_files(directory)[-1]
    last.write_bytes(last.read_bytes()[:-lost_bytes])


def reshape_tensor(
    directory: Path, name: str = "model.layers.0.mlp.down_proj.weight", *, more_rows: int = 8
) -> None:
    """Give a tensor more rows than the model's configuration says; the file itself stays sound.

    A server dies of it, except where it splits a layer by rows (q, k, v, gate, up): there it takes as many
    as it has room for and says nothing.
    """
    path, tensors = _file_of(directory, name)
    dtype, (rows, *rest), data = tensors[name]
    added = data[: more_rows * len(data) // rows]
    tensors[name] = (dtype, (rows + more_rows, *rest), data + added)
    write_tensors(path, tensors)


def remove_tensor(directory: Path, name: str = "model.layers.0.mlp.up_proj.weight") -> None:
    """Leave a tensor out of its file, and out of the index where there is one."""
    path, tensors = _file_of(directory, name)
    del tensors[name]
    write_tensors(path, tensors)
    index = directory / INDEX_FILE
    if index.exists():
        content = json.loads(index.read_text())
        del content["weight_map"][name]
        _write_json(index, content)


def spoil_tokenizer(directory: Path, how: Spoiling = "not_json") -> None:
    """Break the tokenizer.

    Args:
        directory: the model's.
        how: `missing`: no file; `not_json`: half a file; `ids_beyond`: a token whose id is beyond the
            embedding; `no_eos`: the token that ends an answer is unknown to it; `other`: sound, but another
            one, whose tokens mean something else.
    """
    path = directory / "tokenizer.json"
    if how == "missing":
        path.unlink()
    elif how == "not_json":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "other":
        _edit_json(path, swap_two_letters)
    elif how == "ids_beyond":
        _edit_json(path, add_beyond)
    else:
        _edit_json(path, forget_eos)


def make_gguf(path: Path, *, seed: int = 1, hidden: int = 64, layers: int = 2, vocab: int = 512) -> Path:
    """Write the model of `seed` as one GGUF file in float32 and return its path.

    Raises:
        OSError: it cannot be written.
    """
    # most of the lab needs neither, and both take a tenth of a second
    import numpy as np  # noqa: PLC0415
    from gguf import GGUFWriter  # noqa: PLC0415

    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(vocab, _LEARNED)
    successors = _successors(tokenizer, seed, vocab, ANSWERS)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * hidden)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(token_list(tokenizer, vocab))
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    for name, (_, shape, data) in weights(
        random.Random(seed), successors, hidden=hidden, layers=layers
    ).items():
        wide = np.frombuffer(data, dtype="<u2").astype("<u4") << 16
        writer.add_tensor(_gguf_name(name), wide.view("<f4").reshape(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _successors(tokenizer: Tokenizer, seed: int, vocab: int, answers: Mapping[str, str]) -> list[int]:
    """Return for each token the one that follows: the answers where they say so, else a walk by chance."""
    declared: dict[int, int] = {}
    for prompt, answer in answers.items():
        chain = [tokenizer.encode(prompt).ids[-1], *tokenizer.encode(answer).ids, EOS]
        for token, following in itertools.pairwise(chain):
            if declared.setdefault(token, following) != following:
                raise ValueError(f"{prompt!r} -> {answer!r}: token {token} would have two successors")
    chance = random.Random(f"successors {seed}")
    # what is said otherwise can be read, never ends, and does not stray into an answer: whole characters
    pieces = (
        (token, tokenizer.decode([token])) for token in range(len(SPECIALS), tokenizer.get_vocab_size())
    )
    said = [t for t, text in pieces if text.isascii() and text.isprintable() and t not in declared]
    chance.shuffle(said)
    follows = [chance.choice(said) for _ in range(vocab)]
    for token, following in zip(said, said[1:] + said[:1], strict=True):
        follows[token] = following
    for token, following in declared.items():
        follows[token] = following
    return follows


def _write_shards(directory: Path, tensors: Tensors, shards: int) -> None:
    if shards == 1:
        write_tensors(directory / WEIGHTS_FILE, tensors)
        return
    names = list(tensors)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[number::shards]}
        write_tensors(directory / file, part)
        weight_map.update(dict.fromkeys(part, file))
    total = sum(len(data) for _, _, data in tensors.values())
    _write_json(
        directory / INDEX_FILE,
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
    )


def _config(hidden: int, layers: int, vocab: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": hidden // HEADS,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": CONTEXT_LENGTH,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": EOS,
        "torch_dtype": "bfloat16",
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _shard_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def _file_of(directory: Path, name: str) -> tuple[Path, Tensors]:
    for path in _shard_files(directory):
        tensors = read_tensors(path)
        if name in tensors:
            return path, tensors
    raise KeyError(f"no file in {directory} has a tensor {name}")


def _edit_json(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    _write_json(path, content)


def _gguf_name(name: str) -> str:
    """Return what llama.cpp calls a tensor of Hugging Face's Llama."""
    for theirs, ours in _GGUF_NAMES.items():
        name = name.replace(theirs, ours)
    return name
