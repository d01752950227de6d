"""The workflow's own logic, on a server whose clock is skipped; what it does outside is stood in for."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Replayer, Worker

from lab.temporal import skipping_server_program
from triggers.api_progress import Ended, Exit, Started
from triggers.temporal_request import Answer, Asked, Wanted
from triggers.temporal_workflow import TASK_QUEUE, WORKFLOW, DeployWorkflow

RUN = "0b5c2a1e-8a55-4a1e-9f0c-3f3a3d1c1a11"


def ended(state: str, code: Exit = Exit.GOOD, reason: str = "as told") -> Ended:
    return Ended(flow_run_id=RUN, deployment="web-1", state=state, reason=reason, exit_code=code)


@dataclasses.dataclass
class Prefect:
    """What the activities meet: when a deployment ends and how, and what it is when it was cancelled.

    `away` is how long Prefect's API cannot be asked.
    """

    ends: Ended | None = None
    cancelled: Ended | None = None
    refusal: ApplicationError | None = None
    away: timedelta | None = None
    reading_goes_on: asyncio.Event | None = None
    calls: list[str] = dataclasses.field(default_factory=list)
    over: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    @activity.defn
    async def read_request(self, asked: Asked) -> Wanted:
        self.calls.append(f"read {asked.deployment}")
        if self.reading_goes_on:
            await self.reading_goes_on.wait()
        if self.refusal:
            raise self.refusal
        return Wanted(parameters={"environment": asked.deployment})

    @activity.defn
    async def start_deployment(self, wanted: Wanted) -> Started:
        self.calls.append(f"start {wanted.parameters['environment']}")
        if self.ends:
            self.over.set()
        return Started(flow_run_id=RUN)

    @activity.defn
    async def watch_deployment(self, flow_run_id: str) -> Ended:
        attempt = activity.info().attempt
        self.calls.append(f"watch {flow_run_id == RUN} {attempt}")
        if self.away and attempt == 1:
            raise ApplicationError("the API is away", next_retry_delay=self.away)
        while not self.over.is_set():
            activity.heartbeat()
            await asyncio.sleep(0.1)
        assert self.ends
        return self.ends

    @activity.defn
    async def cancel_deployment(self, flow_run_id: str) -> None:
        self.calls.append(f"cancel {flow_run_id == RUN}")
        if self.cancelled:
            self.ends = self.cancelled
            self.over.set()

    @activity.defn
    async def answer_approval(self, flow_run_id: str, answer: Answer) -> None:
        self.calls.append(f"{answer.by} says {answer.approved} to {flow_run_id == RUN}")
        if answer.words == "too late":
            raise ApplicationError("It does not wait.", type="bad_request", non_retryable=True)
        self.ends = ended("promoted")
        self.over.set()

    def activities(self) -> list[Callable[..., Awaitable[Any]]]:
        return [
            self.read_request,
            self.start_deployment,
            self.watch_deployment,
            self.cancel_deployment,
            self.answer_approval,
        ]


def our_worker(client: Client, prefect: Prefect) -> Worker:
    return Worker(client, task_queue=TASK_QUEUE, workflows=[DeployWorkflow], activities=prefect.activities())


def on_skipping_server(
    prefect: Prefect, scene: Callable[[Client], Awaitable[None]], *, has_worker: bool = True
) -> None:
    """Play a scene with our workflow, then replay it: a worker that takes over must come to the same."""

    async def play() -> None:
        async with await WorkflowEnvironment.start_time_skipping(
            test_server_existing_path=skipping_server_program(), data_converter=pydantic_data_converter
        ) as server:
            async with our_worker(server.client, prefect) if has_worker else contextlib.nullcontext():
                await asyncio.wait_for(scene(server.client), timeout=60)
            history = await server.client.get_workflow_handle("w").fetch_history()
            replayer = Replayer(workflows=[DeployWorkflow], data_converter=pydantic_data_converter)
            await replayer.replay_workflow(history)

    asyncio.run(play())


async def begin(client: Client, *sent: Any) -> WorkflowHandle[Any, Any]:
    asked = sent or ({"deployment": "production"},)
    return await client.start_workflow(WORKFLOW, args=asked, id="w", task_queue=TASK_QUEUE)


async def wait_for_call(prefect: Prefect, call: str) -> None:
    """Wait until an activity has noted this; who plays the scene ends a wait that is in vain."""
    while True:
        if call in prefect.calls:
            return
        await asyncio.sleep(0.02)


async def wait_for_phase(handle: WorkflowHandle[Any, Any], phase: str) -> None:
    while True:
        if (await handle.query("progress"))["phase"] == phase:
            return
        await asyncio.sleep(0.05)


async def failure(handle: WorkflowHandle[Any, Any]) -> BaseException | None:
    with pytest.raises(WorkflowFailureError) as raised:
        await handle.result()
    return raised.value.cause


def test_a_deployment_that_takes_24_hours_is_watched_to_its_end() -> None:
    prefect = Prefect(ends=ended("promoted"), away=timedelta(hours=24))

    async def scene(client: Client) -> None:
        handle = await begin(client)
        result = await handle.result()
        assert Ended.model_validate(result) == prefect.ends
        described = await handle.describe()
        assert described.close_time
        assert described.start_time
        assert described.close_time - described.start_time > timedelta(hours=23)
        assert await described.memo_value("state") == "promoted"
        assert await described.memo_value("flow_run_id") == RUN

    on_skipping_server(prefect, scene)
    assert prefect.calls == ["read production", "start production", "watch True 1", "watch True 2"]


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("rolled_back", Exit.ROLLED_BACK),
        ("aborted", Exit.NOTHING_CHANGED),
        ("crashed", Exit.UNEXPECTED),
    ],
)
def test_a_deployment_that_did_not_go_through_fails_the_workflow_with_its_state_and_reason(
    state: str, code: Exit
) -> None:
    prefect = Prefect(ends=ended(state, code, reason="15 % errors"))

    async def scene(client: Client) -> None:
        cause = await failure(await begin(client))
        assert isinstance(cause, ApplicationError)
        assert cause.type == state
        assert cause.non_retryable
        assert cause.message == f"web-1 is {state}: 15 % errors"
        assert Ended.model_validate(cause.details[0]) == prefect.ends

    on_skipping_server(prefect, scene)


def test_a_cancelled_workflow_waits_until_its_deployment_has_taken_itself_back() -> None:
    prefect = Prefect(cancelled=ended("rolled_back", Exit.ROLLED_BACK, reason="The run was told to stop."))

    async def scene(client: Client) -> None:
        handle = await begin(client)
        await wait_for_call(prefect, "watch True 1")
        await wait_for_phase(handle, "watching")
        await handle.cancel()
        assert isinstance(await failure(handle), CancelledError)
        described = await handle.describe()
        assert await described.memo_value("state") == "rolled_back"
        assert await described.memo_value("reason") == "The run was told to stop."
        assert (await handle.query("progress"))["ended"]["state"] == "rolled_back"
        seen = [event.event_type async for event in handle.fetch_history_events()]
        assert seen[-1] == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED

    on_skipping_server(prefect, scene)
    assert prefect.calls[-2:] == ["watch True 1", "cancel True"]


def test_a_cancellation_that_comes_too_late_changes_nothing_about_the_result() -> None:
    prefect = Prefect(cancelled=ended("promoted"))

    async def scene(client: Client) -> None:
        handle = await begin(client)
        await wait_for_call(prefect, "watch True 1")
        await handle.cancel()
        assert (await handle.result())["state"] == "promoted"

    on_skipping_server(prefect, scene)


def test_a_workflow_that_is_cancelled_before_a_worker_has_it_starts_nothing() -> None:
    prefect = Prefect()

    async def scene(client: Client) -> None:
        handle = await begin(client)
        await handle.cancel()
        async with our_worker(client, prefect):
            assert isinstance(await failure(handle), CancelledError)

    on_skipping_server(prefect, scene, has_worker=False)
    assert not prefect.calls


def test_a_cancellation_while_the_request_is_read_starts_nothing() -> None:
    prefect = Prefect(reading_goes_on=asyncio.Event())

    async def scene(client: Client) -> None:
        handle = await begin(client)
        await wait_for_call(prefect, "read production")
        await handle.cancel()
        await wait_for_phase(handle, "cancelling")
        assert prefect.reading_goes_on
        prefect.reading_goes_on.set()
        assert isinstance(await failure(handle), CancelledError)

    on_skipping_server(prefect, scene)
    assert prefect.calls == ["read production"]


def test_a_cancelled_deployment_whose_way_back_fails_is_no_quiet_end() -> None:
    prefect = Prefect(cancelled=ended("rollback_failed", Exit.ROLLBACK_FAILED))

    async def scene(client: Client) -> None:
        handle = await begin(client)
        await wait_for_call(prefect, "watch True 1")
        await handle.cancel()
        cause = await failure(handle)
        assert isinstance(cause, ApplicationError)
        assert cause.type == "rollback_failed"

    on_skipping_server(prefect, scene)


def test_a_cancelled_deployment_that_does_not_end_is_told_after_an_hour() -> None:
    prefect = Prefect(away=timedelta(hours=2))

    async def scene(client: Client) -> None:
        handle = await begin(client)
        await wait_for_call(prefect, "watch True 1")
        await handle.cancel()
        cause = await failure(handle)
        assert isinstance(cause, ApplicationError)
        assert cause.type == "not_taken_back"
        assert RUN in cause.message

    on_skipping_server(prefect, scene)
    assert "watch True 2" not in prefect.calls


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        pytest.param(["production"], "must be an object", id="text"),
        pytest.param([None], "must be an object", id="null"),
        pytest.param([{}], "deployment", id="nothing"),
        pytest.param([{"deployment": "production", "relaese": "2"}], "unknown keys: relaese", id="a typo"),
        pytest.param([{"deployment": "production"}, 2], "must be an object", id="two inputs"),
    ],
)
def test_an_input_that_makes_no_sense_is_refused_in_words(sent: list[Any], words: str) -> None:
    prefect = Prefect()

    async def scene(client: Client) -> None:
        cause = await failure(await begin(client, *sent))
        assert isinstance(cause, ApplicationError)
        assert cause.type == "bad_request"
        assert words in cause.message
        assert "Nothing was started" in cause.message

    on_skipping_server(prefect, scene)
    assert not prefect.calls


def test_what_an_activity_refuses_is_the_reason_of_the_workflow() -> None:
    prefect = Prefect(refusal=ApplicationError("No such request.", type="bad_request", non_retryable=True))

    async def scene(client: Client) -> None:
        cause = await failure(await begin(client))
        assert isinstance(cause, ApplicationError)
        assert (cause.type, cause.message) == ("bad_request", "No such request.")

    on_skipping_server(prefect, scene)
    assert prefect.calls == ["read production"]


def test_what_cannot_be_started_for_an_hour_is_not_started_later() -> None:
    prefect = Prefect(refusal=ApplicationError("the API is away", next_retry_delay=timedelta(hours=3)))

    async def scene(client: Client) -> None:
        cause = await failure(await begin(client))
        assert isinstance(cause, ApplicationError)
        assert cause.type == "gave_up"
        assert "the API is away" in cause.message
        assert "the key temporal-w-" in cause.message

    on_skipping_server(prefect, scene)
    assert prefect.calls == ["read production"]


def test_a_persons_answer_is_passed_on_and_a_wrong_one_is_refused() -> None:
    prefect = Prefect()

    async def scene(client: Client) -> None:
        handle = await begin(client)
        await wait_for_call(prefect, "watch True 1")
        for wrong in ({"by": "Ada"}, {"by": "Ada", "approved": True, "words": "too late"}):
            with pytest.raises(WorkflowUpdateFailedError):
                await handle.execute_update("approve", wrong)
        said = await handle.execute_update("approve", {"by": "Ada", "approved": True, "words": "seen"})
        assert said == f"approved by Ada: flow run {RUN}"
        assert (await handle.result())["state"] == "promoted"

    on_skipping_server(prefect, scene)
    assert prefect.calls.count("Ada says True to True") == 2
