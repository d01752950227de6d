"""The records of all deployments: of this host's journals, and those that other hosts have shown."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rules.errors import ApiUnavailableError
from rules.history import export_page, from_metadata, united
from rules.journal import JournalView
from rules.record import DeploymentRecord, record_of
from tasks.durable import replace_file
from tasks.known import readable_journals
from tasks.prefect_api import PrefectApi
from tasks.settings import Settings

log = logging.getLogger(__name__)
_PAGE = 200


def records(api: PrefectApi | None, settings: Settings) -> tuple[DeploymentRecord, ...]:
    """Return one record for each deployment, newest first, running ones too.

    Args:
        api: where other hosts have shown theirs; None: this host's alone.
        settings: say where this host's journals are.

    Raises:
        ApiUnavailableError: those of other hosts cannot be read.
    """
    here = [record_of(view) for _, view in readable_journals(settings)]
    return united(here, _shown(api) if api else ())


def records_at_hand(api: PrefectApi | None, settings: Settings) -> tuple[DeploymentRecord, ...]:
    """Return the same as `records`; with Prefect's API away, those of this host alone, with a warning."""
    try:
        return records(api, settings)
    except ApiUnavailableError as error:
        log.warning("only this host's deployments are known now: %s", error)
        return records(None, settings)


def _shown(api: PrefectApi) -> Iterator[DeploymentRecord]:
    for artifact in _artifacts(api):
        try:
            record = from_metadata(artifact["metadata_"] or {})
        except ValueError as error:
            log.warning("%s is left out, it is of another make: %s", artifact["key"], error)
            continue
        if record:
            yield record


def _artifacts(api: PrefectApi) -> Iterator[dict[str, Any]]:
    """Yield the newest artifact of each deployment's record."""
    wanted = {"artifacts": {"key": {"like_": "record-%"}}, "sort": "KEY_ASC", "limit": _PAGE}
    offset = 0
    while True:
        page = api.request("POST", "artifacts/latest/filter", {**wanted, "offset": offset}).json()
        yield from page
        if len(page) < _PAGE:
            return
        offset += _PAGE


def export_record(view: JournalView, directory: Path) -> Path:
    """Write all that is kept of a deployment to `<directory>/<deployment>.md`, atomically; return that path.

    Raises:
        OSError: it could not; an older file is in place.
    """
    path = directory / f"{view.opened.deployment}.md"
    replace_file(path, export_page(view).encode())
    return path
