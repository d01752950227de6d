"""A journal's entries: what was planned, checked, intended, done, seen and decided, each with its time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from rules.backup import BackupTaken
from rules.baseline import Baseline, Comparison
from rules.checklist import ChecklistReport
from rules.database import Database, DatabaseServer
from rules.environment import Environment
from rules.errors import InvalidRequestError
from rules.finding import Finding
from rules.fleet import Fleet
from rules.frozen import Count, Frozen, Ratio
from rules.ipfs import IpfsContent
from rules.plan import Plan
from rules.traffic import Counts
from rules.undo import AnyUndoStep
from rules.verdict import Outcome

DeploymentState = Literal[
    "running",
    "promoted",
    "rolling_back",
    "completed",
    "superseded",
    "rolled_back",
    "rollback_failed",
    "blocked",
    "aborted",
]


class Stamped(Frozen):
    """What every entry says: when it was written."""

    at: datetime = datetime(1970, 1, 1, tzinfo=UTC)


class Opened(Stamped):
    """The deployment begins: who runs it, against what. All of it is kept so that undo needs no API."""

    entry: Literal["opened"] = "opened"
    deployment: str
    target: str
    component: str = "application"
    flow_run_id: str
    host: str
    fleet: Fleet = Field(description="the application that is changed, or whose users would notice")
    database: Database | None = Field(default=None, description="the database that is changed, if one is")
    content: IpfsContent | None = Field(default=None, description="the IPFS content that is changed, if any")
    users: tuple[Fleet, ...] = Field(
        default=(), description="all applications that say which schema they work with"
    )
    summary: str
    environment: Environment = Environment()
    continues: str | None = Field(
        default=None, description="the deployment whose failed rollback this repeats"
    )

    part_of: str = Field(default="", description="the release that it is a component of; empty: none")
    holds: tuple[str, ...] = Field(
        default=(), description="of a release: the targets that nobody else may deploy to meanwhile"
    )

    @property
    def changed_database(self) -> Database:
        """The database that is changed.

        Raises:
            InvalidRequestError: none is.
        """
        if self.database is None:
            raise InvalidRequestError(f"{self.deployment} names no database")
        return self.database

    @property
    def changed_content(self) -> IpfsContent:
        """The IPFS content that is changed.

        Raises:
            InvalidRequestError: none is.
        """
        if self.content is None:
            raise InvalidRequestError(f"{self.deployment} names no IPFS content")
        return self.content

    @property
    def database_server(self) -> DatabaseServer | None:
        """The server of the database that is changed, where one is and its files are in reach."""
        return self.database.server if self.database else None


class Locked(Stamped):
    """The target's lock is ours; `token` is the fence."""

    entry: Literal["locked"] = "locked"
    token: str


class Planned(Stamped):
    """The plan, with the state before it, to which a rollback returns."""

    entry: Literal["planned"] = "planned"
    plan: Plan


class Intent(Stamped):
    """Something will be done now; `undo` takes it back."""

    entry: Literal["intent"] = "intent"
    number: Count
    title: str
    undo: AnyUndoStep


class Done(Stamped):
    """The effect of the intent of this number has happened."""

    entry: Literal["done"] = "done"
    number: Count


class Decided(Stamped):
    """A verdict was reached, with its arithmetic in words."""

    entry: Literal["decided"] = "decided"
    title: str
    outcome: Outcome
    reasons: tuple[str, ...]
    canary_requests: Count = 0
    canary_error_ratio: Ratio | None = None
    stable_requests: Count = 0
    stable_error_ratio: Ratio | None = None


class Undone(Stamped):
    """The intent of this number has been taken back."""

    entry: Literal["undone"] = "undone"
    number: Count


class Held(Stamped):
    """An undo was refused because it would have sent traffic to a dead side."""

    entry: Literal["held"] = "held"
    number: Count
    reason: str


class Gated(Stamped):
    """The checklist was judged, with what persons attested and waived."""

    entry: Literal["gated"] = "gated"
    report: ChecklistReport


class Approved(Stamped):
    """A person approved it, after having seen plan and checklist."""

    entry: Literal["approved"] = "approved"
    by: str
    words: str = ""


class Measured(Stamped):
    """How users and hosts are doing, before and after the rollout."""

    entry: Literal["measured"] = "measured"
    moment: Literal["before", "after"]
    baseline: Baseline


class Compared(Stamped):
    """What was measured before and after, side by side."""

    entry: Literal["compared"] = "compared"
    comparisons: tuple[Comparison, ...]


class BackedUp(Stamped):
    """A backup was taken and read back."""

    entry: Literal["backed_up"] = "backed_up"
    taken: BackupTaken
    verified: Finding


class Noted(Stamped):
    """Something that people should find in the timeline: a pause, an alert, a provider that is away."""

    entry: Literal["noted"] = "noted"
    about: Annotated[str, Field(pattern=r"^[a-z_]+$")]
    words: str
    by: str = "flow"


class MonitoringScheduled(Stamped):
    """The runs that watch the deployment after its promotion are known to Prefect."""

    entry: Literal["monitoring_scheduled"] = "monitoring_scheduled"
    runs: Count
    until: datetime
    counters: Counts | None = Field(
        default=None, description="the live side's answers by the balancer, when the first window began"
    )


class Monitored(Stamped):
    """One monitoring run has ended: what it saw in its window, and what it decided."""

    entry: Literal["monitored"] = "monitored"
    number: Count
    since: datetime
    action: str
    reasons: tuple[str, ...]
    requests: Count = 0
    errors: Count = 0
    counters: Counts | None = Field(default=None, description="the same, when this window ended")


class Moved(Stamped):
    """The deployment changed its state, and why."""

    entry: Literal["moved"] = "moved"
    state: DeploymentState
    reason: str
    by: str


Entry = (
    Opened
    | Locked
    | Planned
    | Gated
    | Approved
    | Measured
    | Compared
    | BackedUp
    | Noted
    | Intent
    | Done
    | Decided
    | Undone
    | Held
    | MonitoringScheduled
    | Monitored
    | Moved
)
ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="entry")])


def stamped(entry: Entry, at: datetime) -> Entry:
    """Return `entry` with the time it was written."""
    return entry.model_copy(update={"at": at})


def parse(text: bytes) -> tuple[Entry, ...]:
    """Read journal lines; a last line without its newline was torn by a crash and does not count."""
    whole = text[: text.rfind(b"\n") + 1]
    return tuple(ENTRY.validate_json(line) for line in whole.splitlines() if line.strip())


def line(entry: Entry) -> bytes:
    """Return `entry` as one journal line."""
    return ENTRY.dump_json(entry) + b"\n"
