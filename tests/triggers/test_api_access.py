"""Who may call, what a caller hears who may not, and requests whose answers were lost."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from lab.postgres import Postgres
from lab.prefect_server import DRIVER, TEMPLATE, PrefectServer
from lab.processes import clean_environment
from tasks.settings import Settings
from tests.requirements import need
from tests.triggers.busy import BusyWay
from tests.triggers.shell import Shell
from tests.triggers.test_api_page import PAGE, blocks
from triggers.api import ApiUnavailableError, BadRequestError, DeployApi, NotAllowedError, UnknownError

PASSWORD = secrets.token_hex(8)
USER = "ada"
IMPATIENT = Settings(api_patience_s=0.5)
NOBODY = "00000000-0000-4000-8000-000000000000"


class GuardedServer(PrefectServer):
    """A Prefect server that wants a password."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "PREFECT_SERVER_API_AUTH_STRING": f"{USER}:{PASSWORD}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[GuardedServer]:
    """A server with a password, that knows one deployment and has no worker."""
    postgres.create_database("guarded", template=TEMPLATE)
    url = postgres.url("guarded", driver=DRIVER)
    with GuardedServer(tmp_path_factory.mktemp("guarded"), url, migrated=True) as running:
        with httpx.Client(base_url=f"{running.api_url}/", auth=(USER, PASSWORD), timeout=30) as http:
            flow = http.post("flows/", json={"name": "deploy"}).raise_for_status().json()
            wanted = {"name": "deploy", "flow_id": flow["id"], "entrypoint": "flows.deploy.deploy"}
            http.post("deployments/", json=wanted).raise_for_status()
        yield running


@contextmanager
def calling(url: str, auth: str | None = f"{USER}:{PASSWORD}") -> Iterator[DeployApi]:
    """A caller with these settings."""
    with (
        temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: auth}),
        DeployApi(IMPATIENT) as api,
    ):
        yield api


def test_with_the_password_a_run_is_started_and_seen(server: GuardedServer) -> None:
    with calling(server.api_url) as api:
        run = api.start("deploy/deploy", {"change": 1}, run_name="by password", tags=["from-test"])
        seen = api.look(run.flow_run_id)
        assert (seen.run_state, seen.flow, seen.deployment) == ("SCHEDULED", "deploy", "")
        answer = httpx.get(f"{server.api_url}/flow_runs/{run.flow_run_id}", auth=(USER, PASSWORD)).json()
        assert (answer["name"], answer["tags"]) == ("by password", ["from-test"])
        api.cancel(run.flow_run_id)
        api.cancel(run.flow_run_id)
        assert api.look(run.flow_run_id).run_state == "CANCELLED"
        assert api.ended(run.flow_run_id).exit_code == 6


@pytest.mark.parametrize("auth", [None, f"{USER}:wrong-{PASSWORD}"], ids=["none", "wrong"])
def test_without_the_right_password_nothing_is_started_and_none_is_repeated(
    server: GuardedServer, auth: str | None
) -> None:
    with calling(server.api_url, auth) as api, pytest.raises(NotAllowedError) as refused:
        api.start("deploy/deploy", {})
    assert "PREFECT_API_AUTH_STRING" in str(refused.value)
    assert PASSWORD not in repr(refused.value)


def test_a_password_in_the_address_works_and_is_in_no_word_of_ours(
    server: GuardedServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    url = server.api_url.replace("//", f"//{USER}:{PASSWORD}@")
    with calling(url, None) as api:
        run = api.start("deploy/deploy", {})
        assert api.look(run.flow_run_id).run_state == "SCHEDULED"
        with pytest.raises(UnknownError) as unknown:
            api.look(NOBODY)
    with (
        calling(url.replace(str(server.port), "1"), None) as away,
        pytest.raises(ApiUnavailableError) as down,
    ):
        away.recover()
    for words in (repr(unknown.value), repr(down.value), caplog.text):
        assert PASSWORD not in words


def test_what_is_not_there_is_named_with_what_to_do(server: GuardedServer) -> None:
    with calling(server.api_url) as api:
        with pytest.raises(
            UnknownError, match=r"no deployment 'roll-back/roll-back'.*prefect --no-prompt deploy"
        ):
            api.roll_back("web-1", reason="second thoughts")
        with pytest.raises(UnknownError, match=f"no flow run {NOBODY}"):
            api.cancel(NOBODY)
        with pytest.raises(UnknownError, match=f"no flow run {NOBODY}"):
            api.approve(NOBODY, approved=True, by="Ada")
        with pytest.raises(UnknownError, match="no flow run 12"):
            api.look("12")
        with pytest.raises(UnknownError, match="is called 'web-1-0-0-ffffffff'"):
            api.find("web-1-0-0-ffffffff")
        assert api.history() == ()
        assert api.page(NOBODY, "dry-run") == ""


def test_a_request_that_prefect_cannot_read_is_refused_with_field_and_reason(server: GuardedServer) -> None:
    with (
        calling(server.api_url) as api,
        pytest.raises(BadRequestError, match=r"tags.0: Input should be a valid string \(HTTP 422"),
    ):
        api.start("deploy/deploy", {}, tags=[{"secret": PASSWORD}])  # type: ignore[list-item]


@pytest.mark.parametrize("key", [None, "pipeline"])
def test_a_request_whose_answers_are_lost_starts_one_run(server: GuardedServer, key: str | None) -> None:
    mark = secrets.token_hex(4)
    key = key and f"{key}-{mark}"
    patient = Settings(api_patience_s=15)
    with BusyWay(server.api_url, ["503", "cut", "503"]) as way:
        settings = {PREFECT_API_URL: way.api_url, PREFECT_API_AUTH_STRING: f"{USER}:{PASSWORD}"}
        with temporary_settings(settings), DeployApi(patient) as api:
            run = api.start("deploy/deploy", {}, key=key, tags=[mark])
    wanted = {"flow_runs": {"tags": {"all_": [mark]}}}
    found = httpx.post(f"{server.api_url}/flow_runs/filter", json=wanted, auth=(USER, PASSWORD)).json()
    assert [one["id"] for one in found] == [run.flow_run_id]
    assert run.is_new is (key is None)  # of a key that was given nobody can say who used it first


def test_a_key_that_belongs_to_another_request_is_refused(server: GuardedServer) -> None:
    key = secrets.token_hex(4)
    with calling(server.api_url) as api:
        first = api.start("deploy/deploy", {"change": "1.0", "strategy": "x"}, key=key)
        again = api.start("deploy/deploy", {"change": "1.0", "strategy": "x"}, key=key)
        assert (first.is_new, again.is_new) == (True, False)
        assert first.flow_run_id == again.flow_run_id
        with pytest.raises(BadRequestError, match=f"{first.flow_run_id} with another change"):
            api.start("deploy/deploy", {"change": "2.0", "strategy": "x"}, key=key)


def test_the_key_of_a_dry_run_starts_no_deployment_and_is_told(server: GuardedServer) -> None:
    key = secrets.token_hex(4)
    with calling(server.api_url) as api:
        api.start("deploy/deploy", {"change": ("1.0",), "dry_run": True}, key=key)
        assert not api.start("deploy/deploy", {"change": ("1.0",), "dry_run": True}, key=key).is_new
        with pytest.raises(BadRequestError, match="with another dry_run"):
            api.start("deploy/deploy", {"change": ("1.0",)}, key=key)


def test_an_address_that_is_no_api_is_told_as_such(server: GuardedServer) -> None:
    with (
        BusyWay("", []) as way,
        calling(way.api_url) as api,
        pytest.raises(ApiUnavailableError, match=r"gave no JSON.*PREFECT_API_URL .* ends in /api"),
    ):
        api.recover()


def test_the_page_keeps_the_password_out_of_every_command_line(server: GuardedServer, tmp_path) -> None:
    need("curl", package="curl")
    need("jq", package="jq")
    variables = {"PREFECT_API_URL": server.api_url, "PREFECT_API_AUTH_STRING": f"{USER}:{PASSWORD}"}
    with Shell(tmp_path, clean_environment(tmp_path, variables)) as shell:
        shell.run(next(block for heading, block in blocks(PAGE.read_text()) if heading == "Once in a shell"))
        assert shell.run("api deployments/name/deploy/deploy | jq -r .name") == "deploy"
        shell.run("set -x")
        shell.run("echo '{}' | run deploy/deploy")
        shell.run("set +x; rm api.curl; touch api.curl; echo '{}' | run deploy/deploy", fails=True)
        said = shell.errors.read_text()
    assert "curl --config api.curl" in said
    assert "Unauthorized" in said
    assert PASSWORD not in said


def test_without_an_address_it_is_said_which_setting_is_missing() -> None:
    with (
        temporary_settings({PREFECT_API_URL: None}),
        pytest.raises(ApiUnavailableError, match="PREFECT_API_URL"),
    ):
        DeployApi()
