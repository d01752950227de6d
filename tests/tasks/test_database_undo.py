"""A way back that takes away what users may have written is not begun without a person's word."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from rules.change import MigrationFolder, SchemaChange
from rules.cluster_loss import LossNotAcceptedError
from rules.database import Database, DatabaseAddress, DatabaseState
from rules.database_plan import ApplyMigration
from rules.database_undo import RevertMigration
from rules.entries import Intent, Moved, Planned
from rules.fleet import NOBODY, FleetState
from rules.journal import JournalView, view
from rules.migration import Migration, VersionTable
from rules.plan import Plan, Step
from rules.strategy import InPlace
from tasks.database_undo import refuse_way_back
from tests.tasks.deploying import opening, settings_in

TABLE = VersionTable(table="sovereign.schema_version", column="revision")
CHANGE = SchemaChange(
    database="memories", release="0001_a", migrations=MigrationFolder(path="/m", sha256="0" * 64)
)
DATABASE = Database(name="memories", address=DatabaseAddress(host="127.0.0.1", port=1, database="memories"))


def promoted(down: str, *, ago: timedelta) -> JournalView:
    """Return the journal of a migration with this way down that was promoted so long ago."""
    migration = Migration(
        revision="0001_a",
        title="a",
        up=("ALTER TABLE t ADD COLUMN c text",),
        down=(down,),
        record=(),
        unrecord=(),
    )
    undo = RevertMigration(migration=migration, version_table=TABLE, revisions=(), schema_sha256=None)
    action = ApplyMigration(
        migration=migration, version_table=TABLE, revisions=("0001_a",), schema_sha256=None
    )
    plan = Plan(
        change=CHANGE,
        strategy=InPlace(),
        before=FleetState(instances={}),
        database=DatabaseState(schema_sha256=None),
        steps=(Step(number=0, title="migrate", action=action, undo=undo),),
    )
    moved = Moved(state="promoted", reason="all well", by="flow", at=datetime.now(UTC) - ago)
    intent = Intent(number=0, title="migrate", undo=undo)
    return view((opening(NOBODY, database=DATABASE), Planned(plan=plan), intent, moved))


def test_hours_of_what_users_wrote_are_not_dropped_unasked(tmp_path):
    late = promoted("ALTER TABLE t DROP COLUMN c", ago=timedelta(hours=20))
    with pytest.raises(LossNotAcceptedError, match=r"in 20\.0 hours: ALTER TABLE t DROP COLUMN c"):
        refuse_way_back(late, settings=settings_in(tmp_path), accept_loss=False)
    refuse_way_back(late, settings=settings_in(tmp_path), accept_loss=True)


@pytest.mark.parametrize(
    ("down", "ago"),
    [
        pytest.param("ALTER TABLE t DROP COLUMN c", timedelta(seconds=60), id="soon"),
        pytest.param("DROP INDEX CONCURRENTLY IF EXISTS i", timedelta(hours=20), id="takes nothing away"),
    ],
)
def test_what_takes_nothing_away_or_only_moments_goes_back_at_once(tmp_path, down, ago):
    refuse_way_back(promoted(down, ago=ago), settings=settings_in(tmp_path), accept_loss=False)
