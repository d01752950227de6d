"""As long as a release is under way, its targets are nobody else's."""

from __future__ import annotations

import pytest

from rules.errors import LockHeldError
from tasks.deployment import open_deployment
from tasks.lease import acquire, current_holding
from tasks.recover import roll_back_by_person
from tests.tasks.deploying import opening, owner
from tests.tasks.releases import Left


@pytest.fixture
def release():
    """The opening entry of a release that holds two targets."""
    web = opening()
    return opening(
        deployment=f"emily-{web.deployment}",
        target=f"release-{web.target}",
        component="release",
        holds=(web.target, f"{web.target}-db"),
    )


def test_a_stranger_is_refused_on_a_target_that_a_release_holds(api, settings, release):
    with open_deployment(release, api, settings):
        for target in release.holds:
            stranger = opening(target=target)
            with (
                pytest.raises(LockHeldError, match=f"{target} is held by {release.deployment}") as refused,
                open_deployment(stranger, api, settings),
            ):
                pytest.fail("it was let in")
            assert "Nothing was changed" in str(refused.value)
            assert current_holding(api, target) is None


def test_its_own_components_are_let_in_one_after_the_other(api, settings, release):
    with open_deployment(release, api, settings):
        for number in range(2):
            part = opening(
                deployment=f"{release.deployment}-{number}",
                target=release.holds[0],
                part_of=release.deployment,
            )
            with open_deployment(part, api, settings) as open_part:
                open_part.end_unchanged("aborted", "It is in place already.")


def test_what_a_release_of_another_component_holds_is_no_matter(api, settings, release):
    with open_deployment(release, api, settings), open_deployment(opening(), api, settings) as other:
        other.prove_ours()


def test_a_release_is_refused_while_one_of_its_targets_is_deployed_to(api, settings, release):
    other = owner("web-1-9-abc")
    lease = acquire(api, release.holds[1], other)
    with (
        pytest.raises(LockHeldError, match=f"{release.holds[1]} is held by web-1-9-abc"),
        open_deployment(release, api, settings),
    ):
        pytest.fail("it was let in")
    assert current_holding(api, release.target) is None
    lease.release(api)


def test_of_two_releases_that_share_a_target_only_one_is_under_way(api, settings, release):
    other = release.model_copy(
        update={"deployment": "other-1", "target": f"{release.target}-2", "holds": release.holds[1:]}
    )
    with (
        open_deployment(release, api, settings),
        pytest.raises(LockHeldError, match=f"{release.holds[1]} is held by {release.deployment}"),
        open_deployment(other, api, settings),
    ):
        pytest.fail("it was let in")


def test_a_release_that_was_left_half_way_holds_its_targets_even_without_a_lock(api, settings):
    left = Left(settings, {"schema": "promoted", "web": ""})
    stranger = opening(target=left.targets["web"])
    with (
        pytest.raises(LockHeldError, match=f"{left.name} was left running .* has to be recovered first"),
        open_deployment(stranger, api, settings),
    ):
        pytest.fail("it was let in")


def test_nothing_promoted_before_is_taken_back_under_a_release(api, settings, release):
    before = Left(settings, {"web": "promoted"}, state="completed")
    held = release.model_copy(update={"holds": (before.targets["web"],)})
    with open_deployment(held, api, settings) as under_way:
        with pytest.raises(LockHeldError, match=f"is held by {release.deployment}"):
            roll_back_by_person(before.ids["web"], reason="second thoughts", settings=settings)
        under_way.end_unchanged("aborted", "The test goes on.")
    assert before.view("web").state == "promoted"
    assert current_holding(api, before.targets["web"]) is None
    after = roll_back_by_person(before.ids["web"], reason="second thoughts", settings=settings)
    assert after.state == "rolled_back"
