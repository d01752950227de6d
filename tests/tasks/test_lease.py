"""The lock on a target, on a real Prefect server: never two holders, whatever comes in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.prefect_server import PrefectServer
from lab.processes import wait_until
from rules.errors import ApiUnavailableError, FencedError, LockHeldError
from tasks.lease import Lease, LeaseKeeper, acquire, all_holdings, current_holding, take_over
from tasks.prefect_api import PrefectApi
from tasks.settings import Settings
from tests.tasks.deploying import end_flow_run, opening, owner, running_flow_run, settings_in
from tests.tasks.gateway import Fault, api_through

AT_ONCE = 6


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path, api_patience_s=10)


@pytest.fixture
def api(prefect_api: PrefectServer, settings: Settings) -> Iterator[PrefectApi]:
    with PrefectApi(settings) as opened:
        yield opened


@pytest.fixture
def target() -> str:
    return opening().target


def all_at_once(work: Callable[[int], Lease]) -> tuple[list[Lease], list[BaseException]]:
    """Call `work` in several threads at the same moment; return what came out and what was raised."""
    together = threading.Barrier(AT_ONCE)

    def one(number: int) -> Lease:
        together.wait()
        return work(number)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = [pool.submit(one, number) for number in range(AT_ONCE)]
    errors = [error for future in asked if (error := future.exception())]
    return [future.result() for future in asked if not future.exception()], errors


def test_of_several_that_take_a_free_lock_at_once_exactly_one_has_it(api, target):
    leases, errors = all_at_once(lambda n: acquire(api, target, owner(f"deployment-{n}")))
    assert len(leases) == 1
    assert [type(error) for error in errors] == [LockHeldError] * (AT_ONCE - 1)
    assert current_holding(api, target).token == leases[0].token


def test_who_is_refused_is_told_who_has_it_and_what_to_do(api, target):
    acquire(api, target, owner("web-1"))
    with pytest.raises(LockHeldError, match=r"by web-1 \(flow run .* on host-a since .*\)\. Nothing was"):
        acquire(api, target, owner("web-2"))


def test_of_several_that_take_over_a_dead_holders_lock_exactly_one_has_it(api, target):
    acquire(api, target, owner("web-1"))
    held = current_holding(api, target)
    leases, errors = all_at_once(lambda n: take_over(api, target, held, owner(f"taker-{n}")))
    assert len(leases) == 1
    assert [type(error) for error in errors] == [FencedError] * (AT_ONCE - 1)
    assert current_holding(api, target).owner == leases[0].owner


def test_a_holder_that_was_replaced_learns_it_when_it_renews(api, target):
    lease = acquire(api, target, owner("web-1"))
    lease.renew(api)
    taken = take_over(api, target, current_holding(api, target), owner("web-1"))
    with pytest.raises(FencedError, match="taken over by another process"):
        lease.renew(api)
    assert lease.is_fenced
    lease.release(api)
    assert current_holding(api, target).token == taken.token, "a fenced holder frees nothing"


def test_a_released_lock_is_free_and_releasing_it_twice_is_fine(api, target):
    lease = acquire(api, target, owner("web-1"))
    assert lease.token in {holding.token for holding in all_holdings(api)}
    lease.release(api)
    lease.release(api)
    assert current_holding(api, target) is None
    acquire(api, target, owner("web-2"))


def test_the_lock_is_ours_also_when_the_answer_to_our_request_was_lost(prefect_api, settings, target):
    with api_through(prefect_api.api_url, settings) as (api, between):
        between.faults = [Fault("variables/", "POST", times=1, lost=True)]
        lease = acquire(api, target, owner("web-1"))
        assert current_holding(api, target).token == lease.token
        lease.renew(api)


def test_a_take_over_whose_answer_was_lost_stops_and_leaves_the_lock_free(prefect_api, settings, target):
    with api_through(prefect_api.api_url, settings) as (api, between):
        acquire(api, target, owner("web-1"))
        held = current_holding(api, target)
        between.faults = [Fault("variables/", "DELETE", times=1, lost=True)]
        with pytest.raises(FencedError, match="taken over"):
            take_over(api, target, held, owner("web-1"))
        assert current_holding(api, target) is None, "the next recovery takes it"


def test_how_old_a_lease_is_depends_on_the_servers_clock_alone(prefect_api, settings, target):
    with api_through(prefect_api.api_url, settings) as (api, between):
        acquire(api, target, owner("web-1", lease_s=60))
        assert not current_holding(api, target).has_ended
        between.clock_ahead_s = 120
        aged = current_holding(api, target)
        assert aged.has_ended
        assert aged.age_s == pytest.approx(120, abs=10)


def test_a_renewal_makes_a_lease_young_again(api, target):
    lease = acquire(api, target, owner("web-1"))
    time.sleep(3.5)  # the server's clock goes by the second, and is up to two behind
    assert current_holding(api, target).age_s >= 1
    lease.renew(api)
    assert current_holding(api, target).age_s < 1
    assert lease.left_s == pytest.approx(60, abs=2)


def test_a_lease_runs_on_while_the_api_is_away(prefect_api, settings, target):
    with api_through(prefect_api.api_url, settings) as (api, between):
        lease = acquire(api, target, owner("web-1"))
        between.faults = [Fault("variables/")]
        time.sleep(0.2)
        with api.impatient(), pytest.raises(ApiUnavailableError):
            lease.renew(api)
        assert not lease.is_fenced
        assert lease.silent_s >= 0.2
        assert lease.left_s + lease.silent_s == pytest.approx(60, abs=0.1)


def test_the_keeper_renews_and_tells_until_when(api, target):
    lease, told = acquire(api, target, owner("web-1")), []
    keeper = LeaseKeeper(api, lease, every_s=0.1, on_renewal=told.append)
    keeper.start()
    try:
        wait_until(lambda: len(told) >= 4, timeout_s=20, what="renewals")
        assert told == sorted(told)
        assert told[-1] == pytest.approx(time.time() + 60, abs=2)
    finally:
        keeper.stop()
    renewals = len(told)
    time.sleep(0.3)
    assert len(told) == renewals, "a keeper that was stopped renews nothing"


@pytest.mark.parametrize("state", ["CANCELLING", "CANCELLED", "CRASHED", "FAILED"])
def test_the_keeper_notices_that_its_run_was_ended_from_outside(api, prefect_api, target, state):
    run = running_flow_run(prefect_api.api_url)
    keeper = LeaseKeeper(api, acquire(api, target, owner("web-1", flow_run_id=run)), every_s=0.05)
    keeper.start()
    try:
        wait_until(lambda: keeper.run_state == "RUNNING", timeout_s=20, what="the run's state")
        assert not keeper.was_revoked
        end_flow_run(prefect_api.api_url, run, state)
        wait_until(lambda: keeper.was_revoked, timeout_s=20, what="the run's end")
    finally:
        keeper.stop()


def test_the_keeper_stops_for_good_once_it_is_fenced(api, target):
    lease = acquire(api, target, owner("web-1"))
    taken = take_over(api, target, current_holding(api, target), owner("web-1"))
    keeper = LeaseKeeper(api, lease, every_s=0.05)
    keeper.start()
    try:
        wait_until(lambda: lease.is_fenced, timeout_s=20, what="the fence")
        assert current_holding(api, target).token == taken.token
    finally:
        keeper.stop()
