"""Measure how the live side is doing, over a window: the same way before and after a rollout."""

from __future__ import annotations

import time

from rules.baseline import Baseline
from rules.errors import BalancerError
from rules.fleet import Fleet
from tasks import haproxy


def measure_baseline(fleet: Fleet, *, window_s: float) -> Baseline:
    """Return the live side's error ratio and mean response time over the next `window_s` seconds.

    Without a balancer, or with one that does not answer, the values are None: no data, which is not 0.
    """
    nothing = Baseline(window_s=window_s, requests=0, error_ratio=None, mean_response_s=None)
    if fleet.route is None:
        return nothing
    try:
        address, live = fleet.route.balancer, haproxy.read_traffic(fleet.route).live
        earlier = haproxy.counts(address, live)
        time.sleep(window_s)
        counted = haproxy.counts(address, live).since(earlier)
        mean_s = haproxy.mean_response_s(address, live)
    except BalancerError:
        return nothing
    return Baseline(
        window_s=window_s,
        requests=counted.requests,
        error_ratio=counted.error_ratio,
        mean_response_s=mean_s if counted.requests else None,
    )
