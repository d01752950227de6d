"""What `deploy_workflow` does outside Temporal: start a deployment, watch it, answer and cancel it.

Each may be repeated, also by another worker: starting has a key, the others name the flow run. A worker that
is told to end interrupts its own, and the SDK hands them back, to be repeated at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from temporalio import activity
from temporalio.exceptions import ApplicationError

from rules.errors import ApiUnavailableError
from triggers.api import DeployApi
from triggers.api_errors import BadRequestError, NotAllowedError, UnknownError
from triggers.api_progress import Ended, Started, ended_as
from triggers.temporal_request import Answer, Asked, Wanted, key_of, request_for

#: A type of failure for each way in which Prefect says no: repeating the request would not change it.
_REFUSALS = {BadRequestError: "bad_request", NotAllowedError: "not_allowed", UnknownError: "unknown"}
_BEAT_EVERY_S = 3.0


class Activities:
    """The activities of a worker.

    Args:
        requests: directory of `<deployment>.yaml`; None: inputs say all of it.
        look_every_s: how often a deployment that is watched is looked at.
    """

    def __init__(self, requests: Path | None = None, *, look_every_s: float = 1.0) -> None:
        self._requests, self._look_every_s = requests, look_every_s

    @activity.defn
    async def read_request(self, asked: Asked) -> Wanted:
        """Return the request that was asked for: from then on the workflow's history has it, not the file.

        Raises:
            ApplicationError: not to be repeated: there is none, or it makes no sense; nothing was started.
        """
        with _refusals():
            return await asyncio.to_thread(request_for, asked, self._requests)

    @activity.defn
    async def start_deployment(self, wanted: Wanted) -> Started:
        """Start a deployment; repeated for the same run of a workflow, it is the same flow run.

        Raises:
            ApplicationError: not to be repeated where Prefect refuses it; nothing was started then.
        """
        info = activity.info()
        key = key_of(info.workflow_id or "", info.workflow_run_id or "")
        with _refusals():
            return await asyncio.to_thread(_start, wanted, key)

    @activity.defn
    async def watch_deployment(self, flow_run_id: str) -> Ended:
        """Return how a flow run's deployment ended, once it has.

        What each heartbeat carries is for people: a worker that takes over has all it needs in the argument.

        Raises:
            ApplicationError: not to be repeated: Prefect has no such run any more.
        """
        seen = {"flow_run_id": flow_run_id, "now": "not looked at yet"}
        with DeployApi() as api:
            async with _heartbeats(seen):
                while True:
                    ended = await asyncio.to_thread(_look, api, flow_run_id, seen)
                    if ended:
                        return ended
                    await asyncio.sleep(self._look_every_s)

    @activity.defn
    async def cancel_deployment(self, flow_run_id: str) -> None:
        """Have Prefect cancel a flow run, which then takes back what it did; one that has ended stays so."""
        with _refusals():
            await asyncio.to_thread(_cancel, flow_run_id)

    @activity.defn
    async def answer_approval(self, flow_run_id: str, answer: Answer) -> None:
        """Pass a person's answer on to a deployment that waits for it.

        Raises:
            ApplicationError: it does not wait for one.
        """
        with _refusals():
            await asyncio.to_thread(_answer, flow_run_id, answer)


def _start(wanted: Wanted, key: str) -> Started:
    with DeployApi() as api:
        return api.start(wanted.flow, wanted.parameters, key=key)


def _look(api: DeployApi, flow_run_id: str, seen: dict[str, str]) -> Ended | None:
    """Look at a run and note what was seen; None: it is not over, or that cannot be known now."""
    try:
        progress = api.look(flow_run_id)
        seen["now"] = progress.in_words
        return ended_as(progress) if progress.is_over else None
    except UnknownError as error:
        raise ApplicationError(str(error), type=_REFUSALS[UnknownError], non_retryable=True) from error
    except ApiUnavailableError as error:
        seen["now"] = f"Prefect's API is away, the deployment goes on without it as far as it may: {error}"
        return None


def _cancel(flow_run_id: str) -> None:
    with DeployApi() as api:
        try:
            api.cancel(flow_run_id)
        except BadRequestError as error:  # it ended a moment before: whoever watches it sees how
            activity.logger.info("%s", error)


def _answer(flow_run_id: str, answer: Answer) -> None:
    with DeployApi() as api:
        api.approve(flow_run_id, approved=answer.approved, by=answer.by, words=answer.words)


@asynccontextmanager
async def _heartbeats(seen: dict[str, str]) -> AsyncIterator[None]:
    """Send what is in `seen` again and again, also while a look waits for an API that is away."""

    async def beat() -> None:
        while True:
            activity.heartbeat(dict(seen))
            await asyncio.sleep(_BEAT_EVERY_S)

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()


@contextmanager
def _refusals() -> Iterator[None]:
    """Tell Temporal which failures would be the same the next time."""
    try:
        yield
    except tuple(_REFUSALS) as error:
        kind = _REFUSALS[type(error)]
        # Temporal would show the cause too, with the values that were sent
        raise ApplicationError(str(error), type=kind, non_retryable=True) from None
