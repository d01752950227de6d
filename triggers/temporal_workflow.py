"""The workflow `deploy_workflow`: one deployment, from its start to a known good state.

Workflows that run are replayed with this code: change the order of its activities and timers only behind
`workflow.patched`. Imported a second time by Temporal's sandbox, so nothing may happen on import.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, Literal

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from rules.frozen import Frozen
    from triggers.api_errors import BadRequestError
    from triggers.api_progress import Ended, Exit
    from triggers.temporal_activities import Activities
    from triggers.temporal_request import Asked, answered_by, asked_for, key_of

WORKFLOW, TASK_QUEUE = "deploy_workflow", "sovereign"

#: A deployment that cannot be started for an hour is not wanted any more.
_START = workflow.ActivityConfig(
    start_to_close_timeout=timedelta(minutes=2),
    schedule_to_close_timeout=timedelta(hours=1),
    retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=30)),
)
#: A deployment may take 48 hours and a release 7 days. Watching is repeated without end: it is Prefect that
#: ends a deployment, and only what Prefect says is true.
_WATCH = workflow.ActivityConfig(
    start_to_close_timeout=timedelta(days=8),
    heartbeat_timeout=timedelta(seconds=30),
    retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=10)),
)
_ANSWER = workflow.ActivityConfig(
    start_to_close_timeout=timedelta(minutes=1), schedule_to_close_timeout=timedelta(minutes=2)
)
#: A rollback has its own deadline of ten minutes, and `recover` may have to begin it.
_TAKEN_BACK_WITHIN = timedelta(hours=1)
#: Ends of a deployment that was cancelled as asked: nothing of it is left.
_NOTHING_LEFT = frozenset({Exit.ROLLED_BACK, Exit.BLOCKED, Exit.NOTHING_CHANGED})


class Now(Frozen):
    """How far a workflow is. `flow_run_id` is empty before the start, `ended` None before the end."""

    phase: Literal["starting", "watching", "cancelling", "over"] = "starting"
    flow_run_id: str = ""
    ended: Ended | None = None


@workflow.defn(name=WORKFLOW)
class DeployWorkflow:
    """Starts a deployment in Prefect, watches it to its end, and ends as it did."""

    def __init__(self) -> None:
        self._now = Now()

    @workflow.run
    async def run(self, sent: Any = None, *further: Any) -> Ended:
        """Deploy what the input asks for.

        Cancelled, it has the deployment cancelled, waits until that has taken itself back, and ends as
        cancelled; the memo tells how.

        Args:
            sent: see `Asked`, with the keys of `instead` beside `deployment`.
            further: refused; without this parameter a second input would have the workflow hang.

        Returns:
            How it ended, when it went well: promoted, or in place already.

        Raises:
            ApplicationError: it did not: the type is the deployment's state, the details are an `Ended`; or
                it was not started, and type and message tell why.
        """
        await asyncio.sleep(0)  # one that was cancelled before any worker had it ends here
        try:
            asked = asked_for([sent, *further] if further else sent)
        except BadRequestError as error:
            raise ApplicationError(str(error), type="bad_request", non_retryable=True) from None
        deploying = asyncio.create_task(self._deploy(asked))
        try:
            ended = await asyncio.shield(deploying)
            was_cancelled = False
        except asyncio.CancelledError:
            ended = await self._take_back(deploying)
            was_cancelled = True
        self._now = Now(phase="over", flow_run_id=ended.flow_run_id, ended=ended)
        workflow.upsert_memo({"deployment": ended.deployment, "state": ended.state, "reason": ended.reason})
        await workflow.wait_condition(workflow.all_handlers_finished)
        return _end(ended, was_cancelled=was_cancelled)

    @workflow.query
    def progress(self) -> Now:
        """Return how far this workflow is; how far the deployment is, stands in the activity's heartbeat."""
        return self._now

    @workflow.update
    async def approve(self, sent: Any) -> str:
        """Pass a person's answer on to the deployment, which waits for approval.

        Args:
            sent: see `Answer`.

        Returns:
            What was passed on, in words.

        Raises:
            ApplicationError: it does not wait for an answer.
        """
        answer, flow_run_id = answered_by(sent), self._now.flow_run_id
        try:
            await workflow.execute_activity_method(
                Activities.answer_approval, args=[flow_run_id, answer], **_ANSWER
            )
        except ActivityError as error:
            raise _plain(error, f"The answer was not passed on to flow run {flow_run_id}.") from error
        return f"{'approved' if answer.approved else 'refused'} by {answer.by}: flow run {flow_run_id}"

    @approve.validator
    def _can_be_answered(self, sent: Any) -> None:
        answered_by(sent)
        if self._now.phase != "watching":
            raise BadRequestError(f"Nothing waits for approval: the workflow is {self._now.phase}.")

    async def _deploy(self, asked: Asked) -> Ended:
        try:
            wanted = await workflow.execute_activity_method(Activities.read_request, asked, **_START)
            if self._now.phase == "cancelling":
                raise asyncio.CancelledError
            started = await workflow.execute_activity_method(Activities.start_deployment, wanted, **_START)
        except ActivityError as error:
            info = workflow.info()
            key = key_of(info.workflow_id, info.run_id)
            raise _plain(
                error, f"Prefect did not confirm a start. If there is a run, it has the key {key}."
            ) from error
        if self._now.phase == "starting":
            self._now = Now(phase="watching", flow_run_id=started.flow_run_id)
        else:
            self._now = self._now.model_copy(update={"flow_run_id": started.flow_run_id})
        workflow.upsert_memo({"flow_run_id": started.flow_run_id})
        try:
            return await workflow.execute_activity_method(
                Activities.watch_deployment, started.flow_run_id, **_WATCH
            )
        except ActivityError as error:
            raise _plain(error, f"Flow run {started.flow_run_id} cannot be watched.") from error

    async def _take_back(self, deploying: asyncio.Task[Ended]) -> Ended:
        """Cancel the deployment, also one whose start is still under way, and wait for its end."""
        self._now = self._now.model_copy(update={"phase": "cancelling"})
        await workflow.wait_condition(lambda: bool(self._now.flow_run_id) or deploying.done())
        flow_run_id = self._now.flow_run_id
        try:
            if not deploying.done():
                await workflow.execute_activity_method(Activities.cancel_deployment, flow_run_id, **_START)
            return await asyncio.wait_for(
                asyncio.shield(deploying), timeout=_TAKEN_BACK_WITHIN.total_seconds()
            )
        except ActivityError as error:
            raise _plain(error, f"Flow run {flow_run_id} could not be cancelled, and goes on.") from error
        except TimeoutError:
            raise ApplicationError(
                f"Flow run {flow_run_id} was cancelled {_TAKEN_BACK_WITHIN} ago, and its deployment is not "
                "over: which state things are in is not known here. Look at it in Prefect, and at `recover`.",
                type="not_taken_back",
                non_retryable=True,
            ) from None


def _end(ended: Ended, *, was_cancelled: bool) -> Ended:
    """Return how it ended, or raise what has the workflow end as it did."""
    if ended.exit_code == Exit.GOOD:  # also where the cancellation came too late
        return ended
    words = f"{ended.deployment or f'flow run {ended.flow_run_id}'} is {ended.state}: {ended.reason}"
    if was_cancelled and ended.exit_code in _NOTHING_LEFT:
        raise asyncio.CancelledError(words)
    raise ApplicationError(words, ended, type=ended.state, non_retryable=True)


def _plain(error: ActivityError, left: str) -> ApplicationError:
    """Return why an activity failed as the workflow's own failure; `left` is said where it gave no reason."""
    cause = error.cause
    if isinstance(cause, ApplicationError) and cause.non_retryable:
        return ApplicationError(cause.message, *cause.details, type=cause.type, non_retryable=True)
    last = getattr(cause, "cause", None) or cause  # of an activity that ran out of time, its last failure
    return ApplicationError(f"{left} The last failure: {last}", type="gave_up", non_retryable=True)
