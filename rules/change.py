"""What is to be changed: one model for each component, told apart by `component`."""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field

from rules.content_change import ContentRelease
from rules.database import Identifier, QualifiedName
from rules.frozen import AbsolutePath, Frozen, Name, ReleaseId, Sha256, slug
from rules.serving import FlagName, FlagValue
from rules.system_change import SystemRelease
from rules.vector_index import Distance, Hnsw, IndexGate, IvfFlat


class ReleaseArchive(Frozen):
    """A release as a tar archive (optionally compressed) on the worker's host."""

    artefact: Literal["archive"] = Field(default="archive", json_schema_extra={"position": 2})
    path: AbsolutePath = Field(
        description="absolute path of the archive on the worker's host", json_schema_extra={"position": 0}
    )
    sha256: Sha256 = Field(
        description="of the archive, 64 hexadecimal digits: sha256sum prints it",
        json_schema_extra={"position": 1},
    )


class NixStorePath(Frozen):
    """A release as a Nix store path, present or substitutable on each host."""

    artefact: Literal["nix_store_path"] = Field(default="nix_store_path", json_schema_extra={"position": 1})
    path: Annotated[str, Field(pattern=r"^/[^\s]*/[0-9a-z]{32}-[^/\s]+$")] = Field(
        description="such as /nix/store/…-web-2.0", json_schema_extra={"position": 0}
    )


class ModelDirectory(Frozen):
    """A model as a directory on the worker's host: Hugging Face's layout, or one GGUF file."""

    artefact: Literal["model_directory"] = Field(default="model_directory", json_schema_extra={"position": 2})
    path: AbsolutePath = Field(
        description="absolute path of the directory on the worker's host", json_schema_extra={"position": 0}
    )
    sha256: Sha256 = Field(
        description="of its files by name: (cd DIR && find . -type f -print0 | LC_ALL=C sort -z | "
        "xargs -0 sha256sum | sha256sum)",
        json_schema_extra={"position": 1},
    )


class ApplicationRelease(Frozen):
    """A new release of an application.

    `release` is what the running instances must report once they run it.
    """

    component: Literal["application"] = Field(default="application", json_schema_extra={"position": 3})
    application: Name = Field(
        description="name of the Sovereign Application block", json_schema_extra={"position": 0}
    )
    release: ReleaseId = Field(
        description="what the instances' probe must report once they run it",
        json_schema_extra={"position": 1},
    )
    artefact: ReleaseArchive | NixStorePath = Field(
        description="where the release comes from", json_schema_extra={"position": 2}
    )

    @property
    def subject(self) -> str:
        """What it changes, by name."""
        return self.application

    @property
    def watched(self) -> str | None:
        """The application whose users would notice; None: nobody declared one."""
        return self.application

    @property
    def pointer(self) -> str:
        """What an instance's link (release id) or Nix profile (store path) points to."""
        return self.release if isinstance(self.artefact, ReleaseArchive) else self.artefact.path

    @property
    def id(self) -> str:
        """What makes it the same change in another environment: component, release and content."""
        content = self.artefact.sha256 if isinstance(self.artefact, ReleaseArchive) else self.artefact.path
        return f"{self.component}:{self.release}:{content}"

    @property
    def target(self) -> str:
        """What is locked while this change is deployed."""
        return f"application-{self.application}"


class Served(Frozen):
    """Which releases of an application each side of a schema change serves."""

    application: Name = Field(description="name of a Sovereign Application block")
    before: tuple[str, ...] = Field(
        default=("*",), description="releases that work with the old schema, such as 1.*"
    )
    after: tuple[str, ...] = Field(
        default=("*",), description="releases that work with the new schema, such as 1.9.* and 2.*"
    )

    def patterns(self, *, back: bool) -> tuple[str, ...]:
        """Return which releases the schema serves that is gone `back` to, or else forward to."""
        return self.before if back else self.after

    def stranded(self, running: tuple[str, ...], *, back: bool) -> tuple[str, ...]:
        """Return those of the `running` releases that this side of the schema does not serve."""
        patterns = self.patterns(back=back)
        return tuple(r for r in running if not any(fnmatchcase(r, pattern) for pattern in patterns))


class MigrationFolder(Frozen):
    """Migrations as files on the worker's host: alembic's directory, or `NAME.up.sql` and `NAME.down.sql`."""

    runner: Literal["alembic", "sql"] = Field(default="sql", json_schema_extra={"position": 2})
    path: AbsolutePath = Field(
        description="alembic: the directory with `versions`; sql: the directory with the files",
        json_schema_extra={"position": 0},
    )
    sha256: Sha256 = Field(
        description="of the files by name: cat versions/*.py | sha256sum, or cat *.sql | sha256sum",
        json_schema_extra={"position": 1},
    )


class _OfDatabase(Frozen):
    """What all changes of a database are about."""

    database: Name = Field(
        description="name of the Sovereign Database block", json_schema_extra={"position": 0}
    )

    @property
    def target(self) -> str:
        """What is locked while this change is deployed: all changes of one database exclude each other."""
        return f"database-{self.database}"

    @property
    def subject(self) -> str:
        """What it changes, by name."""
        return self.database


class SchemaChange(_OfDatabase):
    """Migrations of a database's schema, up to `release`."""

    component: Literal["postgres_schema"] = Field(
        default="postgres_schema", json_schema_extra={"position": 7}
    )
    release: ReleaseId = Field(
        description="the last migration: an alembic revision, or a file's name without .up.sql",
        json_schema_extra={"position": 1},
    )
    migrations: MigrationFolder = Field(json_schema_extra={"position": 2})
    phase: Literal["expand", "contract"] = Field(
        default="expand",
        description="contract: takes away what an older application needs; refused while that one may return",
        json_schema_extra={"position": 3},
    )
    serves: tuple[Served, ...] = Field(
        default=(),
        description="applications on this database; users of the first are watched",
        json_schema_extra={"position": 4},
    )
    accepted_lint: tuple[str, ...] = Field(
        default=(),
        description="lint rules whose errors are known and accepted",
        json_schema_extra={"position": 5},
    )
    max_loss_s: Annotated[float, Field(ge=0)] = Field(
        default=300.0,
        description="a way back through the snapshot that loses more than this waits for a person",
        json_schema_extra={"position": 6},
    )

    @property
    def id(self) -> str:
        """What makes it the same change in another environment: component, release and content."""
        return f"{self.component}:{self.release}:{self.migrations.sha256}"

    @property
    def watched(self) -> str | None:
        """The application whose users would notice; None: nobody declared one."""
        return self.serves[0].application if self.serves else None


class IndexChange(_OfDatabase):
    """A pgvector index, new or in place of the one of that name."""

    component: Literal["pgvector_index"] = Field(default="pgvector_index", json_schema_extra={"position": 8})
    table: QualifiedName = Field(
        description="with its schema; partitioned or not", json_schema_extra={"position": 1}
    )
    column: Identifier = Field(description="the vector column", json_schema_extra={"position": 2})
    index: Identifier = Field(
        description="the index's name, which it keeps; in the table's schema",
        json_schema_extra={"position": 3},
    )
    distance: Distance = Field(default="cosine", json_schema_extra={"position": 4})
    how: Hnsw | IvfFlat = Field(default=Hnsw(), json_schema_extra={"position": 5})
    gate: IndexGate = Field(default=IndexGate(), json_schema_extra={"position": 6})
    application: Name | None = Field(
        default=None,
        description="name of the Sovereign Application block whose users are watched",
        json_schema_extra={"position": 7},
    )

    @property
    def release(self) -> str:
        """What this index is called in the books."""
        options = "-".join(
            f"{key}{value}" for key, value in sorted(self.how.model_dump(exclude={"method"}).items())
        )
        return slug(f"{self.index}-{self.how.method}-{self.distance}-{options}")[:64]

    @property
    def id(self) -> str:
        """What makes it the same change in another environment: component, table and parameters."""
        return f"{self.component}:{self.table}:{self.column}:{self.release}"

    @property
    def watched(self) -> str | None:
        """The application whose users would notice; None: nobody declared one."""
        return self.application


class ModelRelease(Frozen):
    """A new release of a model that SGLang serves."""

    component: Literal["sglang_model"] = Field(default="sglang_model", json_schema_extra={"position": 5})
    model: Name = Field(description="name of the Sovereign Model block", json_schema_extra={"position": 0})
    release: ReleaseId = Field(
        description="what the servers must report as their weight version once they serve it",
        json_schema_extra={"position": 1},
    )
    artefact: ModelDirectory = Field(
        description="where the model comes from", json_schema_extra={"position": 2}
    )
    flags: dict[FlagName, FlagValue] = Field(
        default_factory=dict,
        description="the server's flags that this release changes, such as context-length",
        json_schema_extra={"position": 3},
    )
    way: Literal["auto", "restart", "hot_swap"] = Field(
        default="auto",
        description="hot_swap: into the running server, without an interruption; auto: so where it is safe",
        json_schema_extra={"position": 4},
    )

    @property
    def subject(self) -> str:
        """What it changes, by name."""
        return self.model

    @property
    def watched(self) -> str | None:
        """The application whose users would notice: its servers are resolved with the model's block."""
        return None

    @property
    def pointer(self) -> str:
        """What a server's link points to."""
        return self.release

    @property
    def id(self) -> str:
        """What makes it the same change in another environment: component, release, content and flags."""
        same = f"{self.component}:{self.release}:{self.artefact.sha256}"
        if not self.flags:
            return same
        flags = json.dumps(self.flags, sort_keys=True).encode()
        return f"{same}:{hashlib.sha256(flags).hexdigest()[:16]}"

    @property
    def target(self) -> str:
        """What is locked while this change is deployed."""
        return f"model-{self.model}"


class RayRelease(Frozen):
    """A new release of what a Ray cluster's worker nodes run, and which of them run."""

    component: Literal["ray_node"] = Field(default="ray_node", json_schema_extra={"position": 5})
    cluster: Name = Field(
        description="name of the Sovereign Ray Cluster block", json_schema_extra={"position": 0}
    )
    release: ReleaseId = Field(
        description="what the nodes must carry as their label `release`", json_schema_extra={"position": 1}
    )
    artefact: ReleaseArchive = Field(
        description="where the release comes from", json_schema_extra={"position": 2}
    )
    nodes: tuple[Name, ...] = Field(
        default=(),
        description="the nodes that run afterwards: new ones are added, others drained and stopped; empty: "
        "those that run now",
        json_schema_extra={"position": 3},
    )
    accept_lost: tuple[str, ...] = Field(
        default=(),
        description="names of actors and tasks that cannot be repeated elsewhere and may be lost",
        json_schema_extra={"position": 4},
    )

    @property
    def subject(self) -> str:
        """What it changes, by name."""
        return self.cluster

    @property
    def watched(self) -> str | None:
        """The application whose users would notice: its nodes are resolved with the cluster's block."""
        return None

    @property
    def pointer(self) -> str:
        """What a node's link points to."""
        return self.release

    @property
    def id(self) -> str:
        """What makes it the same change in another environment: component, release and content."""
        return f"{self.component}:{self.release}:{self.artefact.sha256}"

    @property
    def target(self) -> str:
        """What is locked while this change is deployed."""
        return f"ray-{self.cluster}"


#: What brings a fleet's instances to a release, one by one.
FleetChange = ApplicationRelease | ModelRelease | RayRelease | SystemRelease
Change = FleetChange | SchemaChange | IndexChange | ContentRelease
