"""An open deployment: nothing is changed before its way back is on the disk and in Prefect."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.processes import wait_until
from rules.entries import Intent, Moved, Opened, parse
from rules.errors import CutOffError, FencedError, LockHeldError, RevokedError
from rules.rollout import plan_rollout
from rules.strategy import BlueGreen
from tasks.deployment import OpenDeployment, open_deployment, supersede_promoted
from tasks.journal import JournalFile, mirrored_lines
from tasks.lease import current_holding, take_over
from tasks.prefect_api import PrefectApi
from tasks.settings import Settings
from tests.rules.builders import CHANGE, fleet, state
from tests.tasks.deploying import (
    STEP,
    end_flow_run,
    opening,
    owner,
    running_flow_run,
    settings_in,
)
from tests.tasks.gateway import Fault

PLAN = plan_rollout(CHANGE, BlueGreen(), fleet(), state(fleet()))


@pytest.fixture
def deployment(opened: Opened, api: PrefectApi, settings: Settings) -> Iterator[OpenDeployment]:
    with open_deployment(opened, api, settings) as running:
        yield running


def mirrored(deployment: OpenDeployment):
    return parse(mirrored_lines(deployment.api, deployment.name))


def forbidden() -> None:
    pytest.fail("the effect ran")


# --- before an effect ------------------------------------------------------------------------------


def test_when_an_effect_runs_its_way_back_is_on_the_disk_and_in_prefect(deployment):
    ran = []

    def effect() -> None:
        for entries in (deployment.journal.read().entries, mirrored(deployment)):
            assert isinstance(entries[-1], Intent)
            assert (entries[-1].number, entries[-1].undo) == (STEP.number, STEP.undo)
        ran.append(True)

    deployment.perform(STEP, effect)
    assert ran == [True]
    assert deployment.journal.read().entries[-1].entry == "done"


def test_the_plan_is_in_prefect_before_anything_is_done(deployment):
    deployment.planned(PLAN)
    assert deployment.plan == PLAN
    assert mirrored(deployment) == deployment.journal.read().entries


def test_a_step_that_only_reads_leaves_no_trace(deployment):
    before = deployment.journal.read()
    deployment.perform(STEP.model_copy(update={"undo": None}), lambda: None)
    assert deployment.journal.read() == before


def test_an_effect_that_fails_stays_an_intent_to_undo(deployment):
    def effect() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        deployment.perform(STEP, effect)
    assert [intent.number for intent in deployment.journal.read().to_undo] == [STEP.number]
    assert deployment.journal.read().entries[-1].entry == "intent"


def test_nobody_can_recover_in_the_middle_of_an_effect(deployment, settings):
    def effect() -> None:
        same = JournalFile(settings.journal_dir, deployment.name)
        with pytest.raises(TimeoutError), same.exclusive(patience_s=0.05):
            pass

    deployment.perform(STEP, effect)


# --- when it must not go on ------------------------------------------------------------------------


def test_without_a_mirror_no_effect_runs(deployment, between):
    between.faults = [Fault("artifacts/")]
    with pytest.raises(CutOffError, match="cannot be mirrored"):
        deployment.perform(STEP, forbidden)
    between.faults = []


def test_once_another_process_has_written_the_journal_no_effect_runs(deployment, settings):
    recovery = JournalFile(settings.journal_dir, deployment.name)
    recovery.append(Moved(state="rolling_back", reason="it seemed dead", by="recover"))
    before = recovery.path.read_bytes()
    for step in (STEP, STEP.model_copy(update={"undo": None})):
        with pytest.raises(FencedError, match="recovered by another process"):
            deployment.perform(step, forbidden)
    with pytest.raises(FencedError):
        deployment.promote("all well")
    assert recovery.path.read_bytes() == before


def test_once_its_lock_is_anothers_no_effect_runs(opened, api, tmp_path):
    with open_deployment(opened, api, settings_in(tmp_path, renew_every_s=0.05)) as deployment:
        take_over(api, opened.target, current_holding(api, opened.target), owner("web-3-0"))
        wait_until(lambda: deployment.lease.is_fenced, timeout_s=20, what="the fence")
        with pytest.raises(FencedError):
            deployment.perform(STEP, forbidden)


@pytest.mark.parametrize("ended", ["CANCELLING", "CRASHED"])
def test_once_its_run_was_ended_from_outside_no_effect_runs(prefect_api, api, tmp_path, ended):
    run = running_flow_run(prefect_api.api_url)
    of = opening(flow_run_id=run)
    with open_deployment(of, api, settings_in(tmp_path, renew_every_s=0.05)) as deployment:
        deployment.perform(STEP, lambda: None)
        end_flow_run(prefect_api.api_url, run, ended)
        wait_until(lambda: deployment._keeper.was_revoked, timeout_s=20, what="the keeper to see it")
        with pytest.raises(RevokedError, match=ended):
            deployment.perform(STEP, forbidden)


def test_cut_off_from_prefect_no_effect_runs(opened, api, between, tmp_path):
    settings = settings_in(tmp_path, renew_every_s=0.1, cut_off_after_s=0.6, api_patience_s=0.2)
    with open_deployment(opened, api, settings) as deployment:
        between.faults = [Fault()]
        wait_until(lambda: deployment.lease.silent_s > 0.6, timeout_s=20, what="the silence")
        with pytest.raises(CutOffError, match="has not answered for"):
            deployment.perform(STEP, forbidden)
        between.faults = []


# --- its end ---------------------------------------------------------------------------------------


def test_prefect_learns_of_a_promotion_first(opened, api, between, settings):
    api.patience_s = 0.3
    with open_deployment(opened, api, settings) as deployment:
        deployment.perform(STEP, lambda: None)
        between.faults = [Fault("artifacts/", lost=True)]
        with pytest.raises(CutOffError):
            deployment.promote("all well")
        assert deployment.journal.read().state == "running", "not promoted here until Prefect has said yes"
        between.faults = []
        deployment.promote("all well")
        assert deployment.journal.read().state == "promoted"
        assert mirrored(deployment) == deployment.journal.read().entries
    assert current_holding(api, opened.target) is None


def test_a_promotion_whose_answer_was_lost_is_corrected_by_what_came_instead(opened, api, between, settings):
    api.patience_s = 0.3
    with open_deployment(opened, api, settings) as deployment:
        deployment.planned(PLAN)
        between.faults = [Fault("artifacts/", lost=True)]
        with pytest.raises(CutOffError):
            deployment.promote("all well")
        between.faults = []
        assert mirrored(deployment)[-1].entry == "moved"
        after = deployment.roll_back("Prefect is away.")
        assert after.state == "aborted"
        assert mirrored(deployment) == after.entries


@pytest.mark.parametrize("state", ["blocked", "aborted"])
def test_a_deployment_that_changed_nothing_frees_its_lock_and_is_mirrored(opened, api, settings, state):
    with open_deployment(opened, api, settings) as deployment:
        deployment.end_unchanged(state, "the gate is closed")
    view = deployment.journal.read()
    assert (view.state, view.reason) == (state, "the gate is closed")
    assert parse(mirrored_lines(api, opened.deployment)) == view.entries
    assert current_holding(api, opened.target) is None
    assert not deployment.journal.owner_lives()


def test_what_is_left_open_keeps_its_lock_for_who_recovers_it(opened, api, settings):
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_deployment(opened, api, settings) as deployment:
        deployment.perform(STEP, interrupted)
    assert current_holding(api, opened.target).owner.deployment == opened.deployment


def test_a_target_that_was_left_half_way_is_refused_also_when_its_lock_is_gone(opened, api, settings):
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_deployment(opened, api, settings) as deployment:
        deployment.perform(STEP, interrupted)
    deployment.lease.release(api)
    second = opening(target=opened.target)
    with (
        pytest.raises(LockHeldError, match=f"{opened.deployment} was left running .* recovered first"),
        open_deployment(second, api, settings),
    ):
        pass
    assert current_holding(api, opened.target) is None, "free for who recovers it"


def test_a_second_deployment_on_the_target_is_refused_and_leaves_the_first_alone(
    deployment, opened, api, settings
):
    second = opening(target=opened.target)
    with pytest.raises(LockHeldError, match=opened.deployment), open_deployment(second, api, settings):
        pass
    view = JournalFile(settings.journal_dir, second.deployment).read()
    assert (view.state, view.token) == ("aborted", None)
    deployment.perform(STEP, lambda: None)


def test_the_end_of_the_lease_is_noted_for_who_cannot_ask_prefect(deployment):
    assert deployment.journal.lease_until() > deployment.opened.at.timestamp() + 30


def test_a_newer_deployment_disarms_the_undo_of_older_promotions_on_its_target(api, settings):
    earlier, newer, elsewhere = opening(), opening(), opening()
    newer = newer.model_copy(update={"target": earlier.target})
    for one in (earlier, elsewhere):
        with open_deployment(one, api, settings) as deployment:
            deployment.perform(STEP, lambda: None)
            deployment.promote("all well")
    with open_deployment(newer, api, settings):
        supersede_promoted(newer, api, settings)
    view = JournalFile(settings.journal_dir, earlier.deployment).read()
    assert (view.state, newer.deployment in view.reason) == ("superseded", True)
    assert parse(mirrored_lines(api, earlier.deployment)) == view.entries
    assert JournalFile(settings.journal_dir, elsewhere.deployment).read().state == "promoted"
