"""A person says in Prefect what has become of an incident."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from prefect.exceptions import ParameterTypeError

from flows.incident import update_incident
from lab.forgejo import LabForgejo
from lab.prefect_server import PrefectServer
from rules.environment import Environment
from rules.journal import JournalView
from tasks.aftermath import after_end
from tasks.incident import IncidentError, open_incident
from tasks.journal import JournalFile
from tasks.prefect_api import PrefectApi
from tasks.settings import Settings
from tests.rules.ended import ended
from tests.tasks.deploying import opening


@pytest.fixture
def failed(prefect_api: PrefectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JournalView:
    """A deployment of this host whose rollback failed, with its incident open."""
    monkeypatch.setenv("SOVEREIGN_JOURNAL_DIR", str(tmp_path / "journal"))
    opened, settings = opening(), Settings()
    journal = JournalFile(settings.journal_dir, opened.deployment)
    journal.directory.mkdir(parents=True)
    for entry in (opened, *ended((), "rollback_failed").entries[1:]):
        journal.append(entry)
    with PrefectApi(settings) as api:
        open_incident(journal.read(), api=api, settings=settings, now=datetime.now(UTC))
    return journal.read()


def shown(key: str) -> str:
    with PrefectApi(Settings()) as api:
        return str(api.request("GET", f"artifacts/{key}/latest").json()["data"])


def test_an_incident_is_taken_to_its_end_and_its_post_mortem_is_there(failed: JournalView) -> None:
    deployment = failed.opened.deployment
    for status in ("updated", "mitigated", "resolved"):
        state = update_incident(deployment, status=status, words=f"{status}: disk freed", by="ada")
    assert [event.event for event in state.events] == ["opened", "updated", "mitigated", "resolved"]
    page = shown(f"incident-{deployment}")
    assert "| status | **resolved** |" in page
    assert "| mitigated | ada | mitigated: disk freed |" in page
    assert "**resolved** by ada: resolved: disk freed" in shown(f"post-mortem-{deployment}")
    with pytest.raises(IncidentError, match="is resolved and cannot be updated"):
        update_incident(deployment, status="updated", words="one more thing", by="ada")


def test_the_issue_of_an_incident_is_closed_by_the_flow_that_resolves_it(
    prefect_api: PrefectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOVEREIGN_JOURNAL_DIR", str(tmp_path / "journal"))
    settings = Settings()
    opened = opening(environment=Environment(name="with-forge", forgejo="incident-forge"))
    journal = JournalFile(settings.journal_dir, opened.deployment)
    journal.directory.mkdir(parents=True)
    for entry in (opened, *ended((), "rolled_back").entries[1:]):
        journal.append(entry)
    with LabForgejo() as forge:
        forge.block().save("incident-forge", overwrite=True)
        with PrefectApi(settings) as api:
            after_end(journal.read(), api=api, settings=settings)
        (issue,) = forge.issues
        update_incident(opened.deployment, status="resolved", words="disk freed", by="ada")
    assert issue.state == "closed"
    assert "**resolved** by ada" in issue.comments[0]
    assert "Its issue says so and is closed." in shown(f"incident-{opened.deployment}")


def test_an_unknown_deployment_is_refused(failed: JournalView) -> None:
    with pytest.raises(IncidentError, match="There is no incident of web-9"):
        update_incident("web-9", status="resolved", words="all over", by="ada")


@pytest.mark.parametrize("wrong", [{"words": ""}, {"by": ""}, {"status": "opened"}])
def test_what_says_nothing_is_refused_before_anything_is_noted(failed: JournalView, wrong: dict) -> None:
    said = {"status": "updated", "words": "disk freed", "by": "ada", **wrong}
    with pytest.raises(ParameterTypeError, match=next(iter(wrong))):
        update_incident(failed.opened.deployment, **said)
    assert "| status | **open** |" in shown(f"incident-{failed.opened.deployment}")
