"""The issue that was opened for an incident follows it to its end, in the repository it was opened in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.forgejo import LabForgejo
from rules.incident import IncidentState
from rules.journal import JournalView
from tasks.aftermath import after_end, issue_writer
from tasks.incident import IncidentFile, update_incident
from tasks.journal import JournalFile
from tasks.services import Services
from tests.rules.ended import ended
from tests.tasks.test_incident import NOW


@pytest.fixture
def forge() -> Iterator[LabForgejo]:
    with LabForgejo() as running:
        yield running


@pytest.fixture
def failed(opened, settings, forge) -> JournalView:
    """A deployment that was taken back, with its incident and the issue of that."""
    journal = JournalFile(settings.journal_dir, opened.deployment)
    journal.directory.mkdir(parents=True)
    for entry in (opened, *ended((), "rolled_back").entries[1:]):
        journal.append(entry)
    after_end(journal.read(), api=None, settings=settings, services=Services(forgejo=forge.block()))
    assert [issue.state for issue in forge.issues] == ["open"]
    return journal.read()


def update(view, status, settings, services) -> IncidentState:
    return update_incident(
        view.opened.deployment,
        status=status,
        words=f"it is {status}",
        by="ada",
        now=NOW,
        settings=settings,
        api=None,
        write_issue=issue_writer(services),
    )


def test_its_issue_is_commented_and_closed_when_it_is_resolved(failed, settings, forge):
    (issue,) = forge.issues
    services = Services(forgejo=forge.block())
    update(failed, "updated", settings, services)
    assert issue.state == "open"
    assert ["**updated** by ada" in text for text in issue.comments] == [True]
    state = update(failed, "resolved", settings, services)
    assert issue.state == "closed"
    assert "it is resolved" in issue.comments[1]
    assert len(issue.comments) == 2
    assert IncidentFile(settings.journal_dir, failed.opened.deployment).read() == state


def test_a_forge_that_refuses_changes_nothing_about_the_incident(failed, settings, forge, caplog):
    (issue,) = forge.issues
    forge.failing = [500]
    state = update(failed, "resolved", settings, Services(forgejo=forge.block()))
    assert state.status == "resolved"
    assert (issue.state, issue.comments) == ("open", [])
    assert "does not say that it is resolved" in caplog.text


def test_an_issue_of_that_number_in_another_repository_is_left_alone(failed, settings, caplog):
    with LabForgejo(repository="other") as other:
        after_end(failed, api=None, settings=settings, services=Services(forgejo=other.block()))
        assert other.issues == [], "it has its issue"
        state = update(failed, "resolved", settings, Services(forgejo=other.block()))
        assert other.seen == []
    assert state.status == "resolved"
    assert "Write there by hand" in caplog.text


def test_without_a_forge_nobody_writes():
    assert issue_writer(Services()) is None
