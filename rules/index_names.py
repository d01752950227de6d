"""What the indexes of a change are called while they are built, and once they are kept for the way back."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Set as AbstractSet

from rules.database import DatabaseState, IndexFacts

_LONGEST_BYTES = 63
_DIGITS = 8
_WORK = re.compile(rf"_sd[0-9a-f]{{{_DIGITS}}}$")
_KEPT = re.compile(rf"_kept[0-9a-f]{{{_DIGITS}}}$")


def work_name(stem: str, seed: str, *, schema: str, taken: AbstractSet[str]) -> str:
    """Return the qualified name of a new index, the same each time for the same arguments.

    Args:
        stem: what it begins with, as far as there is room.
        seed: all that makes it another index.
        schema: where it is.
        taken: qualified names that it must not have.
    """
    return _free_name(stem, "sd", seed, schema=schema, taken=taken)


def kept_name(stem: str, seed: str, *, schema: str, taken: AbstractSet[str]) -> str:
    """Return the qualified name under which an old index is kept; see `work_name`."""
    return _free_name(stem, "kept", seed, schema=schema, taken=taken)


def _free_name(stem: str, mark: str, seed: str, *, schema: str, taken: AbstractSet[str]) -> str:
    for number in itertools.count():
        digest = hashlib.sha256(f"{seed}|{number}".encode()).hexdigest()[:_DIGITS]
        suffix = f"_{mark}{digest}"
        name = f"{schema}.{stem[: _LONGEST_BYTES - len(suffix)]}{suffix}"
        if name not in taken:
            return name
    raise AssertionError  # a count has no end


def is_kept(index: str) -> bool:
    """Return whether an index of that name is kept for the way back of an earlier change."""
    return bool(_KEPT.search(index))


def is_leftover(index: str, *, parent: str | None) -> bool:
    """Return whether it is what a build has left or still makes, or a part of such: it serves nobody yet."""
    return bool(_WORK.search(parent or index))


def without_leftovers(state: DatabaseState, *, own: AbstractSet[str] = frozenset()) -> DatabaseState:
    """Return a state without indexes that serve nobody, which come and go beside a change.

    These are unfinished ones, which a change takes over and its way back removes, and those that are kept for
    the way back of other changes, which are dropped once nothing leads back to them. Parts go with the whole.

    Args:
        state: as it was read.
        own: indexes of the change itself, by name: what the state has of them counts.
    """

    def counts(name: str, facts: IndexFacts) -> bool:
        whole = facts.parent or name
        return bool(own & {name, whole}) or not (is_leftover(name, parent=facts.parent) or is_kept(whole))

    counted = {name: facts for name, facts in state.indexes.items() if counts(name, facts)}
    return state.model_copy(update={"indexes": counted})
