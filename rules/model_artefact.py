"""What is wrong with a model's release: its files against each other, its configuration and its tokenizer."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from rules.model_facts import ModelFacts, Tensor, TokenizerFacts, listed, text_config
from rules.model_layers import layer_doubts, layer_faults
from rules.model_shapes import embedding_rows, end_faults, shape_faults
from rules.model_view import view

__all__ = ["ModelFacts", "Tensor", "TokenizerFacts", "doubts", "faults", "text_config"]

_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<all>\d{5})\.safetensors")
_SHOWN = 5


def faults(facts: ModelFacts) -> tuple[str, ...]:
    """Say why the model must not be deployed, each with file, tensor and numbers; empty: nothing is wrong.

    That is what a server cannot load, or would load and answer wrongly with. A family of models that is not
    known here is held to what is true of all.
    """
    model = view(facts)
    nameless = () if facts.architectures else ("config.json names no architecture: no server can load it.",)
    return (
        *nameless,
        *_index_faults(facts),
        *layer_faults(model),
        *end_faults(model),
        *shape_faults(model),
        *_tokenizer_faults(facts),
    )


def doubts(facts: ModelFacts) -> tuple[str, ...]:
    """Say what is unusual, but may be meant so in this family of models: people should look at it."""
    return (*layer_doubts(view(facts)), *_tokenizer_doubts(facts))


# --- files of weights ------------------------------------------------------------------------------


def _index_faults(facts: ModelFacts) -> Iterator[str]:
    for name, shards in sorted(facts.repeated.items())[:_SHOWN]:
        yield (
            f"Tensor {name} is in {' and '.join(shards)}: which of them counts is left to chance. Remove the "
            "file that does not belong to this model."
        )
    if facts.index is None:
        yield from _numbering_faults(facts.shards)
        return
    yield from _index_and_shards(facts, facts.index)
    for shard in sorted(set(facts.index.values()) - set(facts.shards)):
        lost = [name for name, where in facts.index.items() if where == shard]
        yield (
            f"The index says that {len(lost)} tensors are in {shard}, which is not there "
            f"({listed(lost)}). Copy that file too."
        )


def _index_and_shards(facts: ModelFacts, index: Mapping[str, str]) -> Iterator[str]:
    held = {(name, tensor.shard) for name, tensor in facts.tensors.items()}
    held |= {(name, shard) for name, shards in facts.repeated.items() for shard in shards}
    said = {(name, shard) for name, shard in index.items() if shard in facts.shards}
    for shard in sorted(set(facts.shards) - set(index.values())):
        yield (
            f"{shard} is not in the index: it belongs to another model, or the index to an older one. Remove "
            "one of them."
        )
    for shard in sorted({shard for _, shard in held ^ said} & set(index.values())):
        lacks = [name for name, where in said - held if where == shard]
        more = [name for name, where in held - said if where == shard]
        if lacks:
            yield f"The index says that {shard} holds {listed(lacks)}; it does not. Copy the model once more."
        if more:
            yield (
                f"{shard} holds {listed(more)}, which the index does not name there. Copy the model once "
                "more."
            )


def _numbering_faults(shards: Collection[str]) -> Iterator[str]:
    """Find the gaps in files that count themselves, such as model-00001-of-00003."""
    there: dict[tuple[str, int], set[int]] = {}
    for shard in shards:
        if match := _NUMBERED.fullmatch(shard):
            there.setdefault((match["stem"], int(match["all"])), set()).add(int(match["number"]))
    for (stem, count), numbers in sorted(there.items()):
        if missing := set(range(1, count + 1)) - numbers:
            files = {f"{stem}-{number:05}-of-{count:05}.safetensors" for number in missing}
            yield f"{listed(files)} of {count} files of weights is not there. Copy what is missing."


# --- tokenizer -------------------------------------------------------------------------------------


def _tokenizer_faults(facts: ModelFacts) -> Iterator[str]:
    tokenizer = facts.tokenizer
    if tokenizer is None:
        yield "No tokenizer: neither tokenizer.json nor any other kind of one is there. Copy it too."
        return
    if tokenizer.fault:
        yield f"The tokenizer {tokenizer.kind} is broken: {tokenizer.fault}. Copy the one of this model."
    if tokenizer.vocab_size is None:
        return
    rows = embedding_rows(facts)
    if rows is not None and tokenizer.vocab_size > rows:
        yield (
            f"The tokenizer {tokenizer.kind} has tokens up to id {tokenizer.vocab_size - 1}, the embedding "
            f"has {rows} rows: a text with such a token kills the server or is answered wrongly. Take the "
            "tokenizer of this model."
        )
    yield from _marker_faults("eos", facts.eos_ids, tokenizer.eos, tokenizer)
    yield from _marker_faults("bos", facts.bos_ids, tokenizer.bos, tokenizer)


def _marker_faults(
    which: str, ids: tuple[int, ...], token: str | None, tokenizer: TokenizerFacts
) -> Iterator[str]:
    """Compare the ids of a marker in the configurations with the token that tokenizer_config.json names."""
    for unknown in (one for one in ids if one not in tokenizer.meanings):
        yield (
            f"config.json or generation_config.json says {which}_token_id {unknown}, but the tokenizer has "
            "no token of that id. Take the files of one and the same model."
        )
    if token is None:
        return
    means = next((one for one, meaning in tokenizer.meanings.items() if meaning == token), None)
    if means is None:
        yield (
            f"tokenizer_config.json says {which}_token {token!r}, which the tokenizer {tokenizer.kind} does "
            "not have: it would be added beyond the embedding. Take the tokenizer of this model."
        )
    elif ids and means not in ids:
        said = ", ".join(f"{one} ({tokenizer.meanings.get(one, 'no token')!r})" for one in ids)
        yield (
            f"{which}_token_id is {said} by the configurations, but tokenizer_config.json says {token!r}, "
            f"which is {means}. Take the files of one and the same model, or mend generation_config.json."
        )


def _tokenizer_doubts(facts: ModelFacts) -> Iterator[str]:
    tokenizer = facts.tokenizer
    if tokenizer and not tokenizer.fault and tokenizer.vocab_size is None:
        yield f"{tokenizer.kind} is a kind of tokenizer that was not read."
    if tokenizer and not facts.eos_ids and not tokenizer.eos:
        yield "No file names a token that ends an answer: each goes on to its limit."
