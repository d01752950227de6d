"""Watch a run to its end, through times in which Prefect's API is away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from rules.errors import ApiUnavailableError
from rules.frozen import Frozen, PositiveSeconds
from triggers.api_progress import Progress


class Patience(Frozen):
    """How long a watcher waits for what."""

    every_s: PositiveSeconds = 1.0  # between two looks
    timeout_s: PositiveSeconds | None = None  # for the end; None: as long as it takes
    away_s: PositiveSeconds = 300.0  # for an API that does not answer
    abandoned_s: PositiveSeconds = 300.0  # for somebody to go on with the deployment of a run that is dead


def watched(
    look: Callable[[], Progress], patience: Patience, *, is_away: Callable[[float], object] = bool
) -> Iterator[Progress]:
    """Yield what `look` returns, first at once, then whenever it has changed, until the run is over.

    Args:
        look: at the run.
        patience: how long to wait for what.
        is_away: told after each look, for how many seconds the API has not answered; 0: it has, now.

    Raises:
        TimeoutError: it is not over and goes on; or its run is dead and nobody goes on with its deployment.
        ApiUnavailableError: the API was away for too long.
    """
    began = heard = changed = time.monotonic()
    last: Progress | None = None
    while True:
        try:
            progress = look()
        except ApiUnavailableError:
            changed = time.monotonic()  # nobody could have told that somebody goes on
            if changed - heard > patience.away_s:
                raise
            is_away(changed - heard)
        else:
            heard = time.monotonic()
            is_away(0.0)
            if progress != last:
                last, changed = progress, heard
                yield progress
            if progress.is_over:
                return
        now = time.monotonic()
        _refuse_to_wait(last, patience, waited_s=now - began, unchanged_s=now - changed)
        time.sleep(patience.every_s)


def _refuse_to_wait(
    last: Progress | None, patience: Patience, *, waited_s: float, unchanged_s: float
) -> None:
    now = last.in_words if last else "Prefect's API has not answered yet"
    if patience.timeout_s is not None and waited_s > patience.timeout_s:
        raise TimeoutError(
            f"Not over after {patience.timeout_s:g} s: {now}. It was not stopped and goes on; watch it again."
        )
    if last and last.run_is_over and unchanged_s > patience.abandoned_s:
        raise TimeoutError(
            f"No step was seen for {patience.abandoned_s:g} s: {now}. `recover` takes it back within a "
            "minute: see that its schedule is active and a worker runs, or run it on the worker's host. "
            "A single step that takes longer than this is no fault: watch it again."
        )
