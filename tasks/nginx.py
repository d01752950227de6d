"""nginx by its configuration: one generated file for each route, tested, reloaded, and seen to be in force.

A file is a route's whole state, so that writing it is absolute and survives a restart. nginx reads it only at
a reload; what counts as the state is therefore what its workers say that they apply.
"""

from __future__ import annotations

import secrets
import time

from rules.errors import BalancerError, CommandError
from rules.nginx import RouteState, Running, rehearsal_key, route_file, state_in
from rules.traffic import AdminState, NginxAddress, Traffic
from tasks.host import exists, run, write_file
from tasks.nginx_status import await_generation, now_running, running, settle, taking_workers

_COMMAND_S = 60.0


class _RefusedError(BalancerError):
    """nginx's test refuses its configuration: it was not told to read it."""


def ping(address: NginxAddress, key: str) -> str:
    """Return nginx's version.

    Raises:
        BalancerError: it does not answer, or has no such route.
    """
    return running(address, key).version


def read_traffic(address: NginxAddress, key: str) -> Traffic:
    """Return the route's split as nginx applies it now.

    Raises:
        BalancerError: nginx does not answer, or has no such route.
    """
    return running(address, key).state.traffic


def set_traffic(address: NginxAddress, key: str, traffic: Traffic) -> None:
    """Split the route's requests like this, also over nginx's restart. Repeating it is harmless.

    Open requests finish where they are. It returns when no worker takes new connections by what was before,
    and when those have ended, or after the address's `settle_s`.

    Raises:
        BalancerError: refused, and then the file of before is back and all goes on; or not in force in time,
            and then it was set back, and the message says whether that is in force.
    """
    _refuse_unknown(address, traffic)
    state = running(address, key).state.model_copy(update={"traffic": traffic})
    _apply(address, key, state, settle_s=address.settle_s)


def keep(address: NginxAddress, key: str) -> None:
    """Make the route's file say what nginx does, and see to it that nginx goes on with that.

    A process that was killed may have left a file that is ahead of nginx, and nginx about to read it: such a
    file is written anew, and read.

    Raises:
        BalancerError: nginx does not answer, or see `set_traffic`.
    """
    _apply(address, key, running(address, key).state)


def rehearse_switch(address: NginxAddress, key: str, splits: tuple[Traffic, ...]) -> None:
    """Set and read back each split in turn, by a file whose names no location uses; then remove it.

    Raises:
        BalancerError: nginx does not take, apply or show one of them; users' traffic was not touched.
    """
    rehearsed = rehearsal_key(key)
    try:
        for split in splits:
            _refuse_unknown(address, split)
            _apply(address, rehearsed, RouteState(traffic=split), asked=key)
            if (now := read_traffic(address, rehearsed)) != split:
                raise BalancerError(f"the rehearsal set {split!r} and read {now!r}; no user was touched")
    finally:
        remove_rehearsal(address, key)


def remove_rehearsal(address: NginxAddress, key: str) -> None:
    """Remove what a rehearsal left, if anything, from nginx and its directory; write the route's own file.

    Raises:
        BalancerError: it is still there; users' traffic was not touched.
    """
    rehearsed = rehearsal_key(key)
    path = _path(address, rehearsed)
    # first: a reload reads every file, also one that a killed process has left ahead of what is in force
    keep(address, key)
    try:
        if exists(address.host, path) or now_running(address, rehearsed):
            _remove(address, rehearsed, asked=key)
    except (BalancerError, CommandError) as error:
        raise BalancerError(
            f"the rehearsal's file {path} may still be there or in force: {error}; no location uses it, so "
            "no user notices. Remove it and reload nginx."
        ) from error


def server_admin(address: NginxAddress, key: str, side: str, server: str) -> AdminState:
    """Return whether the server takes requests (`ready`) or is out.

    Raises:
        BalancerError: nginx does not answer, or the side has no such server.
    """
    _refuse_unknown_server(address, side, server)
    return running(address, key).state.admin(side, server)


def set_admin(address: NginxAddress, key: str, side: str, server: str, *, admin: AdminState) -> None:
    """Put the server into that state, also over nginx's restart; waits for no open request.

    To nginx both `drain` and `maint` are `down`: no new requests, open ones end.

    Raises:
        BalancerError: see `set_traffic`.
    """
    _set_admin(address, key, (side, server), admin)


def drain(address: NginxAddress, key: str, side: str, server: str, *, deadline_s: float) -> int:
    """Take the server out and wait until the workers that had open requests have ended.

    nginx tells nobody how many requests a server has: a worker of before ends when all that it has are over,
    those of other servers too. Where its processes cannot be seen, the whole `deadline_s` is waited.

    Returns:
        Workers of before that were still there when `deadline_s` was over; 0 when all had ended.

    Raises:
        BalancerError: nginx refused or does not answer; the server is in its old state or out.
    """
    began = time.monotonic()
    _set_admin(address, key, (side, server), "maint")
    return settle(address, key, None, began + deadline_s - time.monotonic())


def rejoin(address: NginxAddress, key: str, side: str, server: str) -> None:
    """Give the server requests again. nginx has no checks of its own: probe the instance before.

    Raises:
        BalancerError: see `set_traffic`; the server stays out.
    """
    _set_admin(address, key, (side, server), "ready")


def servers_up(address: NginxAddress, key: str, side: str) -> dict[str, bool]:
    """Return for each server of the side whether nginx sends it requests.

    Raises:
        BalancerError: nginx does not answer, or there is no such side.
    """
    if side not in address.sides:
        raise BalancerError(f"nginx has no side {side}; nothing was changed. It has {sorted(address.sides)}")
    state = running(address, key).state
    return {server: state.admin(side, server) == "ready" for server in address.sides[side]}


def _set_admin(address: NginxAddress, key: str, place: tuple[str, str], admin: AdminState) -> None:
    _refuse_unknown_server(address, *place)
    state = running(address, key).state
    _apply(address, key, state.with_admin(*place, admin))


def _apply(
    address: NginxAddress, key: str, state: RouteState, *, asked: str = "", settle_s: float = 0.0
) -> None:
    """Write the route's file, have nginx read it, and wait until it is what nginx does.

    Args:
        address: the upstream group.
        key: the route.
        state: what nginx is to do.
        asked: the route that nginx has already, by which its workers are found; empty: this one.
        settle_s: how long to wait then for the workers of before.

    Raises:
        BalancerError: see `set_traffic`.
    """
    now, former = now_running(address, key), _file(address, key)
    is_read = now is not None and former == route_file(address, key, now.state, generation=now.generation)
    if now and is_read and now.state == state:
        return
    asked = asked or key
    before = taking_workers(address, asked)
    # whoever left a file that nginx does not apply may have told it to read that: such workers come first
    is_alone = is_read or (now is None and former is None)
    generation = _write_state(address, key, state)
    try:
        _reload(address)
        await_generation(address, key, generation, before if is_alone else None, asked=asked)
    except _RefusedError as error:
        raise _unwritten(address, key, now, former, error=error) from error
    except (BalancerError, CommandError) as error:
        if now is None:
            raise BalancerError(f"{error}; it was a rehearsal, and no user was touched") from error
        raise _set_back(address, key, now, error) from error
    if before:
        settle(address, asked, before, settle_s)


def _remove(address: NginxAddress, key: str, *, asked: str) -> None:
    """Remove a route's file and have nginx forget it; its workers are found by the route `asked`."""
    before = taking_workers(address, asked)
    run(address.host, ("rm", "-f", "--", _path(address, key)))
    _reload(address)
    await_generation(address, key, None, before, asked=asked)


def _reload(address: NginxAddress) -> None:
    """Have nginx read its files, unless it would refuse them.

    Raises:
        _RefusedError: it would.
        CommandError: it was not told.
    """
    try:
        run(address.host, address.test, timeout_s=_COMMAND_S)
    except CommandError as error:
        raise _RefusedError(str(error)) from error
    run(address.host, address.reload, timeout_s=_COMMAND_S)


def _unwritten(
    address: NginxAddress, key: str, now: Running | None, former: str | None, *, error: Exception
) -> BalancerError:
    """Put the file of before back, or one of what nginx does, where a killed process has left another.

    Return what to say of it.
    """
    path = _path(address, key)
    try:
        if former is None:
            run(address.host, ("rm", "-f", "--", path))
        elif now and state_in(former) not in (None, now.state):
            _write_state(address, key, now.state)
        else:
            _write(address, key, former)
    except (BalancerError, CommandError) as second:
        return BalancerError(
            f"nginx does not take the new {path}: {error}. The file of before could not be put back: "
            f"{second}. Traffic is as it was until nginx restarts; mend what `nginx -t` complains of, and "
            "deploy or roll back again."
        )
    return BalancerError(
        f"nginx does not take the new {path}: {error}. The file of before is back; traffic was left as it "
        "was. Mend what `nginx -t` complains of, and deploy or roll back again."
    )


def _set_back(address: NginxAddress, key: str, now: Running, error: Exception) -> BalancerError:
    """Have nginx do what it did, though it may be about to read what it was told; return what to say of it.

    Not the file of before: a killed process may have left it, and nobody ever have read it.
    """
    path = _path(address, key)
    try:
        generation = _write_state(address, key, now.state)
        _reload(address)
        await_generation(address, key, generation, None)
    except (BalancerError, CommandError) as second:
        return BalancerError(
            f"nginx was told of a new {path}: {error}. It was told to go back, too: {second}. The file says "
            "what was before, where it could be written; what nginx will do is not known. See its error log, "
            "whether it runs and can be reloaded, and deploy or roll back again."
        )
    return BalancerError(
        f"nginx was told of a new {path}: {error}. What was before is back, in the file and in force."
    )


def _write_state(address: NginxAddress, key: str, state: RouteState) -> str:
    """Write a route's file; return the generation that nginx says once it has read it."""
    generation = secrets.token_hex(8)
    _write(address, key, route_file(address, key, state, generation=generation))
    return generation


def _file(address: NginxAddress, key: str) -> str | None:
    """Return the route's file; None: there is none."""
    path = _path(address, key)
    try:
        if not exists(address.host, path):
            return None
        return run(address.host, ("cat", "--", path)).stdout
    except CommandError as error:
        raise BalancerError(f"{path} cannot be read: {error}; nothing was changed") from error


def _write(address: NginxAddress, key: str, text: str) -> None:
    try:
        write_file(address.host, _path(address, key), text.encode())
    except CommandError as error:
        raise BalancerError(
            f"{_path(address, key)} could not be written: {error}; traffic was left as it was"
        ) from error


def _path(address: NginxAddress, key: str) -> str:
    return f"{address.directory.rstrip('/')}/{key}.conf"


def _refuse_unknown(address: NginxAddress, traffic: Traffic) -> None:
    unknown = sorted({traffic.live, traffic.candidate} - set(address.sides))
    if unknown:
        raise BalancerError(
            f"nginx has no side {unknown}, so traffic was left as it was; it has {sorted(address.sides)}"
        )


def _refuse_unknown_server(address: NginxAddress, side: str, server: str) -> None:
    if server not in address.sides.get(side, {}):
        raise BalancerError(f"nginx has no server {side}/{server}; nothing was changed")
