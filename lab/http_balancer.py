"""A balancer with the guide's HTTP API: a stand-in, which moves the traffic of a real HAProxy.

`POST /switch {"environment": "blue"}`, `POST /canary {"percentage": 0}`, `GET /status` for what is in force,
and `GET /counts` for the answers of each side. A switch leaves the percentage as it is, unless told
otherwise: the harder kind to drive. `lab.balancer_contract` holds it to what a real one has to do.
"""

from __future__ import annotations

import argparse
import csv
import json
import secrets
import socket
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from lab.haproxy import LabHaproxy
from lab.part import Part
from lab.ports import LOCALHOST, free_port, give_back
from lab.processes import Process, clean_environment, start, wait_until
from rules.traffic import Counts, HaproxyAddress, HttpBalancerAddress, Route, Traffic

_START_TIMEOUT_S = 20.0


class LabHttpBalancer(Part):
    """The API in front of a HAProxy that runs already.

    Args:
        directory: its token, its route and its log.
        balancer: whose traffic it moves.
        switch_resets_canary: whether a switch sets the percentage to 0 in the same act.
        counted: whether deployments are told where answers are counted.
    """

    def __init__(
        self,
        directory: Path,
        balancer: LabHaproxy,
        *,
        switch_resets_canary: bool = False,
        counted: bool = True,
    ) -> None:
        self.directory, self.balancer = directory.absolute(), balancer
        self.port, self.token_file = free_port(), self.directory / "token"
        self.address = HttpBalancerAddress(
            url=f"http://{LOCALHOST}:{self.port}",
            sides=(balancer.live, balancer.candidate),
            token_file=str(self.token_file),
            counts_path="/counts" if counted else None,
            switch_resets_canary=switch_resets_canary,
        )
        self.route = Route(balancer=self.address, key=balancer.route.key)
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """Where users reach the application: the HAProxy."""
        return self.balancer.url

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            LabError: it did not start; carries the end of its log.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self.token_file.exists():
            self.token_file.touch(mode=0o600)
            self.token_file.write_text(secrets.token_urlsafe(24))
        route = self.directory / "route.json"
        route.write_text(self.balancer.route.model_dump_json())
        own = ["--port", str(self.port), "--route", str(route), "--token-file", str(self.token_file)]
        own += ["--switch-resets-canary"] if self.address.switch_resets_canary else []
        self._process = start(
            "http-balancer",
            [sys.executable, "-m", "lab.http_balancer", *own],
            log=self.directory / "http-balancer.log",
            env=clean_environment(self.directory, {}),
        )
        wait_until(self._answers, timeout_s=_START_TIMEOUT_S, what="the API", process=self._process)

    def stop(self) -> None:
        """End it; the HAProxy goes on."""
        if self._process:
            self._process.stop()
            self._process = None

    def restart(self) -> None:
        """End it and the HAProxy, and start both again: all they still know comes from files."""
        self.stop()
        self.balancer.restart()
        self.start()

    def __exit__(self, *arguments: object) -> None:
        """Stop it and give its port back."""
        self.stop()
        give_back(self.port)

    def _answers(self) -> bool:
        try:
            httpx.get(f"{self.address.url}/status", timeout=2.0, trust_env=False)
        except httpx.HTTPError:
            return False
        return True


class _Haproxy:
    """One route of a HAProxy, by its socket: importing what deployments use for that would take seconds."""

    def __init__(self, route: Route) -> None:
        if not isinstance(route.balancer, HaproxyAddress):
            raise TypeError(f"{route} does not go through HAProxy")
        self._address, self._key = route.balancer, route.key

    def read(self) -> Traffic:
        """Return its split."""
        rows = (line.split(maxsplit=2) for line in self._ask(f"show map {self._address.route_map}"))
        live, candidate, share = {key: value for _, key, value in rows}[self._key].split(":")
        return Traffic(live=live, candidate=candidate, canary_basis_points=int(share))

    def set(self, traffic: Traffic) -> None:
        """Change its split, also over a restart."""
        value = f"{traffic.live}:{traffic.candidate}:{traffic.canary_basis_points}"
        if said := self._ask(f"set map {self._address.route_map} {self._key} {value}"):
            raise OSError(f"HAProxy refused: {said}")
        Path(self._address.route_map).write_text(f"{self._key} {value}\n")

    def counts(self, side: str) -> Counts:
        """Return what a side has answered."""
        (row,) = csv.DictReader(line.removeprefix("# ") for line in self._ask(f"show stat {side} 2 -1"))
        requests = sum(int(row[f"hrsp_{kind}xx"] or 0) for kind in range(1, 6))
        return Counts(requests=requests, errors=int(row["hrsp_5xx"] or 0))

    def _ask(self, command: str) -> list[str]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(self._address.timeout_s)
            connection.connect(self._address.socket)
            connection.sendall(f"{command}\n".encode())
            with connection.makefile() as answer:
                return [line for line in answer.read().splitlines() if line.strip()]


class _Api:
    """What the API does to a route of a HAProxy."""

    def __init__(self, route: Route, token: str, *, switch_resets_canary: bool) -> None:
        self.token, self._haproxy, self._resets = token, _Haproxy(route), switch_resets_canary
        first = self._haproxy.read()
        self._sides = (first.live, first.candidate)

    def status(self) -> dict[str, Any]:
        """Return what is in force."""
        traffic = self._haproxy.read()
        return {
            "environment": traffic.live,
            "percentage": traffic.canary_basis_points / 100,
            "service": "lab",
        }

    def counts(self) -> dict[str, Any]:
        """Return what each side has answered."""
        return {side: self._haproxy.counts(side).model_dump() for side in self._sides}

    def switch(self, body: dict[str, Any]) -> dict[str, Any]:
        """Make another environment the live one."""
        live, share = body["environment"], self._haproxy.read().canary_basis_points
        if live not in self._sides:
            raise ValueError(f"there is no environment {live}")
        other = next(side for side in self._sides if side != live)
        share = 0 if self._resets else share
        self._haproxy.set(Traffic(live=live, candidate=other, canary_basis_points=share))
        return {"ok": True}

    def canary(self, body: dict[str, Any]) -> dict[str, Any]:
        """Send another percentage to the environment that is not live."""
        percentage = body["percentage"]
        if type(percentage) is not int or not 0 <= percentage <= 100:  # noqa: PLR2004 - percent
            raise ValueError("percentage is a whole number from 0 to 100")
        traffic = self._haproxy.read()
        self._haproxy.set(traffic.model_copy(update={"canary_basis_points": percentage * 100}))
        return {"ok": True}


_Act = Callable[[dict[str, Any]], dict[str, Any]]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, api: _Api) -> None:
        super().__init__((LOCALHOST, port), _Handler)
        self.token = api.token
        self.acts: dict[tuple[str, str], _Act] = {
            ("GET", "/status"): lambda _: api.status(),
            ("GET", "/counts"): lambda _: api.counts(),
            ("POST", "/switch"): api.switch,
            ("POST", "/canary"): api.canary,
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet
    server: _Server

    def do_GET(self) -> None:
        """Answer a question."""
        self._answer(*self._done({}))

    def do_POST(self) -> None:
        """Do what is asked."""
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self._answer(*self._done(json.loads(text)))
        except ValueError as error:
            self._answer(400, {"error": str(error)})

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _done(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        given = self.headers.get("Authorization") or ""
        if not secrets.compare_digest(given.encode(), f"Bearer {self.server.token}".encode()):
            return 401, {"error": "a bearer token is needed"}
        act = self.server.acts.get((self.command, self.path))
        if act is None:
            return 404, {"error": f"there is no {self.command} {self.path}"}
        try:
            return 200, act(body)
        except OSError as error:
            return 503, {"error": str(error)}
        except (ValueError, KeyError, TypeError) as error:
            return 400, {"error": str(error)}

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)


def main() -> None:
    """Serve the API until SIGTERM."""
    arguments = argparse.ArgumentParser(prog="python -m lab.http_balancer", description=__doc__)
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--route", type=Path, required=True, help="of the HAProxy, as JSON")
    arguments.add_argument("--token-file", type=Path, required=True)
    arguments.add_argument("--switch-resets-canary", action="store_true")
    given = arguments.parse_args()
    api = _Api(
        Route.model_validate_json(given.route.read_text()),
        given.token_file.read_text().strip(),
        switch_resets_canary=given.switch_resets_canary,
    )
    _Server(given.port, api).serve_forever()


if __name__ == "__main__":
    main()
