"""What the workflow for applications asks for, checks and tells, step by step and without a runner."""

from __future__ import annotations

import importlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pytest

from lab.application import LabApplication
from lab.ports import free_port, give_back
from lab.releases import Behaviour
from rules.backup import BackupTaken
from rules.entries import BackedUp, Intent, Opened
from rules.environment import Environment
from rules.evidence.sources import Evidence
from rules.finding import Finding
from rules.strategy import Canary
from rules.undo import RemoveRelease
from tests.rules.builders import bare_fleet
from triggers.api_request import deploy_request

TREE = Path(__file__).parents[2] / "triggers/forgejo/.forgejo"
COMMIT = "ab" * 20
#: What the runner sets for a run that a person has started.
BY_HAND = {"GITHUB_REF_TYPE": "branch", "GITHUB_REF_NAME": "main", "GITHUB_SHA": COMMIT}


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Iterator[None]:
    sys.path.insert(0, str(TREE))
    yield
    sys.path.remove(str(TREE))


def part(name: str) -> ModuleType:
    """Return a module of the steps: they are no part of our packages, but of the application's repository."""
    return importlib.import_module(f"deploy.{name}")


@pytest.fixture
def template(tmp_path: Path) -> dict:
    """What deploy.json says, of an application whose artefacts lie in a directory of the test."""
    declared = part("asked").declared(TREE / "deploy/deploy.json")
    declared["change"]["artefact"]["path"] = f"{tmp_path}/web-{{release}}.tar.gz"
    declared["evidence_directory"] = f"{tmp_path}/evidence/{{commit}}"
    return declared


def asked(template: dict, **values: str) -> dict:
    return part("asked").asked(template, {**BY_HAND, "SHA256": "0" * 64, **values})


def test_what_the_example_asks_for_is_what_deploy_takes(template):
    found = asked(template, RELEASE="2.1.0")
    request = deploy_request(part("asked").request_of(found))
    assert request.change.release == "2.1.0"
    assert request.change.artefact.path.endswith("/web-2.1.0.tar.gz")
    assert isinstance(request.strategy, Canary)
    assert request.evidence == Evidence(commit=COMMIT)


def test_the_page_shows_the_example_as_it_is():
    page = (TREE.parents[2] / "docs/forgejo.md").read_text()
    shown = page.partition("```json\n")[2].partition("```")[0]
    assert json.loads(shown) == json.loads((TREE / "deploy/deploy.json").read_text())


def test_a_pushed_tag_names_the_release(template):
    assert asked(template, GITHUB_REF_TYPE="tag", GITHUB_REF_NAME="v2.1.0")["change"]["release"] == "2.1.0"


@pytest.mark.parametrize("release", ["", "../up", "2.0 ; rm", "2.0\n", "-f", "{commit}"])
def test_what_is_no_release_is_refused(template, release):
    with pytest.raises(part("asked").AskedWrongError, match="is no release"):
        asked(template, RELEASE=release)


def test_a_branch_names_no_release(template):
    with pytest.raises(part("asked").AskedWrongError, match="is no release"):
        asked(template)


def test_inputs_replace_what_is_declared(template):
    found = asked(
        template,
        RELEASE="2.10",
        ARTEFACT="/srv/other.tar",
        SHA256="1" * 64,
        ENVIRONMENT="staging",
        STRATEGY="rolling",
        HEALTH_URL="http://127.0.0.1:1/",
    )
    # text stays text: neither becomes a number
    assert found["change"]["release"] == "2.10"
    assert found["change"]["artefact"] == {
        "artefact": "archive",
        "path": "/srv/other.tar",
        "sha256": "1" * 64,
    }
    assert (found["environment"], found["strategy"]) == ("staging", {"strategy": "rolling"})
    assert found["health"]["url"] == "http://127.0.0.1:1/"


@pytest.mark.parametrize("chosen", ["", "declared", "canary"])
def test_a_declared_strategy_keeps_its_details(template, chosen):
    template["strategy"] = {"strategy": "canary", "steps_percent": [50, 100]}
    assert asked(template, RELEASE="2", STRATEGY=chosen)["strategy"]["steps_percent"] == [50, 100]


def test_the_checksum_is_read_beside_the_artefact_and_never_computed_from_it(template, tmp_path):
    (tmp_path / "web-2.tar.gz").write_bytes(b"anything")
    with pytest.raises(part("asked").AskedWrongError, match="no checksum of"):
        asked(template, RELEASE="2", SHA256="")
    (tmp_path / "web-2.tar.gz.sha256").write_text(f"{'e' * 64}  web-2.tar.gz\n")
    assert asked(template, RELEASE="2", SHA256="")["change"]["artefact"]["sha256"] == "e" * 64


def test_evidence_that_is_there_is_handed_over(template, tmp_path):
    place = tmp_path / "evidence" / COMMIT
    place.mkdir(parents=True)
    for name in (
        "junit-unit.xml",
        "junit-flows.xml",
        "coverage.json",
        "diagnostics.sarif",
        "changed_files.txt",
    ):
        (place / name).touch()
    template["evidence"] = {"pull_request": 7}
    assert Evidence.model_validate(asked(template, RELEASE="2")["evidence"]) == Evidence(
        commit=COMMIT,
        pull_request=7,
        tests=(f"{place}/junit-flows.xml", f"{place}/junit-unit.xml"),
        diagnostics=(f"{place}/diagnostics.sarif",),
        coverage=f"{place}/coverage.json",
        changed_files=f"{place}/changed_files.txt",
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("{", "cannot be read", id="no JSON"),
        pytest.param("{}", "with a `change`", id="no change"),
        pytest.param('{"change": {}, "stategy": {}}', "nobody reads: stategy", id="misspelt"),
    ],
)
def test_a_deploy_json_that_makes_no_sense_is_refused(tmp_path, text, words):
    (tmp_path / "deploy.json").write_text(text)
    with pytest.raises(part("asked").AskedWrongError, match=words):
        part("asked").declared(tmp_path / "deploy.json")


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabApplication]:
    """An application that is healthy by its own word, and answers users with nothing but errors."""
    faulty = Behaviour(error_ratio=1.0)
    with LabApplication(tmp_path_factory.mktemp("web"), blue=1, green=1, behaviour=faulty) as running:
        yield running


def test_a_healthy_application_in_its_release_is_seen_as_such(web: LabApplication):
    wanted = part("health").Health(url=f"{web.url}health", expect="1.0.0", times=2, every_s=0.05)
    assert part("health").look(wanted).is_healthy


@pytest.mark.parametrize(
    ("path", "expect", "words"),
    [
        pytest.param("health", "1.0", "but not 1.0", id="the beginning of another release"),
        pytest.param("", "", "HTTP 500", id="an error"),
    ],
)
def test_what_is_not_healthy_fails_the_check(web: LabApplication, path, expect, words):
    wanted = part("health").Health(url=f"{web.url}{path}", expect=expect, every_s=0.05, within_s=0.2)
    seen = part("health").look(wanted)
    assert not seen.is_healthy
    assert words in seen.words


def test_nobody_who_answers_is_not_healthy():
    port = free_port()
    try:
        seen = part("health").asked(part("health").Health(url=f"http://127.0.0.1:{port}/"))
    finally:
        give_back(port)
    assert not seen.is_healthy
    assert "no answer" in seen.words


def test_an_answer_that_is_torn_off_is_not_healthy():
    """An application that dies while it answers; an error here would take it back without a reason."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nheal")

        answering = threading.Thread(target=answer)
        answering.start()
        seen = part("health").asked(
            part("health").Health(url=f"http://127.0.0.1:{listening.getsockname()[1]}/")
        )
        answering.join()
    assert not seen.is_healthy
    assert "no answer" in seen.words


@pytest.mark.parametrize(
    ("health", "words"),
    [
        pytest.param({"url": "ftp://web/"}, "neither http nor https", id="another protocol"),
        pytest.param({"url": "http://web/", "times": "5"}, "wants numbers", id="a number in quotes"),
        pytest.param({"url": "http://web/", "within_s": -1}, "wants numbers", id="no time"),
        pytest.param({"url": "http://web/", "expect": 2}, "expects a text", id="a release without quotes"),
        pytest.param({"url": "http://web/", "tmies": 5}, "nobody reads: tmies", id="misspelt"),
    ],
)
def test_a_health_check_that_cannot_be_made_is_refused_before_anything_is_started(health, words):
    with pytest.raises((ValueError, TypeError), match=words):
        part("health").health_of(health)


def test_a_health_that_is_no_object_is_refused(template):
    template["health"] = "http://web/"
    with pytest.raises(part("asked").AskedWrongError, match="must be an object"):
        asked(template, RELEASE="2")


def test_only_the_web_is_asked():
    assert not part("health").asked(part("health").Health(url="file:///etc/hostname")).is_healthy


STARTED = {"request": {"change": {"component": "application", "application": "web", "release": "2"}}}
PROMOTED = {
    **STARTED,
    "ended": {"exit_code": 0, "state": "promoted", "deployment": "web-1", "reason": "done"},
}


@pytest.mark.parametrize(
    ("kept", "state"),
    [
        pytest.param({}, "not started", id="nothing was done"),
        pytest.param({**STARTED, "refused": {"reason": "no"}}, "not started", id="refused"),
        pytest.param(
            {**STARTED, "refused": {"reason": "no answer", "is_known": False}},
            "unknown",
            id="perhaps started",
        ),
        pytest.param({**STARTED, "started": {"flow_run_id": "1"}}, "unknown", id="not watched"),
        pytest.param(
            {**STARTED, "ended": {"exit_code": 3, "state": "rolled_back"}}, "rolled_back", id="rolled back"
        ),
        pytest.param({**STARTED, "ended": {"exit_code": 8}}, "unknown", id="the API is away"),
        pytest.param({**PROMOTED, "health": {"url": "x"}}, "promoted", id="its health check was not made"),
        pytest.param(
            {**PROMOTED, "health_seen": {"is_healthy": False}}, "promoted", id="not healthy, not taken back"
        ),
        pytest.param(
            {**PROMOTED, "health_seen": {"is_healthy": False}, "rolled_back": {"exit_code": 0}},
            "rolled_back",
            id="not healthy, taken back",
        ),
        pytest.param(
            {**PROMOTED, "rolled_back": {"exit_code": 4, "state": "rollback_failed"}},
            "rollback_failed",
            id="the way back failed",
        ),
        pytest.param({**PROMOTED, "rolled_back": {"exit_code": 8}}, "unknown", id="the API is away then"),
    ],
)
def test_what_did_not_go_well_is_never_told_as_good(kept, state):
    said = part("told").told(kept)
    assert not said.is_good
    assert said.state == state
    assert f"| state | {state} |" in part("told").page(said)


def test_what_went_well_is_told_as_good():
    healthy = {"health": {"url": "x"}, "health_seen": {"is_healthy": True, "words": "HTTP 200"}}
    for kept in (PROMOTED, {**PROMOTED, **healthy}):
        assert part("told").told(kept).is_good


TANK, VAULT = "sovereign-zfs-snapshots/tank", "sovereign-restic-repository/vault"
OPENED = Opened(
    deployment="web-1",
    target="application-web",
    flow_run_id="1",
    host="here",
    fleet=bare_fleet(),
    summary="web 2",
    environment=Environment(name="production", backups=(TANK, VAULT)),
)
CHANGED = Intent(number=0, title="stage", undo=RemoveRelease(instance="node-1", release="2"))


def backup(source: str, finding: Finding) -> BackedUp:
    kind = "zfs_snapshot" if source == TANK else "restic"
    taken = BackupTaken(source=source, kind=kind, identity=f"{source}@1", taken_at=datetime.now(UTC))
    return BackedUp(taken=taken, verified=finding)


@pytest.mark.parametrize(
    ("entries", "missing"),
    [
        pytest.param((OPENED,), [], id="nothing was changed"),
        pytest.param((OPENED, CHANGED), [TANK, VAULT], id="none was taken"),
        pytest.param(
            (OPENED, backup(TANK, Finding.passed("read")), backup(VAULT, Finding.failed("torn")), CHANGED),
            [VAULT],
            id="one cannot be read back",
        ),
    ],
)
def test_a_backup_that_is_demanded_and_not_there_is_missed(entries, missing):
    journal = [entry.model_dump(mode="json") for entry in entries]
    taken, missed = part("told").backed_up(journal)
    assert missed == missing
    assert taken == [f"{TANK}: {TANK}@1"] * (len(entries) == 4)


def test_what_a_deployment_says_breaks_no_table(template):
    kept = {**STARTED, "ended": {"exit_code": 3, "state": "rolled_back", "reason": "a | b\nc"}}
    assert "| reason | a \\| b c |" in part("told").page(part("told").told(kept))


def test_what_comes_from_outside_commands_no_runner(tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "out"))
    part("runner").output(reason="one\nEOF\nstate=promoted", state="rolled_back")
    lines = (tmp_path / "out").read_text().splitlines()
    ends = [line.partition("<<")[2] for line in lines if "<<" in line]
    assert len(set(ends)) == 2
    assert [line for line in lines if line in ends] == ends  # and none of them within a value
    assert part("runner").escaped("50 %\n::add-path::x") == "50 %25%0A::add-path::x"


def test_a_step_says_why_nothing_can_be_started(tmp_path):
    environment = {
        **BY_HAND,
        "PATH": "/usr/bin:/bin",
        "RUNNER_TEMP": str(tmp_path),
        "GITHUB_OUTPUT": str(tmp_path / "out"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        "PREFECT_API_AUTH_STRING": "ada:lovelace",
    }

    def step(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            (sys.executable, "-m", "deploy", name),
            cwd=TREE,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    refused, reported = step("ask"), step("report")
    assert (refused.returncode, reported.returncode) == (2, 1)
    assert "::add-mask::ada:lovelace\n::add-mask::lovelace\n" in refused.stdout
    assert "::error::there is no `sovereign` on this runner's PATH" in refused.stdout
    assert "| state | not started |" in (tmp_path / "summary.md").read_text()
    kept = [json.loads(path.read_text()) for path in tmp_path.glob("sovereign-*/refused.json")]
    assert "install sovereign-deploy" in kept[0]["reason"]
