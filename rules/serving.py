"""How a model is served: the server's flags, declared prompts, and the limits a new release has to keep."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import Field, field_validator

from rules.errors import InvalidRequestError
from rules.frozen import AbsolutePath, Count, Frozen, Name, PositiveSeconds, Ratio, Seconds

#: A flag of the server without its dashes, such as context-length.
FlagName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
FlagValue = bool | int | float | str
#: What we say ourselves: where the model is, and which release it is.
OWN_FLAGS = frozenset({"model", "model-path", "weight-version", "load-format", "tokenizer-path"})
#: Secrets stand in a file that the service reads, never in a block or a release's server.yaml.
SECRET_FLAGS = frozenset({"api-key", "admin-api-key", "ssl-keyfile-password"})
_SHOWN = 200  # characters of an answer in a message


class DeclaredPrompt(Frozen):
    """A prompt that every release has to answer, and what must be true of its answer."""

    name: Name
    text: Annotated[str, Field(min_length=1)]
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 32
    matches: str = Field(default="", description="regular expression that the answer must contain")
    lacks: str = Field(default="", description="regular expression that it must not contain")
    min_tokens: Count = Field(default=1, description="it must be at least this long")
    same_as_before: bool = Field(
        default=False, description="greedy answer equal to the running release's: for the same weights"
    )

    @field_validator("matches", "lacks")
    @classmethod
    def _is_an_expression(cls, expression: str) -> str:
        try:
            re.compile(expression)
        except re.error as error:
            raise ValueError(f"{expression!r} is no regular expression: {error}") from error
        return expression


class ServingLimits(Frozen):
    """What a new release may cost beside the one before."""

    max_first_token_ratio: Annotated[float, Field(gt=0)] = Field(
        default=2.0, description="time to first token, as a multiple of the one before"
    )
    first_token_grace_s: Seconds = Field(default=0.2, description="slower by no more is never a failure")
    min_speed_ratio: Ratio = Field(default=0.5, description="tokens per second, as a share of those before")
    max_memory_growth_ratio: Annotated[float, Field(ge=0)] = Field(
        default=0.1, description="GPU memory in use beyond what was expected, as a share of the GPU's total"
    )
    memory_reserve_ratio: Annotated[float, Field(ge=1)] = Field(
        default=1.2, description="memory that a model needs, as a multiple of its weights"
    )
    drain_s: PositiveSeconds = Field(default=120.0, description="running requests are waited for this long")
    cut_after_drain: bool = Field(
        default=False, description="then stop all the same; else the deployment is taken back"
    )
    request_timeout_s: PositiveSeconds = 60.0


class ModelServing(Frozen):
    """What is declared about the servers of a model, beside where they are."""

    flags: dict[FlagName, FlagValue] = Field(
        default_factory=dict, description="of every release's server.yaml; a change's own win"
    )
    prompts: tuple[DeclaredPrompt, ...] = ()
    limits: ServingLimits = ServingLimits()
    admin_key_file: AbsolutePath | None = Field(
        default=None, description="on the worker's host, readable by its owner alone; None: no key is asked"
    )


class Answered(Frozen):
    """One declared prompt's answer, as measured."""

    prompt: Name
    text: str
    tokens: Count
    first_token_s: Seconds
    tokens_per_s: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="after the first token; None: too few tokens to tell"
    )

    @property
    def in_words(self) -> str:
        """Its figures, for people."""
        speed = f", {self.tokens_per_s:.0f} tokens/s" if self.tokens_per_s is not None else ""
        return f"{self.prompt}: first token after {self.first_token_s:.3f} s{speed}"


class ServedBefore(Frozen):
    """How the running release answers: what the new one is compared with. Empty: nothing ran."""

    answers: tuple[Answered, ...] = ()

    def of(self, prompt: str) -> Answered | None:
        """Return the answer to the prompt of this name; None: it was not asked."""
        return next((answer for answer in self.answers if answer.prompt == prompt), None)

    def at_the_pace_of(self, other: ServedBefore) -> ServedBefore:
        """Return these answers with the times of another server's, where it has any."""
        return ServedBefore(answers=tuple(_at_pace(one, other.of(one.prompt)) for one in self.answers))


def _at_pace(answer: Answered, other: Answered | None) -> Answered:
    if other is None:
        return answer
    pace = {"first_token_s": other.first_token_s, "tokens_per_s": other.tokens_per_s}
    return answer.model_copy(update=pace)


def answer_faults(
    declared: DeclaredPrompt, answer: Answered, before: Answered | None, limits: ServingLimits
) -> tuple[str, ...]:
    """Say in words what is wrong with an answer; empty: nothing."""
    return content_faults(declared, answer, before) + speed_faults(answer, before, limits)


def content_faults(declared: DeclaredPrompt, answer: Answered, before: Answered | None) -> tuple[str, ...]:
    """Say in words what is wrong with what was answered; asking again would change nothing of it.

    Where nothing answered before, there is nothing that the answer could be the same as.
    """
    return tuple(_content_faults(declared, answer, before))


def _content_faults(declared: DeclaredPrompt, answer: Answered, before: Answered | None) -> Iterator[str]:
    said = f"it answered {_shown(answer.text)}"
    if declared.matches and not re.search(declared.matches, answer.text):
        yield f"{declared.name}: nothing in the answer matches {declared.matches!r}: {said}"
    if declared.lacks and (found := re.search(declared.lacks, answer.text)):
        yield f"{declared.name}: the answer has {found.group()!r}, which {declared.lacks!r} forbids: {said}"
    if answer.tokens < declared.min_tokens:
        yield f"{declared.name}: {answer.tokens} tokens, {declared.min_tokens} are the least: {said}"
    if declared.same_as_before and before is not None and answer.text != before.text:
        yield f"{declared.name}: not the answer from before, {_shown(before.text)}: {said}"


def speed_faults(answer: Answered, before: Answered | None, limits: ServingLimits) -> tuple[str, ...]:
    """Say in words where an answer came too slowly beside the one before; without one there is no limit."""
    return () if before is None else tuple(_speed_faults(answer, before, limits))


def _speed_faults(answer: Answered, before: Answered, limits: ServingLimits) -> Iterator[str]:
    by_ratio = limits.max_first_token_ratio * before.first_token_s
    by_grace = before.first_token_s + limits.first_token_grace_s
    if answer.first_token_s > max(by_ratio, by_grace):
        yield (
            f"{answer.prompt}: first token after {answer.first_token_s:.3f} s, {before.first_token_s:.3f} s "
            f"before; at most {limits.max_first_token_ratio:g} times that or "
            f"{limits.first_token_grace_s:g} s more, {max(by_ratio, by_grace):.3f} s, is allowed"
        )
    if answer.tokens_per_s is None or before.tokens_per_s is None:
        return
    least = limits.min_speed_ratio * before.tokens_per_s
    if answer.tokens_per_s < least:
        yield (
            f"{answer.prompt}: {answer.tokens_per_s:.1f} tokens/s, {before.tokens_per_s:.1f} before; "
            f"{limits.min_speed_ratio:g} of that, {least:.1f}, is the least"
        )


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def server_flags(
    serving: ModelServing, flags: dict[str, FlagValue], *, root: str, release: str, gguf: str | None = None
) -> dict[str, FlagValue]:
    """Return the content of a release's server.yaml, sorted by name.

    Args:
        serving: has the flags of every release.
        flags: those that this release changes; they win.
        root: the instance's directory, below which `current` is the link to the release in use.
        release: what the server reports as its weight version.
        gguf: path of the one GGUF file inside the model's directory; None: Hugging Face's layout.

    Raises:
        InvalidRequestError: a flag is our own to set, or a secret.
    """
    declared = {**serving.flags, **flags}
    refuse_flags(declared)
    # the link's text, the same for every release: so a hot swap changes neither path nor served name
    model = f"{root}/current/model"
    own: dict[str, FlagValue] = {"model-path": model, "weight-version": release}
    if gguf is not None:
        own = {**own, "model-path": f"{model}/{gguf}", "load-format": "gguf", "tokenizer-path": model}
    return dict(sorted({**declared, **own}.items()))


def refuse_flags(declared: Mapping[str, FlagValue]) -> None:
    """Refuse flags that nobody may declare; their values are not repeated.

    Raises:
        InvalidRequestError: a flag is our own to set, or a secret.
    """
    if own := sorted(OWN_FLAGS & declared.keys()):
        raise InvalidRequestError(
            f"the flags {', '.join(own)} say where the model is and which release it is: they "
            "follow from the release and cannot be declared. Leave them out. Nothing was touched."
        )
    if secret := sorted(SECRET_FLAGS & declared.keys()):
        raise InvalidRequestError(
            f"the flags {', '.join(secret)} are secrets: declared, they would stand in the request, the "
            "journal and server.yaml. Let the service's own start command read them from a file. Nothing was "
            "touched."
        )


def flags_that_differ(one: Mapping[str, FlagValue], other: Mapping[str, FlagValue]) -> tuple[str, ...]:
    """Return the names of the flags that two server.yaml do not share, except for the release's own name."""
    names = (one.keys() | other.keys()) - {"weight-version"}
    return tuple(sorted(name for name in names if one.get(name) != other.get(name)))
