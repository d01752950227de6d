"""Take every backup of an environment before a rollout, and read each back."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from rules.entries import BackedUp
from rules.errors import DeployError, StepFailedError
from rules.finding import Result
from tasks.backup import prune_backups, take_backup, verify_backup
from tasks.deployment import OpenDeployment
from tasks.pause import proceed
from tasks.services import Services
from tasks.settings import Settings

log = logging.getLogger(__name__)


def back_up(deployment: OpenDeployment, services: Services) -> None:
    """Take and verify each backup in its declared order, then let old ones go.

    A backup changes nothing that users see, so it needs no way back; its name is derived from the
    deployment's, so a repetition finds it, and the retention removes it.

    Raises:
        StepFailedError: one could not be taken or not be read back; nothing was changed.
    """
    settings = deployment.settings
    for reference, backup in services.backups.items():
        proceed(deployment)
        try:
            taken = take_backup(backup, reference, deployment=deployment.name, settings=settings)
            verified = verify_backup(backup, taken, settings=settings)
        except DeployError as error:
            raise StepFailedError(f"The backup {reference} could not be taken: {error}") from error
        deployment.keep(BackedUp(taken=taken, verified=verified))
        if verified.result is not Result.PASSED:
            raise StepFailedError(
                f"The backup {taken.identity} was taken, but cannot be relied upon: {verified.evidence} "
                "Mend the backup, then deploy again."
            )
    prune(services, keep_s=deployment.opened.environment.backup_keep_s, settings=settings)


def prune(services: Services, *, keep_s: float, settings: Settings) -> tuple[str, ...]:
    """Let backups older than `keep_s` seconds go, and return their names; trouble with it is only logged."""
    gone: list[str] = []
    for reference, backup in services.backups.items():
        try:
            gone += prune_backups(backup, now=datetime.now(UTC), keep_s=keep_s, settings=settings)
        except (DeployError, OSError) as error:
            log.warning("older backups of %s are still there: %s", reference, error)
    return tuple(gone)
