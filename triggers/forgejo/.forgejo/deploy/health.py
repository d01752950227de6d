"""Ask an application whether it is healthy, and in the release that was deployed."""

from __future__ import annotations

import http.client
import math
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple

#: A proxy of the runner's environment is not on the way of the users.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_ANSWER_WITHIN_S = 10.0
_READ_BYTES = 1_000_000
_WEB = ("http://", "https://")


class Health(NamedTuple):
    """When an application counts as healthy: so many good answers in a row, within so many seconds."""

    url: str  # http or https
    expect: str = ""  # what an answer, or its header X-Release, contains as a whole word; empty: anything
    times: int = 5
    every_s: float = 1.0
    within_s: float = 60.0


def health_of(said: Mapping[str, Any]) -> Health:
    """Return the health check that deploy.json and the inputs ask for.

    Found out before anything is started: one that cannot be made would take a good release back.

    Raises:
        ValueError, TypeError: it has a field that nobody reads, or one that makes no sense; says which.
    """
    if unknown := sorted(set(said) - set(Health._fields)):
        raise ValueError(f"health has fields that nobody reads: {', '.join(unknown)}")
    found = Health(**said)
    numbers = (found.times, found.every_s, found.within_s)
    if any(type(number) not in {int, float} or not 0 <= number < math.inf for number in numbers):
        raise ValueError(f"health wants numbers of times, every_s and within_s, not {numbers}")
    if not (isinstance(found.url, str) and found.url.startswith(_WEB)):
        raise ValueError(f"the url of health is neither http nor https: {found.url!r}")
    if not isinstance(found.expect, str):
        raise TypeError(f"health expects a text, in quotes, not {found.expect!r}")
    return found


class Seen(NamedTuple):
    """What a health check has seen."""

    is_healthy: bool
    words: str


def look(wanted: Health) -> Seen:
    """Ask until there were enough good answers in a row, or the time is over."""
    give_up_at = time.monotonic() + wanted.within_s
    in_a_row = 0
    while True:
        seen = asked(wanted)
        in_a_row = in_a_row + 1 if seen.is_healthy else 0
        if in_a_row >= wanted.times:
            return Seen(is_healthy=True, words=f"{in_a_row} good answers in a row; the last: {seen.words}")
        if time.monotonic() >= give_up_at:
            over = f"when {wanted.within_s:g} s were over; the last: {seen.words}"
            return Seen(is_healthy=False, words=f"{in_a_row} of {wanted.times} good answers in a row {over}")
        time.sleep(wanted.every_s)


def asked(wanted: Health) -> Seen:
    """Ask once."""
    if not wanted.url.startswith(_WEB):
        return Seen(is_healthy=False, words="the URL is neither http nor https")
    try:
        with _OPENER.open(wanted.url, timeout=_ANSWER_WITHIN_S) as answer:
            read = answer.read(_READ_BYTES)
            if answer.length and len(read) < _READ_BYTES:  # reading at most so much says nothing of that
                raise http.client.IncompleteRead(read, answer.length)
            said, status = read.decode(errors="replace"), answer.status
            release = answer.headers.get("X-Release", "")
    except urllib.error.HTTPError as error:
        return Seen(is_healthy=False, words=f"HTTP {error.code}")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return Seen(is_healthy=False, words=f"no answer: {error}")
    if wanted.expect and not _has_word(f"{release}\n{said}", wanted.expect):
        return Seen(
            is_healthy=False, words=f"HTTP {status}, but not {wanted.expect}: {release} {said[:200]!r}"
        )
    return Seen(is_healthy=True, words=f"HTTP {status}{', ' if wanted.expect else ''}{wanted.expect}")


def _has_word(text: str, word: str) -> bool:
    """Return whether `word` stands in `text` for itself: 1.2 is neither in 1.2.1 nor in 11.2."""
    return bool(re.search(rf"(?<![\w.+-]){re.escape(word)}(?![\w+-]|\.\w)", text))
