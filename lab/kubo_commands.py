"""What Kubo's RPC commands do, over a node in this process; `lab.kubo_node` speaks HTTP around them."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lab.kubo_adding import Adding
from lab.kubo_asked import Answer, Asked, CommandError, WrongRequestError
from lab.kubo_blocks import Blocks, is_cid
from lab.kubo_calls import Sharing, bounded
from lab.kubo_library import Library
from lab.kubo_pins import Pins
from lab.kubo_reading import Reading
from lab.kubo_settings import Full, Settings

VERSION = "0.22.0"

_NO_SPACE = "no space left on device"


class Commands:
    """The commands of one node.

    Args:
        library: the node, which runs.
        settings: what the lab wants of it now.
        directory: for what is on its way in or out.
        restarted: called after the node was stopped and started again within this process.
    """

    def __init__(
        self, library: Library, settings: Settings, directory: Path, restarted: Callable[[], None]
    ) -> None:
        self._library, self._settings, self._restarted = library, settings, restarted
        self._blocks = Blocks(library.repository / "blocks")
        self._pins = Pins(library, self._blocks, directory / "pins.json")
        self._adding = Adding(library, self._blocks, self._pins)
        self._incoming = directory / "incoming"
        self._reading = Reading(library, self._blocks, directory / "outgoing")
        self._sharing, self._collecting = Sharing(), threading.Lock()
        shutil.rmtree(self._incoming, ignore_errors=True)
        self._incoming.mkdir(parents=True)

    def remove(self, file: Path) -> None:
        """Remove what an answer was read from, unless it is the lab's."""
        self._reading.remove(file)

    def find(self, path: str) -> Callable[[Asked], Answer] | None:
        """Return the command of a path such as `pin/add`; None: there is none."""
        if path == "repo/gc":
            return self._repo_gc
        command = self._shared.get(path)
        return self._while_it_runs(command) if command else None

    def _while_it_runs(self, command: Callable[[Asked], Answer]) -> Callable[[Asked], Answer]:
        def run(asked: Asked) -> Answer:
            with self._sharing.shared():
                return command(asked)

        return run

    @property
    def _shared(self) -> dict[str, Callable[[Asked], Answer]]:
        return {
            "add": self._add,
            "block/stat": self._block_stat,
            "cat": self._cat,
            "id": self._id,
            "ls": self._ls,
            "pin/add": self._pin_add,
            "pin/ls": self._pin_ls,
            "pin/rm": self._pin_rm,
            "repo/stat": self._repo_stat,
            "swarm/connect": self._swarm_connect,
            "swarm/peers": self._swarm_peers,
            "version": self._version,
        }

    def _version(self, _: Asked) -> Answer:
        said = {"Version": VERSION, "Commit": "", "Repo": "14", "System": "amd64/linux", "Golang": "go1.19"}
        return Answer([said])

    def _id(self, _: Asked) -> Answer:
        peer = self._library.peer_id()
        addresses = [f"{address}/p2p/{peer}" for address in self._library.addresses()]
        agent = {"AgentVersion": f"kubo/{VERSION}/", "Protocols": []}
        return Answer([{"ID": peer, "PublicKey": "", "Addresses": addresses, **agent}])

    def _add(self, asked: Asked) -> Answer:
        _refuse_what_the_library_cannot_do(asked)
        only_hash, pin = asked.flag("only-hash"), asked.flag("pin", default=True)
        full = None if only_hash else self._settings.read().full
        with tempfile.TemporaryDirectory(dir=self._incoming) as scratch:
            content = self._adding.receive(
                asked.body,
                asked.headers.get("Content-Type") or "",
                Path(scratch),
                wrap=asked.flag("wrap-with-directory"),
            )
            progress = content.progress() if asked.flag("progress") else []
            if full is Full.MESSAGE:
                raise CommandError(f"write {self._library.repository}/blocks: {_NO_SPACE}")
            if full is Full.TRAILER:
                rows = self._adding.add_some(content)
                error = f"write {self._library.repository}/blocks: {_NO_SPACE}"
                return Answer([*(progress or content.progress())[:1], *rows], late_error=error)
            if only_hash:
                return Answer([*progress, *self._adding.hash_only(content)])
            return Answer([*progress, *self._adding.add(content, pin=pin)])

    def _pin_add(self, asked: Asked) -> Answer:
        paths = asked.paths()
        if not asked.flag("recursive", default=True):
            raise CommandError("the lab's Kubo pins recursively only")
        cids = [self._reading.resolve(path, asked.patience) for path in paths]
        for cid in cids:
            if self._settings.read().full and cid not in self._pins.recursive():
                raise CommandError(f"pin: write {self._library.repository}/blocks: {_NO_SPACE}")
            if not self._pins.add(cid, asked.patience):
                raise CommandError(f"pin: {cid} could not be pinned")
        return Answer([{"Pins": cids}])

    def _pin_rm(self, asked: Asked) -> Answer:
        paths = asked.paths()
        cids = [self._reading.resolve(path, asked.patience) for path in paths]
        for cid in cids:
            if not self._pins.remove(cid):
                raise CommandError("not pinned or pinned indirectly")
        return Answer([{"Pins": cids}])

    def _pin_ls(self, asked: Asked) -> Answer:
        kind = asked.text("type", "all")
        if kind not in {"all", "recursive", "indirect", "direct"}:
            wrong = "must be one of {direct, indirect, recursive, all}"
            raise CommandError(f"invalid type '{kind}', {wrong}")
        recursive, indirect = self._pins.recursive(), self._pins.indirect()
        found = {cid: "recursive" for cid in recursive if kind in {"all", "recursive"}}
        found |= {cid: "indirect" for cid in indirect if kind in {"all", "indirect"}}
        if asked.options.get("arg"):
            cids = [self._reading.resolve(path, asked.patience) for path in asked.paths()]
            for cid in cids:
                if cid not in found:
                    raise CommandError(f"path '{cid}' is not pinned")
            through = {cid: f"indirect through {root}" for cid, root in indirect.items()}
            found = {cid: through.get(cid, found[cid]) for cid in cids}
        if asked.flag("stream"):
            return Answer([{"Cid": cid, "Type": how} for cid, how in found.items()])
        # with nothing to say Kubo leaves the field out
        return Answer(
            [{"Keys": {cid: {"Name": "", "Type": how} for cid, how in found.items()}} if found else {}]
        )

    def _cat(self, asked: Asked) -> Answer:
        path = asked.paths()[0]
        offset, length = int(asked.text("offset", "0")), asked.text("length")
        cid = self._reading.resolve(path, asked.patience)
        lie = self._settings.read().lies.get(cid)
        file = Path(lie) if lie else self._reading.fetch(cid, asked.patience)
        if file.is_dir():
            self._reading.remove(file)
            raise CommandError("this dag node is a directory")
        return Answer(file=file, offset=offset, length=int(length) if length else None)

    def _ls(self, asked: Asked) -> Answer:
        path = asked.paths()[0]
        cid = self._reading.resolve(path, asked.patience)
        links = [
            {
                "Name": entry.name,
                "Hash": entry.cid,
                "Size": entry.size_bytes,
                "Type": 1 if self._blocks.has(entry.cid) and self._blocks.is_directory(entry.cid) else 2,
                "Target": "",
            }
            for entry in self._reading.entries(cid, asked.patience)
        ]
        return Answer([{"Objects": [{"Hash": path, "Links": links}]}])

    def _block_stat(self, asked: Asked) -> Answer:
        cid = asked.paths("cid")[0]
        if not self._blocks.has(cid):
            raise CommandError(f"block was not found locally (offline): ipld: could not find {cid}")
        return Answer([{"Key": cid, "Size": len(self._blocks.read(cid))}])

    def _repo_stat(self, asked: Asked) -> Answer:
        used = sum(
            file.stat().st_size
            for root in ("blocks", "datastore")
            for file in (self._library.repository / root).rglob("*")
            if file.is_file()
        )
        said: dict[str, object] = {"RepoSize": used, "StorageMax": self._settings.read().storage_max}
        if not asked.flag("size-only"):
            where = str(self._library.repository)
            said |= {"NumObjects": self._blocks.count(), "RepoPath": where, "Version": "fs-repo@14"}
        return Answer([said])

    def _repo_gc(self, _: Asked) -> Answer:
        with self._collecting, self._sharing.alone():
            pinned = self._pins.recursive()
            peers = self._library.peers()
            # the node remembers which blocks it has: taken away below it, it would not store them again
            self._library.stop()
            try:
                removed = self._blocks.remove_all_but(pinned)
            finally:
                self._library.run()
                self._restarted()
            for address, peer in peers:
                self._library.connect(f"{address}/p2p/{peer}")
        return Answer([{"Key": {"/": cid}} for cid in removed])

    def _swarm_connect(self, asked: Asked) -> Answer:
        addresses = asked.options.get("arg", [])
        if not addresses:
            raise WrongRequestError('argument "address" is required')
        said = []
        for address in addresses:
            where, _, peer = address.rpartition("/p2p/")
            if not where.startswith("/") or not is_cid(peer):
                raise CommandError(f"invalid peer address: {address}")
            if not bounded(partial(self._library.connect, address), asked.patience):
                raise CommandError(f"connect {peer} failure: failed to dial {peer}: all dials failed")
            said.append(f"connect {peer} success")
        return Answer([{"Strings": said}])

    def _swarm_peers(self, _: Asked) -> Answer:
        peers = [{"Addr": address, "Peer": peer} for address, peer in self._library.peers()]
        return Answer([{"Peers": peers or None}])


def _refuse_what_the_library_cannot_do(asked: Asked) -> None:
    only = {"cid-version": "0", "raw-leaves": "false", "chunker": "size-262144", "hash": "sha2-256"}
    for name, value in only.items():
        if (said := asked.text(name, value)) != value:
            raise CommandError(f"the lab's Kubo adds with {name}={value} only, not {said}")
