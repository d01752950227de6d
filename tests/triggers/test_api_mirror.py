"""What the mirror tells: of runs that are forgotten, of journals by another version, of many."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterator

import httpx
import pytest

from lab.prefect_server import PrefectServer
from rules.entries import DeploymentState, Moved, Opened
from rules.fleet import Fleet
from rules.journal import JournalView, view
from tasks.journal import Mirror, mirror_key
from tasks.prefect_api import PrefectApi
from tasks.report import publish_record
from tasks.settings import Settings
from tests.triggers.test_api_progress import AT
from triggers.api import DeployApi, OtherVersionError, UnknownError


@pytest.fixture
def prefect(prefect_api: PrefectServer) -> Iterator[PrefectApi]:
    """A connection of one who deploys."""
    with PrefectApi(Settings()) as connection:
        yield connection


@pytest.fixture
def api(prefect_api: PrefectServer) -> Iterator[DeployApi]:
    with DeployApi() as connection:
        yield connection


def mirrored(prefect: PrefectApi, name: str, *states: DeploymentState, run: str = "") -> JournalView:
    """Mirror a deployment in the last of these states, by a run that Prefect does not know."""
    run = run or str(uuid.uuid4())
    fleet = Fleet(application="web", instances=())
    opened = Opened(
        at=AT,
        deployment=name,
        target="application-web",
        flow_run_id=run,
        host="here",
        fleet=fleet,
        summary="",
    )
    moves = [Moved(at=AT, state=state, reason=f"why {state}", by="flow") for state in states]
    Mirror(prefect, name, flow_run_id=run, entries=[opened, *moves]).flush()
    return view([opened, *moves])


def test_a_deployment_whose_run_prefect_has_forgotten_is_still_told(
    prefect: PrefectApi, api: DeployApi
) -> None:
    name = f"web-{secrets.token_hex(4)}"
    journal = mirrored(prefect, name, "rolling_back", "rolled_back")
    found = api.find(name)
    assert (found.journal, found.run_state, found.is_over) == (journal, "", True)
    assert api.find(name[:-1]) == found
    with pytest.raises(UnknownError):
        api.look(found.flow_run_id)


def test_a_beginning_that_several_share_is_refused_with_their_names(
    prefect: PrefectApi, api: DeployApi
) -> None:
    name = f"web-{secrets.token_hex(4)}"
    for number in ("1", "2"):
        mirrored(prefect, f"{name}-{number}")
    with pytest.raises(UnknownError, match=f"several begin like that: {name}-1, {name}-2"):
        api.find(name)


def test_a_name_is_taken_literally_and_not_as_a_pattern(prefect: PrefectApi, api: DeployApi) -> None:
    name = f"web-{secrets.token_hex(4)}"
    mirrored(prefect, name)
    for pattern in (f"{name[:-2]}__", f"{name[:-2]}%", "%%%%"):
        with pytest.raises(UnknownError, match="is called"):
            api.find(pattern)


def test_history_has_what_is_under_way_and_what_has_ended_once_each(
    prefect: PrefectApi, api: DeployApi
) -> None:
    mark = secrets.token_hex(4)
    mirrored(prefect, f"web-{mark}-runs")
    publish_record(prefect, mirrored(prefect, f"web-{mark}-ended", "promoted"))
    records = [record for record in api.history(limit=1000) if mark in record.deployment]
    assert sorted((record.deployment, record.state) for record in records) == [
        (f"web-{mark}-ended", "promoted"),
        (f"web-{mark}-runs", "running"),
    ]
    assert {record.state for record in api.history(state="promoted")} == {"promoted"}
    assert len(api.history(limit=1)) == 1


def test_a_journal_of_another_version_is_told_and_keeps_nothing_else_from_being_seen(
    prefect: PrefectApi, api: DeployApi, prefect_server: PrefectServer
) -> None:
    mark = secrets.token_hex(4)
    mirrored(prefect, f"web-{mark}")
    newer = {
        "key": mirror_key(f"newer-{mark}"),
        "type": "markdown",
        "data": "",
        "metadata_": {"first": "0", "token": "", "lines-00000": '{"entry": "opened", "of": "tomorrow"}\n'},
    }
    row = httpx.post(f"{prefect_server.api_url}/artifacts/", json=newer, timeout=30).raise_for_status().json()
    try:
        with pytest.raises(OtherVersionError, match=f"journal of newer-{mark} .* Use the version"):
            api.find(f"newer-{mark}")
        names = [record.deployment for record in api.history(limit=1000)]
        assert f"web-{mark}" in names
        assert f"newer-{mark}" not in names
    finally:
        httpx.delete(f"{prefect_server.api_url}/artifacts/{row['id']}", timeout=30).raise_for_status()
