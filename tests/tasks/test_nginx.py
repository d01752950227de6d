"""nginx by its configuration, on a real one: what is in force, kept, refused, and put right again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from blocks.balancer import load_route
from lab.balancers import save_balancer
from lab.nginx import LabNginx
from rules.errors import BalancerError, InvalidRequestError
from rules.nginx import RouteState, route_file, state_in
from rules.traffic import Counts, Route, Traffic
from tasks import balancer, nginx, nginx_status
from tasks.nginx_route import first_file
from tests.rules.builders import ROUTE as HAPROXY
from tests.tasks.balancing import BLUE, GREEN, Backends, asking, get, in_a_thread, split, two_sides


@pytest.fixture(scope="module")
def backends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backends]:
    with two_sides(tmp_path_factory.mktemp("answers")) as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, backends: Backends) -> Iterator[LabNginx]:
    with LabNginx(tmp_path_factory.mktemp("nginx"), backends, live=BLUE, candidate=GREEN) as running:
        yield running


@pytest.fixture
def front(shared: LabNginx) -> LabNginx:
    """An nginx with everybody on blue and every server in, and none of the files of other tests."""
    for path in shared.routes.glob("*.conf"):
        if path.name != "web.conf":
            path.unlink()
    first = RouteState(traffic=split(0))
    (shared.routes / "web.conf").write_text(route_file(shared.address, "web", first))
    if nginx.read_traffic(shared.address, "web") != split(0) or state(shared).out or len(known(shared)) != 1:
        shared.restart()
    return shared


def state(front: LabNginx) -> RouteState:
    """Return what nginx does."""
    return nginx_status.running(front.address, "web").state


def known(front: LabNginx) -> list[str]:
    """Return the routes that nginx knows, of those that tests make."""
    found = []
    for key in ("web", "web.rehearsal", "api"):
        try:
            found.append(nginx_status.running(front.address, key).route)
        except nginx_status.NoRouteError:
            continue
    return found


def written(front: LabNginx) -> RouteState | None:
    """Return what the route's file says."""
    return state_in((front.routes / "web.conf").read_text())


def workers(front: LabNginx) -> set[int]:
    return set(nginx_status.workers(front.address, "web") or ())


def patched(front: LabNginx, **fields: object) -> Route:
    """Return the route with another address."""
    return Route(balancer=front.address.model_copy(update=fields), key="web")


def test_what_is_set_is_in_force_and_in_the_file(front):
    for traffic in (split(1234), split(0, GREEN)):
        balancer.set_traffic(front.route, traffic)
        assert balancer.read_traffic(front.route) == traffic
        assert written(front) == RouteState(traffic=traffic)
    assert get(front.url) == (200, GREEN)


def test_a_repetition_reloads_nothing(front):
    balancer.set_traffic(front.route, split(500))
    before = workers(front)
    balancer.set_traffic(front.route, split(500))
    balancer.set_admin(front.route, BLUE, "b1", "ready")
    assert workers(front) == before


def test_no_worker_of_before_takes_connections_when_it_returns(front):
    before = workers(front)
    balancer.set_traffic(front.route, split(0, GREEN))
    now = nginx_status.workers(front.address, "web")
    assert now
    assert all(now.get(pid, True) for pid in before)


def test_a_configuration_that_is_broken_elsewhere_is_never_reloaded(front):
    before = workers(front)
    (front.routes / "theirs.conf").write_text("upstream theirs { nonsense; }\n")
    with pytest.raises(BalancerError, match=r"nonsense(.|\n)*file of before is back(.|\n)*Mend"):
        balancer.set_traffic(front.route, split(0, GREEN))
    assert written(front) == RouteState(traffic=split(0))
    assert get(front.url) == (200, BLUE)
    assert workers(front) == before
    (front.routes / "theirs.conf").unlink()
    balancer.set_traffic(front.route, split(0, GREEN))
    assert get(front.url) == (200, GREEN)


def test_a_file_of_ours_that_nginx_refuses_is_taken_back(front):
    sides = {**front.address.sides, BLUE: {**front.address.sides[BLUE], "b3": "127.0.0.1:99999"}}
    with pytest.raises(
        BalancerError, match=r"invalid port(.|\n)*file of before is back; traffic was left as it"
    ):
        balancer.set_traffic(patched(front, sides=sides), split(0, GREEN))
    assert written(front) == RouteState(traffic=split(0))
    assert get(front.url) == (200, BLUE)


def test_a_reload_that_does_nothing_is_noticed_and_the_file_says_what_was_before(front):
    with pytest.raises(BalancerError, match=r"goes on as before after 0.5 s(.|\n)*file says what was before"):
        balancer.set_traffic(patched(front, reload=("true",), timeout_s=0.5), split(0, GREEN))
    assert written(front) == RouteState(traffic=split(0))
    assert get(front.url) == (200, BLUE)


def test_a_reload_that_cannot_be_run_is_noticed_and_the_file_is_as_before(front):
    with pytest.raises(BalancerError, match="no-such-program"):
        balancer.set_traffic(patched(front, reload=("no-such-program",)), split(0, GREEN))
    assert written(front) == RouteState(traffic=split(0))


def killed_before_the_reload(front: LabNginx, traffic: Traffic) -> None:
    """Leave what a process leaves that was killed between its writing and its reload."""
    text = route_file(front.address, "web", RouteState(traffic=traffic), generation="killed")
    (front.routes / "web.conf").write_text(text)


def killed_after_the_reload(front: LabNginx, traffic: Traffic) -> None:
    """Leave what a process leaves that was killed as soon as it had told nginx, which has not done it yet."""
    killed_before_the_reload(front, traffic)
    os.kill(front.pid, signal.SIGHUP)


@pytest.mark.parametrize("wanted", [split(0), split(0, GREEN), split(700)])
def test_after_a_kill_between_writing_and_reload_the_next_change_puts_it_right(front, wanted):
    killed_before_the_reload(front, split(0, GREEN))
    assert balancer.read_traffic(front.route) == split(0)  # what users get
    balancer.set_traffic(front.route, wanted)
    assert balancer.read_traffic(front.route) == wanted
    assert written(front) == RouteState(traffic=wanted)


@pytest.mark.parametrize("wants", [True, False], ids=["a change", "what is there"])
def test_after_a_kill_just_after_the_reload_nothing_comes_into_force_later(front, wants):
    """nginx still does what it did, or not any more, and has read another file already."""
    killed_after_the_reload(front, split(0, GREEN))
    if wants:
        balancer.set_traffic(front.route, split(0))
    else:
        balancer.keep(front.route)
    said = written(front)
    assert said
    assert said.traffic == split(0) or not wants
    for _ in range(10):
        assert state(front) == said
        time.sleep(0.05)


def test_a_change_that_fails_never_brings_a_killed_ones_file_into_force(front):
    killed_before_the_reload(front, split(0, GREEN))
    # it is told, and does it only when it is told a second time: the way back
    once = front.directory / "told"
    words = f"[ -e {once} ] && exec {' '.join(front.address.reload)}; touch {once}"
    with pytest.raises(BalancerError, match=r"goes on as before(.|\n)*back, in the file and in force"):
        balancer.set_traffic(patched(front, reload=("sh", "-c", words), timeout_s=1.5), split(700))
    assert balancer.read_traffic(front.route) == split(0)
    assert written(front) == RouteState(traffic=split(0))
    once.unlink()


def test_whoever_finds_what_he_wants_in_force_also_puts_the_file_right(front):
    killed_before_the_reload(front, split(0, GREEN))
    balancer.keep(front.route)
    front.restart()
    assert balancer.read_traffic(front.route) == split(0)


def test_a_share_and_a_server_that_is_out_survive_a_hard_restart(front):
    balancer.set_traffic(front.route, split(2_500))
    balancer.set_admin(front.route, BLUE, "b1", "drain")
    balancer.set_admin(front.route, GREEN, "g1", "maint")
    before = front.pid
    front.kill()
    front.start()
    assert front.pid != before
    assert balancer.read_traffic(front.route) == split(2_500)
    found = {
        name: balancer.server_admin(front.route, side, name)
        for side, servers in front.backends.items()
        for name in servers
    }
    assert found == {"b1": "drain", "b2": "ready", "g1": "maint"}


def test_a_change_waits_for_an_nginx_that_restarts(front):
    front.stop()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(balancer.set_traffic, front.route, split(100))
        time.sleep(0.3)
        front.start()
        asked.result()
    assert balancer.read_traffic(front.route) == split(100)


def test_an_nginx_that_is_down_is_an_error_in_time_and_nothing_is_written(front):
    front.stop()
    try:
        began = time.monotonic()
        with pytest.raises(
            BalancerError, match=r"did not say(.|\n)*Nothing was changed(.|\n)*keeps its files"
        ):
            balancer.set_traffic(patched(front, timeout_s=0.3), split(0, GREEN))
        assert time.monotonic() - began < 10
        assert written(front) == RouteState(traffic=split(0))
    finally:
        front.start()


def test_a_route_that_nginx_does_not_have_is_told_with_what_to_do(front):
    other = front.route.model_copy(update={"key": "api"})
    with pytest.raises(BalancerError, match=r"no route api(.|\n)*tasks.nginx_route"):
        balancer.read_traffic(other)


def test_two_routes_of_one_nginx_are_told_apart(front):
    other = Route(balancer=front.address.model_copy(update={"upstream": "other_active"}), key="api")
    (front.routes / "api.conf").write_text(first_file(other, GREEN))
    balancer.set_traffic(front.route, split(0))  # as before: nothing is reloaded
    assert known(front) == ["web"]
    balancer.set_traffic(front.route, split(100))
    assert known(front) == ["web", "api"]
    balancer.set_traffic(other, split(300, GREEN))
    assert balancer.read_traffic(front.route) == split(100)
    assert balancer.read_traffic(other) == split(300, GREEN)


def test_unknown_sides_and_servers_are_refused_and_change_nothing(front):
    with pytest.raises(BalancerError, match=r"no side \['red'\].*left as it was"):
        balancer.set_traffic(front.route, Traffic(live="red", candidate=BLUE))
    for act in (balancer.counts, balancer.servers_up, balancer.mean_response_s):
        with pytest.raises(BalancerError, match="no side red"):
            act(front.route, "red")
    for side, server in ((BLUE, "b9"), ("red", "b1")):
        with pytest.raises(BalancerError, match=f"no server {side}/{server}"):
            balancer.server_admin(front.route, side, server)
        with pytest.raises(BalancerError, match=f"no server {side}/{server}"):
            balancer.set_admin(front.route, side, server, "maint")
    assert state(front) == RouteState(traffic=split(0))


def test_open_requests_finish_where_they_began(front):
    with ThreadPoolExecutor(1) as pool:
        slow = in_a_thread(pool, lambda: get(front.url, "/slow"))
        balancer.set_traffic(patched(front, settle_s=0.0), split(0, GREEN))
        assert get(front.url) == (200, GREEN)
        assert slow.result() == (200, BLUE)


def test_draining_waits_for_the_open_request_and_says_what_it_could_not_wait_for(front):
    balancer.set_traffic(front.route, split(10_000))
    with ThreadPoolExecutor(1) as pool:
        slow = in_a_thread(pool, lambda: get(front.url, "/slow"))
        assert balancer.drain(front.route, GREEN, "g1", deadline_s=0.1) >= 1
        assert balancer.server_admin(front.route, GREEN, "g1") == "maint"
        # once more, as a task that is tried again: it still waits
        assert balancer.drain(front.route, GREEN, "g1", deadline_s=20) == 0
        assert slow.done()
        assert slow.result() == (200, GREEN)
    before = balancer.counts(front.route, GREEN)
    assert get(front.url)[0] == 502
    # silence would be no data: nobody served them, and that is an error
    assert balancer.counts(front.route, GREEN).since(before) == Counts(1, 1)
    balancer.rejoin(front.route, GREEN, "g1", deadline_s=5)
    assert get(front.url) == (200, GREEN)


def test_rolling_over_two_servers_loses_no_request(front):
    with asking(front.url) as seen:
        for name in ("b1", "b2"):
            assert balancer.drain(front.route, BLUE, name, deadline_s=20) == 0
            assert balancer.servers_up(front.route, BLUE) == {"b1": name != "b1", "b2": name != "b2"}
            before = balancer.server_counts(front.route, BLUE)
            time.sleep(0.3)
            after = balancer.server_counts(front.route, BLUE)
            assert {n for n in after if after[n] != before[n]} == {"b1", "b2"} - {name}
            balancer.rejoin(front.route, BLUE, name, deadline_s=5)
    assert set(seen) == {(200, BLUE)}
    assert seen.total() > 50


def test_what_a_killed_rehearsal_has_left_is_removed(front):
    rehearsed = RouteState(traffic=split(0, GREEN))
    nginx._apply(front.address, "web.rehearsal", rehearsed, asked="web")
    killed_before_the_reload(front, split(0, GREEN))
    assert known(front) == ["web", "web.rehearsal"]
    assert get(front.url) == (200, BLUE)
    for _ in range(2):
        balancer.remove_rehearsal(front.route)
        assert known(front) == ["web"]
        assert sorted(path.name for path in front.routes.iterdir()) == ["web.conf"]
    assert balancer.read_traffic(front.route) == split(0)


def test_a_rehearsal_that_fails_leaves_nothing(front):
    to_nowhere = Traffic(live="red", candidate=BLUE)
    with pytest.raises(BalancerError, match="no side"):
        balancer.rehearse_switch(front.route, (split(0, GREEN), to_nowhere))
    assert known(front) == ["web"]
    assert state(front) == RouteState(traffic=split(0))


def test_an_nginx_on_another_host_is_driven_the_same(front, remote):
    route = patched(front, host=remote)
    balancer.set_traffic(route, split(4_200))
    assert balancer.read_traffic(route) == balancer.read_traffic(front.route) == split(4_200)
    assert balancer.drain(route, GREEN, "g1", deadline_s=20) == 0
    assert balancer.server_admin(front.route, GREEN, "g1") == "maint"
    get(front.url)
    assert balancer.counts(route, BLUE) == balancer.counts(front.route, BLUE)
    assert balancer.ping(route) == balancer.ping(front.route)


def test_without_a_log_nobody_counts(front):
    route = patched(front, access_log=None)
    assert balancer.counts(route, BLUE) is None
    assert balancer.server_counts(route, BLUE) is None
    assert balancer.mean_response_s(route, BLUE) is None


def test_errors_and_response_times_are_read_from_the_log(front):
    before = balancer.counts(front.route, BLUE)
    for path in ("/", "/fail", "/slow"):
        get(front.url, path)
    assert balancer.counts(front.route, BLUE).since(before) == Counts(3, 1)
    mean_s = balancer.mean_response_s(front.route, BLUE)
    assert mean_s
    assert 0 < mean_s < 5


def test_where_processes_cannot_be_seen_answers_tell_and_draining_waits_its_whole_time(front, tmp_path):
    """As with an nginx in a container, whose process ids are its own."""
    blind = tmp_path / "ps"
    blind.write_text("#!/bin/sh\necho 1 0 init\n")
    blind.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        assert nginx_status.workers(front.address, "web") is None
        balancer.set_traffic(front.route, split(0, GREEN))
        assert get(front.url) == (200, GREEN)
        began = time.monotonic()
        balancer.drain(front.route, BLUE, "b1", deadline_s=1.0)
        assert time.monotonic() - began >= 1.0


def test_the_first_file_of_a_route_is_one_that_nginx_takes(front):
    other = Route(balancer=front.address.model_copy(update={"upstream": "other_active"}), key="api")
    (front.routes / "api.conf").write_text(first_file(other, GREEN))
    nginx._reload(front.address)
    assert nginx_status.wait(lambda: "api" in known(front), 10)
    assert balancer.read_traffic(other) == split(0, GREEN)


def test_there_is_no_first_file_for_another_balancer_or_side(front):
    with pytest.raises(InvalidRequestError, match="no nginx but haproxy"):
        first_file(HAPROXY, BLUE)
    with pytest.raises(InvalidRequestError, match="no side red; it has blue, green"):
        first_file(front.route, "red")


def test_the_first_file_is_printed_for_a_block(front, prefect_api, monkeypatch, capsys):
    from tasks import nginx_route  # noqa: PLC0415 - its blocks want Prefect's settings

    save_balancer("first-front", front.address)
    monkeypatch.setattr("sys.argv", ["nginx_route", "first-front", "api", "green"])
    nginx_route.main()
    assert capsys.readouterr().out == first_file(load_route("first-front", "api"), GREEN)
