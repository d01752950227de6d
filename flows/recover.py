"""The third and the fourth line of defence: the schedule, and a person."""

from __future__ import annotations

import logging

from prefect import flow, get_run_logger

from rules.errors import DeployError
from rules.record import DeploymentRecord, record_of
from tasks.journal import JournalFile
from tasks.prefect_api import PrefectApi
from tasks.recover import Recovered, recover_all, roll_back_by_person
from tasks.report import publish_record
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
            publish_record(api, JournalFile(settings.journal_dir, one.deployment).read())
            end_dead_run(api, one.flow_run_id, f"{one.deployment} is {one.state}: {one.reason}")
    return list(looked_at)


@flow(name="roll-back", flow_run_name="{deployment}")
def roll_back(deployment: str, reason: str) -> DeploymentRecord:
    """Take a deployment back by a person's word: promoted in the last 24 hours, left open, or failed to.

    Args:
        deployment: its id, as in the name of its artifacts.
        reason: why, for the record.

    Raises:
        DeployError: it cannot be taken back, or the way back failed; says which state things were left in.
    """
    settings = Settings()
    view = roll_back_by_person(deployment, reason=reason, settings=settings)
    with PrefectApi(settings) as api:
        publish_record(api, view)
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
