"""Content as production has it: Kubo nodes that keep it, and a table of the database that refers to it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lab.database import LabDatabase
from lab.kubo import LabKubo
from lab.kubo_contract import Contract
from lab.part import Part
from lab.processes import LabError
from rules.content_change import ContentFiles, ContentRelease
from rules.database import Database
from rules.ipfs import ContentReferences, IpfsContent

NAME = "documents"
FIRST_RELEASE = "c1"
_TABLE = "CREATE TABLE public.documents (name text PRIMARY KEY, cid text, title text NOT NULL)"
_ROWS = {"handbook": "handbook.md", "persona": "agents/persona.json", "library": ""}
#: The command of the change's own description.
_SHA256 = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum"
_COMMAND_TIMEOUT_S = 60


class LabContent(Part):
    """Two Kubo nodes and a database; three rows refer to the first release: two files, and all of it.

    Args:
        directory: everything lives below it.
        nodes: names of the Kubo nodes.
    """

    def __init__(self, directory: Path, *, nodes: tuple[str, ...] = ("one", "two")) -> None:
        self.directory = directory.absolute()
        self.kubo = LabKubo(self.directory / "kubo", nodes)
        self.lab_database = LabDatabase(
            self.directory / "database", rows=50, vectors=20, dimensions=4, months=1, name="library"
        )
        self._running = ExitStack()

    @property
    def database(self) -> Database:
        """The database that refers to the content."""
        return self.lab_database.database

    @property
    def content(self) -> IpfsContent:
        """The content, as deployments know it."""
        references = ContentReferences(table="public.documents", key="name", cid="cid")
        return IpfsContent(
            name=NAME,
            nodes=self.kubo.nodes,
            replicas=len(self.kubo.nodes),
            references=references,
            pin_s=20.0,
            fetch_s=20.0,
        )

    def start(self) -> None:
        """Start nodes and database, add the first release to the first node, and have both keep it.

        Raises:
            LabError: Kubo or PostgreSQL cannot be had here, or does not come up.
        """
        try:
            self._running.enter_context(self.kubo)
            self._running.enter_context(self.lab_database)
            if self.lab_database.query("SELECT to_regclass('public.documents')") == [(None,)]:
                self.lab_database.query(_TABLE)
                self._install()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all of it."""
        self._running.close()

    def change(
        self,
        release: str = "c2",
        files: Mapping[str, bytes] | None = None,
        *,
        references: Mapping[str, str] | None = None,
    ) -> ContentRelease:
        """Write a release's files and return the change that brings it to the rows.

        Args:
            release: what it is called, and what its files say.
            files: path -> content; None: those that the rows refer to.
            references: key -> path; None: as the rows of the first release.
        """
        place = self.write(release, files)
        argv = ("sh", "-c", _SHA256)
        done = subprocess.run(
            argv, cwd=place, check=True, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S
        )
        return ContentRelease(
            content=NAME,
            release=release,
            artefact=ContentFiles(path=str(place), sha256=done.stdout.split()[0]),
            references=dict(_ROWS if references is None else references),
        )

    def write(self, release: str, files: Mapping[str, bytes] | None = None) -> Path:
        """Write a release's files and return their directory."""
        place = self.directory / "releases" / release
        for path, content in (files or files_of(release)).items():
            file = place / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return place

    def cids(self, release: str) -> dict[str, str]:
        """Return path -> CID of a release that was written, and "": all of it; no node gets to know it."""
        return _added(self._node(), self.directory / "releases" / release, only_hash="true")

    def references(self) -> dict[str, str | None]:
        """Return what each row refers to."""
        return dict(self.lab_database.query("SELECT name, cid FROM public.documents ORDER BY name"))

    def unpin(self, node: str, *cids: str) -> None:
        """Have a node unpin what it pins recursively."""
        for cid in cids:
            _told(self._node(node), "pin/rm", cid)

    def missing(self) -> list[tuple[str, str]]:
        """Return the node and CID of each reference that a node cannot give whole, by its own blocks."""
        nodes = [node.name for node in self.kubo.nodes]
        cids = [cid for cid in self.references().values() if cid]
        return [(node, cid) for node in nodes for cid in cids if not self.kubo.has(node, cid)]

    def observed(self) -> dict[str, Any]:
        """Return what a deployment may change: rows and pins."""
        rows = self.lab_database.query("SELECT * FROM public.documents ORDER BY name")
        return {"rows": rows, "pins": self.kubo.observed()}

    def _install(self) -> None:
        cids = _added(self._node(), self.write(FIRST_RELEASE))
        for key, path in _ROWS.items():
            self.lab_database.query(
                "INSERT INTO public.documents VALUES (%s, %s, %s)", (key, cids[path], key.title())
            )
            for node in self.kubo.nodes:
                _told(self._node(node.name), "pin/add", cids[path])

    def _node(self, name: str = "") -> Contract:
        """Return how a node is asked by hand; the first one, where none is named."""
        node = self.kubo.node(name) if name else self.kubo.nodes[0]
        return Contract(api=node.api.rstrip("/"), other_api="")


def files_of(release: str) -> dict[str, bytes]:
    """Return the files of a release that differ from those of each other release, but for one."""
    return {
        "handbook.md": f"# Handbook of {release}\n".encode() * 400,
        "agents/persona.json": f'{{"release": "{release}"}}\n'.encode(),
        "agents/voice.bin": release.encode() * 100_000,  # of several blocks
        "LICENCE": b"the same in each release\n",
    }


def _added(node: Contract, place: Path, **options: str) -> dict[str, str]:
    """Add a directory to a node and return path -> CID; "": all of it."""
    files = {
        f"{place.name}/{path.relative_to(place)}": path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file()
    }
    rows = {row["Name"]: row["Hash"] for row in node.add(files, **options) if "Hash" in row}
    return {name.removeprefix(place.name).removeprefix("/"): cid for name, cid in rows.items()}


def _told(node: Contract, command: str, cid: str) -> None:
    answer = node.ask(command, cid)
    if answer.is_error:
        raise LabError(f"{command} {cid} at {node.api} answered {answer.status_code}: {answer.text}")
