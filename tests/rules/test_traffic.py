"""Counters and splits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rules.traffic import Counts, HaproxyAddress, HttpBalancerAddress, NginxAddress, Route, Traffic

counts = st.builds(Counts, st.integers(0, 10_000), st.integers(0, 10_000))


def test_counts_are_given_by_position_or_by_name():
    assert (
        Counts(20, 1) == Counts(requests=20, errors=1) == Counts.model_validate({"requests": 20, "errors": 1})
    )


@pytest.mark.parametrize("fields", [{"requests": -1}, {"errors": -1}, {"unknown": 1}, {"requests": "many"}])
def test_counts_refuse_what_is_none(fields):
    with pytest.raises(ValidationError):
        Counts(**fields)


@given(counts, counts)
def test_what_was_counted_since_is_what_was_added(earlier, more):
    assert (earlier + more).since(earlier) == more


@given(counts, counts)
def test_a_counter_that_went_down_was_restarted(now, earlier):
    if now.requests < earlier.requests or now.errors < earlier.errors:
        assert now.since(earlier) == now


def test_no_requests_have_no_error_ratio():
    assert Counts().error_ratio is None
    assert Counts(8, 2).error_ratio == 0.25


@pytest.mark.parametrize(
    ("share", "carrying"), [(0, ("blue",)), (1, ("blue", "green")), (10_000, ("green",))]
)
def test_a_side_without_a_share_carries_nothing(share, carrying):
    assert Traffic(live="blue", candidate="green", canary_basis_points=share).carrying == carrying


NGINX = NginxAddress(
    directory="/etc/nginx/sovereign",
    sides={"blue": {"blue-1": "127.0.0.1:8001"}, "green": {"green-1": "127.0.0.1:8002"}},
    status_port=8099,
)
API = HttpBalancerAddress(url="http://127.0.0.1:8080")
HAPROXY = HaproxyAddress(socket="/run/haproxy.sock", route_map="/routes.map")


@pytest.mark.parametrize("address", [HAPROXY, NGINX, API], ids=lambda address: address.balancer)
def test_a_route_survives_the_journal(address):
    route = Route(balancer=address, key="web")
    assert Route.model_validate_json(route.model_dump_json()) == route


def test_a_route_of_a_journal_from_before_there_were_several_balancers_is_haproxys():
    text = '{"balancer": {"socket": "/run/haproxy.sock", "route_map": "/routes.map"}, "key": "web"}'
    assert Route.model_validate_json(text) == Route(balancer=HAPROXY, key="web")


def test_what_a_balancer_can_do_is_known_before_it_is_asked():
    logged = NGINX.model_copy(update={"access_log": "/var/log/nginx/emily.log"})
    counted = API.model_copy(update={"counts_path": "/counts"})
    found = {
        name: (route.drains, route.counts, route.finest_basis_points)
        for name, address in {
            "haproxy": HAPROXY,
            "nginx": NGINX,
            "nginx with a log": logged,
            "api": API,
            "api that counts": counted,
        }.items()
        for route in [Route(balancer=address, key="web")]
    }
    assert found == {
        "haproxy": (True, True, 1),
        "nginx": (True, False, 1),
        "nginx with a log": (True, True, 1),
        "api": (False, False, 100),
        "api that counts": (False, True, 100),
    }
