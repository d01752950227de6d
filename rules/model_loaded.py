"""Is what a server has in its memory what stands in the files: checksums of tensors, compared.

Not every tensor can be: servers join some, cut them up over GPUs, pad them, convert or repack them. What
every server keeps as it is, embeddings and norms, has to agree. Of the others, one kind of tensor (the same
one of each layer) agrees as a whole, or was changed as a whole when it was loaded; between them is an error.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from pydantic import Field

from rules.frozen import Count, Frozen
from rules.model_facts import ModelFacts, Tensor

#: Rows of an embedding are filled up to a multiple of this (SGLang's DEFAULT_VOCAB_PADDING_SIZE).
_PADDED_TO = 64
_KEPT = re.compile(r"(^|\.)(\w*norm\w*|ln_\w+|embed_tokens|word_embeddings|wte)\.weight$")
_EMBEDDING = re.compile(r"(embed_tokens|word_embeddings|wte|lm_head)\.weight$")
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")
_DTYPES = {
    "bfloat16": "BF16",
    "float16": "F16",
    "half": "F16",
    "float32": "F32",
    "float": "F32",
}
_SHOWN = 5


class RankChecksums(Frozen):
    """What one rank of a server has loaded: tensor -> 16 hexadecimal digits."""

    tp_size: Count = Field(default=1, description="ranks that each tensor may be cut up over")
    checksums: dict[str, str]


class Comparison(Frozen):
    """What the checksums of memory and files say together."""

    agreeing: Count = Field(default=0, description="tensors that are the same in both")
    faults: tuple[str, ...] = Field(default=(), description="in words; empty: nothing speaks against it")
    unlike: tuple[str, ...] = Field(
        default=(), description="kinds of tensors that were changed when they were loaded"
    )
    why_not: str = Field(default="", description="why nothing can be compared; empty: it can")

    @property
    def in_words(self) -> str:
        """What it says about the weights."""
        unlike = f"; changed when loaded, so not compared: {_named(self.unlike)}" if self.unlike else ""
        if not self.agreeing:
            why = f": {self.why_not}" if self.why_not else ""
            return f"no tensor can be compared with the file by checksum{why}{unlike}"
        return f"{self.agreeing} tensors have the file's checksum{unlike}"


def comparable(
    ranks: Collection[RankChecksums], facts: ModelFacts, *, dtype: str = "auto"
) -> tuple[str, ...]:
    """Return the names of the tensors that a server may have in its memory as they are in the file.

    Args:
        ranks: what the server says.
        facts: the model's.
        dtype: the server's flag; auto: what the model's configuration says.
    """
    loaded = _loaded_dtype(facts, dtype)
    is_cut = any(rank.tp_size > 1 for rank in ranks)
    named = {name for rank in ranks for name in rank.checksums} & facts.tensors.keys()
    return tuple(
        sorted(name for name in named if _may_agree(name, facts.tensors[name], loaded, is_cut=is_cut))
    )


def _loaded_dtype(facts: ModelFacts, dtype: str) -> str | None:
    """Return the type that floating-point tensors are loaded as; None: it is not known."""
    if dtype in _DTYPES:
        return _DTYPES[dtype]
    said = _DTYPES.get(str(facts.config.get("torch_dtype") or facts.config.get("dtype")))
    return None if said == "F32" else said  # loaded at half the precision, and which is not said


def _may_agree(name: str, tensor: Tensor, loaded: str | None, *, is_cut: bool) -> bool:
    if tensor.dtype != loaded or (is_cut and len(tensor.shape) > 1):
        return False
    return not (_EMBEDDING.search(name) and tensor.shape[0] % _PADDED_TO)


def compare(
    ranks: Collection[RankChecksums], in_file: Mapping[str, str], tensors: Collection[str]
) -> Comparison:
    """Compare what a server has loaded with the files.

    Args:
        ranks: what the server says.
        in_file: tensor -> checksum, of those that can be compared.
        tensors: the names of all that the files hold.
    """
    agreeing: set[str] = set()
    differing: dict[str, str] = {}
    for rank in ranks:
        for name in rank.checksums.keys() & in_file.keys():
            if rank.checksums[name] == in_file[name]:
                agreeing.add(name)
            else:
                differing[name] = rank.checksums[name]
    kinds_that_agree = {_kind(name) for name in agreeing}
    is_fault = {name for name in differing if _KEPT.search(name) or _kind(name) in kinds_that_agree}
    faults = [
        f"{name}: the server has {differing[name]}, the file {in_file[name]}" for name in sorted(is_fault)
    ]
    return Comparison(
        agreeing=len(agreeing - differing.keys()),
        faults=(*faults, *_kept_from_before(ranks, agreeing, tensors)),
        unlike=tuple(sorted({_kind(name) for name in differing.keys() - is_fault})),
    )


def _kept_from_before(
    ranks: Collection[RankChecksums], agreeing: Collection[str], tensors: Collection[str]
) -> Iterator[str]:
    """Find what the server has and the files lack: a hot swap leaves it as it was and reports success.

    Only where the model's tensors are called the same in both: servers rename some families'.
    """
    parts = {name.partition(".")[0] for name in agreeing if _KEPT.search(name)}
    loaded = {name for rank in ranks for name in rank.checksums if _KEPT.search(name)}
    for part in sorted(parts):
        ours = {name for name in loaded if name.partition(".")[0] == part}
        missing = ours - set(tensors)
        if 2 * len(missing) < len(ours):
            yield from (f"{name}: the server has it, the files do not" for name in sorted(missing))


def _kind(name: str) -> str:
    """Return a tensor's name without the number of its layer or expert."""
    return _LAYER.sub("N", name)


def _named(kinds: Collection[str]) -> str:
    shown = ", ".join(sorted(kinds)[:_SHOWN])
    return shown if len(kinds) <= _SHOWN else f"{shown} and {len(kinds) - _SHOWN} more kinds"
