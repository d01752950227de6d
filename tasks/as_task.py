"""An effect as a Prefect task, so that people see it and its tries in the UI."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE

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
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    return decorate(function)
