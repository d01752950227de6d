"""The contract with a Kubo node: how one is asked, and the list that `lab.kubo_checks` fills."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx

from lab.contract import expect


@dataclasses.dataclass(frozen=True)
class Contract:
    """Two running nodes that reach each other.

    Attributes:
        api: where the first one answers, without a path.
        other_api: where the second one does.
        token: what both want; empty: they want none.
    """

    api: str
    other_api: str
    token: str = ""

    @property
    def other(self) -> Contract:
        """The same with the nodes' parts exchanged."""
        return dataclasses.replace(self, api=self.other_api, other_api=self.api)

    def ask(self, path: str, /, *arguments: str, **options: str) -> httpx.Response:
        """Post a command; an underscore in an option's name stands for a hyphen."""
        given = [("arg", argument) for argument in arguments]
        given += [(name.replace("_", "-"), value) for name, value in options.items()]
        return self.send("POST", f"{path}?{urllib.parse.urlencode(given)}")

    def send(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Send a request."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        headers |= more.pop("headers", {})
        return _client().request(method, f"{self.api}/api/v0/{path}", headers=headers, **more)

    def add(self, files: Mapping[str, bytes | None], **options: str) -> list[dict[str, Any]]:
        """Add files, and directories where there is None, and return all rows."""
        given = urllib.parse.urlencode({name.replace("_", "-"): value for name, value in options.items()})
        answer = self.send("POST", f"add?{given}", files=parts(files))
        expect(answer.status_code == httpx.codes.OK, "content is added", answer.text)
        return rows(answer)

    def pins(self, *cids: str, kind: str = "recursive") -> dict[str, str]:
        """Return what is pinned -> how; of `cids` where some are given."""
        answer = self.ask("pin/ls", *cids, type=kind)
        if answer.status_code != httpx.codes.OK:
            return {}
        return {cid: how["Type"] for cid, how in answer.json().get("Keys", {}).items()}

    @contextlib.contextmanager
    def added(self, files: Mapping[str, bytes | None]) -> Iterator[dict[str, str]]:
        """Add and pin content, and yield path -> CID; its pins are gone afterwards."""
        cids = {row["Name"]: row["Hash"] for row in self.add(files) if "Hash" in row}
        try:
            yield cids
        finally:
            for node in (self, self.other):
                for cid in cids.values():
                    node.ask("pin/rm", cid)


Check = Callable[[Contract], None]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    """Add a check to the list, by its name."""
    CHECKS[function.__name__] = function
    return function


def expect_error(answer: httpx.Response, *words: str) -> None:
    """Go on when a command failed with 500, and says so as Kubo does."""
    expect(answer.status_code == httpx.codes.INTERNAL_SERVER_ERROR, "a failure is 500", answer)
    said = answer.json()
    expect(said["Type"] == "error" and said["Code"] == 0, "an error in JSON", said)
    expect(all(word in said["Message"] for word in words), f"words {words}", said)


def parts(files: Mapping[str, bytes | None]) -> list[tuple[str, tuple[str, bytes, str]]]:
    """Return the parts of a multipart body; names are percent-encoded, None is a directory."""
    return [
        (
            "file",
            (
                urllib.parse.quote(name, safe=""),
                content or b"",
                "application/x-directory" if content is None else "application/octet-stream",
            ),
        )
        for name, content in files.items()
    ]


def rows(answer: httpx.Response) -> list[dict[str, Any]]:
    """Return the rows of an answer, one in each line."""
    return [json.loads(line) for line in answer.text.splitlines()]


@functools.cache
def _client() -> httpx.Client:
    """Return one client, since making it costs more than asking; it keeps no connection that may be dead."""
    return httpx.Client(trust_env=False, timeout=60, limits=httpx.Limits(max_keepalive_connections=0))


def real_nodes() -> Contract | None:
    """Return the real nodes that the environment names; None: it names none."""
    api, other = os.environ.get("KUBO_API"), os.environ.get("KUBO_API_2")
    return Contract(api.rstrip("/"), other.rstrip("/")) if api and other else None
