"""The balancer before an application, whichever it is: who gets the traffic, which servers take part.

All that a strategy, a rollback or a watch wants of a balancer is here; what each kind does for it is in the
module of its name.
"""

from __future__ import annotations

import time
from typing import assert_never

from rules.errors import BalancerError
from rules.traffic import (
    AdminState,
    Counts,
    HaproxyAddress,
    HttpBalancerAddress,
    NginxAddress,
    Route,
    Traffic,
)
from tasks import haproxy, http_balancer, nginx, nginx_log

_PAUSE_S = 0.05


def ping(route: Route) -> str:
    """Return the balancer's version, or where it answers.

    Raises:
        BalancerError: it does not answer.
    """
    match route.balancer:
        case HaproxyAddress() as address:
            return haproxy.ping(address)
        case NginxAddress() as address:
            return nginx.ping(address, route.key)
        case HttpBalancerAddress() as address:
            return http_balancer.ping(address)
        case unknown:
            assert_never(unknown)


def read_traffic(route: Route) -> Traffic:
    """Return the route's split as the balancer applies it now.

    Raises:
        BalancerError: it does not answer, or has no such route.
    """
    match route.balancer:
        case HaproxyAddress():
            return haproxy.read_traffic(route)
        case NginxAddress() as address:
            return nginx.read_traffic(address, route.key)
        case HttpBalancerAddress() as address:
            return http_balancer.read_traffic(address)
        case unknown:
            assert_never(unknown)


def set_traffic(route: Route, traffic: Traffic) -> None:
    """Split the route's requests like this, also over the balancer's restart. Repeating it is harmless.

    Open requests finish where they are.

    Raises:
        BalancerError: refused, not kept, or not in force afterwards; says which state it was left in.
    """
    match route.balancer:
        case HaproxyAddress():
            haproxy.set_traffic(route, traffic)
        case NginxAddress() as address:
            nginx.set_traffic(address, route.key, traffic)
        case HttpBalancerAddress() as address:
            http_balancer.set_traffic(address, traffic)
        case unknown:
            assert_never(unknown)


def keep(route: Route) -> None:
    """Make the balancer's files say what it does: a killed process may have left the two apart.

    Whoever finds the state that he wants must call this: it may be the state in force only, or in the file
    only, and a restart would bring the other one; or an nginx is about to read that file. There it reloads.

    Raises:
        BalancerError: it does not answer, or a file cannot be written or is not taken; see `set_traffic`.
    """
    match route.balancer:
        case HaproxyAddress() as address:
            haproxy.keep(address)
        case NginxAddress() as address:
            nginx.keep(address, route.key)
        case HttpBalancerAddress():
            pass  # its files are its own
        case unknown:
            assert_never(unknown)


def rehearse_switch(route: Route, splits: tuple[Traffic, ...]) -> None:
    """Set and read back each split in turn, as `set_traffic` would, where no user goes.

    Nothing of it is left, also when this fails. Repeating it is harmless. An HTTP API has no such place:
    there both calls are made with the values that are in force.

    Raises:
        BalancerError: the balancer does not take, keep or show one of them; users' traffic was not touched.
    """
    match route.balancer:
        case HaproxyAddress():
            haproxy.rehearse_switch(route, splits)
        case NginxAddress() as address:
            nginx.rehearse_switch(address, route.key, splits)
        case HttpBalancerAddress() as address:
            http_balancer.rehearse_switch(address, splits)
        case unknown:
            assert_never(unknown)


def remove_rehearsal(route: Route) -> None:
    """Remove what a rehearsal left, if anything; see `keep` for the rest.

    Raises:
        BalancerError: it is still there, or a file could not be written; users' traffic was not touched.
    """
    match route.balancer:
        case HaproxyAddress():
            haproxy.remove_rehearsal(route)
        case NginxAddress() as address:
            nginx.remove_rehearsal(address, route.key)
        case HttpBalancerAddress():
            pass  # it leaves nothing
        case unknown:
            assert_never(unknown)


def server_admin(route: Route, side: str, server: str) -> AdminState:
    """Return whether the server takes requests (`ready`), only ends its open ones, or is out.

    Behind an HTTP API, which cannot take servers out, each is `ready`.

    Raises:
        BalancerError: the balancer does not answer or has no such server.
    """
    match route.balancer:
        case HaproxyAddress() as address:
            return haproxy.server_admin(address, side, server)
        case NginxAddress() as address:
            return nginx.server_admin(address, route.key, side, server)
        case HttpBalancerAddress():
            return "ready"
        case unknown:
            assert_never(unknown)


def set_admin(route: Route, side: str, server: str, admin: AdminState) -> None:
    """Put the server into that state, also over the balancer's restart; waits for no open request.

    Raises:
        BalancerError: refused (the state is as it was), or not kept in the file.
    """
    match route.balancer:
        case HaproxyAddress() as address:
            haproxy.set_admin(address, side, server, admin)
        case NginxAddress() as address:
            nginx.set_admin(address, route.key, side, server, admin=admin)
        case HttpBalancerAddress() as address:
            _refuse_single_servers(address, server)
        case unknown:
            assert_never(unknown)


def drain(route: Route, side: str, server: str, *, deadline_s: float) -> int:
    """Send the server no new requests, wait for its open ones, take it out; return how much was left.

    Returns:
        0 when all had ended by `deadline_s`. Otherwise HAProxy's open requests, or nginx's workers that still
        have some.

    Raises:
        BalancerError: refused or no answer; the server is in its old state or draining.
    """
    match route.balancer:
        case HaproxyAddress() as address:
            return haproxy.drain(address, side, server, deadline_s=deadline_s)
        case NginxAddress() as address:
            return nginx.drain(address, route.key, side, server, deadline_s=deadline_s)
        case HttpBalancerAddress() as address:
            return _refuse_single_servers(address, server)
        case unknown:
            assert_never(unknown)


def rejoin(route: Route, side: str, server: str, *, deadline_s: float) -> None:
    """Give the server requests again; where the balancer has checks of its own, wait until they pass.

    Probe the instance before: it gets requests at once.

    Raises:
        BalancerError: not up within `deadline_s`; it is left ready, and gets requests once its check passes.
    """
    match route.balancer:
        case HaproxyAddress() as address:
            haproxy.rejoin(address, side, server, deadline_s=deadline_s)
        case NginxAddress() as address:
            nginx.rejoin(address, route.key, side, server)
        case HttpBalancerAddress() as address:
            _refuse_single_servers(address, server)
        case unknown:
            assert_never(unknown)


def counts(route: Route, side: str) -> Counts | None:
    """Return what the side has answered since the balancer began to count; None: nobody counts.

    Raises:
        BalancerError: the balancer does not answer or has no such side.
    """
    match route.balancer:
        case HaproxyAddress() as address:
            return haproxy.counts(address, side)
        case NginxAddress() as address:
            return nginx_log.counts(address, side)
        case HttpBalancerAddress() as address:
            return http_balancer.counts(address, side)
        case unknown:
            assert_never(unknown)


def server_counts(route: Route, side: str) -> dict[str, Counts] | None:
    """Return what each server of the side has answered; None: nobody counts that. See `counts`.

    Raises:
        BalancerError: the balancer does not answer or has no such side.
    """
    match route.balancer:
        case HaproxyAddress() as address:
            return haproxy.server_counts(address, side)
        case NginxAddress() as address:
            return nginx_log.server_counts(address, side)
        case HttpBalancerAddress():
            return None
        case unknown:
            assert_never(unknown)


def mean_response_s(route: Route, side: str) -> float | None:
    """Return the side's mean response time over its newest answers; None: no answer yet, or nobody measures.

    Raises:
        BalancerError: the balancer does not answer or has no such side.
    """
    match route.balancer:
        case HaproxyAddress() as address:
            return haproxy.mean_response_s(address, side)
        case NginxAddress() as address:
            return nginx_log.mean_response_s(address, side)
        case HttpBalancerAddress() as address:
            return http_balancer.mean_response_s(address, side)
        case unknown:
            assert_never(unknown)


def servers_up(route: Route, side: str) -> dict[str, bool]:
    """Return for each server of the side whether the balancer sends it requests; drained ones are not up.

    nginx knows only which ones were taken out, an HTTP API nothing of servers: there it is empty.

    Raises:
        BalancerError: the balancer does not answer or has no such side.
    """
    match route.balancer:
        case HaproxyAddress() as address:
            return haproxy.servers_up(address, side)
        case NginxAddress() as address:
            return nginx.servers_up(address, route.key, side)
        case HttpBalancerAddress():
            return {}
        case unknown:
            assert_never(unknown)


def wait_until_up(route: Route, side: str, *, deadline_s: float) -> None:
    """Wait until the balancer sends requests to every server of the side.

    Raises:
        BalancerError: not within `deadline_s`; nothing was changed.
    """
    deadline = time.monotonic() + deadline_s
    while down := sorted(name for name, is_up in servers_up(route, side).items() if not is_up):
        if time.monotonic() >= deadline:
            raise BalancerError(f"{side}: {down} are not up after {deadline_s:g} s; nothing was changed")
        time.sleep(_PAUSE_S)


def _refuse_single_servers(address: HttpBalancerAddress, server: str) -> int:
    raise BalancerError(
        f"{address.url} knows whole environments only: {server} cannot be taken out or put back by it. "
        "Nothing was changed. Use blue_green or canary."
    )
