"""Are a model's shapes those of its configuration: embedding, head, attention, MLP."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rules.model_facts import ModelFacts, Tensor, number
from rules.model_names import GGUF, HEADS_SHARE_HIDDEN, TIED_BY_DEFAULT
from rules.model_view import ModelView, view, without_expert

_HAS_HEAD = re.compile(r".*(ForCausalLM|LMHeadModel|ForConditionalGeneration)")
#: Keys of models whose embedding is narrower than their layers.
_OWN_WIDTH = ("embedding_size", "word_embed_proj_dim")
_SAME_MODEL = "Take configuration and weights of one and the same model."


class _Size(NamedTuple):
    """What an axis has to measure, and who says so."""

    value: int
    by: str


def shape_faults(model: ModelView) -> Iterator[str]:
    """Find tensors of another shape than the configuration gives them, or than their neighbours have."""
    sizes = _sizes(model)
    if not model.is_known:
        yield from _loose_faults(model)
        return
    for name, tensor in _ends(model):
        if model.is_plain(tensor):
            yield from _compared(name, tensor, ("vocab_size", "hidden_size"), sizes)
    heads, groups = number(model.text, "num_attention_heads"), number(model.text, "num_key_value_heads")
    if heads and groups and heads % groups:
        yield f"config.json says {heads} attention heads for {groups} of keys and values: no multiple of it."
    for layer, names in model.layers.items():
        for rest, tensor in sorted(names.items()):
            expected = model.naming.shapes.get(without_expert(rest))
            if expected and model.is_plain(tensor):
                yield from _compared(f"{model.name_of(layer)}.{rest}", tensor, expected, sizes)
    norm = f"{model.prefix}{model.naming.norm}"
    if last := model.facts.tensors.get(norm):
        yield from _compared(norm, last, ("hidden_size",), sizes)


def end_faults(model: ModelView) -> Iterator[str]:
    """Find what is missing before and behind the layers: embedding, last norm, lm_head."""
    if not model.is_known:
        return
    if not model.named(model.naming.embedding):
        yield (
            "The embedding is missing: no tensor embed_tokens.weight or of a like name. Copy the model once "
            "more."
        )
    if (norm := f"{model.prefix}{model.naming.norm}") not in model.facts.tensors:
        yield f"Tensor {norm} is missing. Copy the model once more."
    wants_head = any(map(_HAS_HEAD.fullmatch, model.facts.architectures))
    if wants_head and not model.named(model.naming.head) and not _may_be_tied(model):
        yield (
            "Tensor lm_head.weight is missing, and config.json does not say tie_word_embeddings: the answers "
            "would be chance. Copy the model once more."
        )


def embedding_rows(facts: ModelFacts) -> int | None:
    """Return how many tokens the model can be given; None: neither tensors nor configuration say."""
    model = view(facts)
    found = [tensor.shape[0] for _, tensor in model.named(model.naming.embedding) if tensor.shape]
    return min(found, default=facts.vocab_size)


def expert_count(text: Mapping[str, Any]) -> int | None:
    """Return how many experts a layer has by the configuration; None: it does not say."""
    return number(text, "n_routed_experts", "num_local_experts", "num_experts")


def _ends(model: ModelView) -> list[tuple[str, Tensor]]:
    return [*model.named(model.naming.embedding), *model.named(model.naming.head)]


def _may_be_tied(model: ModelView) -> bool:
    """Return whether the embedding may serve as lm_head: by config.json, or by what its silence means."""
    top = model.facts.config
    said = [part["tie_word_embeddings"] for part in (model.text, top) if "tie_word_embeddings" in part]
    if model.naming is GGUF or any(said):
        return True
    return not said and (model.family in TIED_BY_DEFAULT or model.text is not top)


def _loose_faults(model: ModelView) -> Iterator[str]:
    """Hold the embedding of any family to what is true of all; some have more rows than are counted."""
    vocabulary, hidden = _vocabulary(model), model.facts.hidden_size
    if any(key in model.text for key in _OWN_WIDTH):
        hidden = None
    for name, tensor in _ends(model):
        if not model.is_plain(tensor):
            continue
        rows, *width = tensor.shape or (0,)
        if vocabulary is not None and rows < vocabulary:
            yield (
                f"Tensor {name} in {tensor.shard} has the shape {list(tensor.shape)}, but vocab_size is "
                f"{vocabulary} by config.json. {_SAME_MODEL}"
            )
        if hidden is not None and width != [hidden]:
            yield (
                f"Tensor {name} in {tensor.shard} has the shape {list(tensor.shape)}, but hidden_size is "
                f"{hidden} by config.json. {_SAME_MODEL}"
            )


def _compared(name: str, tensor: Tensor, expected: tuple[str, ...], sizes: dict[str, _Size]) -> Iterator[str]:
    """Compare a shape with the sizes; one that nobody said is what the first tensor has."""
    has = f"Tensor {name} in {tensor.shard} has the shape {list(tensor.shape)}"
    if len(tensor.shape) != len(expected):
        yield f"{has}; it should have the dimensions {', '.join(expected)}. {_SAME_MODEL}"
        return
    for size, value in zip(expected, tensor.shape, strict=True):
        told = sizes.setdefault(size, _Size(value, name))
        if value != told.value:
            yield f"{has}: {value} where {size} is {told.value} by {told.by}. {_SAME_MODEL}"


def _sizes(model: ModelView) -> dict[str, _Size]:
    """Return the sizes that the configuration gives, and those that follow from them."""
    text, family = model.text, model.family
    hidden, inner = number(text, "hidden_size"), number(text, "intermediate_size")
    heads, groups = number(text, "num_attention_heads"), number(text, "num_key_value_heads")
    head = number(text, "head_dim")
    if head is None and heads and hidden and family in HEADS_SHARE_HIDDEN:
        head = hidden // heads
    if groups is None and family == "llama":
        groups = heads
    queries, keys = _product(heads, head), _product(groups, head)
    found = {
        "vocab_size": _vocabulary(model),
        "hidden_size": hidden,
        "intermediate_size": inner,
        "moe_intermediate_size": number(text, "moe_intermediate_size"),
        "head_dim": head,
        "the number of experts": expert_count(text),
        "num_attention_heads x head_dim": queries,
        "num_key_value_heads x head_dim": keys,
        "queries, keys and values together": queries + 2 * keys if queries and keys else None,
        "2 x intermediate_size": _product(2, inner),
    }
    return {size: _Size(value, "config.json") for size, value in found.items() if value is not None}


def _vocabulary(model: ModelView) -> int | None:
    return number(model.text, "vocab_size") or number(model.facts.config, "vocab_size")


def _product(first: int | None, second: int | None) -> int | None:
    return first * second if first and second else None
