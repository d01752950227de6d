"""The command line drives real deployments, and its exit code, its words and its JSON tell how they ended."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from lab.ports import LOCALHOST, free_port, give_back
from lab.prefect_server import PrefectServer
from lab.processes import Process, clean_environment, start, wait_until
from lab.releases import GOOD, Behaviour
from rules.strategy import Canary, CanaryLimits, InPlace, Strategy, Watching
from tests.flows.caller import Caller
from tests.flows.site import ENDLESS, PATIENCE_S, Site
from triggers.api import DeployApi, Exit
from triggers.cli import app

SOVEREIGN = (sys.executable, "-m", "triggers.cli")
STRICT = Watching(tick_s=0.2, deadline_s=60, limits=CanaryLimits(min_observation_s=1))
#: Of all processes of a test session one starts the server and its worker.
with_server = pytest.mark.xdist_group("ways-in")
ESCAPE = "\x1b"


def sovereign(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
    """Run a command as a script does; return its exit code, standard output and standard error."""
    done = CliRunner().invoke(app, list(arguments), input=stdin)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def request_file(
    directory: Path, site: Site, strategy: Strategy, *, release: str = "2.0.0", behaviour: Behaviour = GOOD
) -> str:
    """Write what a person would deploy; return its path."""
    change = site.change(release, behaviour).model_dump(mode="json")
    path = directory / f"{release}.yaml"
    path.write_text(yaml.safe_dump({"change": change, "strategy": strategy.model_dump(mode="json")}))
    return str(path)


def environment(caller: Caller, directory: Path) -> dict[str, str]:
    return clean_environment(directory, {**caller.site.server.environment(), "TERM": "xterm-256color"})


@with_server
def test_a_plan_shows_each_way_back_and_changes_nothing(caller: Caller, tmp_path: Path) -> None:
    site = caller.site
    file = request_file(tmp_path, site, InPlace(instance="blue-1"))
    code, out, _ = sovereign("plan", file, "--json")
    shown = json.loads(out)
    assert (code, shown["exit_code"], shown["blocked"], shown["blocking"]) == (0, 0, False, [])
    page, run = shown["page"], shown["flow_run_id"]
    with DeployApi() as api:
        ended = api.ended(run)
        assert (ended.exit_code, ended.state, ended.record) == (Exit.GOOD, "finished", None)
        assert api.find(run[:8]).flow_run_id == run
    assert f"# application-{site.application.name}: release 2.0.0, in_place" in page
    assert "blue-1: link to 1.0.0, 1.0.0 running" in page
    assert site.application.observed() == site.before


@with_server
def test_a_deployment_is_promoted_listed_shown_and_taken_back(caller: Caller, tmp_path: Path) -> None:
    site = caller.site
    file = request_file(tmp_path, site, InPlace(instance="blue-1"))
    key = str(uuid.uuid4())  # a test that is run again is another pipeline
    code, out, told = sovereign("deploy", file, "--key", key, "--json")
    ended = json.loads(out)
    assert (code, ended["exit_code"], ended["state"]) == (0, 0, "promoted")
    assert ended["record"]["release"] == "2.0.0"
    assert "step 1: blue-1: stage 2.0.0" in told
    name = ended["deployment"]

    again = json.loads(sovereign("deploy", file, "--key", key, "--json", "--no-wait")[1])
    assert (again["flow_run_id"], again["is_new"]) == (ended["flow_run_id"], False)

    listed = json.loads(sovereign("history", "--component", "application", "--json")[1])
    assert listed["deployments"][0]["deployment"] == name
    assert name in sovereign("history")[1]

    code, shown, _ = sovereign("show", name, "--timeline")
    assert code == 0
    assert " PROMOTED " in shown
    assert re.search(r"\dZ  promoted by flow: Every step was done", shown)
    assert ESCAPE not in shown
    assert json.loads(sovereign("show", name[:-2], "--json")[1])["journal"][0]["entry"] == "opened"

    code, out, _ = sovereign("rollback", name, "--reason", "second thoughts", "--json")
    assert (code, json.loads(out)["state"]) == (0, "rolled_back")
    assert site.application.observed() == site.before


@with_server
def test_a_bad_release_is_seen_to_be_taken_back_on_a_terminal_and_exits_with_3(
    caller: Caller, tmp_path: Path
) -> None:
    site = caller.site
    canary = Canary(steps_percent=(50, 100), watch=STRICT)
    file = request_file(tmp_path, site, canary, release="3.0.0", behaviour=Behaviour(error_ratio=0.4))

    code, seen = on_a_terminal(("deploy", file, "--yes"), environment(caller, tmp_path))
    assert code == 3
    screen, _, left = seen.rpartition(f"{ESCAPE}[?1049l")  # where the other screen was left
    assert "50 %" in screen
    assert "watch green at 50 %" in screen
    told = " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", left).split())
    assert " ROLLED BACK " in told
    assert "verified to be as before" in told
    assert re.search(r"watch green at 50 %: FAIL: .*errors in \d+ requests", told)
    assert "Next: mend the release; what was seen: sovereign show" in told
    with DeployApi() as api:
        ended = api.ended(api.history(component="application")[0].deployment)
        assert (ended.exit_code, ended.state) == (Exit.ROLLED_BACK, "rolled_back")
        assert ended.record
        assert ended.record.reason == ended.reason
        assert "FAIL" in api.page(ended.flow_run_id, "decisions")
    assert told.count(ended.reason) == 1
    assert site.application.observed() == site.before


@with_server
def test_who_stops_watching_stops_nothing_and_an_abort_takes_it_back(caller: Caller, tmp_path: Path) -> None:
    site = caller.site
    file = request_file(tmp_path, site, ENDLESS, release="4.0.0")
    code, out, _ = sovereign("deploy", "-", "--no-wait", stdin=Path(file).read_text())
    assert code == 0
    run = out.split()[2]
    watching = start(
        "watch", (*SOVEREIGN, "watch", run[:8]), log=tmp_path / "watch.log", env=environment(caller, tmp_path)
    )
    caller.begins_to_be(run, "RUNNING")
    caller.halfway(run, "4.0.0")
    wait_for_words(watching, "send 50 % of traffic to green")
    watching.send(signal.SIGINT)
    wait_until(lambda: not watching.is_alive(), timeout_s=PATIENCE_S, what="the watch to end")
    told = Path(watching.log).read_text()
    assert "Stopped watching. The deployment goes on" in told
    assert f"sovereign abort {run[:8]} --by NAME" in told
    assert ESCAPE not in told

    assert sovereign("watch", run, "--timeout", "0.1")[0] == 7
    name = caller.view(run).opened.deployment
    assert caller.view(run).state == "running"
    said = sovereign("abort", name, "--by", "Ada", "--reason", "users complain")
    assert said[0] == 0
    assert f"{name} is told to be aborted" in said[1]
    code, out, told = sovereign("watch", name)
    assert code == 3
    assert "taken back" in out
    assert "Aborted by Ada: users complain" in told
    assert "  State: Verified to be as before" in told
    assert "  Next:  mend the release" in told
    assert site.application.observed() == site.before


def test_a_request_that_makes_no_sense_exits_with_2_in_words_and_in_json(tmp_path: Path) -> None:
    path = tmp_path / "web.yaml"
    path.write_text("change: {component: application, application: web}\nstrategy: {strategy: canary}\n")
    code, out, told = sovereign("deploy", str(path))
    assert (code, out) == (2, "")
    assert "change.release: Field required" in told
    assert "  State: Nothing was changed by this command." in told
    code, out, _ = sovereign("deploy", str(path), "--json")
    assert code == json.loads(out)["exit_code"] == 2
    assert "change.release" in json.loads(out)["error"]["happened"]


@with_server
def test_what_prefect_does_not_know_exits_with_2(prefect_api: PrefectServer) -> None:
    code, _, told = sovereign("watch", "deadbeef")
    assert code == 2
    assert "deadbeef" in told
    assert sovereign("rollback", "nowhere-1", "--reason", "because")[0] == 2


def test_an_api_that_is_away_exits_with_8_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings  # noqa: PLC0415 - see tests/conftest.py

    monkeypatch.setenv("SOVEREIGN_API_PATIENCE_S", "0.2")
    artefact = {"path": "/srv/web.tar.gz", "sha256": "a" * 64}
    fields: dict[str, Any] = {"application": "web", "release": "2.0.0", "artefact": artefact}
    path = tmp_path / "web.json"
    path.write_text(json.dumps({"change": fields, "strategy": {"strategy": "canary"}}))
    port = free_port()
    with temporary_settings({PREFECT_API_URL: f"http://{LOCALHOST}:{port}/api"}):
        code, _, told = sovereign("deploy", str(path), "--key", "pipeline-8")
        of_recover = sovereign("recover")
        of_history = sovereign("history")
    give_back(port)
    assert code == of_recover[0] == of_history[0] == 8
    assert "It is not known whether the request arrived." in told
    assert "--key pipeline-8: it starts at most one run" in told
    assert "It is not known whether the request arrived." in of_recover[2]
    assert "repeat the command: asked twice is asked once" in of_recover[2]
    assert "Nothing was changed by this command." in of_history[2]
    with temporary_settings({PREFECT_API_URL: None}):
        code, _, told = sovereign("deploy", str(path), "--key", "pipeline-8")
    assert code == 8
    assert "PREFECT_API_URL is not set" in told
    assert "Nothing was changed by this command." in told


def test_help_comes_without_prefect_and_has_examples(tmp_path: Path) -> None:
    shown = subprocess.run(
        (sys.executable, "-X", "importtime", *SOVEREIGN[1:], "deploy", "--help"),
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=clean_environment(tmp_path, {}),
    )
    assert "  Examples\n    sovereign deploy web.yaml\n" in shown.stdout
    imported = {line.split("|")[-1].strip() for line in shown.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"prefect", "httpx", "rules", "rules.change", "rich.live"}


def test_no_command_says_yes_for_a_person_who_is_not_named() -> None:
    code, _, told = sovereign("approve", "1a2b3c4d")
    assert code == 2
    assert "--by" in told


# --- a terminal ------------------------------------------------------------------------------------


def on_a_terminal(arguments: tuple[str, ...], env: dict[str, str]) -> tuple[int, str]:
    """Run a command on a terminal of 80 columns and 24 lines; return its exit code and all it has drawn."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    quiet = {name: value for name, value in env.items() if name not in {"CI", "NO_COLOR", "COLUMNS", "LINES"}}
    child = subprocess.Popen(
        (*SOVEREIGN, *arguments),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=quiet,
        start_new_session=True,
    )
    os.close(theirs)
    seen = bytearray()
    try:
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # EIO: nobody has it open any more
                break
            if not piece:
                break
            seen += piece
        return child.wait(timeout=PATIENCE_S), seen.decode()
    finally:
        child.kill()
        child.wait()
        os.close(ours)


def wait_for_words(process: Process, words: str) -> None:
    log = Path(process.log)
    wait_until(lambda: words in log.read_text(), timeout_s=PATIENCE_S, what=words, process=process)
