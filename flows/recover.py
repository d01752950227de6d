"""The third and the fourth line of defence: the schedule, and a person."""

from __future__ import annotations

import logging

from prefect import flow, get_run_logger

from rules.errors import DeployError
from rules.journal import JournalView
from rules.record import DeploymentRecord, record_of
from tasks.aftermath import after_end, keep_books
from tasks.finish import finish_due
from tasks.journal import JournalFile
from tasks.prefect_api import PrefectApi
from tasks.recover import Recovered, recover_all, roll_back_by_person
from tasks.runs import end_dead_run
from tasks.settings import Settings


@flow(name="recover")
def recover() -> list[Recovered]:
    """Bring every deployment whose process is gone to a known good state; safe to run at any time."""
    settings, logger = Settings(), get_run_logger()
    looked_at = recover_all(by="recover", settings=settings)
    with PrefectApi(settings) as api:
        for one in looked_at:
            if not one.acted:
                continue
            logger.warning("%s is %s: %s", one.deployment, one.state, one.reason)
            view = JournalFile(settings.journal_dir, one.deployment).read()
            after_end(view, api=api, settings=settings)
            end_dead_run(api, one.flow_run_id, f"{one.deployment} is {one.state}: {one.reason}")
    keep_books(settings)
    finish_due(settings)  # last: nothing that was recovered waits to be told
    return list(looked_at)


@flow(name="roll-back", flow_run_name="{deployment}")
def roll_back(
    deployment: str,
    reason: str,
    accept_loss: bool = False,  # noqa: FBT001, FBT002 - a field of the run form
) -> DeploymentRecord:
    """Take a deployment back at once by a person's word, within 5 minutes.

    It was promoted in the last 24 hours, left open, or could not be taken back before.

    Args:
        deployment: its id, as in the name of its artifacts.
        reason: why, for the record.
        accept_loss: take it back also when a way back through a snapshot loses more than its plan allows.

    Raises:
        DeployError: it cannot be taken back, or the way back failed; says which state things were left in.
    """
    settings = Settings()
    view = roll_back_by_person(
        deployment, reason=reason, settings=settings.immediate(), accept_loss=accept_loss
    )
    with PrefectApi(settings) as api:
        after_end(view, api=api, settings=settings)
    return taken_back(view)


def taken_back(view: JournalView) -> DeploymentRecord:
    """Return the record of a deployment that was taken back.

    Raises:
        DeployError: it was not; says which state things are in.
    """
    record = record_of(view)
    if record.state == "rollback_failed":
        raise DeployError(f"{record.deployment}: the way back failed, the target stays locked: {view.reason}")
    if record.state not in ("rolled_back", "aborted"):
        raise DeployError(f"{record.deployment} is {record.state} and cannot be taken back: {view.reason}")
    return record


def recover_here() -> None:
    """Do what `recover` does with no flow run and no API: `python -m flows.recover` on the worker's host."""
    # Prefect has set up logging by now, for warnings only
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    for one in recover_all(by="person", settings=Settings()):
        logging.getLogger(__name__).info("%s is %s. %s", one.deployment, one.state, one.reason)


if __name__ == "__main__":
    recover_here()
