"""Real Kubo nodes on loopback, which can be killed, cut off, filled up, and made to lie or to hang."""

from __future__ import annotations

import functools
import json
import secrets
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from lab.kubo_blocks import Blocks
from lab.kubo_install import kubo_library
from lab.kubo_settings import Full, Settings
from lab.part import Part
from lab.ports import LOCALHOST, free_port, give_back, is_listening
from lab.processes import LabError, Process, clean_environment, start, wait_until
from rules.ipfs import IpfsNode

_START_TIMEOUT_S = 60.0
_TIMEOUT_S = 60.0


class LabKubo(Part):
    """Some nodes of an IPFS network of their own, each connected to each other.

    Args:
        directory: of all of them; what they store outlives `stop`.
        nodes: their names.
        with_token: each wants a bearer token, as `API.Authorizations` of a real one may ask.
    """

    def __init__(
        self, directory: Path, nodes: Sequence[str] = ("one", "two"), *, with_token: bool = False
    ) -> None:
        self.directory = directory.absolute()
        self._nodes = {name: _Node(name, self.directory / name, with_token=with_token) for name in nodes}

    @property
    def nodes(self) -> tuple[IpfsNode, ...]:
        """All nodes, in the order they were named."""
        return tuple(self.node(name) for name in self._nodes)

    def node(self, name: str) -> IpfsNode:
        """Return how a node is reached; its swarm address is the one that it says itself."""
        node = self._nodes[name]
        return IpfsNode(name=name, api=node.url, token_file=str(node.token_file) if node.token else None)

    def start(self) -> None:
        """Start all nodes that do not run, and connect each to each other.

        Raises:
            LabError: Kubo cannot be had here, or a node does not come up; carries the end of its log.
        """
        for node in self._nodes.values():
            node.begin()
        for node in self._nodes.values():
            node.wait_until_it_answers()
        self._connect_all()

    def stop(self) -> None:
        """Stop all nodes; what they store stays."""
        for node in self._nodes.values():
            node.stop()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        for node in self._nodes.values():
            give_back(node.port)
            give_back(node.swarm_port)

    def kill(self, name: str) -> None:
        """Kill a node, as a crash would: its ports refuse connections then."""
        self._nodes[name].kill()

    def start_node(self, name: str, *, connected: bool = True) -> None:
        """Start a node again with what it had, and connect it to those that run. Running already is fine."""
        node = self._nodes[name]
        node.begin()
        node.wait_until_it_answers()
        if connected:
            self._connect_all(name)

    def connect(self, one: str, other: str) -> None:
        """Connect two nodes; connected already is fine.

        Raises:
            LabError: they do not reach each other; carries what the first one says.
        """
        self._nodes[one].ask("swarm/connect", arg=self._nodes[other].address())

    def disconnect(self, name: str) -> None:
        """Start a node anew: it knows nobody, until somebody connects it."""
        self._nodes[name].stop()
        self.start_node(name, connected=False)

    def cut(self, name: str) -> None:
        """Start a node anew that reaches no other, and that no other reaches; its RPC API answers."""
        self._nodes[name].settings.change(cut_off=True)
        self.disconnect(name)

    def mend(self, name: str) -> None:
        """Undo all that was done to a node by `cut`, `full`, `lie`, `hang` and `storage_max`."""
        node = self._nodes[name]
        was_cut = node.settings.read().cut_off
        node.settings.clear()
        if was_cut:
            node.stop()
        self.start_node(name)

    def storage_max(self, name: str, size_bytes: int) -> None:
        """Let a node say in `repo/stat` that it may hold so much."""
        self._nodes[name].settings.change(storage_max=size_bytes)

    def full(self, name: str, how: Full | str = Full.TRAILER) -> None:
        """Let a node's disk be full: nothing more is added or pinned.

        Args:
            name: of the node.
            how: `trailer`: adding breaks off after 200, half of the files are stored, and only a trailer
                says so; `message`: 500 before anything is stored. Pinning answers 500 in both.
        """
        self._nodes[name].settings.change(full=Full(how))

    def lie(self, name: str, cid: str, content: bytes) -> None:
        """Let a node answer other bytes when it is asked for a CID."""
        node = self._nodes[name]
        lies = node.settings.read().lies
        file = node.directory / f"lie-{len(lies)}"
        file.write_bytes(content)
        node.settings.change(lies={**lies, cid: str(file)})

    def hang(self, name: str) -> None:
        """Let a node accept requests and answer none."""
        self._nodes[name].settings.change(hang=True)

    def gc(self, name: str) -> tuple[str, ...]:
        """Collect what is not pinned and return it, as CIDs of version 1 of the codec raw."""
        rows = self._nodes[name].ask_rows("repo/gc")
        self._connect_all(name)
        return tuple(row["Key"]["/"] for row in rows)

    def pins(self, name: str) -> tuple[str, ...]:
        """Return what a node has pinned recursively, sorted."""
        return tuple(sorted(self._nodes[name].ask("pin/ls", type="recursive").get("Keys", {})))

    def has(self, name: str, cid: str) -> bool:
        """Return whether a node holds all blocks of a CID itself; it need not run."""
        return Blocks(self._nodes[name].directory / "repository" / "blocks").has_all(cid)

    def peers(self, name: str) -> tuple[str, ...]:
        """Return the names of the nodes that one is connected to, sorted."""
        ids = {row["Peer"] for row in self._nodes[name].ask("swarm/peers")["Peers"] or ()}
        return tuple(
            sorted(
                other.name for other in self._nodes.values() if other.is_alive() and other.peer_id() in ids
            )
        )

    def observed(self) -> dict[str, Any]:
        """Return what a deployment may change: node -> what it has pinned; None: it does not run."""
        return {
            name: {"pins": list(self.pins(name))} if node.is_alive() else None
            for name, node in self._nodes.items()
        }

    def _connect_all(self, name: str | None = None) -> None:
        reachable = [n.name for n in self._nodes.values() if n.is_alive() and not n.is_deaf()]
        for one, other in combinations(reachable, 2):
            if name in {None, one, other}:
                self.connect(one, other)


class _Node:
    """One node: its process, its directory and how it is asked."""

    def __init__(self, name: str, directory: Path, *, with_token: bool) -> None:
        self.name, self.directory = name, directory
        self.token = secrets.token_hex(16) if with_token else ""
        self.token_file = directory / "token"
        self.settings = Settings(directory / "settings.json")
        self.port, self.swarm_port = free_port(), free_port()
        self._process: Process | None = None

    @property
    def url(self) -> str:
        return f"http://{LOCALHOST}:{self.port}"

    def is_alive(self) -> bool:
        return self._process is not None and self._process.is_alive()

    def is_deaf(self) -> bool:
        """Return whether others cannot be connected to it."""
        wanted = self.settings.read()
        return wanted.cut_off or wanted.hang

    def begin(self) -> None:
        if self.is_alive():
            return
        library = kubo_library()
        self.directory.mkdir(parents=True, exist_ok=True)
        where = ("--directory", str(self.directory), "--library", str(library))
        ports = ("--port", str(self.port), "--swarm-port", str(self.swarm_port))
        token: tuple[str, ...] = ()
        if self.token:
            self.token_file.touch(mode=0o600)
            self.token_file.write_text(self.token)
            token = ("--token-file", str(self.token_file))
        self._process = start(
            f"Kubo node {self.name}",
            (sys.executable, "-m", "lab.kubo_node", *where, *ports, *token),
            log=self.directory / "log",
            env=clean_environment(self.directory, {}),
            # the library writes a log of its own to where it runs
            cwd=self.directory,
        )

    def wait_until_it_answers(self) -> None:
        wait_until(
            self._answers,
            timeout_s=_START_TIMEOUT_S,
            what=f"Kubo node {self.name}",
            process=self._process,
        )

    def stop(self) -> None:
        if self._process:
            self._process.stop()
        self._process = None

    def kill(self) -> None:
        if self._process:
            self._process.kill()
        self._process = None

    def peer_id(self) -> str:
        said: str = self.ask("id")["ID"]
        return said

    def address(self) -> str:
        """Return by which multiaddress others reach it."""
        said: str = self.ask("id")["Addresses"][0]
        return said

    def ask(self, path: str, **options: str) -> Any:
        return self.ask_rows(path, **options)[-1]

    def ask_rows(self, path: str, **options: str) -> list[Any]:
        answer = self._post(path, options, _TIMEOUT_S)
        if answer.status_code != httpx.codes.OK:
            raise LabError(f"Kubo node {self.name}: {path} is answered {answer.status_code}: {answer.text}")
        return [json.loads(line) for line in answer.text.splitlines()]

    def _answers(self) -> bool:
        if not is_listening(self.port):
            return False
        if self.settings.read().hang:
            return True
        try:
            return self._post("version", {}, 2.0).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def _post(self, path: str, options: dict[str, str], timeout_s: float) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        where = f"{self.url}/api/v0/{path}"
        return _client().post(where, params=options, headers=headers, timeout=timeout_s)


@functools.cache
def _client() -> httpx.Client:
    """Return one client, since making it costs more than asking; it keeps no connection that may be dead."""
    return httpx.Client(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
