"""The fourth line: a person takes back what was promoted, or what could not be taken back before."""

from __future__ import annotations

import time

import pytest

from flows.deploy import deploy
from flows.recover import recover, roll_back
from rules.errors import DeployError, LockHeldError, WorldMovedError
from rules.strategy import Canary, CanaryLimits, InPlace, Rolling, Watching
from tasks.application import switch_release
from tests.flows.site import EASY, Site

#: Never shown to be good, so it is taken back after some seconds.
GIVES_UP = Canary(
    steps_percent=(50, 100),
    watch=Watching(tick_s=0.2, deadline_s=8, limits=CanaryLimits(min_observation_s=600)),
)
HERE = InPlace(instance="blue-1")


def test_without_a_live_way_back_users_stay_where_it_answers_until_a_person_has_mended_it(site: Site) -> None:
    process = site.deploying(site.change(), GIVES_UP)
    site.wait_until_halfway("2.0.0", process)
    for name in ("blue-1", "blue-2"):
        site.application.kill(name)
    site.ended(process)

    failed = site.view()
    name = failed.opened.deployment
    assert failed.state == "rollback_failed"
    assert "all traffic is held on green" in failed.reason
    assert site.application.observed()["route_map"] == {site.application.name: "green:blue:0"}
    incident = site.artifact(f"incident-{name}")
    assert "P0" in incident
    assert f"run roll-back for {name}" in incident
    state, message = site.run_state(failed.opened.flow_run_id)
    assert state == "FAILED"
    assert "ROLLBACK FAILED, the target stays locked" in message
    since = time.time()
    time.sleep(1)
    assert site.failed_requests(since) == 0

    with pytest.raises(LockHeldError, match=f"{name}.*run roll-back"):
        deploy(site.change("3.0.0"), HERE)
    assert not [one for one in recover() if one.acted]
    owner = site.owner()
    assert owner
    assert owner.deployment == name

    with pytest.raises(DeployError, match="the way back failed, the target stays locked"):
        roll_back(name, "too early")
    assert site.owner() is not None
    for instance in ("blue-1", "blue-2"):
        site.serve_again(instance)
    record = roll_back(name, "blue is mended")
    assert record.state == "rolled_back"
    assert site.application.observed() == site.before
    assert site.owner() is None
    assert [view for view in site.views() if view.opened.deployment == name] == [failed]

    deploy(site.change("4.0.0"), HERE)
    newer = site.application.observed()
    assert roll_back(name, "asked twice").deployment == record.deployment
    assert site.application.observed() == newer


def test_a_promoted_release_is_taken_back_by_a_person(site: Site) -> None:
    deploy(site.change(), Rolling(observe_s=0.3, limits=EASY))
    record = roll_back(site.view().opened.deployment, "users do not like it")

    assert record.state == "rolled_back"
    assert record.reason == "users do not like it"
    assert site.application.observed() == site.before
    assert site.owner() is None


def test_what_something_newer_was_deployed_upon_is_not_taken_back(site: Site) -> None:
    deploy(site.change("2.0.0"), HERE)
    deploy(site.change("3.0.0"), HERE)
    now = site.application.observed()
    older, newer = site.views()
    with pytest.raises(DeployError, match="is superseded and cannot be taken back"):
        roll_back(older.opened.deployment, "the wrong one")

    assert site.application.observed() == now
    roll_back(newer.opened.deployment, "the right one")
    assert site.application.observed()["instances"]["blue-1"]["running"] == "2.0.0"


def test_what_somebody_changed_by_hand_is_not_taken_back(site: Site) -> None:
    deploy(site.change(), HERE)
    blue = site.application.fleet.instance("blue-1")
    switch_release(blue, "1.0.0")
    now = site.application.observed()
    with pytest.raises(
        WorldMovedError, match=r"blue-1: release is 1\.0\.0, not 2\.0\.0.*Nothing was changed"
    ):
        roll_back(site.view().opened.deployment, "somebody was faster")

    assert site.application.observed() == now
    assert site.owner() is None
    switch_release(blue, "2.0.0")
    roll_back(site.view().opened.deployment, "as it should be")
    assert site.application.observed() == site.before
