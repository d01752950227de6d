"""Calls into a library that has no deadlines: given up after a while, or when nobody waits any more."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

_POLL_S = 0.05
T = TypeVar("T")


class GivenUpError(Exception):
    """A call took too long, or who asked for it is gone."""


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long a call is waited for.

    Attributes:
        timeout_s: None: for ever.
        is_gone: whether who asked has hung up; asked again and again.
    """

    timeout_s: float | None
    is_gone: Callable[[], bool]


def bounded(call: Callable[[], T], patience: Patience, too_late: Callable[[T], None] = lambda _: None) -> T:
    """Return what a call returns.

    Args:
        call: may hang in the library; goes on in its thread after it was given up.
        patience: how long it is waited for.
        too_late: gets what a call returns that was given up, in its thread.

    Raises:
        GivenUpError: it was given up.
    """
    results: list[T] = []
    errors: list[Exception] = []
    ended, decision, was_given_up = threading.Event(), threading.Lock(), False

    def run() -> None:
        try:
            result = call()
        except Exception as error:  # noqa: BLE001 - raised again by who waits
            errors.append(error)
        else:
            with decision:
                results.append(result)
                if was_given_up:
                    too_late(result)
        ended.set()

    threading.Thread(target=run, daemon=True).start()
    deadline = None if patience.timeout_s is None else time.monotonic() + patience.timeout_s
    while not ended.wait(_POLL_S):
        if (deadline is not None and time.monotonic() > deadline) or patience.is_gone():
            with decision:
                if not results:
                    was_given_up = True
                    raise GivenUpError
    if errors:
        raise errors[0]
    return results[0]


class Sharing:
    """Many do something at once, or one does something alone."""

    def __init__(self) -> None:
        self._changed, self._sharing = threading.Condition(), 0

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Be one of many."""
        with self._changed:
            self._sharing += 1
        try:
            yield
        finally:
            with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody shares; until the end nobody begins to."""
        with self._changed:
            self._changed.wait_for(lambda: not self._sharing)
            yield
