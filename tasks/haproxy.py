"""HAProxy by its runtime API: who gets the traffic, which servers take part, what they answered.

A route is one map entry, `key live:candidate:basis_points`, so that any change of it is one atomic command.
HAProxy writes nothing to disk: after each change its files are rewritten, so that a restart keeps it.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable

from rules.errors import BalancerError, CommandError
from rules.traffic import AdminState, Counts, HaproxyAddress, Route, Traffic
from tasks.haproxy_socket import ask
from tasks.host import write_file

#: A map's keys and values in their order.
Entries = tuple[tuple[str, str], ...]

_PAUSE_S = 0.05
_MISSING_ENTRY = "entry not found."
# HAProxy's server-state flags: forced, inherited or for want of an address; forced or inherited
_MAINT_FLAGS = 0x01 | 0x02 | 0x20
_DRAIN_FLAGS = 0x08 | 0x10
_BACKEND_ROW = 2
_SERVER_ROWS = 4


def ping(address: HaproxyAddress) -> str:
    """Return HAProxy's version.

    Raises:
        BalancerError: it does not answer.
    """
    for line in ask(address, "show info").splitlines():
        if line.startswith("Version: "):
            return line.removeprefix("Version: ")
    raise BalancerError(f"what answers on {address.socket} is no HAProxy; nothing was changed")


def read_traffic(route: Route) -> Traffic:
    """Return the route's split as HAProxy applies it now.

    Raises:
        BalancerError: HAProxy does not answer, or its map has no such route, or not in our form.
    """
    address = _address(route)
    return _traffic(address, route.key, _entries(address))


def set_traffic(route: Route, traffic: Traffic) -> None:
    """Split the route's requests like this, at once and over HAProxy's restart. Repeating it is harmless.

    Open requests finish where they are.

    Raises:
        BalancerError: refused (nothing was changed), not kept in the file, or not in force afterwards.
    """
    _switch(_address(route), route.key, traffic)


def rehearse_switch(route: Route, splits: tuple[Traffic, ...]) -> None:
    """Set and read back each split in turn, as `set_traffic` would, on a route that no frontend uses.

    That route is gone again afterwards, from the running map and from its file, also when this fails.
    Repeating it is harmless.

    Raises:
        BalancerError: the balancer does not take, keep or show one of them; users' traffic was not touched.
    """
    try:
        for split in splits:
            _switch(_address(route), _rehearsal_key(route), split)
    finally:
        remove_rehearsal(route)


def remove_rehearsal(route: Route) -> None:
    """Remove what a rehearsal left, if anything, and write the map's file from the running map.

    The file is written also when there is nothing to remove: a process that was killed may have left it
    behind the running map.

    Raises:
        BalancerError: it is still there, or the file could not be written; users' traffic was not touched.
    """
    address, key = _address(route), _rehearsal_key(route)
    reply = ""
    if key in dict(_entries(address)):
        reply = ask(address, f"del map {address.route_map} {key}").strip()
    if key in dict(_keep_routes(address)):
        raise BalancerError(
            f"the rehearsal's route {key} is still in {address.route_map} ({reply or 'no reason given'}); no "
            f"frontend uses it, so no user notices. Remove it with `del map {address.route_map} {key}`."
        )


def _rehearsal_key(route: Route) -> str:
    """Return the key of the rehearsal's own entry; the dot keeps it apart from every application's route."""
    return f"{route.key}.rehearsal"


def keep(address: HaproxyAddress) -> None:
    """Write the map's file and the servers' states as HAProxy has them now.

    Raises:
        BalancerError: HAProxy does not answer, or a file could not be written; traffic was not touched.
    """
    _keep_routes(address)
    _keep_servers(address)


def server_admin(address: HaproxyAddress, backend: str, server: str) -> AdminState:
    """Return whether the server takes requests (`ready`), only ends its open ones, or is out.

    Raises:
        BalancerError: HAProxy does not answer or has no such server.
    """
    lines = ask(address, f"show servers state {backend}").splitlines()
    names = next((line[2:].split() for line in lines if line.startswith("# ")), [])
    for line in lines:
        row = dict(zip(names, line.split(), strict=False))
        if names and not line.startswith("#") and row.get("srv_name") == server:
            flags = int(row["srv_admin_state"])
            return "maint" if flags & _MAINT_FLAGS else "drain" if flags & _DRAIN_FLAGS else "ready"
    raise BalancerError(f"HAProxy has no server {backend}/{server}; nothing was changed")


def set_admin(address: HaproxyAddress, backend: str, server: str, admin: AdminState) -> None:
    """Put the server into that state, at once and over HAProxy's restart; waits for nothing.

    Raises:
        BalancerError: refused (the state is as it was), or not kept in the file.
    """
    command = f"set server {backend}/{server} state {admin}"
    reply = ask(address, command).strip()
    if reply:
        raise BalancerError(f"HAProxy refused `{command}`: {reply}; the server's state is as it was")
    _keep_servers(address)


def drain(address: HaproxyAddress, backend: str, server: str, *, deadline_s: float) -> int:
    """Send the server no new requests, wait for its open ones, take it out; return how many were left.

    Returns:
        Requests still open when `deadline_s` was over; 0 when all had ended.

    Raises:
        BalancerError: HAProxy refused or does not answer; the server is in its old state or draining.
    """
    if server_admin(address, backend, server) != "maint":
        set_admin(address, backend, server, "drain")
    _wait(lambda: _open_requests(address, backend, server) == 0, deadline_s)
    set_admin(address, backend, server, "maint")
    return _open_requests(address, backend, server)


def rejoin(address: HaproxyAddress, backend: str, server: str, *, deadline_s: float) -> None:
    """Give the server requests again and wait until HAProxy's own check says exactly `UP`.

    Probe the instance before: a server that leaves maintenance gets requests at once, on the strength of its
    last check. `UP` proves a new check only where `fall` is 2 or more; with `fall 1` it reads so at once.

    Raises:
        BalancerError: not up within `deadline_s`. It is left ready: it gets requests once its check passes.
    """
    set_admin(address, backend, server, "ready")
    if not _wait(lambda: _server_row(address, backend, server)["status"] == "UP", deadline_s):
        row = _server_row(address, backend, server)
        raise BalancerError(
            f"server {backend}/{server} was made ready, but after {deadline_s:g} s it is {row['status']} "
            f"(last check: {row['check_status'] or 'none'}). It is left ready and gets requests as soon as "
            "its check passes; see why it does not."
        )
    # kept a second time: a restart must not bring back a moment in which it was not yet up
    _keep_servers(address)


def counts(address: HaproxyAddress, backend: str) -> Counts:
    """Return what the side has answered since HAProxy started.

    Requests are all answers, 1xx to 5xx; a client that left before its answer is none. Errors are the 5xx of
    the whole backend, with the 503 that HAProxy itself answers when no server is up: the servers' own rows
    do not have those.

    Raises:
        BalancerError: HAProxy does not answer or has no such backend.
    """
    return _answers(_rows(address, backend, _BACKEND_ROW)[0])


def server_counts(address: HaproxyAddress, backend: str) -> dict[str, Counts]:
    """Return what each server of the side has answered since HAProxy started; see `counts`.

    Raises:
        BalancerError: HAProxy does not answer or has no such backend.
    """
    return {row["svname"]: _answers(row) for row in _rows(address, backend, _SERVER_ROWS)}


def mean_response_s(address: HaproxyAddress, backend: str) -> float | None:
    """Return the side's mean response time over its last 1,024 requests at most; None before the first.

    Raises:
        BalancerError: HAProxy does not answer or has no such backend.
    """
    row = _rows(address, backend, _BACKEND_ROW)[0]
    return int(row["rtime"]) / 1000 if row["rtime"] and int(row["stot"]) else None


def servers_up(address: HaproxyAddress, backend: str) -> dict[str, bool]:
    """Return for each server of the side whether HAProxy sends it requests; drained ones are not up.

    Raises:
        BalancerError: HAProxy does not answer or has no such backend.
    """
    rows = _rows(address, backend, _SERVER_ROWS)
    return {row["svname"]: row["status"].startswith(("UP", "no check")) for row in rows}


def wait_until_up(address: HaproxyAddress, backend: str, *, deadline_s: float) -> None:
    """Wait until HAProxy's own checks find every server of the side up.

    Raises:
        BalancerError: not within `deadline_s`; nothing was changed.
    """
    if not _wait(lambda: all(servers_up(address, backend).values()), deadline_s):
        down = sorted(name for name, up in servers_up(address, backend).items() if not up)
        raise BalancerError(f"{backend}: {down} are not up after {deadline_s:g} s; nothing was changed")


def _address(route: Route) -> HaproxyAddress:
    if not isinstance(route.balancer, HaproxyAddress):
        raise TypeError(f"route {route.key} does not go through HAProxy")
    return route.balancer


def _answers(row: dict[str, str]) -> Counts:
    requests = sum(int(row[f"hrsp_{kind}xx"] or 0) for kind in range(1, 6))
    return Counts(requests=requests, errors=int(row["hrsp_5xx"] or 0))


def _entries(address: HaproxyAddress) -> Entries:
    """Return the map's keys and values in their order."""
    reply = ask(address, f"show map {address.route_map}")
    rows = [line.split(maxsplit=2) for line in reply.splitlines() if line.strip()]
    if any(len(row) != 3 or not row[0].startswith("0x") for row in rows):  # noqa: PLR2004 - id, key, value
        raise BalancerError(f"`show map {address.route_map}` was answered {reply!r}; nothing was changed")
    return tuple((key, value) for _, key, value in rows)


def _switch(address: HaproxyAddress, key: str, traffic: Traffic) -> None:
    known = ask(address, "show backend").splitlines()
    unknown = sorted({traffic.live, traffic.candidate} - set(known))
    if unknown:
        names = [name for name in known if name and not name.startswith("#")]
        raise BalancerError(
            f"HAProxy has no backend {unknown}, so traffic was left as it was; it has {names}"
        )
    _set_entry(address, key, f"{traffic.live}:{traffic.candidate}:{traffic.canary_basis_points}")
    now = _traffic(address, key, _keep_routes(address))
    if now != traffic:
        raise BalancerError(
            f"route {key} was set to {traffic!r} but reads {now!r}: somebody else sets it too. "
            "It was left so."
        )


def _traffic(address: HaproxyAddress, key: str, entries: Entries) -> Traffic:
    value = dict(reversed(entries)).get(key)  # of entries with one key HAProxy uses the first
    if value is None:
        raise BalancerError(
            f"{address.route_map} has no entry {key}; nothing was changed. "
            f"Add `{key} live:candidate:0` to the file and to the running HAProxy (`add map`)."
        )
    try:
        live, candidate, share = value.split(":")
        return Traffic(live=live, candidate=candidate, canary_basis_points=int(share))
    except ValueError as error:
        raise BalancerError(
            f"entry {key} of {address.route_map} is {value!r}, not live:candidate:basis_points; "
            "nothing was changed"
        ) from error


def _set_entry(address: HaproxyAddress, key: str, value: str) -> None:
    """Set the entry; add it only where there is none, because `add map` makes second ones."""
    where = f"map {address.route_map} {key} {value}"
    reply = ask(address, f"set {where}").strip()
    if reply == _MISSING_ENTRY:
        reply = ask(address, f"add {where}").strip()
    if reply:
        raise BalancerError(f"HAProxy refused `set {where}`: {reply}; traffic was left as it was")


def _keep_routes(address: HaproxyAddress) -> Entries:
    """Write the map's file until it says what HAProxy does; return what it says.

    Another deployment may set its own route meanwhile. Each writer looks again after its writing, so the last
    of them has written every route.
    """
    written: Entries = ()
    while (entries := _entries(address)) != written:
        _keep(address, address.route_map, "".join(f"{key} {value}\n" for key, value in entries))
        written = entries
    return entries


def _keep_servers(address: HaproxyAddress) -> None:
    if address.server_state:
        _keep(address, address.server_state, ask(address, "show servers state"))


def _keep(address: HaproxyAddress, path: str, text: str) -> None:
    try:
        write_file(address.host, path, text.encode())
    except CommandError as error:
        raise BalancerError(
            f"HAProxy has made the change, but a restart would lose it: {path} could not be written: {error}"
        ) from error


def _open_requests(address: HaproxyAddress, backend: str, server: str) -> int:
    row = _server_row(address, backend, server)
    return int(row["scur"]) + int(row["qcur"])


def _server_row(address: HaproxyAddress, backend: str, server: str) -> dict[str, str]:
    for row in _rows(address, backend, _SERVER_ROWS):
        if row["svname"] == server:
            return row
    raise BalancerError(f"HAProxy has no server {backend}/{server}; nothing was changed")


def _rows(address: HaproxyAddress, backend: str, kind: int) -> list[dict[str, str]]:
    """Return a backend's statistics: its own row, or its servers' rows."""
    command = f"show stat {backend} {kind} -1"
    reply = ask(address, command)
    rows = list(csv.DictReader(reply.removeprefix("# ").splitlines()))
    if not reply.startswith("# ") or (kind == _BACKEND_ROW and not rows):
        raise BalancerError(f"`{command}` was answered {reply.strip()!r}; nothing was changed")
    return rows


def _wait(reached: Callable[[], bool], deadline_s: float) -> bool:
    """Return whether it was reached within `deadline_s`; looks at least once."""
    deadline = time.monotonic() + deadline_s
    while not reached():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_PAUSE_S)
    return True
