"""Components and releases of several, for tests."""

from __future__ import annotations

from typing import Any

from rules.change import (
    ApplicationRelease,
    IndexChange,
    MigrationFolder,
    ReleaseArchive,
    SchemaChange,
    Served,
)
from rules.release import Component, Release

SHA = "a" * 64


def application(name: str = "web", release: str = "2.0") -> ApplicationRelease:
    artefact = ReleaseArchive(path=f"/srv/{name}-{release}.tar.gz", sha256=SHA)
    return ApplicationRelease(application=name, release=release, artefact=artefact)


def schema(release: str = "0002", *, serves: tuple[str, ...] = ("web",), **fields: Any) -> SchemaChange:
    return SchemaChange(
        database="memories",
        release=release,
        migrations=MigrationFolder(path="/srv/migrations", sha256=SHA),
        serves=tuple(Served(application=name) for name in serves),
        **fields,
    )


def index(database: str = "memories") -> IndexChange:
    return IndexChange(database=database, table="public.episodes", column="embedding", index="episodes_idx")


def component(name: str, change: Any, *after: str, **fields: Any) -> Component:
    return Component(name=name, change=change, after=after, **fields)


def whole(*components: Component) -> Release:
    """A release of these; of schema, index and application where none are given."""
    three = (
        component("schema", schema()),
        component("index", index(), "schema"),
        component("web", application(), "index", "schema"),
    )
    return Release(name="emily", release="2.0", components=components or three)
