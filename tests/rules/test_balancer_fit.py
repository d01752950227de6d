"""What a balancer cannot do is refused when the plan is made."""

from __future__ import annotations

import pytest

from rules.errors import InvalidRequestError
from rules.rollout import plan_rollout
from rules.strategy import BlueGreen, Canary, InPlace, Rolling
from rules.traffic import HttpBalancerAddress, NginxAddress, Route
from tests.rules.builders import CHANGE, fleet, state

API = HttpBalancerAddress(url="http://127.0.0.1:8080", counts_path="/counts")
NGINX = NginxAddress(
    directory="/etc/nginx/sovereign",
    sides={"blue": {"blue-1": "127.0.0.1:8001"}, "green": {"green-1": "127.0.0.1:8002"}},
    status_port=8099,
)


def plan(address, strategy):
    behind = fleet().model_copy(update={"route": Route(balancer=address, key="web")})
    return plan_rollout(CHANGE, strategy, behind, state(behind))


@pytest.mark.parametrize(
    ("address", "strategy", "why"),
    [
        (API, Rolling(), "knows whole environments only: use blue_green or canary"),
        (API, Canary(steps_percent=(12.5, 100)), r"12.5 % cannot be sent to green: .* steps of 1 %"),
        (API.model_copy(update={"counts_path": None}), BlueGreen(), "does not count .*counts_path"),
        (NGINX, Canary(), "does not count .*access_log in its block, or use rolling"),
        (NGINX, BlueGreen(), "no data is never a pass"),
    ],
)
def test_a_strategy_that_its_balancer_cannot_do_is_refused_with_what_would_work(address, strategy, why):
    with pytest.raises(InvalidRequestError, match=f"{why}.*Nothing was touched"):
        plan(address, strategy)


@pytest.mark.parametrize(
    ("address", "strategy"),
    [
        (API, Canary()),
        (API, BlueGreen()),
        (API, InPlace(instance="blue-1")),
        (NGINX, Rolling()),
        (NGINX.model_copy(update={"access_log": "/var/log/emily.log"}), Canary(steps_percent=(12.34, 100))),
    ],
)
def test_what_it_can_do_is_planned(address, strategy):
    assert plan(address, strategy).steps
