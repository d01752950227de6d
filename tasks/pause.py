"""Hold a deployment while a person has paused it, or while nobody can see; traffic stays where it is."""

from __future__ import annotations

import logging
import time

from rules.entries import Noted
from rules.errors import AbortedError
from tasks.deployment import OpenDeployment

log = logging.getLogger(__name__)
_POLL_S = 0.5


def proceed(deployment: OpenDeployment) -> None:
    """Go on, once nobody holds the deployment back any more.

    Raises:
        AbortedError: it was aborted, or left paused for longer than `pause_deadline_s`.
        AlarmError: what watches beside the rollout raised an alarm.
        FencedError, CutOffError, RevokedError: it must not go on; see each.
    """
    while hear(deployment) or deployment.held_by():
        deployment.while_held()
        time.sleep(_POLL_S)


def hear(deployment: OpenDeployment) -> bool:
    """Hear at once whatever ends the deployment; return whether a person has paused it.

    Raises:
        AbortedError, AlarmError, FencedError, CutOffError, RevokedError: see `proceed`.
    """
    deployment.prove_wanted()
    return is_paused(deployment)


def is_paused(deployment: OpenDeployment) -> bool:
    """Return whether a person holds the deployment back, and write down when that begins and ends.

    Raises:
        AbortedError: it was left paused for longer than `pause_deadline_s`.
    """
    pause, since, limit_s = deployment.pause, deployment.paused_since, deployment.settings.pause_deadline_s
    if pause and since is None:
        deployment.paused_since = time.monotonic()
        log.info("%s is paused by %s: %s", deployment.name, pause.by, pause.reason)
        deployment.keep(Noted(about="paused", words=pause.reason, by=pause.by))
    elif pause and since is not None and time.monotonic() - since > limit_s:
        raise AbortedError(f"Paused by {pause.by} for longer than {limit_s:g} s: {pause.reason}")
    elif not pause and since is not None:
        deployment.paused_since = None
        by = deployment.control.by if deployment.control else "a person"
        words = f"after {time.monotonic() - since:.0f} s"
        deployment.keep(Noted(about="resumed", words=words, by=by))
    return pause is not None
