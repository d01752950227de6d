"""Deployments as their artifacts in Prefect tell them: journals, records, pages."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from rules.continued import AGAIN
from rules.entries import parse
from rules.errors import DeployError
from rules.history import from_metadata
from rules.journal import JournalView, view
from rules.record import DeploymentRecord, record_of
from tasks.journal import mirror_key, mirrored_lines
from triggers.api_link import Link

log = logging.getLogger(__name__)
_PAGE = 200
_JOURNAL = mirror_key("")


class OtherVersionError(DeployError):
    """A journal in the mirror was written by another version of this library and cannot be read here."""


class Journals:
    """Journals from their mirror; one that has not grown is not read again."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._known: dict[str, tuple[str, JournalView]] = {}

    def of_run(self, flow_run_id: str) -> JournalView | None:
        """Return the journal of a run's own deployment; None: none is mirrored."""
        found = [row for row in self._newest({"flow_run_id": {"any_": [flow_run_id]}}) if not _continues(row)]
        # a run that a person retries is a fresh attempt with a journal of its own
        return self._read(max(found, key=lambda row: str(row["created"]))) if found else None

    def of_deployment(self, deployment: str) -> JournalView | None:
        """Return the journal of that very deployment; None: it is not mirrored."""
        found = self._newest({"key": {"any_": [mirror_key(deployment)]}})
        return self._read(found[0]) if found else None

    def last_try(self, deployment: str) -> JournalView | None:
        """Return the journal of a deployment, or of the last one that continues its failed rollback."""
        known = self.of_deployment(deployment)
        while known is not None:
            again = self.of_deployment(f"{known.opened.deployment}{AGAIN}")
            if again is None:
                return known
            known = again
        return None

    def names(self, beginning: str = "") -> tuple[str, ...]:
        """Return the ids of all deployments that begin like this."""
        rows = self._newest({"key": {"like_": f"{_escaped(mirror_key(beginning))}%"}})
        return tuple(str(row["key"]).removeprefix(_JOURNAL) for row in rows)

    def records(self) -> Iterator[DeploymentRecord]:
        """Yield a record for each deployment: as published at its end, or as its journal has it now."""
        ended = set[str]()
        for row in self._newest({"key": {"like_": "record-%"}}):
            record = _record(row)
            if record:
                ended.add(record.deployment)
                yield record
        for name in self.names():
            journal = None if name in ended else self._readable(name)
            if journal:
                yield record_of(journal)

    def page(self, flow_run_id: str, kind: str) -> str:
        """Return the newest page of a kind, such as `dry-run`, that a run has shown; empty: none."""
        wanted = {"flow_run_id": {"any_": [flow_run_id]}, "key": {"like_": f"{_escaped(kind)}-%"}}
        rows = sorted(self._newest(wanted), key=lambda row: str(row["updated"]))
        return str(rows[-1]["data"]) if rows else ""

    def _readable(self, deployment: str) -> JournalView | None:
        try:
            return self.of_deployment(deployment)
        except OtherVersionError as error:
            log.warning("%s", error)
            return None

    def _newest(self, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the newest artifact of each key that is as wanted."""
        if "key" not in wanted:
            wanted = {**wanted, "key": {"like_": f"{_JOURNAL}%"}}
        rows: list[dict[str, Any]] = []
        while True:
            body = {"artifacts": wanted, "sort": "KEY_ASC", "limit": _PAGE, "offset": len(rows)}
            page = self._link.ask("POST", "artifacts/latest/filter", body, what="list artifacts")
            rows += page
            if len(page) < _PAGE:
                return rows

    def _read(self, row: dict[str, Any]) -> JournalView | None:
        key, newest = str(row["key"]), str(row["latest_id"])
        known = self._known.get(key)
        if known and known[0] == newest:
            return known[1]
        deployment = key.removeprefix(_JOURNAL)
        try:
            entries = parse(mirrored_lines(self._link.api, deployment))
        except ValidationError as error:
            raise OtherVersionError(
                f"The journal of {deployment} cannot be read by this version: {error.error_count()} entries "
                "or fields are unknown to it. Use the version that the worker has."
            ) from error
        if not entries:
            return None
        journal = view(entries)
        self._known[key] = (newest, journal)
        return journal


def _continues(row: dict[str, Any]) -> bool:
    return str(row["key"]).endswith(AGAIN)


def _record(row: dict[str, Any]) -> DeploymentRecord | None:
    try:
        return from_metadata(row["metadata_"] or {})
    except ValueError as error:
        log.warning("%s is left out, it is of another make: %s", row["key"], error)
        return None


def _escaped(text: str) -> str:
    """Return `text` so that LIKE takes it literally; a backslash escapes in PostgreSQL."""
    return text.replace("\\", "\\\\").replace("%", r"\%").replace("_", r"\_")
