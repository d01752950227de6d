"""Three balancers do the same for a deployment: one contract, under load; and what one of them cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from lab import balancer_contract
from lab.balancer_contract import Checked
from lab.contract import ContractError
from lab.haproxy import LabHaproxy
from lab.http_balancer import LabHttpBalancer
from lab.nginx import LabNginx
from rules.errors import BalancerError
from rules.traffic import HttpBalancerAddress, Route, Traffic
from tasks import balancer
from tests.tasks.balancing import BLUE, GREEN, two_sides

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", params=["haproxy", "nginx", "http_api"])
def checked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checked]:
    """One balancer of each kind before two blue servers and a green one."""
    directory = tmp_path_factory.mktemp(request.param)
    with ExitStack() as parts:
        backends = parts.enter_context(two_sides(directory / "answers"))
        front: LabHaproxy | LabNginx | LabHttpBalancer
        if request.param == "nginx":
            front = parts.enter_context(LabNginx(directory / "nginx", backends, live=BLUE, candidate=GREEN))
        else:
            front = parts.enter_context(
                LabHaproxy(directory / "haproxy", backends, live=BLUE, candidate=GREEN)
            )
        if request.param == "http_api":
            front = parts.enter_context(LabHttpBalancer(directory / "api", front))
        yield Checked(route=front.route, url=front.url, first=BLUE, other=GREEN)


@pytest.fixture
def at_first(checked: Checked) -> Checked:
    """The same, with everybody on the first side."""
    checked.set(checked.first)
    return checked


def test_forty_switches_and_a_ramp_under_load_lose_no_request(at_first):
    balancer_contract.lose_no_request(at_first)


def test_ten_to_fifty_percent_are_split_within_one_and_a_half_points(at_first):
    balancer_contract.split_exactly(at_first)


def test_known_users_stay_on_the_canary_while_it_grows(at_first):
    balancer_contract.keep_users(at_first)


def test_a_rehearsal_and_a_repetition_are_noticed_by_nobody(at_first):
    balancer_contract.rehearse_unseen(at_first)


def test_answers_are_counted_for_each_side(at_first):
    before = {side: balancer.counts(at_first.route, side) for side in (BLUE, GREEN)}
    balancer_contract.sides_of(at_first.url, 50)
    for side, requests in ((BLUE, 50), (GREEN, 0)):
        now, earlier = balancer.counts(at_first.route, side), before[side]
        assert now is not None
        assert earlier is not None
        assert (now.since(earlier).requests, now.since(earlier).errors) == (requests, 0)


def test_it_says_who_it_is(at_first):
    assert balancer.ping(at_first.route)


@pytest.mark.skipif(
    balancer_contract.real_balancer() is None, reason="BALANCER_API and BALANCER_URL name none"
)
def test_a_real_balancer_keeps_the_contract():
    real = balancer_contract.real_balancer()
    assert real
    real.set(real.first)
    balancer_contract.rehearse_unseen(real)
    balancer_contract.split_exactly(real)
    balancer_contract.keep_users(real)
    balancer_contract.lose_no_request(real)


@pytest.mark.parametrize("checked", ["haproxy"], indirect=True)
def test_the_contract_sees_a_balancer_that_does_not_do_what_it_says(at_first):
    with pytest.raises(ContractError, match="the canary grows and nobody leaves it"):
        balancer_contract.keep_users(_Reversed(at_first))


class _Reversed(Checked):
    """What is set here is set for the other side: its canary shrinks."""

    def __init__(self, real: Checked) -> None:
        super().__init__(route=real.route, url=real.url, first=real.first, other=real.other)

    def set(self, live: str, basis_points: int = 0) -> Traffic:
        return super().set(live, 10_000 - basis_points)


def test_an_api_of_whole_environments_takes_out_no_server():
    route = Route(balancer=HttpBalancerAddress(url="http://127.0.0.1:9"), key="web")
    assert balancer.server_admin(route, BLUE, "b1") == "ready"
    assert balancer.server_counts(route, BLUE) is None
    assert balancer.counts(route, BLUE) is None
    assert balancer.mean_response_s(route, BLUE) is None
    balancer.wait_until_up(route, BLUE, deadline_s=0)
    for act in (
        lambda: balancer.set_admin(route, BLUE, "b1", "maint"),
        lambda: balancer.drain(route, BLUE, "b1", deadline_s=1),
        lambda: balancer.rejoin(route, BLUE, "b1", deadline_s=1),
    ):
        with pytest.raises(BalancerError, match="whole environments only: b1 cannot be taken out"):
            act()
