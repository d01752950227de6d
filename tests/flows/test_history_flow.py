"""A person asks what was deployed where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prefect.exceptions import ParameterTypeError

from flows.history import history
from lab.prefect_server import PrefectServer
from rules.entries import Moved, Opened
from rules.environment import Environment, Stage
from rules.record import record_of
from tasks.journal import JournalFile
from tasks.prefect_api import PrefectApi
from tasks.report import publish_record
from tasks.settings import Settings
from tests.tasks.deploying import opening, settings_in


@pytest.fixture
def settings(prefect_api: PrefectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("SOVEREIGN_JOURNAL_DIR", str(tmp_path / "journal"))
    monkeypatch.setenv("SOVEREIGN_API_PATIENCE_UNDOING_S", "0.5")
    return Settings()


def written(opened: Opened, settings: Settings, state: str) -> JournalFile:
    journal = JournalFile(settings.journal_dir, opened.deployment)
    journal.directory.mkdir(parents=True)
    journal.append(opened)
    journal.append(Moved(at=opened.at, state=state, reason="as it should be", by="flow"))
    return journal


def test_answers_by_component_environment_and_state_for_all_hosts(settings: Settings, tmp_path: Path) -> None:
    # a name of its own: the server is shared with other tests
    where = Environment(name=f"env-{tmp_path.name[-20:].replace('_', '-').strip('-')}", stage=Stage.STAGING)
    here = written(opening(environment=where), settings, "promoted")
    there = written(opening(environment=where), settings_in(tmp_path / "other-host"), "blocked")
    with PrefectApi(settings) as api:
        publish_record(api, there.read())
    theirs, ours = record_of(there.read()), record_of(here.read())

    assert history(environment=where.name) == [theirs, ours]
    assert history(environment=where.name, limit=1) == [theirs]
    assert history(environment=where.name, component="application", state="promoted") == [ours]
    assert history(environment=where.name, component="schema") == []
    assert history(environment=where.name, state="blocked") == [theirs]
    with PrefectApi(settings) as api:
        table = json.loads(api.request("GET", "artifacts/history/latest").json()["data"])
    (row,) = table
    assert (row["deployment"], row["state"], row["why"]) == (theirs.deployment, "blocked", "as it should be")


@pytest.mark.parametrize("wrong", [{"state": "fine"}, {"limit": 0}])
def test_what_cannot_be_is_refused(settings: Settings, wrong: dict) -> None:
    with pytest.raises(ParameterTypeError, match=next(iter(wrong))):
        history(**wrong)
