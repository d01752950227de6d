"""The calls of docs/api.md, run as they stand, in the order of the page."""

from __future__ import annotations

import json
import re
import stat
import uuid
from pathlib import Path
from typing import NamedTuple

import pytest

from blocks.environment import Environment
from lab.processes import clean_environment
from rules.entries import Noted
from rules.environment import Stage
from rules.journal import JournalView
from rules.strategy import Canary
from tests.flows.caller import Caller
from tests.flows.site import ENDLESS
from tests.requirements import need
from tests.triggers.shell import Shell

pytestmark = pytest.mark.xdist_group("ways-in")
PAGE = Path(__file__).parents[2] / "docs" / "api.md"


class Page(NamedTuple):
    """The blocks of a page, by their heading, each run once and in order."""

    shell: Shell
    blocks: list[tuple[str, str]]

    def run(self, heading: str) -> str:
        """Run the next block, which must stand below that heading; return what it says."""
        found, block = self.blocks.pop(0)
        assert found == heading
        return self.shell.run(block)


def blocks(text: str) -> list[tuple[str, str]]:
    """Return each bash block of a Markdown page, with the heading above it."""
    parts = re.findall(r"^## (.*?)$|^```bash\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    found, heading = [], ""
    for title, block in parts:
        heading = title or heading
        if block:
            found.append((heading, block))
    return found


def notes(view: JournalView) -> list[str]:
    return [entry.about for entry in view.entries if isinstance(entry, Noted)]


@pytest.fixture
def page(caller: Caller, tmp_path: Path):
    need("bash", package="bash")
    need("curl", package="curl")
    need("jq", package="jq")
    Environment(stage=Stage.DEVELOPMENT, approval=True, approval_timeout_s=120).save(
        "asks-by-api", overwrite=True
    )
    change = caller.site.change("2.0.0")
    variables = {
        "PREFECT_API_URL": caller.site.server.api_url,
        "PREFECT_API_AUTH_STRING": 'ada:a"b'.replace('"', r"\""),
        "APPLICATION": change.application,
        "RELEASE": change.release,
        "ARCHIVE": change.artefact.path,
        "SHA256": change.artefact.sha256,
        "ENVIRONMENT": "asks-by-api",
        "KEY": str(uuid.uuid4()),
        "OVER": "COMPLETED FAILED CRASHED CANCELLED",
    }
    with Shell(tmp_path, clean_environment(tmp_path, variables)) as shell:
        yield Page(shell, blocks(PAGE.read_text()))


@pytest.mark.timeout(900)  # five flow runs, one after the other
def test_the_calls_of_the_page_do_what_it_says(caller: Caller, page: Page, tmp_path: Path) -> None:
    site, shell = caller.site, page.shell

    page.run("Once in a shell")
    secret = tmp_path / "api.curl"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert secret.read_text() == 'user = "ada:a\\"b"\n'

    page.run("What to deploy")
    assert Canary.model_validate(json.loads((tmp_path / "request.json").read_text())["strategy"])
    _have_all_deployments_held(tmp_path / "request.json")

    page.run("Dry run")
    dry_run = shell.run("echo $DRY_RUN_ID")
    assert caller.ended(dry_run) == "COMPLETED"
    assert "way back" in page.run("Dry run")
    assert not [view for view in site.views() if view.opened.flow_run_id == dry_run]

    start = page.blocks[0][1]
    page.run("Start")
    run = shell.run("echo $RUN_ID")
    shell.run(start)
    assert shell.run("echo $RUN_ID") == run

    page.run("Watch")
    caller.begins_to_be(run, "PAUSED")
    assert "planned" in page.run("Watch")
    assert shell.run("echo $DEPLOYMENT") == caller.view(run).opened.deployment
    page.run("Watch")
    assert shell.run("wait_for $RUN_ID PAUSED $OVER") == "PAUSED"

    page.run("Approve or refuse")
    assert shell.run('answer "$RUN_ID" true A ""').startswith(
        "REJECT Reason: Validation failed for field 'by'"
    )
    assert site.run_state(run)[0] == "PAUSED"
    assert page.run("Approve or refuse") == "ACCEPT "
    assert shell.run('answer "$RUN_ID" true Ada yes').startswith("ABORT Cannot resume a flow run")
    caller.halfway(run, "2.0.0")

    page.run("Pause, resume, abort")
    for _ in ("pause", "resume", "abort"):
        page.run("Pause, resume, abort")
        assert shell.run("wait_for $WORD_ID $OVER") == "COMPLETED"
    assert page.run("Pause, resume, abort") == "ABORT"  # the dry run is over
    assert shell.run("wait_for $RUN_ID $OVER") == "FAILED"
    caller.terminal(run)
    assert site.application.observed() == site.before

    ended = json.loads(page.run("How it ended"))
    assert ended["state"] == "rolled_back"
    assert "it is after all" in ended["reason"]

    page.run("Roll back")
    page.run("Recover")
    of_all = json.loads(page.run("History"))
    assert ended in of_all
    page.run("History")
    for one in ("BACK_ID", "RECOVER_ID", "HISTORY_ID"):
        assert shell.run(f"wait_for ${one} $OVER") == "COMPLETED"
    assert caller.view(run).state == "rolled_back"
    assert not page.blocks


def _have_all_deployments_held(request: Path) -> None:
    """Have the canary of the page stay halfway, so that there is time to say something to it."""
    sent = json.loads(request.read_text())
    request.write_text(json.dumps({**sent, "strategy": ENDLESS.model_dump(mode="json")}))
    assert sent["strategy"]["steps_percent"] == list(ENDLESS.steps_percent)


def test_what_is_wrong_with_a_request_is_told_by_the_shell_functions_of_the_page(page: Page) -> None:
    page.run("Once in a shell")
    shell = page.shell
    shell.run("echo '{\"parameters\": {}}' | run deploy/deploy", fails=True)
    assert "'change' is a required property" in shell.errors.read_text()
    shell.run("echo '{}' | run deploy/nothing", fails=True)
    assert "404" in shell.errors.read_text()
