"""An effect as a Prefect task, so that people see it and its tries in the UI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from rules.errors import AbortedError, AlarmError, CutOffError, FencedError, RevokedError, WorldMovedError

#: Not this effect failed: the whole rollout must not go on.
_STOP = (FencedError, CutOffError, RevokedError, AbortedError, AlarmError, WorldMovedError)
P = ParamSpec("P")
R = TypeVar("R")


def as_task(function: Callable[P, R], name: str, run_name: str, *, retries: int = 0) -> Task[P, R]:
    """Return `function` as a task of this name, named after what it does to what.

    Every effect is idempotent, so a retry is safe; nothing is cached: the world may have moved.
    """
    decorate = task(
        name=name,
        task_run_name=run_name,
        retries=retries,
        retry_delay_seconds=1,
        retry_condition_fn=_may_be_tried_again,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    return decorate(function)


def _may_be_tried_again(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    return not isinstance(state.result(raise_on_failure=False), _STOP)
