"""A model in one GGUF file: its tensors, what it says of itself, and the tokenizer in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gguf import GGUFReader, LlamaFileType

from rules.model_facts import Tensor, TokenizerFacts, number, token_ids
from tasks.model_reading import ModelArtefactError
from tasks.tokenizer_files import Vocabulary, facts_of

#: What config.json calls what a GGUF says under its architecture's name.
_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "num_nextn_predict_layers": "nextn_predict_layers",
}
_UNQUANTIZED = ("F32", "F16", "BF16")
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_CONTROL = 3  # the type of the tokens that are no text


class GgufFacts(NamedTuple):
    """What stands in a GGUF file."""

    architecture: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    tokenizer: TokenizerFacts | None
    quantization: str
    weights_bytes: int


def read_gguf(path: Path) -> GgufFacts:
    """Return what stands in a file: all of its header, and that each tensor lies in it as a whole.

    Raises:
        ModelArtefactError: it is truncated, none, or a part of several.
    """
    try:
        reader = GGUFReader(path)
        said = {name: _contents(field) for name, field in reader.fields.items()}
        tensors = {
            str(one.name): Tensor(
                dtype=one.tensor_type.name,
                shape=tuple(reversed(one.shape.tolist())),  # a file says the fastest dimension first
                shard=path.name,
            )
            for one in reader.tensors
        }
        weights = sum(int(one.n_bytes) for one in reader.tensors)
    except Exception as error:  # whatever numpy raises on a slice that is too short
        raise ModelArtefactError(
            f"{path} is no whole GGUF file: {error}. Nothing was touched. Copy it once more, and compare its "
            "size with its source's."
        ) from error
    if (parts := number(said, "split.count") or 0) > 1:
        raise ModelArtefactError(
            f"{path} is one of {parts} parts of a model. Nothing was touched. Join them: llama-gguf-split "
            "--merge."
        )
    architecture = str(said.get("general.architecture", ""))
    return GgufFacts(
        architecture=_ARCHITECTURES.get(architecture, architecture),
        config=_config(architecture, said),
        tensors=tensors,
        tokenizer=_tokenizer(said),
        quantization=_quantization(said, tensors),
        weights_bytes=weights,
    )


def _contents(field: Any) -> Any:
    """Return a field's value; text that is no UTF-8, as some tokens are, with marks in it."""
    kinds = [kind.name for kind in field.types]
    if kinds[-1] == "STRING":
        texts = [bytes(field.parts[index]).decode(errors="replace") for index in field.data]
        return texts if kinds[0] == "ARRAY" else texts[0]
    values = [field.parts[index].tolist()[0] for index in field.data]
    return values if kinds[0] == "ARRAY" else values[0]


def _config(architecture: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the file says of its model under the keys of config.json; its other words as they are."""
    own = {key: said.get(f"{architecture}.{theirs}") for key, theirs in _KEYS.items()}
    tokens = said.get("tokenizer.ggml.tokens")
    if own["vocab_size"] is None and isinstance(tokens, list):
        own["vocab_size"] = len(tokens)
    markers = {f"{which}_token_id": said.get(f"tokenizer.ggml.{which}_token_id") for which in ("eos", "bos")}
    others = {key: value for key, value in said.items() if key.startswith(f"{architecture}.")}
    return {
        "model_type": architecture,
        **others,
        **{key: value for key, value in {**own, **markers}.items() if value is not None},
    }


def _tokenizer(said: Mapping[str, Any]) -> TokenizerFacts | None:
    tokens = said.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        return None
    kinds = said.get("tokenizer.ggml.token_type")
    kinds = kinds if isinstance(kinds, list) else []
    special = {
        token: index
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
        if kind == _CONTROL
    }
    about = {key: value for key, value in said.items() if key.startswith("tokenizer.")}
    markers = [token_ids(f"tokenizer.ggml.{which}_token_id", said) for which in ("eos", "bos")]
    vocabulary = Vocabulary({token: index for index, token in enumerate(tokens)}, special, len(tokens))
    facts = facts_of(
        "gguf", vocabulary, (), (None, None), sha256=hashlib.sha256(json.dumps(about).encode()).hexdigest()
    )
    # by place and not by text: two tokens may read alike once they are text
    meanings = {one: tokens[one] for ids in markers for one in ids if one < len(tokens)}
    return facts.model_copy(update={"meanings": meanings})


def _quantization(said: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    kinds = {tensor.dtype for tensor in tensors.values()}.difference(_UNQUANTIZED)
    if not kinds:
        return ""
    kind = number(said, "general.file_type")
    if kind is not None and kind in {one.value for one in LlamaFileType}:
        return str(LlamaFileType(kind).name.removeprefix("MOSTLY_").lower())
    return "+".join(sorted(kinds)).lower()
