"""Kubo's own code, loaded into this process: one node with its repository, keys, pins and bitswap."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

#: What may not be reached: with this filter a node neither dials nor accepts anybody of the lab.
NOBODY = "/ip4/127.0.0.0/ipcidr/8"

_TEXT = ctypes.c_char_p
#: An address, not a `c_char_p`: ctypes would make bytes of it and lose what NULL says.
_ADDRESS = ctypes.c_void_p
_FUNCTIONS = {
    "AddFile": (_ADDRESS, (_TEXT, _TEXT, ctypes.c_bool)),
    "Download": (ctypes.c_int, (_TEXT, _TEXT, _TEXT)),
    "PinCID": (ctypes.c_int, (_TEXT, _TEXT)),
    "UnpinCID": (ctypes.c_int, (_TEXT, _TEXT)),
    "ListPins": (_ADDRESS, (_TEXT,)),
    "CreateRepo": (ctypes.c_int, (_TEXT,)),
    "RunNode": (ctypes.c_int, (_TEXT,)),
    "CleanupNode": (ctypes.c_int, (_TEXT,)),
    "GetNodeID": (_ADDRESS, (_TEXT,)),
    "GetNodeMultiAddrs": (_ADDRESS, (_TEXT,)),
    "ConnectToPeer": (ctypes.c_int, (_TEXT, _TEXT)),
    "ListPeers": (_ADDRESS, (_TEXT,)),
}


class LibraryError(RuntimeError):
    """The library says that it failed; it does not say why."""


class Library:
    """One node. Calls may hang as long as the node looks for a block; `stop` ends them with an error.

    Args:
        library: Kubo's shared library.
        repository: the node's directory; made by `create`.
    """

    def __init__(self, library: Path, repository: Path) -> None:
        self.repository = repository
        self._repository = str(repository).encode()
        self._library = ctypes.CDLL(str(library))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, list(arguments)

    def create(self, swarm_port: int, *, is_cut_off: bool) -> None:
        """Make the repository where there is none, and write how the node is reached. Not while it runs."""
        config = self.repository / "config"
        if not config.exists() and self._library.CreateRepo(self._repository) < 0:
            raise LibraryError(f"no repository could be made in {self.repository}")
        settings = json.loads(config.read_text())
        settings["Bootstrap"] = []
        settings["Addresses"]["Swarm"] = [f"/ip4/127.0.0.1/tcp/{swarm_port}"]
        settings["Discovery"]["MDNS"]["Enabled"] = False
        settings["Swarm"]["DisableNatPortMap"] = True
        settings["Swarm"]["AddrFilters"] = [NOBODY] if is_cut_off else []
        settings["Routing"] = {"Type": "none"}
        settings["AutoNAT"] = {"ServiceMode": "disabled"}
        # a killed process loses nothing for that, only a machine that loses power would
        settings["Datastore"]["Spec"]["mounts"][0]["child"]["sync"] = False
        config.write_text(json.dumps(settings))

    def run(self) -> None:
        """Start the node. Raises LibraryError when it does not come up."""
        if self._library.RunNode(self._repository) < 0:
            raise LibraryError(f"the node of {self.repository} did not start")

    def stop(self) -> None:
        """Stop the node; calls that hang return an error. Stopped already is fine."""
        self._library.CleanupNode(self._repository)

    def add(self, path: Path, *, only_hash: bool) -> str:
        """Return the CID of a file or directory, whose blocks are stored and pinned unless `only_hash`."""
        address = self._library.AddFile(self._repository, str(path).encode(), only_hash)
        if not address:
            raise LibraryError(f"{path.name} could not be added")
        return ctypes.string_at(address).decode()

    def download(self, cid: str, to: Path) -> bool:
        """Write a file or directory; return whether that was possible."""
        return bool(self._library.Download(self._repository, cid.encode(), str(to).encode()) == 0)

    def pin(self, cid: str) -> bool:
        """Fetch all of a CID and pin it recursively; return whether that was possible."""
        return bool(self._library.PinCID(self._repository, cid.encode()) == 0)

    def unpin(self, cid: str) -> bool:
        """Take a recursive pin away; return whether there was one."""
        return bool(self._library.UnpinCID(self._repository, cid.encode()) == 0)

    def pins(self) -> tuple[str, ...]:
        """Return all that is pinned: recursively and by that indirectly, without saying which."""
        return tuple(self._listed("ListPins"))

    def peer_id(self) -> str:
        """Return who the node is."""
        return self._said("GetNodeID").removeprefix("ID:")

    def addresses(self) -> tuple[str, ...]:
        """Return the multiaddresses where it listens, without its id."""
        return tuple(self._listed("GetNodeMultiAddrs"))

    def connect(self, address: str) -> bool:
        """Dial a multiaddress that ends with `/p2p/ID`; return whether there is a connection."""
        return bool(self._library.ConnectToPeer(self._repository, address.encode()) == 0)

    def peers(self) -> tuple[tuple[str, str], ...]:
        """Return (multiaddress, id) of each peer that is connected."""
        return tuple((a, i) for a, _, i in (peer.rpartition("/") for peer in self._listed("ListPeers")))

    def _said(self, name: str) -> str:
        address = getattr(self._library, name)(self._repository)
        return ctypes.string_at(address).decode() if address else ""

    def _listed(self, name: str) -> list[str]:
        said = self._said(name)
        return json.loads(said) or [] if said.startswith("[") else []
