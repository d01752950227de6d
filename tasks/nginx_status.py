"""What a running nginx applies, asked of itself, and which of its workers only end what they have."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

import httpx
from pydantic import ValidationError

from rules.errors import BalancerError, CommandError
from rules.nginx import Running, status_host
from rules.traffic import NginxAddress
from tasks.host import run
from tasks.http_client import http

_PAUSE_S = 0.05
#: How long workers of before may take connections after new ones do: nginx waits 100 ms for these to start.
_OVERLAP_S = 0.5
_ANSWER_S = 5.0
_SAID_CHARACTERS = 300
_WORKER = "nginx: worker process"
_ENDING = "is shutting down"


class NoRouteError(BalancerError):
    """nginx answers, but has no such route."""


def running(address: NginxAddress, key: str) -> Running:
    """Return what nginx applies for a route now, patiently while it restarts.

    Raises:
        NoRouteError: nginx answers, and has no file of this route.
        BalancerError: no answer within the address's `timeout_s`.
    """
    deadline = time.monotonic() + address.timeout_s
    while True:
        try:
            text = _asked(address, key)
            break
        except (httpx.HTTPError, CommandError) as error:
            if time.monotonic() >= deadline:
                raise BalancerError(
                    f"nginx on {address.host.name} did not say on 127.0.0.1:{address.status_port} what it "
                    f"does with route {key}: {error}. Nothing was changed. Look whether it runs and includes "
                    f"{address.directory}/*.conf in its http block; a nginx that is down keeps its files."
                ) from error
        time.sleep(_PAUSE_S)
    try:
        found = Running.model_validate_json(text)
    except ValidationError as error:
        raise NoRouteError(_no_route(address, key, text)) from error
    if found.route != key:
        raise NoRouteError(_no_route(address, key, f"route {found.route} answers"))
    return found


def workers(address: NginxAddress, key: str) -> dict[int, bool] | None:
    """Return each worker of this nginx: process id -> whether it only ends what it has.

    None: its processes cannot be seen, for instance because it runs in a container.

    Raises:
        BalancerError: nginx does not answer, or its host cannot be asked.
    """
    mine = running(address, key).worker
    try:
        listed = run(address.host, ("ps", "-A", "-o", "pid=,ppid=,args=")).stdout
    except CommandError as error:
        raise BalancerError(f"nginx's processes cannot be listed: {error}. Nothing was changed.") from error
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    found = {int(row[0]): (row[1], row[2]) for row in rows if len(row) == 3}  # noqa: PLR2004 - the columns
    if mine not in found or not found[mine][1].startswith(_WORKER):
        return None
    master = found[mine][0]
    return {
        pid: _ENDING in words
        for pid, (parent, words) in found.items()
        if parent == master and words.startswith(_WORKER)
    }


def taking_workers(address: NginxAddress, key: str) -> set[int] | None:
    """Return the workers that take connections, by their process ids; None: see `workers`."""
    known = workers(address, key)
    return None if known is None else {pid for pid, is_ending in known.items() if not is_ending}


def now_running(address: NginxAddress, key: str) -> Running | None:
    """Return what nginx applies for a route now; None: it has no such route.

    Raises:
        BalancerError: see `running`.
    """
    try:
        return running(address, key)
    except NoRouteError:
        return None


def await_generation(
    address: NginxAddress,
    key: str,
    generation: str | None,
    before: Collection[int] | None,
    *,
    asked: str = "",
) -> None:
    """Wait until each new connection is served by the file of this generation.

    Both old and new workers take connections for a moment, so one answer of a new one proves nothing.

    Args:
        address: the upstream group.
        key: the route.
        generation: of the file that nginx was told to read; None: the file is removed.
        before: workers that must no longer take connections; None: they are not known, and it is asked for
            as long as they could.
        asked: the route by which workers are found; empty: this one.

    Raises:
        BalancerError: not within the address's `timeout_s`, or nginx does not answer.
    """

    def is_there() -> bool:
        now = now_running(address, key)
        return (now.generation if now else None) == generation

    def others_take_none() -> bool:
        if before is None:
            return _holds(is_there, _OVERLAP_S)
        now = workers(address, asked or key) or {}
        return all(now.get(pid, True) for pid in before)

    if not (wait(is_there, address.timeout_s) and wait(others_take_none, address.timeout_s)):
        raise BalancerError(
            f"nginx was told to reload, but goes on as before after {address.timeout_s:g} s; its error log "
            "says why"
        )


def settle(address: NginxAddress, key: str, old: Collection[int] | None, within_s: float) -> int:
    """Wait for workers of before, those of `old` or all that are ending; return how many are left."""
    left: set[int] = set()

    def are_gone() -> bool:
        nonlocal left
        now = workers(address, key)
        if now is None:
            return False
        left = {pid for pid, is_ending in now.items() if (is_ending if old is None else pid in old)}
        return not left

    wait(are_gone, within_s)
    return len(left)


def _holds(said: Callable[[], bool], for_s: float) -> bool:
    """Return whether it is said again and again for so long."""
    end = time.monotonic() + for_s
    while said():
        if time.monotonic() >= end:
            return True
        time.sleep(_PAUSE_S)
    return False


def wait(reached: Callable[[], bool], deadline_s: float) -> bool:
    """Return whether it was reached within `deadline_s`; looks at least once."""
    deadline = time.monotonic() + deadline_s
    while not reached():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_PAUSE_S)
    return True


def _asked(address: NginxAddress, key: str) -> str:
    url, timeout_s = f"http://127.0.0.1:{address.status_port}/", min(_ANSWER_S, address.timeout_s)
    if not address.host.address:
        return http().get(url, headers={"Host": status_host(key)}, timeout=timeout_s).text
    argv = ("curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", f"{timeout_s:g}")
    whole_s = timeout_s + address.host.connect_timeout_s
    return run(address.host, (*argv, "--header", f"Host: {status_host(key)}", url), timeout_s=whole_s).stdout


def _no_route(address: NginxAddress, key: str, said: str) -> str:
    shown = said[:_SAID_CHARACTERS].strip() or "an empty answer"
    return (
        f"nginx on {address.host.name} has no route {key} ({shown}); nothing was changed. Write its first "
        f"file, {address.directory}/{key}.conf, by `python -m tasks.nginx_route`, and reload nginx."
    )
