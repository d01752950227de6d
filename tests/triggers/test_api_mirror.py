"""What the mirror tells: of runs that are forgotten, of journals by another version, of many."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterator

import httpx
import pytest

from lab.prefect_server import PrefectServer
from rules.entries import DeploymentState, Entry, Intent, Moved, Opened
from rules.environment import Environment
from rules.fleet import Fleet
from rules.journal import JournalView, view
from rules.release_actions import TakeBackDeployment
from tasks.journal import Mirror, mirror_key
from tasks.prefect_api import PrefectApi
from tasks.report import publish_record
from tasks.settings import Settings
from tests.triggers.test_api_progress import AT
from triggers.api import DeployApi, OtherVersionError, UnknownError

#: Of all processes of a test session one starts the server.
pytestmark = pytest.mark.xdist_group("ways-in")


@pytest.fixture
def prefect(prefect_api: PrefectServer) -> Iterator[PrefectApi]:
    """A connection of one who deploys."""
    with PrefectApi(Settings()) as connection:
        yield connection


@pytest.fixture
def api(prefect_api: PrefectServer) -> Iterator[DeployApi]:
    with DeployApi() as connection:
        yield connection


def mirrored(
    prefect: PrefectApi,
    name: str,
    *states: DeploymentState,
    run: str = "",
    part: str = "",
    environment: Environment | None = None,
) -> JournalView:
    """Mirror a deployment in the last of these states; a release has begun with its `part`."""
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
        environment=environment or Environment(),
    )
    undo = TakeBackDeployment(component="web", deployment=part) if part else None
    begun = [Intent(number=0, title="web", undo=undo)] if undo else []
    moves = [*begun, *_moves(states)]
    Mirror(prefect, name, flow_run_id=run, entries=[opened, *moves]).flush()
    return view([opened, *moves])


def _moves(states: tuple[DeploymentState, ...]) -> list[Entry]:
    return [Moved(at=AT, state=state, reason=f"why {state}", by="flow") for state in states]


def a_run(server: PrefectServer, state: str) -> str:
    """Return the id of a flow run that Prefect has in this state, and that nobody runs."""

    def post(path: str, body: dict[str, object]) -> str:
        answer = httpx.post(f"{server.api_url}/{path}/", json=body, timeout=30)
        return str(answer.raise_for_status().json()["id"])

    flow = post("flows", {"name": "of-no-code"})
    return post("flow_runs", {"flow_id": flow, "state": {"type": state}})


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


def test_the_beginning_of_a_release_means_the_release_and_not_its_components(
    prefect: PrefectApi, api: DeployApi
) -> None:
    name = f"emily-{secrets.token_hex(4)}"
    for one in (name, f"{name}-1-schema", f"{name}-2-web", f"{name}-again"):
        mirrored(prefect, one)
    assert api.find(name[:-1]).deployment == name
    assert api.find(f"{name}-1").deployment == f"{name}-1-schema"


def test_a_way_back_that_was_taken_up_again_is_watched_by_its_own_name(
    prefect: PrefectApi, api: DeployApi, prefect_server: PrefectServer
) -> None:
    name, run = f"web-{secrets.token_hex(4)}", a_run(prefect_server, "FAILED")
    mirrored(prefect, name, "rolling_back", "rollback_failed", run=run)
    mirrored(prefect, f"{name}-again", "rolling_back", "rolled_back", run=run)
    assert [one.state for one in api.watch(run)] == ["rollback_failed"]
    assert [one.state for one in api.watch(name)] == ["rollback_failed"]
    assert [one.state for one in api.watch(f"{name}-again")] == ["rolled_back"]


def test_a_run_is_known_by_its_id_however_that_is_written(
    prefect: PrefectApi, api: DeployApi, prefect_server: PrefectServer
) -> None:
    run = a_run(prefect_server, "FAILED")
    mirrored(prefect, f"web-{secrets.token_hex(4)}", run=run)
    seen = api.look(run.upper())
    assert (seen.flow_run_id, seen.is_own, seen.is_over) == (run, True, False)


def test_a_release_whose_component_waits_for_an_answer_says_which_run_to_answer(
    prefect: PrefectApi, api: DeployApi, prefect_server: PrefectServer
) -> None:
    name, asks = f"emily-{secrets.token_hex(4)}", Environment(approval=True)
    waiting, whole = a_run(prefect_server, "PAUSED"), a_run(prefect_server, "RUNNING")
    mirrored(prefect, f"{name}-1-web", run=waiting, environment=asks)
    mirrored(prefect, name, run=whole, part=f"{name}-1-web", environment=asks)
    seen = api.look(whole)
    assert (seen.state, seen.asked_run, seen.waits_for_approval) == ("running", waiting, True)
    assert not api.look(waiting).asked_run
