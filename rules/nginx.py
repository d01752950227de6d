"""One route's file for nginx: its whole state, as directives for nginx and as data that we read back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, ValidationError

from rules.frozen import Frozen
from rules.traffic import AdminState, NginxAddress, ProxyName, Traffic

_ALL = 10_000
#: Characters of a route's name for nginx: with its end it stays below the 46 that a hash of 64 bytes takes.
_HOST_DIGITS = 16
_HEAD = "# sovereign-deploy: "


class RouteState(Frozen):
    """The absolute state of one route: its split, and which servers are taken out.

    `out` has `side/server` -> state for each server that is not ready.
    """

    traffic: Traffic
    out: dict[str, Literal["drain", "maint"]] = Field(default_factory=dict)

    def admin(self, side: str, server: str) -> AdminState:
        """Return one server's state."""
        return self.out.get(f"{side}/{server}", "ready")

    def with_admin(self, side: str, server: str, admin: AdminState) -> RouteState:
        """Return this state with one server's changed."""
        out = {name: state for name, state in self.out.items() if name != f"{side}/{server}"}
        if admin != "ready":
            out[f"{side}/{server}"] = admin
        return self.model_copy(update={"out": dict(sorted(out.items()))})


class Running(Frozen):
    """What one worker of nginx answers about a route: the state that it applies."""

    route: str
    generation: str = Field(description="which writing of the route's file it has read")
    version: str = Field(description="of nginx")
    worker: int = Field(description="its process id, as nginx sees it")
    state: RouteState


def route_file(address: NginxAddress, key: str, state: RouteState, *, generation: str = "first") -> str:
    """Return the file of a route, to be included in nginx's `http` block.

    Args:
        address: the upstream group.
        key: the route's name; the rehearsal's has a dot in it, and names of its own for all that it defines.
        state: what nginx is to do.
        generation: a word that no other writing of this file has. The state alone would not tell whether
            nginx has read this one, or goes on with an equal one and is about to read something else.
    """
    lines = [
        f"{_HEAD}{_in_json(state)}",
        "# Written by deployments, as a whole: whatever else is written here is lost.",
        *_directives(address, key, state),
        "server {",
        f"    listen 127.0.0.1:{address.status_port};",
        f"    server_name {status_host(key)};",
        "    access_log off;",
        "    default_type application/json;",
        # the state of a route must not outlive the worker that says it
        "    keepalive_timeout 0;",
        f"    location = / {{ return 200 '{_told(key, state, generation)}'; }}",
        "}",
    ]
    return "\n".join(lines) + "\n"


def state_in(text: str) -> RouteState | None:
    """Return the state that a route's file says; None: it is no file of ours."""
    first = text.partition("\n")[0]
    if not first.startswith(_HEAD):
        return None
    try:
        return RouteState.model_validate_json(first.removeprefix(_HEAD))
    except ValidationError:
        return None


def status_host(key: str) -> str:
    """Return the name by which nginx is asked about a route.

    Not the key itself: nginx's `server_names_hash_bucket_size` of 64 takes no name of 47 characters, which a
    rehearsal's would have from a key of 20 on.
    """
    return f"{hashlib.sha256(key.encode()).hexdigest()[:_HOST_DIGITS]}.sovereign-deploy"


def rehearsal_key(key: str) -> str:
    """Return the key of the rehearsal's own file; the dot keeps it apart from every application's route."""
    return f"{key}.rehearsal"


def _in_json(state: RouteState) -> str:
    """Return the state as one text, whatever order its servers came in."""
    return json.dumps(state.model_dump(mode="json"), sort_keys=True)


def _told(key: str, state: RouteState, generation: str) -> str:
    known = {"route": key, "generation": generation}
    values = [f'"{name}":"{value}"' for name, value in known.items()]
    values += ['"version":"$nginx_version"', '"worker":$pid', f'"state":{_in_json(state)}']
    return f"{{{','.join(values)}}}"


def _directives(address: NginxAddress, key: str, state: RouteState) -> Iterator[str]:
    # names of nginx are global: those of a rehearsal must not be those that users are sent by
    name = f"{address.upstream}_rehearsal" if key.endswith(".rehearsal") else address.upstream
    yield f"map $cookie_{address.user_cookie} ${name}_user {{"
    yield "    '' $request_id;"
    yield f"    default $cookie_{address.user_cookie};"
    yield "}"
    yield f"split_clients ${name}_user ${name}_side {{"
    yield from _shares(state.traffic)
    yield "}"
    yield f"map ${name}_side ${name} {{"
    yield from (f"    {side} {_pool(name, side)};" for side in address.sides)
    yield "}"
    yield f"log_format {name} '${name}_side\\t$upstream_addr\\t$status\\t$request_time';"
    for pool, side in (
        (name, state.traffic.live),
        *((_pool(name, side), side) for side in address.sides),
    ):
        yield f"upstream {pool} {{"
        yield from (f"    {words};" for words in address.upstream_directives)
        yield from _servers(address, side, state)
        yield "}"


def _shares(traffic: Traffic) -> Iterator[str]:
    """Yield the split; nginx refuses a share of 0 %, and gives `*` what is left."""
    share = traffic.canary_basis_points
    if 0 < share < _ALL:
        yield f"    {share // 100}.{share % 100:02d}% {traffic.candidate};"
    yield f"    * {traffic.candidate if share == _ALL else traffic.live};"


def _servers(address: NginxAddress, side: ProxyName, state: RouteState) -> Iterator[str]:
    for server, where in address.sides[side].items():
        words = ["server", where, *address.server_parameters.split()]
        if state.admin(side, server) != "ready":
            words.append("down")
        yield f"    {' '.join(words)};"


def _pool(name: str, side: str) -> str:
    return f"{name}_{side}"
