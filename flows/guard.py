"""The first two lines of defence: around the flow's body, and the hooks after it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State

from flows.rollout import PART
from rules.entries import Opened
from rules.errors import CutOffError, DeployError, FencedError, GateBlockedError
from rules.record import record_of
from tasks.aftermath import after_end
from tasks.deployment import OpenDeployment, open_deployment
from tasks.known import readable_journals
from tasks.prefect_api import PrefectApi
from tasks.recover import recover
from tasks.report import publish_decisions
from tasks.services import Services
from tasks.settings import Settings

log = logging.getLogger(__name__)
_PUT_OFF = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)


class TakenBackError(DeployError):
    """The deployment did not go through; the message says why, and which state things were left in."""


@contextmanager
def guarded(opened: Opened, settings: Settings, services: Services | None = None) -> Iterator[OpenDeployment]:
    """Open a deployment, and take it back whatever goes wrong in the body, while the run still reads RUNNING.

    Args:
        opened: the deployment's opening entry.
        settings: of this host.
        services: who is told of its end; None: nobody.

    Raises:
        GateBlockedError: the checklist did not allow it; nothing was changed.
        TakenBackError: it was taken back, or could not be; the message says which.
    """
    part = PART.get()
    with PrefectApi(settings) as api, open_deployment(opened, api, settings) as deployment:
        deployment.whole = part.whole if part else None
        try:
            with taken_back_on_failure(deployment):
                yield deployment
        except GateBlockedError as error:
            deployment.end_unchanged("blocked", str(error))
            raise
        finally:
            with undisturbed():
                publish_decisions(deployment)
                view = deployment.journal.read()
                after_end(view, api=api, settings=settings, services=services or Services())


@contextmanager
def taken_back_on_failure(deployment: OpenDeployment) -> Iterator[None]:
    """Take a deployment back at once, whatever goes wrong in the body, before Prefect hears of it.

    An update flow under a parent needs this for itself: Prefect tells its API of a child's failure before
    the parent sees the exception, and tries for a minute when the API is away.

    Raises:
        TakenBackError: it was taken back, or could not be; the message says which.
    """
    try:
        yield
    except GateBlockedError:
        raise
    except BaseException as error:
        _take_back(deployment, error)
        if not isinstance(error, Exception):
            raise  # a cancellation or SIGTERM: Prefect has to see it as such
        raise TakenBackError(_in_words(deployment)) from error


def _take_back(deployment: OpenDeployment, error: BaseException) -> None:
    if deployment.journal.read().state == "promoted":
        log.warning("%s stays promoted; only its book-keeping was cut short: %r", deployment.name, error)
        return
    with undisturbed():
        cause = cause_of(error)
        _roll_back(deployment, cause)
        if deployment.whole:
            # at once, and not when Prefect has heard of this one's failure: it may be away
            _roll_back(deployment.whole, f"{deployment.name} failed: {cause}")


def _roll_back(deployment: OpenDeployment, cause: str) -> None:
    try:
        deployment.roll_back(cause)
    except (FencedError, CutOffError, TimeoutError) as stopped:
        log.warning("%s is left to another process: %s", deployment.name, stopped)


def _in_words(deployment: OpenDeployment) -> str:
    view = deployment.journal.read()
    record = record_of(view)
    match record.state:
        case "rolled_back":
            left = f"Rolled back and verified in {record.rolled_back_s:.1f} s."
        case "rollback_failed":
            left = (
                f"ROLLBACK FAILED, the target stays locked: {view.reason} Mend the cause, then run roll-back "
                f"for {record.deployment}."
            )
        case "aborted":
            left = ""  # its reason says that nothing had been changed
        case "promoted":
            left = "It stays promoted; only its book-keeping was cut short."
        case _:
            left = f"It is {record.state}: recover goes on with it."
    return f"{record.deployment}: {record.reason} {left}".rstrip()


def cause_of(error: BaseException) -> str:
    """Return why a deployment is taken back, in words for the journal."""
    if isinstance(error, DeployError):
        return f"{str(error).rstrip('.')}."
    if isinstance(error, (TimeoutError, asyncio.CancelledError)):  # in a synchronous flow: Prefect's timeout
        return "The flow ran out of time."
    if not isinstance(error, Exception):
        return f"The run was told to stop ({type(error).__name__})."
    return f"Unexpected {type(error).__name__}: {error}."


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put off what would end the way back half-way, until it is done: SIGKILL follows soon enough.

    That is SIGTERM (a cancellation), SIGINT (a person) and SIGALRM (by which Prefect times a flow out).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)

    former = {number: signal.signal(number, remember) for number in _PUT_OFF}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        if arrived:
            os.kill(os.getpid(), arrived[0])


def take_back_after(flow: Flow[Any, Any], flow_run: FlowRun, state: State) -> None:
    """Recover what the run left open: the hook of a failed, crashed or cancelled run."""
    settings = Settings()
    for journal, view in readable_journals(settings):
        if view.opened.flow_run_id != str(flow_run.id) or view.is_terminal or view.state == "promoted":
            continue
        cause = f"The run of {flow.name} ended as {state.name}: {state.message or 'no message'}."
        with undisturbed():
            after = recover(journal.deployment, cause=cause, by=f"hook {state.name}", settings=settings)
        log.warning("%s is %s: %s", journal.deployment, after.state, after.reason)
        with PrefectApi(settings) as api:
            after_end(after, api=api, settings=settings)
