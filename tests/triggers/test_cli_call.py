"""A command tells how a run has ended by what was seen of it, whatever the API does meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import typer
from typer.testing import CliRunner

from lab.prefect_server import PrefectServer
from rules.environment import Environment
from tasks.prefect_api import PrefectApi
from tasks.settings import Settings
from tests.triggers.test_api_mirror import a_run, mirrored
from tests.triggers.test_api_progress import OTHER, progress
from triggers.api import DeployApi
from triggers.cli import app
from triggers.cli_call import calling
from triggers.cli_watch import Silence, report
from triggers.live_text import harmless

#: Of all processes of a test session one starts the server.
with_server = pytest.mark.xdist_group("ways-in")
ESCAPE = "\x1b"
TRICK = f"fine{ESCAPE}[2J{ESCAPE}]0;you{chr(7)} \udcff"


@pytest.fixture
def prefect(prefect_api: PrefectServer) -> Iterator[PrefectApi]:
    with PrefectApi(Settings()) as connection:
        yield connection


@pytest.fixture
def api(prefect_api: PrefectServer) -> Iterator[DeployApi]:
    with DeployApi() as connection:
        yield connection


def sovereign(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def test_a_failed_way_back_is_told_with_the_api_away(capsys: pytest.CaptureFixture[str]) -> None:
    last = progress("FAILED", "rolling_back", "rollback_failed")
    with pytest.raises(typer.Exit) as ended, calling(as_json=True) as call:
        report(call, last)
    said = capsys.readouterr()
    assert ended.value.exit_code == json.loads(said.out)["exit_code"] == 4
    assert "Between two states, and locked" in said.err


def test_a_reason_that_is_read_on_the_same_terminal_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    last = progress("FAILED", "rolling_back", "rolled_back")
    for is_drawn, times in ((True, 0), (False, 1)):
        with pytest.raises(typer.Exit), calling(as_json=False) as call:
            report(call, last, is_drawn=is_drawn)
        assert capsys.readouterr().err.count("why rolling_back") == times


def test_a_reason_is_no_command_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    last = progress("COMPLETED", "promoted", "rolling_back", "rolled_back", run=OTHER, why=TRICK)
    with calling(as_json=False) as call:
        report(call, last)
    said = capsys.readouterr().out
    assert said.startswith("web-2-0-0-00000000 is rolled back. fine")
    assert said.removesuffix("\n").isprintable()
    assert harmless("a  b") == "a  b"  # tables keep their columns


def test_that_the_api_is_away_is_said_at_once_each_minute_and_when_it_is_over() -> None:
    told: list[str] = []
    silence = Silence(told.append)
    for away_s in (0.0, 15.0, 30.0, 76.0, 0.0, 0.0):
        silence.hear(away_s)
    assert [words.partition("  ")[2][:47] for words in told] == [
        "Prefect's API has not answered for 0:15; what i",
        "Prefect's API has not answered for 1:16; what i",
        "Prefect's API answers again",
    ]


@with_server
def test_a_word_to_a_run_that_has_no_deployment_is_refused_and_an_abort_cancels_it(
    prefect_api: PrefectServer,
) -> None:
    run = a_run(prefect_api, "SCHEDULED")
    code, _, told = sovereign("pause", run, "--by", "Ada", "--reason", "just so")
    assert code == 2
    assert f"Flow run {run} has no deployment yet" in told
    assert sovereign("rollback", run, "--reason", "just so")[0] == 2
    code, out, _ = sovereign("abort", run, "--by", "Ada", "--reason", "just so")
    assert code == 0
    assert f"flow run {run} is cancelled" in out


@with_server
def test_an_approval_of_a_release_answers_the_component_that_asks(
    prefect: PrefectApi, api: DeployApi, prefect_api: PrefectServer
) -> None:
    name, asks = f"emily-{datetime.now(UTC):%H%M%S%f}", Environment(approval=True)
    waiting, whole = a_run(prefect_api, "PAUSED"), a_run(prefect_api, "RUNNING")
    mirrored(prefect, f"{name}-1-web", run=waiting, environment=asks)
    mirrored(prefect, name, run=whole, part=f"{name}-1-web", environment=asks)
    assert f"sovereign approve {waiting[:8]} --by NAME" in sovereign("show", name)[1]
    code, out, told = sovereign("approve", name, "--by", "Ada")
    assert (code, told) == (0, "")
    assert out == f"flow run {waiting} is approved by Ada.\n"
    assert not api.look(whole).waits_for_approval
