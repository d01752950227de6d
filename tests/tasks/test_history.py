"""The history of all hosts: from the journals here and from what others have shown in Prefect."""

from __future__ import annotations

import pytest

from rules.entries import Moved, Opened
from rules.errors import ApiUnavailableError
from rules.history import from_metadata, to_metadata
from rules.journal import JournalView
from rules.record import record_of
from tasks.history import export_record, records, records_at_hand
from tasks.journal import JournalFile
from tasks.prefect_api import PrefectApi
from tasks.settings import Settings
from tests.rules.ended import ended
from tests.tasks.deploying import opening, settings_in
from tests.tasks.gateway import Fault


def written(opened: Opened, settings: Settings, *moves: str) -> JournalView:
    """Return the journal, now on the disk, of a deployment that went through these states."""
    journal = JournalFile(settings.journal_dir, opened.deployment)
    journal.directory.mkdir(parents=True)
    for entry in (opened, *(Moved(at=opened.at, state=move, reason="so", by="flow") for move in moves)):
        journal.append(entry)
    return journal.read()


def show(api: PrefectApi, view: JournalView, metadata: dict[str, str] | None = None) -> None:
    record = record_of(view)
    known = to_metadata(record) if metadata is None else metadata
    artifact = {"key": f"record-{record.deployment}", "type": "markdown", "data": "# …", "metadata_": known}
    api.request("POST", "artifacts/", artifact)


def named(found, *deployments: str) -> list:
    """Return the records of these deployments: the server is shared with other tests."""
    return [record for record in found if record.deployment in deployments]


def test_journals_of_this_host_and_records_of_others_are_one_history(settings, api, tmp_path):
    here = written(opening(), settings, "promoted")
    other_host = settings_in(tmp_path / "other")
    there = written(opening(), other_host, "rolling_back", "rolled_back")
    show(api, here)
    show(api, there)
    names = here.opened.deployment, there.opened.deployment
    found = named(records(api, settings), *names)
    assert found == sorted([record_of(here), record_of(there)], key=lambda r: r.started_at, reverse=True)
    assert records(None, settings) == (record_of(here),)


def test_the_newest_record_that_was_shown_counts(settings, api, tmp_path):
    opened = opening()
    running = written(opened, settings_in(tmp_path / "a"))
    ended_later = written(opened, settings_in(tmp_path / "b"), "promoted")
    show(api, running)
    show(api, ended_later)
    assert [record.state for record in named(records(api, settings), opened.deployment)] == ["promoted"]


def test_more_records_than_a_page_holds_are_all_found(settings, api, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.history._PAGE", 4)
    views = [written(opening(), settings_in(tmp_path / "other"), "promoted") for _ in range(13)]
    for view in views:
        show(api, view)
    names = [view.opened.deployment for view in views]
    assert sorted(record.deployment for record in named(records(api, settings), *names)) == sorted(names)


@pytest.mark.parametrize("metadata", [{}, {"record-00000": '{"deployment": "half'}])
def test_an_artifact_without_a_whole_record_is_left_out(settings, api, tmp_path, metadata):
    good, bad = (written(opening(), settings_in(tmp_path / "other"), "promoted") for _ in range(2))
    show(api, good)
    show(api, bad, metadata)
    found = named(records(api, settings), good.opened.deployment, bad.opened.deployment)
    assert found == [record_of(good)]


def test_a_record_that_is_longer_than_the_server_keeps_comes_back_whole(settings, api):
    opened = opening()
    view = JournalView(
        opened=opened,
        entries=(opened, Moved(at=opened.at, state="blocked", reason="ü|\n" * 3000, by="flow")),
    )
    show(api, view)
    answer = api.request("GET", f"artifacts/record-{opened.deployment}/latest").json()
    assert from_metadata(answer["metadata_"]) == record_of(view)


def test_with_prefect_away_the_caller_learns_that_the_history_is_not_whole(settings, through, caplog):
    api, between = through
    between.faults = [Fault("artifacts/", status=503)]
    view = written(opening(), settings, "promoted")
    with pytest.raises(ApiUnavailableError):
        records(api, settings)
    assert records_at_hand(api, settings) == (record_of(view),)
    assert "only this host's deployments are known now" in caplog.text


def test_an_export_is_one_whole_file_that_is_replaced_when_there_is_more_to_say(tmp_path):
    directory = tmp_path / "records"
    first = export_record(ended((), "promoted"), directory)
    assert "**promoted**" in first.read_text()
    assert export_record(ended((), "rolled_back"), directory) == first == directory / "web-2-0-abc.md"
    assert "**rolled_back**" in first.read_text()
    assert [path.name for path in directory.iterdir()] == ["web-2-0-abc.md"]


def test_an_export_that_cannot_be_written_leaves_the_older_one(tmp_path):
    directory = tmp_path / "records"
    path = export_record(ended((), "promoted"), directory)
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(OSError, match="file"):
        export_record(ended((), "rolled_back"), in_the_way)
    assert "**promoted**" in path.read_text()
