"""Reading what other programs write: fields we do not know are passed over, and errors show no values."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from rules.words import listed


class Foreign(BaseModel):
    """A part of a file in another program's format: only what we read of it is named and checked."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True, allow_inf_nan=False)


def in_words(error: ValueError) -> str:
    """Return what is wrong with a file's content, in one line and without its values."""
    if not isinstance(error, ValidationError):
        return str(error)
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return listed(f"{'.'.join(map(str, row['loc'])) or 'the file'}: {row['msg']}" for row in found)


def percent(ratio: float) -> str:
    """Return a ratio for people; never rounded up to a limit that it does not reach."""
    return f"{int(ratio * 1000 + 1e-9) / 10:g} %"
