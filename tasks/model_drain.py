"""Wait until a model server has no request left: after SIGTERM it takes new ones still, and loses them."""

from __future__ import annotations

import time
from collections.abc import Callable

from rules.errors import StepFailedError
from rules.fleet import Instance
from rules.model_actions import DrainRequests
from rules.serving import ModelServing
from tasks import sglang
from tasks.sglang import Loads, ModelServer, ModelServerError, ModelServerGoneError, server_of

_POLL_S = 0.2
#: Readings without any request before a server counts as idle: one may fall between two requests.
_CALM_READINGS = 2
_GONE_READINGS = 2


def drain_requests(
    instance: Instance,
    action: DrainRequests,
    *,
    serving: ModelServing,
    still_wanted: Callable[[], None] = lambda: None,
) -> str:
    """Wait until no request runs and none waits; return in words how many there were, and how long it took.

    New ones must be kept from the server before. One that does not answer at all has nothing to wait for.

    Args:
        instance: whose server.
        action: how long it may take, and what is done then.
        serving: what is declared about its servers.
        still_wanted: called between readings; raises when the deployment must not go on.

    Raises:
        StepFailedError: requests are left at the deadline, and they must not be cut off.
    """
    server, began, seen = server_of(instance, serving), time.monotonic(), _Seen()
    while True:
        if ended := seen.look(server):
            return f"{instance.name}: {ended} after {time.monotonic() - began:.1f} s; {seen.in_words}"
        if time.monotonic() - began > action.drain_s:
            left = f"{instance.name}: {seen.left} after {action.drain_s:g} s; {seen.in_words}"
            if action.cut:
                return f"{left}. They are cut off, as declared"
            raise StepFailedError(
                f"{left}. The server was not stopped and goes on with them. Wait for a quieter time, give "
                "them longer (drain_s), or allow them to be cut off (cut_after_drain)."
            )
        still_wanted()
        time.sleep(_POLL_S)


class _Seen:
    """What the readings of a server's load have shown so far."""

    def __init__(self) -> None:
        self._calm = self._gone = 0
        self._last: Loads | None = None
        self._words = "it does not say how many requests it has"
        self._most = Loads(running=0, waiting=0)

    def look(self, server: ModelServer) -> str:
        """Read once more; return in words why nothing has to be waited for, empty where it has."""
        try:
            self._last = sglang.loads(server)
        except ModelServerGoneError:
            self._gone, self._last = self._gone + 1, None
            return (
                "no server answers, so there is nothing to wait for" if self._gone >= _GONE_READINGS else ""
            )
        except ModelServerError as error:  # too busy to say is busy
            self._words, self._last, self._calm = str(error), None, 0
            return ""
        self._gone = 0
        self._calm = self._calm + 1 if self._last.idle else 0
        self._most = max(self._most, self._last, key=lambda load: load.running + load.waiting)
        return "no request is left" if self._calm >= _CALM_READINGS else ""

    @property
    def left(self) -> str:
        """What is left, by the last reading."""
        return self._words if self._last is None else f"still {_counted(self._last)}"

    @property
    def in_words(self) -> str:
        """The most that was seen at one time."""
        return f"at most {_counted(self._most)} at a time"


def _counted(load: Loads) -> str:
    return f"{load.running} running and {load.waiting} waiting"
