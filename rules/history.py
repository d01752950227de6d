"""What was deployed where, and how it ended: records of many deployments, found again and shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from rules.entries import Decided, DeploymentState
from rules.journal import JournalView
from rules.markdown import table
from rules.pieces import from_pieces, in_pieces
from rules.record import DeploymentRecord, checklist_page, decision_page, in_words, plan_page, record_page

_PIECES = "record"
_COLUMNS = (
    "began (UTC)",
    "deployment",
    "component",
    "release",
    "environment",
    "strategy",
    "state",
    "took",
    "why",
)


def to_metadata(record: DeploymentRecord) -> dict[str, str]:
    """Return a record as artifact metadata, cut so that the server keeps all of it."""
    return in_pieces(record.model_dump_json(), prefix=_PIECES)


def from_metadata(metadata: Mapping[str, str]) -> DeploymentRecord | None:
    """Return the record that `to_metadata` has cut; None when there is none in it.

    Raises:
        ValueError: there is one of another make, or only a part of it.
    """
    text = from_pieces(metadata, prefix=_PIECES)
    return DeploymentRecord.model_validate_json(text) if text else None


def matching(
    records: Iterable[DeploymentRecord],
    *,
    component: str | None = None,
    environment: str | None = None,
    state: DeploymentState | None = None,
    target: str | None = None,
    since: datetime | None = None,
) -> tuple[DeploymentRecord, ...]:
    """Return the records that are as asked, newest first; None asks for nothing.

    Args:
        records: in any order.
        component: such as `application`.
        environment: name of the environment.
        state: how it ended, or is now.
        target: such as `application-web`.
        since: began then or later.
    """
    wanted = {"component": component, "environment": environment, "state": state, "target": target}
    asked = {field: value for field, value in wanted.items() if value is not None}
    found = [
        record
        for record in records
        if all(getattr(record, field) == value for field, value in asked.items())
        and (since is None or record.started_at >= since)
    ]
    return tuple(sorted(found, key=lambda record: (record.started_at, record.deployment), reverse=True))


def united(*sources: Iterable[DeploymentRecord]) -> tuple[DeploymentRecord, ...]:
    """Return one record for each deployment, the one that goes furthest; of equals, the first source's."""
    furthest: dict[str, DeploymentRecord] = {}
    for record in (record for source in sources for record in source):
        known = furthest.get(record.deployment)
        if known is None or record.ended_at > known.ended_at:
            furthest[record.deployment] = record
    return matching(furthest.values())


def completed_in_staging(
    records: Iterable[DeploymentRecord], change_id: str, *, now: datetime, bake_s: float
) -> DeploymentRecord | None:
    """Return the newest deployment of the same change to staging that proved good; None: there is none.

    If anybody watched it, completed is good; so is promoted, or replaced by a newer one, after it was good
    for a while. Where no while is asked for, nobody need have watched.

    Args:
        records: of all environments.
        change_id: component, release and digest; an empty one matches nothing.
        now: the time, with its zone.
        bake_s: seconds for which a deployment that is not completed must have been good.
    """
    same = (r for r in records if r.stage == "staging" and change_id and r.change_id == change_id)
    good = (record for record in matching(same) if _proved_good(record, now=now, bake_s=bake_s))
    return next(good, None)


def _proved_good(record: DeploymentRecord, *, now: datetime, bake_s: float) -> bool:
    # without a worker for its monitoring the time runs out all the same, and proves nothing
    if record.windows_watched == 0 and bake_s > 0:
        return False
    if record.state == "completed":
        return True
    if record.promoted_at is None or record.state not in {"promoted", "superseded"}:
        return False
    until = now if record.state == "promoted" else record.ended_at
    return (until - record.promoted_at).total_seconds() >= bake_s


def history_rows(records: Iterable[DeploymentRecord]) -> list[dict[str, str]]:
    """Return the records as rows of a table, newest first."""
    return [dict(zip(_COLUMNS, _row(record), strict=True)) for record in matching(records)]


def _row(record: DeploymentRecord) -> tuple[str, ...]:
    # the hours of monitoring after a promotion are not what it took
    taken_s = ((record.promoted_at or record.ended_at) - record.started_at).total_seconds()
    return (
        f"{record.started_at:%F %T}",
        record.deployment,
        record.component,
        record.release,
        record.environment,
        record.strategy,
        record.state,
        f"{taken_s:,.1f} s",
        record.reason,
    )


def history_page(records: Iterable[DeploymentRecord]) -> str:
    """Return the records as a Markdown page, newest first."""
    rows = history_rows(records)
    return f"# Deployments\n\n{table(_COLUMNS, [tuple(row.values()) for row in rows])}"


def export_page(view: JournalView) -> str:
    """Return all that is kept of a deployment as one Markdown page: it can be read without any server."""
    pages = [record_page(view)]
    pages += [plan_page(view.plan)] if view.plan else []
    pages += [checklist_page(view.gate)] if view.gate else []
    if any(isinstance(entry, Decided) for entry in view.entries):
        pages.append(decision_page(view))
    timeline = [(f"{entry.at:%F %T}", in_words(entry)) for entry in view.entries]
    pages.append(f"# Timeline of {view.opened.deployment}\n\n{table(('time (UTC)', 'what'), timeline)}")
    return "\n\n".join(pages) + "\n"
