"""Content that is read from a Kubo node: found by its path, and fetched from whoever has it."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

from lab.kubo_asked import CommandError
from lab.kubo_blocks import Blocks, Link
from lab.kubo_calls import Patience, bounded
from lab.kubo_library import Library


class Reading:
    """Reads content from one node.

    Args:
        library: the node, which runs.
        blocks: of its repository.
        directory: where content lies on its way out; emptied.
    """

    def __init__(self, library: Library, blocks: Blocks, directory: Path) -> None:
        self._library, self._blocks, self._directory = library, blocks, directory
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)

    def resolve(self, path: str, patience: Patience) -> str:
        """Return the CID that a path leads to, such as `Qm…/sub/file`.

        Raises:
            CommandError: it leads nowhere.
            GivenUpError: a directory on the way could not be had in time.
        """
        cid, *names = path.split("/")
        for name in names:
            entries = self.entries(cid, patience)
            below = next((entry.cid for entry in entries if entry.name == name), None)
            if below is None:
                raise CommandError(f'no link named "{name}" under {cid}')
            cid = below
        return cid

    def entries(self, cid: str, patience: Patience) -> tuple[Link, ...]:
        """Return what is in a directory, nothing where it is none. Raises as `fetch`."""
        if not self._blocks.has(cid):
            self.remove(self.fetch(cid, patience))
        return self._blocks.entries(cid) if self._blocks.is_directory(cid) else ()

    def fetch(self, cid: str, patience: Patience) -> Path:
        """Return where a file or directory was written, after whoever has its blocks gave them.

        Raises:
            CommandError: the library cannot read it.
            GivenUpError: its blocks could not be had in time.
        """
        handle, name = tempfile.mkstemp(dir=self._directory)
        os.close(handle)
        to = Path(name)
        to.unlink()
        download = partial(self._library.download, cid, to)
        if not bounded(download, patience, lambda _: self.remove(to)):
            raise CommandError(f"ipld: could not find {cid}")
        return to

    def remove(self, file: Path) -> None:
        """Remove what was fetched; what lies elsewhere stays."""
        if not file.is_relative_to(self._directory):
            return
        if file.is_dir():
            shutil.rmtree(file, ignore_errors=True)
        else:
            file.unlink(missing_ok=True)
