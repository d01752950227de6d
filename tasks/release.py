"""The components of a release as deployments of their own: how they are doing, and how each is taken back."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from rules.entries import DeploymentState
from rules.errors import ApiUnavailableError, StepFailedError, UndoFailedError, WorldMovedError
from rules.journal import JournalView
from rules.release_actions import TakeBackDeployment
from rules.release_states import NOT_CHANGED, fallen, parts_of, why_not_back
from tasks.again import newest_try
from tasks.database_undo import refuse_loss
from tasks.journal import JournalFile
from tasks.observed import differences_from_promised
from tasks.prefect_api import PrefectApi
from tasks.runs import end_dead_run
from tasks.settings import Settings

log = logging.getLogger(__name__)
#: Who moves a component's deployment because of its release, for the journal.
BY_RELEASE = "release"


class ComponentNotBackError(UndoFailedError):
    """A component could not be taken back; it has made its own tries, so its release makes no more."""


def component_views(view: JournalView, api: PrefectApi | None, settings: Settings) -> dict[str, JournalView]:
    """Return component -> what its deployment's journal says, of those that a release has begun with.

    Of one that was taken up again, after its way back had failed, it is the newest journal. One that never
    came as far as a journal is left out.
    """
    found = {name: newest_try(part, api, settings) for name, part in parts_of(view).items()}
    return {name: journal.read() for name, journal in found.items() if journal}


def component_states(
    view: JournalView, api: PrefectApi | None, settings: Settings
) -> dict[str, DeploymentState]:
    """Return component -> the state of its deployment; see `component_views`."""
    return {name: part.state for name, part in component_views(view, api, settings).items()}


def refuse_fallen(view: JournalView, settings: Settings, *, done: Iterable[str]) -> None:
    """Refuse to go on with a release whose components do not all stand any more.

    Monitoring or a person may have taken one back while the next was deployed.

    Args:
        view: the release's journal.
        settings: of this host.
        done: the components whose deployment ended well.

    Raises:
        StepFailedError: says which does not stand; what was changed is to be taken back.
    """
    states = component_states(view, None, settings)
    gone = fallen({name: states[name] for name in done if name in states})
    if gone:
        raise StepFailedError(f"A component of the release was taken back meanwhile: {gone}.")


def refuse_moved_release(
    view: JournalView, api: PrefectApi | None, settings: Settings, *, accept_loss: bool
) -> None:
    """Refuse to take a promoted release back where one of its components cannot be; nothing is changed.

    Of components that change one target only the newest can be compared with what it promised: the others
    were built upon.

    Raises:
        WorldMovedError: says which component, and why.
        LossNotAcceptedError: a way back loses more than it may without asking.
    """
    parts = component_views(view, api, settings)
    lost = why_not_back({name: part.state for name, part in parts.items()})
    if lost:
        raise WorldMovedError(
            f"{view.opened.deployment} cannot be taken back any more: {lost}. Nothing was changed. Deploy "
            "the release you want instead."
        )
    promoted = [part for part in parts.values() if part.state == "promoted"]
    newest = {part.opened.target: part for part in promoted}
    for part in newest.values():
        moved = differences_from_promised(part.opened, part.plan, touched=set()) if part.plan else ()
        if moved:
            raise WorldMovedError(
                f"{view.opened.deployment} cannot be taken back, because {part.opened.target} has changed "
                f"since it was promoted: {'; '.join(moved)}. Nothing was changed. Deploy the release you "
                "want instead."
            )
    for part in promoted:
        refuse_loss(part, settings=settings, accept_loss=accept_loss)


def take_deployment_back(
    view: JournalView,
    step: TakeBackDeployment,
    api: PrefectApi | None,
    *,
    settings: Settings,
    accept_loss: bool,
) -> None:
    """Take the deployment of one component back, whatever became of it; repeating it changes nothing.

    Raises:
        ComponentNotBackError: its way back failed, or it can no longer be taken back; says which.
        FencedError, CutOffError: another process is at it, or has to be.
        DeployError: it cannot be taken back now; nothing of it was changed.
    """
    # the two of them take each other's deployments back: a release its components
    from tasks.recover import roll_back_by_person  # noqa: PLC0415

    journal = newest_try(step.deployment, api, settings)
    if journal is None:
        return  # it never came as far as changing anything
    before = journal.read()
    if before.state == "rollback_failed" and not view.opened.continues:
        raise ComponentNotBackError(f"{journal.deployment}: {before.reason}")
    release = JournalFile(settings.journal_dir, view.opened.deployment)
    _lend_lease(release, journal)
    after = roll_back_by_person(
        step.deployment,
        reason=f"{release.deployment} is taken back: {release.read().cause}",
        settings=settings,
        accept_loss=accept_loss,
        by=BY_RELEASE,
    )
    if api and before.state in ("running", "rolling_back"):
        _end_run(api, after)
    if after.state not in NOT_CHANGED:
        words = after.reason if after.state == "rollback_failed" else "it can no longer be taken back"
        raise ComponentNotBackError(f"{after.opened.deployment} is {after.state}: {words}")


def components_left(view: JournalView, api: PrefectApi | None, settings: Settings) -> tuple[str, ...]:
    """Say which components of a release are not as before; empty: all are."""
    states = component_states(view, api, settings)
    return tuple(f"{name} is {state}" for name, state in states.items() if state not in NOT_CHANGED)


def taken_back_with(view: JournalView, api: PrefectApi | None, settings: Settings) -> tuple[JournalView, ...]:
    """Return the journals of the components that their release has moved, for those who tell people."""
    parts = component_views(view, api, settings)
    return tuple(part for part in parts.values() if _last_mover(part) == BY_RELEASE)


def _last_mover(view: JournalView) -> str:
    movers = [by for entry in view.entries if (by := getattr(entry, "by", "")) and hasattr(entry, "state")]
    return str(movers[-1]) if movers else ""


def _lend_lease(release: JournalFile, journal: JournalFile) -> None:
    """Have a component's way back go by its release's lease, which holds the same target.

    Its own ended with its promotion, and with Prefect's API away nobody could ask for another.
    """
    if release.lease_until() > journal.lease_until():
        journal.note_lease(release.lease_until())


def _end_run(api: PrefectApi, view: JournalView) -> None:
    words = f"{view.opened.deployment} is {view.state}: {view.cause or view.reason}"
    try:
        with api.impatient():
            end_dead_run(api, view.opened.flow_run_id, words)
    except ApiUnavailableError as error:
        log.warning("flow run %s still reads as running: %s", view.opened.flow_run_id, error)
