"""A route's file says its whole state, to nginx and to us."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from rules.nginx import RouteState, rehearsal_key, route_file, state_in, status_host
from rules.traffic import NginxAddress, Traffic

ADDRESS = NginxAddress(
    directory="/etc/nginx/sovereign",
    sides={
        "blue": {"blue-1": "127.0.0.1:8001", "blue-2": "127.0.0.1:8002"},
        "green": {"green-1": "unix:/run/green.sock"},
    },
    status_port=8099,
    server_parameters="max_fails=1 fail_timeout=2s",
    upstream_directives=("keepalive 32",),
)
states = st.builds(
    RouteState,
    traffic=st.builds(
        lambda sides, share: Traffic(live=sides[0], candidate=sides[1], canary_basis_points=share),
        st.permutations(["blue", "green"]),
        st.integers(0, 10_000),
    ),
    out=st.dictionaries(
        st.sampled_from(["blue/blue-1", "green/green-1"]), st.sampled_from(["drain", "maint"])
    ),
)


@given(states)
def test_a_state_is_read_back_from_its_file(state):
    assert state_in(route_file(ADDRESS, "web", state)) == state


@given(states, states)
def test_files_are_the_same_only_for_one_state_and_one_writing(one, other):
    same = route_file(ADDRESS, "web", one, generation="a") == route_file(
        ADDRESS, "web", other, generation="a"
    )
    assert same == (one == other)
    assert route_file(ADDRESS, "web", one, generation="a") != route_file(ADDRESS, "web", one, generation="b")


def test_nginx_takes_the_name_of_any_route_with_its_hashes_as_they_are():
    """It refuses more than 46 characters: they and 18 bytes of its own are to fit into 64."""
    names = {status_host(key) for name in ("a", "a" * 63) for key in (name, rehearsal_key(name))}
    assert len(names) == 4
    assert max(len(name) for name in names) <= 46


@given(states)
def test_the_shares_are_exact_and_none_is_zero(state):
    traffic, text = state.traffic, route_file(ADDRESS, "web", state)
    shares = re.search(r"split_clients \S+ \S+ \{\n(.*?)\n\}", text, re.DOTALL)
    assert shares
    lines = [line.strip().rstrip(";") for line in shares[1].splitlines()]
    share = f"{traffic.canary_basis_points / 100:.2f}%"
    if traffic.canary_basis_points in (0, 10_000):
        assert lines == [f"* {traffic.carrying[0]}"]
    else:
        assert lines == [f"{share} {traffic.candidate}", f"* {traffic.live}"]


def test_a_server_that_is_out_is_down_wherever_it_stands():
    state = RouteState(traffic=Traffic(live="blue", candidate="green")).with_admin("blue", "blue-1", "maint")
    text = route_file(ADDRESS, "web", state)
    assert text.count("server 127.0.0.1:8001 max_fails=1 fail_timeout=2s down;") == 2
    assert text.count("server 127.0.0.1:8002 max_fails=1 fail_timeout=2s;") == 2
    assert state.admin("blue", "blue-1") == "maint"
    assert state.with_admin("blue", "blue-1", "ready").out == {}


def test_a_rehearsal_shares_no_name_with_what_users_are_sent_by():
    state = RouteState(traffic=Traffic(live="blue", candidate="green", canary_basis_points=100))
    defined = r"(?:upstream|map \S+|split_clients \S+|log_format|server_name) (\S+)"
    ours, rehearsed = (
        set(re.findall(defined, route_file(ADDRESS, key, state))) for key in ("web", rehearsal_key("web"))
    )
    assert len(ours) == len(rehearsed) > 6
    assert not ours & rehearsed


def test_a_file_of_somebody_else_says_no_state():
    assert state_in("upstream emily_active { server 127.0.0.1:1; }\n") is None
    assert state_in("# sovereign-deploy: {}\n") is None
