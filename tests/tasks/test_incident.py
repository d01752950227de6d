"""Incidents are noted whatever is broken beside them, once, and never at the cost of the deployment."""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime, timedelta

import pytest

from rules.entries import Opened
from rules.incident import IncidentState, issue_comment
from rules.journal import JournalView
from tasks.incident import IncidentError, IncidentFile, open_incident, update_incident
from tasks.journal import JournalFile, Mirror
from tasks.prefect_api import PrefectApi
from tasks.settings import Settings
from tests.rules.ended import ended
from tests.tasks.deploying import settings_in
from tests.tasks.gateway import Fault

NOW = datetime(2026, 1, 2, 16, 0, tzinfo=UTC)


@pytest.fixture
def rolled_back(opened: Opened, settings: Settings) -> JournalView:
    return written(opened, settings, "rolled_back")


@pytest.fixture
def failed(opened: Opened, settings: Settings) -> JournalView:
    return written(opened, settings, "rollback_failed")


def written(opened: Opened, settings: Settings, end: str) -> JournalView:
    """Return the journal, now on the disk, of a deployment that ended like this."""
    journal = JournalFile(settings.journal_dir, opened.deployment)
    journal.directory.mkdir(parents=True)
    for entry in (opened, *ended((), end).entries[1:]):
        journal.append(entry)
    return journal.read()


def kinds(state: IncidentState | None) -> list[str]:
    assert state
    return [event.event for event in state.events]


def shown(api: PrefectApi, key: str) -> dict:
    return api.request("GET", f"artifacts/{key}/latest").json()


def update(view: JournalView, status: str, settings: Settings, api: PrefectApi | None = None, **more: object):
    return update_incident(
        view.opened.deployment,
        status=status,
        words=f"it is {status}",
        by="ada",
        now=NOW + timedelta(minutes=5),
        settings=settings,
        api=api,
        **more,
    )


def test_a_verified_rollback_is_noted_on_disk_and_shown_as_mitigated(rolled_back, settings, api):
    state = open_incident(rolled_back, api=api, settings=settings, now=NOW)
    assert kinds(state) == ["opened", "mitigated"]
    assert IncidentFile(settings.journal_dir, rolled_back.opened.deployment).read() == state
    page = shown(api, f"incident-{rolled_back.opened.deployment}")
    assert page["data"].startswith("# P2: ")
    assert "**mitigated**" in page["data"]
    assert page["flow_run_id"] == rolled_back.opened.flow_run_id


def test_opening_twice_is_once_and_tells_once(rolled_back, settings, api):
    told: list[IncidentState] = []
    issues: list[str] = []

    def issue(title: str, body: str) -> str:
        issues.append(f"{title}\n{body}")
        return "https://forge/issues/7"

    states = [
        open_incident(
            rolled_back,
            api=api,
            settings=settings,
            now=NOW + timedelta(hours=n),
            open_issue=issue,
            tell=told.append,
        )
        for n in range(3)
    ]
    assert states[0] == states[1] == states[2]
    assert kinds(states[0]) == ["opened", "mitigated", "communicated", "communicated"]
    assert (len(told), len(issues)) == (1, 1)
    assert issues[0].startswith("P2: ")
    assert states[0].issue_url == "https://forge/issues/7"
    assert "https://forge/issues/7" in shown(api, f"incident-{rolled_back.opened.deployment}")["data"]


def test_two_processes_that_open_at_once_open_one(rolled_back, settings):
    told: list[IncidentState] = []
    states: list[IncidentState | None] = []
    threads = [
        threading.Thread(
            target=lambda: states.append(
                open_incident(rolled_back, api=None, settings=settings, now=NOW, tell=told.append)
            )
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 1
    assert {tuple(kinds(state)) for state in states} == {("opened", "mitigated", "communicated")}


def test_a_dead_service_loses_nothing_and_is_tried_again_by_the_next(rolled_back, settings, caplog):
    def dead(*_: object) -> str:
        raise ConnectionError("nobody listens")

    first = open_incident(rolled_back, api=None, settings=settings, now=NOW, open_issue=dead, tell=dead)
    assert kinds(first) == ["opened", "mitigated"]
    said = [record.getMessage().split(" incident of")[0] for record in caplog.records if record.exc_info]
    assert said == ["no issue was opened for the", "nobody was told of the"]
    told: list[IncidentState] = []
    again = open_incident(rolled_back, api=None, settings=settings, now=NOW, tell=told.append)
    assert kinds(again) == ["opened", "mitigated", "communicated"]
    assert told == [first]


@pytest.mark.parametrize("status", [503, 422])
def test_with_prefect_away_it_is_noted_on_disk_and_shown_by_the_next(rolled_back, settings, through, status):
    api, between = through
    between.faults = [Fault("artifacts/", status=status)]
    assert kinds(open_incident(rolled_back, api=api, settings=settings, now=NOW)) == ["opened", "mitigated"]
    between.faults = []
    open_incident(rolled_back, api=api, settings=settings, now=NOW)
    assert "**mitigated**" in shown(api, f"incident-{rolled_back.opened.deployment}")["data"]


def test_a_disk_that_takes_nothing_does_not_stop_the_end_of_a_deployment(rolled_back, tmp_path, caplog):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a directory")
    settings = settings_in(tmp_path, journal_dir=in_the_way)
    assert open_incident(rolled_back, api=None, settings=settings, now=NOW) is None
    assert "not (wholly) noted" in caplog.text


def test_what_went_well_leaves_no_file(opened, settings):
    view = written(opened, settings, "promoted")
    assert open_incident(view, api=None, settings=settings, now=NOW) is None
    assert not IncidentFile(settings.journal_dir, opened.deployment).path.exists()


def test_a_failed_rollback_wakes_a_person_once_and_begins_its_post_mortem(failed, settings, api, caplog):
    deployment = failed.opened.deployment
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            state = open_incident(failed, api=api, settings=settings, now=NOW)
    assert kinds(state) == ["opened"]
    urgent = [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]
    assert len(urgent) == 1
    assert urgent[0].startswith(f"P0 {deployment} is rollback_failed.")
    assert f"run roll-back for {deployment}" in urgent[0]
    on_disk = (settings.journal_dir / deployment / "post-mortem.md").read_text()
    assert on_disk.startswith(shown(api, f"post-mortem-{deployment}")["data"])
    assert "when the incident was open" in on_disk


def test_a_person_takes_an_incident_to_its_end(rolled_back, settings, api):
    told: list[IncidentState] = []
    open_incident(rolled_back, api=api, settings=settings, now=NOW)
    update(rolled_back, "updated", settings, api)
    assert not (settings.journal_dir / rolled_back.opened.deployment / "post-mortem.md").exists()
    state = update(rolled_back, "resolved", settings, api, tell=told.append)
    assert kinds(state) == ["opened", "mitigated", "updated", "resolved", "communicated"]
    assert [one.status for one in told] == ["resolved"]
    page = shown(api, f"incident-{rolled_back.opened.deployment}")
    assert "**resolved**" in page["data"]
    draft = shown(api, f"post-mortem-{rolled_back.opened.deployment}")["data"]
    assert "**resolved** by ada: it is resolved" in draft


ISSUE = "https://forge/team/web/issues/7"


def test_its_issue_says_what_became_of_it_once_and_its_opening_says_the_rest(rolled_back, settings, api):
    written: list[str] = []
    opened = open_incident(rolled_back, api=api, settings=settings, now=NOW, open_issue=lambda *_: ISSUE)
    assert issue_comment(opened) == "", "what happened before is in the issue's own text"
    for status in ("updated", "resolved", "resolved"):
        state = update(
            rolled_back,
            status,
            settings,
            api,
            write_issue=lambda now: written.append(issue_comment(now)),
        )
    assert [text.partition(",")[0] for text in written] == ["**updated** by ada", "**resolved** by ada"]
    assert written[0].endswith("with status resolved.")
    assert kinds(state)[3:] == ["updated", "communicated", "resolved", "communicated"]
    assert state.issue_url == ISSUE
    assert state.events[-1].words == "Its issue says so and is closed."


def test_a_forge_that_is_away_changes_nothing_and_the_next_call_catches_up(rolled_back, settings, caplog):
    def dead(state: IncidentState) -> None:
        raise ConnectionError("nobody listens")

    open_incident(rolled_back, api=None, settings=settings, now=NOW, open_issue=lambda *_: ISSUE)
    update(rolled_back, "updated", settings, write_issue=dead)
    resolved = update(rolled_back, "resolved", settings, write_issue=dead)
    assert kinds(resolved)[-2:] == ["updated", "resolved"]
    assert f"the issue {ISSUE} does not say that it is resolved" in caplog.text
    written: list[str] = []
    update(rolled_back, "resolved", settings, write_issue=lambda now: written.append(issue_comment(now)))
    (text,) = written
    assert "**updated** by ada" in text
    assert "**resolved** by ada" in text


@pytest.mark.parametrize("url", ["", "https://forge/team/web/issues/new"], ids=["no issue", "no number"])
def test_without_an_issue_or_its_number_nothing_is_written(rolled_back, settings, url):
    written: list[IncidentState] = []
    issue = (lambda *_: url) if url else None
    open_incident(rolled_back, api=None, settings=settings, now=NOW, open_issue=issue)
    state = update(rolled_back, "resolved", settings, write_issue=written.append)
    assert state.status == "resolved"
    assert written == []


def test_what_is_resolved_cannot_be_updated_and_says_so(rolled_back, settings):
    open_incident(rolled_back, api=None, settings=settings, now=NOW)
    resolved = update(rolled_back, "resolved", settings)
    with pytest.raises(
        IncidentError, match=r"is resolved and cannot be updated any more\. Nothing was noted"
    ):
        update(rolled_back, "updated", settings)
    told: list[IncidentState] = []
    assert update(rolled_back, "resolved", settings, tell=told.append) == resolved
    assert told == []


def test_an_incident_that_nobody_knows_is_refused_and_leaves_no_directory(rolled_back, settings, api):
    with pytest.raises(IncidentError, match="There is no incident of elsewhere"):
        update_incident(
            "elsewhere", status="resolved", words="over", by="ada", now=NOW, settings=settings, api=api
        )
    assert not (settings.journal_dir / "elsewhere").exists()


def test_what_people_have_written_in_a_post_mortem_is_never_lost(failed, settings, caplog):
    open_incident(failed, api=None, settings=settings, now=NOW)
    directory = settings.journal_dir / failed.opened.deployment
    page = directory / "post-mortem.md"
    page.write_text(page.read_text().replace("**For people to fill in.**", "The cache was cold.", 1))
    edited = page.read_text()
    update(failed, "resolved", settings)
    assert page.read_text() == edited
    assert "when the incident was resolved" in (directory / "post-mortem.new.md").read_text()
    assert "people have written in the post-mortem" in caplog.text


def test_a_draft_that_nobody_has_touched_is_replaced(failed, settings):
    open_incident(failed, api=None, settings=settings, now=NOW)
    update(failed, "resolved", settings)
    directory = settings.journal_dir / failed.opened.deployment
    assert "when the incident was resolved" in (directory / "post-mortem.md").read_text()
    assert sorted(path.name for path in directory.glob("post-mortem*")) == ["post-mortem.md"]


def test_another_host_goes_on_with_an_incident_by_what_prefect_shows(failed, settings, api, tmp_path):
    mirror = Mirror(
        api, failed.opened.deployment, flow_run_id=failed.opened.flow_run_id, entries=failed.entries
    )
    mirror.flush()
    opened_here = open_incident(failed, api=api, settings=settings, now=NOW)
    elsewhere = settings_in(tmp_path / "other-host")
    there = update(failed, "mitigated", elsewhere, api)
    assert there.events[: len(opened_here.events)] == opened_here.events
    resolved = update(failed, "resolved", settings, api)
    assert kinds(resolved) == ["opened", "mitigated", "resolved"]
    assert (settings.journal_dir / failed.opened.deployment / "post-mortem.md").exists()


def test_a_line_that_a_crash_has_torn_is_replaced_by_the_next(rolled_back, settings):
    state = open_incident(rolled_back, api=None, settings=settings, now=NOW)
    path = IncidentFile(settings.journal_dir, rolled_back.opened.deployment).path
    with path.open("ab") as file:
        file.write(b'{"event": "upda')
    assert open_incident(rolled_back, api=None, settings=settings, now=NOW) == state
    assert kinds(update(rolled_back, "updated", settings)) == ["opened", "mitigated", "updated"]
    assert path.read_bytes().count(b"\n") == 3
