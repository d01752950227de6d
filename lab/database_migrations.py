"""Migrations for the lab's database, good and bad, as folders of plain SQL.

Each function writes a folder and returns it. Readers and writers of `lab.database_load` notice none of them:
what the bad ones break is what the database declares.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rules.change import MigrationFolder, SchemaChange

#: Outside a transaction, which an index that is built or dropped concurrently needs.
_ALONE = "-- sovereign: no-transaction\n"


@dataclass(frozen=True)
class LabMigrations:
    """A folder of migrations.

    Attributes:
        folder: where it is, with its checksum.
        release: its last migration.
        phase: what its change says of itself.
        accepted_lint: rules of squawk whose errors are what it is about.
    """

    folder: MigrationFolder
    release: str
    phase: Literal["expand", "contract"] = "expand"
    accepted_lint: tuple[str, ...] = ()

    def change(self, database: str, **fields: Any) -> SchemaChange:
        """Return the change that applies them to the database of that block; `fields` go over ours."""
        ours = {
            "database": database,
            "release": self.release,
            "migrations": self.folder,
            "phase": self.phase,
            "accepted_lint": self.accepted_lint,
        }
        return SchemaChange.model_validate({**ours, **fields})


def good_expand(directory: Path) -> LabMigrations:
    """A new column, and an index on it, built concurrently: both go down without a loss."""
    return _written(
        directory,
        {
            "0001_importance.up": "ALTER TABLE public.memories ADD COLUMN importance real;\n",
            "0001_importance.down": "ALTER TABLE public.memories DROP COLUMN importance;\n",
            "0002_importance_index.up": f"{_ALONE}CREATE INDEX CONCURRENTLY IF NOT EXISTS "
            "memories_importance_idx ON public.memories (importance);\n",
            "0002_importance_index.down": f"{_ALONE}DROP INDEX CONCURRENTLY IF EXISTS "
            "public.memories_importance_idx;\n",
        },
    )


def good_contract(directory: Path) -> LabMigrations:
    """A column goes, and what was in it: the way down makes an empty one, so only a snapshot leads back."""
    return _written(
        directory,
        {
            "0001_no_source.up": "ALTER TABLE public.memories DROP COLUMN source;\n",
            "0001_no_source.down": "ALTER TABLE public.memories ADD COLUMN source text;\n",
        },
        phase="contract",
        accepted_lint=("ban-drop-column",),
    )


def bad_half_way(directory: Path) -> LabMigrations:
    """The first migration is good; the second's second statement finds a key that is there already."""
    return _written(
        directory,
        {
            "0001_mood.up": "ALTER TABLE public.memories ADD COLUMN mood text;\n",
            "0001_mood.down": "ALTER TABLE public.memories DROP COLUMN mood;\n",
            "0002_labels.up": "CREATE TABLE public.labels (name text PRIMARY KEY);\n"
            "INSERT INTO public.settings (key, value) VALUES ('labels', 'on'), ('key-7', 'twice');\n",
            "0002_labels.down": "DELETE FROM public.settings WHERE key = 'labels';\n"
            "DROP TABLE public.labels;\n",
        },
    )


def bad_rename(directory: Path) -> LabMigrations:
    """A column that the declared query `setting` reads gets another name."""
    return _written(
        directory,
        {
            "0001_content.up": "ALTER TABLE public.settings RENAME COLUMN value TO content;\n",
            "0001_content.down": "ALTER TABLE public.settings RENAME COLUMN content TO value;\n",
        },
        accepted_lint=("renaming-column",),
    )


def bad_slow(directory: Path) -> LabMigrations:
    """The index goes without which the declared query `earlier-of-its-kind` takes a hundred times as long."""
    return _written(
        directory,
        {
            "0001_no_kind_index.up": f"{_ALONE}DROP INDEX CONCURRENTLY IF EXISTS "
            "public.memories_kind_id_idx;\n",
            "0001_no_kind_index.down": f"{_ALONE}CREATE INDEX CONCURRENTLY IF NOT EXISTS "
            "memories_kind_id_idx ON public.memories (kind, id);\n",
        },
    )


def bad_delete(directory: Path) -> LabMigrations:
    """Rows of a declared table are deleted, all of them: nobody wrote WHERE, and there is no way down."""
    return _written(directory, {"0001_tidy.up": "DELETE FROM public.settings;\n"})


def _written(
    directory: Path,
    files: Mapping[str, str],
    *,
    phase: Literal["expand", "contract"] = "expand",
    accepted_lint: tuple[str, ...] = (),
) -> LabMigrations:
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / f"{name}.sql").write_text(text)
    return LabMigrations(
        folder=MigrationFolder(path=str(directory.absolute()), sha256=folder_sha256(directory)),
        release=max(name.removesuffix(".up") for name in files if name.endswith(".up")),
        phase=phase,
        accepted_lint=accepted_lint,
    )


def folder_sha256(directory: Path) -> str:
    """Return what `cat *.sql | sha256sum` prints in a folder."""
    content = b"".join(path.read_bytes() for path in sorted(directory.glob("*.sql")))
    return hashlib.sha256(content).hexdigest()
