"""A request for a deployment, checked before it is sent: of a union Prefect seldom names the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import Field, ValidationError

from rules.change import Change
from rules.checklist import Attestation, Waiver
from rules.evidence.sources import Evidence
from rules.frozen import Frozen
from rules.strategy import Strategy
from triggers.api_errors import BadRequestError


class Wrong(NamedTuple):
    """Where a field is that is wrong, and why."""

    loc: tuple[int | str, ...]
    reason: str
    kind: str


class DeployRequest(Frozen):
    """The parameters of the flow `deploy`."""

    change: Change
    strategy: Strategy
    environment: str = Field(default="development", min_length=1)
    evidence: Evidence = Evidence()
    attestations: tuple[Attestation, ...] = ()
    waivers: tuple[Waiver, ...] = ()
    dry_run: bool = False

    @property
    def parameters(self) -> dict[str, Any]:
        """What is sent: JSON, without what the flow has as its default anyway."""
        sent = self.model_dump(mode="json")
        for name in ("evidence", "attestations", "waivers", "dry_run"):
            if getattr(self, name) == type(self).model_fields[name].default:
                del sent[name]
        return sent


def deploy_request(fields: Mapping[str, Any]) -> DeployRequest:
    """Return the request that `fields` make: typed values, or what JSON has for them.

    Raises:
        BadRequestError: a field is wrong; names it and says why, without its value. Nothing was sent.
    """
    try:
        return DeployRequest.model_validate(fields)
    except ValidationError as error:
        reasons = "; ".join(wrong_fields(error))
        raise BadRequestError(f"This is no request for a deployment: {reasons}. Nothing was sent.") from error


def wrong_fields(error: ValidationError) -> tuple[str, ...]:
    """Return each wrong field with its reason, such as `change.release: Field required`.

    Of a union only the errors of the member that is meant count: the others say that they are others.
    """
    errors = [Wrong(e["loc"], e["msg"], e["type"]) for e in error.errors(include_url=False)]
    return tuple(f"{_path(one.loc)}: {one.reason}" for one in _meant(errors, depth=0))


def _meant(errors: list[Wrong], depth: int) -> list[Wrong]:
    """Return the errors without those of unions' members that were not meant, from `depth` on."""
    here = [one for one in errors if len(one.loc) <= depth]
    groups: dict[int | str, list[Wrong]] = {}
    for one in errors:
        if len(one.loc) > depth:
            groups.setdefault(one.loc[depth], []).append(one)
    if not any(_is_member(part) for part in groups):
        return [*here, *(one for group in groups.values() for one in _meant(group, depth + 1))]
    unnamed = [next((one for one in group if one.kind == "literal_error"), None) for group in groups.values()]
    tags = [one for one in unnamed if one is not None]
    if len(tags) == len(groups):
        names = sorted({one.reason.removeprefix("Input should be ") for one in tags})
        return [Wrong(tags[0].loc, f"Input should be one of {', '.join(names)}", "literal_error")]
    named = [group for group, tag in zip(groups.values(), unnamed, strict=True) if tag is None]
    return _meant(min(named, key=len), depth + 1)


def _path(loc: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in loc if not _is_member(part)) or "the request"


def _is_member(part: int | str) -> bool:
    """Whether this part of a field's place names a union's member: a class, or `function-after[…, Class]`."""
    return isinstance(part, str) and (part[:1].isupper() or "[" in part)
