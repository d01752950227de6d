"""What was read of a model's directory, and how its configuration is understood."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from pydantic import Field

from rules import words
from rules.frozen import Count, Frozen, Sha256

#: Keys under which models that see or hear keep the configuration of their language model.
_NESTED = ("thinker_config", "text_config", "llm_config", "language_config")
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_SHOWN = 5


class Tensor(Frozen):
    """A tensor as a file's header declares it; its shape slowest first, for GGUF too."""

    dtype: str
    shape: tuple[Count, ...]
    shard: str = Field(description="name of the file that holds it")


class TokenizerFacts(Frozen):
    """What a model's tokenizer is."""

    kind: str = Field(
        description="the file it is read from: tokenizer.json, vocab.json, tokenizer.model, …, or gguf"
    )
    vocab_size: Count | None = Field(description="largest id + 1, of added tokens too; None: not read")
    special_ids: dict[str, Count] = Field(default_factory=dict, description="special token -> id")
    meanings: dict[int, str] = Field(
        default_factory=dict,
        description="id -> token, for each id that the configurations, `eos` and `bos` speak of; an id that "
        "is not here has no token",
    )
    eos: str | None = Field(default=None, description="what ends an answer, by tokenizer_config.json")
    bos: str | None = Field(default=None, description="what begins a text, likewise")
    sha256: Sha256 = Field(description="of all its files: it is the same, to the byte")
    fault: str = Field(
        default="", description="why it cannot be loaded, or not as it stands there; empty: it can"
    )


class ModelFacts(Frozen):
    """A model's directory, read. Large, of 100,000 tensors for some: not for a journal."""

    format: Literal["safetensors", "gguf"]
    architectures: tuple[str, ...]
    model_type: str = Field(description="of the language model, such as llama")
    vocab_size: Count | None = Field(description="by its configuration, as the next two; None: not said")
    hidden_size: Count | None
    layers: Count | None
    config: dict[str, Any] = Field(description="config.json, or what a GGUF says, under the same keys")
    generation: dict[str, Any] = Field(default_factory=dict, description="generation_config.json")
    tensors: dict[str, Tensor]
    shards: tuple[str, ...] = Field(description="the files that hold weights")
    repeated: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="tensor -> the files that hold it, where that is more than one"
    )
    index: dict[str, str] | None = Field(
        default=None, description="tensor -> file, by the index; None: no index"
    )
    tokenizer: TokenizerFacts | None = Field(description="None: no file of any kind of tokenizer")
    eos_ids: tuple[int, ...] = Field(default=(), description="by both configurations, sorted")
    bos_ids: tuple[int, ...] = ()
    quantization: str = Field(default="", description="its method, such as fp8 or awq; empty: none")
    files: dict[str, Sha256] = Field(
        default_factory=dict,
        description="path -> digest, of what a server reads only when it starts: tokenizer, chat template",
    )
    weights_bytes: Count
    size_bytes: Count = Field(description="of all files")
    sha256: Sha256 | None = Field(default=None, description="of the directory; None: not computed")


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of config.json that describes the language model: all of it, or what nests in it."""
    part = config
    while inner := next(
        (found for key in _NESTED if isinstance(found := part.get(key), dict) and found), None
    ):
        part = inner
    return part


def number(config: Mapping[str, Any], *keys: str) -> int | None:
    """Return the first whole number of 0 or more under one of `keys`; None: there is none, or a list."""
    return next((value for key in keys if type(value := config.get(key)) is int and value >= 0), None)


def layer_count(config: Mapping[str, Any]) -> int | None:
    """Return how many layers a language model has by its part of config.json; None: it does not say."""
    return number(config, *_LAYER_COUNTS)


def token_ids(key: str, *configs: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the token ids that configurations give under `key`: a number, a list or nothing each; sorted."""
    found: set[int] = set()
    for config in configs:
        value = config.get(key)
        ids = value if isinstance(value, list) else [value]
        found.update(one for one in ids if type(one) is int and one >= 0)  # some say -1 for none
    return tuple(sorted(found))


def listed(names: Collection[str]) -> str:
    """Return the first few of `names`, sorted, and how many more there are."""
    return words.listed(sorted(names), shown=_SHOWN)
