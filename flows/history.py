"""What was deployed where, and how it ended."""

from __future__ import annotations

from typing import Annotated

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from pydantic import Field

from rules.entries import DeploymentState
from rules.history import history_page, history_rows, matching
from rules.record import DeploymentRecord
from tasks.history import records_at_hand
from tasks.known import api_if_any
from tasks.settings import Settings

Limit = Annotated[int, Field(ge=1, le=1000, description="so many at most, the newest")]


@flow(name="history")
def history(
    component: str | None = None,
    environment: str | None = None,
    state: DeploymentState | None = None,
    limit: Limit = 50,
) -> list[DeploymentRecord]:
    """Show the deployments that are as asked, newest first, as the artifact `history`.

    Args:
        component: such as `application`; empty: all.
        environment: name of the environment; empty: all.
        state: how it ended, or is now; empty: all.
        limit: so many at most.
    """
    settings = Settings()
    with api_if_any(settings) as api:
        known = records_at_hand(api, settings)
    found = list(matching(known, component=component, environment=environment, state=state))[:limit]
    create_table_artifact(history_rows(found), key="history", description=f"{len(found)} deployments")
    get_run_logger().info("%s", history_page(found))
    return found
