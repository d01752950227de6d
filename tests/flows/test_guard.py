"""The guard around a flow's body: what it takes back, and what it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.prefect_server import PrefectServer
from rules.errors import GateBlockedError
from tasks.journal import JournalFile
from tasks.lease import current_holding
from tasks.prefect_api import PrefectApi
from tests.tasks.deploying import STEP, opening, settings_in


def guarded_body(opened, settings, body) -> None:
    from flows.guard import guarded  # noqa: PLC0415 - Prefect's settings are set by now

    with guarded(opened, settings) as deployment:
        body(deployment)


def test_what_goes_wrong_after_the_promotion_takes_nothing_back(
    prefect_api: PrefectServer, tmp_path: Path
) -> None:
    settings, opened = settings_in(tmp_path), opening()

    def body(deployment) -> None:
        deployment.perform(STEP, lambda: None)
        deployment.promote("all well")
        raise RuntimeError("too late")

    with pytest.raises(Exception, match="It stays promoted"):
        guarded_body(opened, settings, body)
    assert JournalFile(settings.journal_dir, opened.deployment).read().state == "promoted"
    with PrefectApi(settings) as api:
        assert current_holding(api, opened.target) is None


def test_a_blocked_deployment_frees_its_lock_and_says_blocked(
    prefect_api: PrefectServer, tmp_path: Path
) -> None:
    settings, opened = settings_in(tmp_path), opening()

    def body(_deployment) -> None:
        raise GateBlockedError("no release there")

    with pytest.raises(GateBlockedError):
        guarded_body(opened, settings, body)
    view = JournalFile(settings.journal_dir, opened.deployment).read()
    assert (view.state, view.reason) == ("blocked", "no release there")
    with PrefectApi(settings) as api:
        assert current_holding(api, opened.target) is None
