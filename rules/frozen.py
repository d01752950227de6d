"""The ground all our data stands on: frozen models and the types of their fields."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    """A value: cannot be changed, and refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Ratio = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
PositiveSeconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
BasisPoints = Annotated[int, Field(ge=0, le=10_000)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
AbsolutePath = Annotated[str, Field(pattern=r"^/[^\x00\n]*$")]
Argv = Annotated[tuple[str, ...], Field(min_length=1)]

#: A name that is safe in a Prefect artifact key, a file name and a balancer map.
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]

#: A release as its application reports it: a version, a tag or a commit.
ReleaseId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")]


def slug(text: str) -> str:
    """Return `text` in the letters that a Prefect artifact key and a file name share."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
