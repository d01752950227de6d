"""What the demo measured: from the users' requests and the deployments' journals, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from lab.load import Row
from rules.entries import Decided, Intent, Undone
from rules.journal import JournalView
from rules.record import record_of
from rules.undo import RestoreTraffic
from rules.verdict import Outcome

_SERVER_ERROR = 500


@dataclasses.dataclass(frozen=True)
class Figures:
    """One deployment in numbers. Times are seconds; None: there was nothing to measure.

    Attributes:
        detected_s: from the first bad answer of the new release to the decision to take it back.
        out_of_traffic_s: from that first bad answer until users were sent elsewhere.
        switched_back_s: from the decision until users were sent elsewhere.
        rolled_back_s: from the decision until all was verified to be as before.
        requests: users' requests from the deployment's beginning to its end.
        failed_requests: those of them that failed, whoever answered.
        requests_after: requests that the new release got once users were sent elsewhere.
    """

    deployment: str
    component: str
    strategy: str
    state: str
    detected_s: float | None
    rolled_back_s: float | None
    out_of_traffic_s: float | None
    switched_back_s: float | None
    requests: int
    failed_requests: int
    requests_after: int | None


def figures_of(view: JournalView, rows: Sequence[Row]) -> Figures:
    """Return one deployment's figures, from its journal and all requests of the demo."""
    record = record_of(view)
    decided, moved = _decided_at(view), _traffic_back_at(view)
    began, ended = record.started_at.timestamp(), record.ended_at.timestamp()
    seen = [row for row in rows if began <= row["t"] <= ended]
    bad = [row["t"] for row in seen if row["release"] == record.release and _is_error(row)]
    first_bad = min(bad, default=None)
    late = [row for row in rows if moved and row["t"] > moved and row["release"] == record.release]
    return Figures(
        deployment=record.deployment,
        component=record.component,
        strategy=record.strategy,
        state=record.state,
        detected_s=_difference(first_bad, decided),
        rolled_back_s=_rounded(record.rolled_back_s),
        out_of_traffic_s=_difference(first_bad, moved),
        switched_back_s=_difference(decided, moved),
        requests=len(seen),
        failed_requests=sum(row["failed"] for row in seen),
        requests_after=sum(row["t"] <= ended for row in late) if moved else None,
    )


def plot_canary(view: JournalView, rows: Sequence[Row], path: Path) -> None:
    """Draw the error rates of the new release and of stable over time, with the decision marked."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import, and only this needs it

    record = record_of(view)
    began = record.started_at.timestamp()
    seen = [row for row in rows if began <= row["t"] <= record.ended_at.timestamp() + 5]
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for label, colour, is_new in (("canary", "tab:red", True), ("stable", "tab:blue", False)):
        side = [row for row in seen if (row["release"] == record.release) is is_new]
        seconds = sorted({int(row["t"] - began) for row in side})
        ratios = [_error_ratio(side, began + second) or 0.0 for second in seconds]  # requests in each
        axes.plot(seconds, ratios, marker="o", color=colour, label=f"{label}: errors per request")
    decided = _decided_at(view)
    if decided:
        axes.axvline(decided - began, color="black", linestyle="--", label="decision: taken back")
    axes.set(xlabel="seconds since the deployment began", ylabel="error ratio", ylim=(-0.02, None))
    axes.set_title(f"{record.deployment}: {record.state}")
    axes.legend()
    figure.savefig(path, dpi=120)


def sparkline(view: JournalView, rows: Sequence[Row], *, of_new_release: bool) -> str:
    """Return the error ratio of one side, second by second, in block characters; a dot: no request."""
    record = record_of(view)
    began, ended = record.started_at.timestamp(), record.ended_at.timestamp() + 2
    side = [
        row
        for row in rows
        if began <= row["t"] <= ended and (row["release"] == record.release) is of_new_release
    ]
    blocks = "▁▂▃▄▅▆▇█"
    line = ""
    for second in range(int(ended - began)):
        ratio = _error_ratio(side, began + second)
        line += "·" if ratio is None else blocks[min(int(ratio * 20), 7)]
    return line


def _error_ratio(rows: Sequence[Row], second: float) -> float | None:
    within = [row for row in rows if second <= row["t"] < second + 1]
    return sum(map(_is_error, within)) / len(within) if within else None


def _is_error(row: Row) -> bool:
    return row["status"] is None or row["status"] >= _SERVER_ERROR


def _decided_at(view: JournalView) -> float | None:
    """When it was decided to take the change back: by a verdict, or by a person's word."""
    for entry in view.entries:
        if isinstance(entry, Decided) and entry.outcome is not Outcome.PASS:
            return entry.at.timestamp()
    moved = view.moved_at("rolling_back")
    return moved.timestamp() if moved else None


def _traffic_back_at(view: JournalView) -> float | None:
    traffic = {i.number for i in view.entries if isinstance(i, Intent) and isinstance(i.undo, RestoreTraffic)}
    undone = [e.at.timestamp() for e in view.entries if isinstance(e, Undone) and e.number in traffic]
    return min(undone, default=None)


def _difference(began: float | None, ended: float | None) -> float | None:
    return None if began is None or ended is None else _rounded(ended - began)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)
