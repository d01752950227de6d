"""Read a part of what lies in a directory of a host, to prove that it can be read."""

from __future__ import annotations

from rules.finding import Finding
from rules.hosts import HostAddress
from tasks.host import run

_FILES = 20
# The last command of the pipe decides: xargs exits 123 when a file could not be read. No file
# at all is rc 0 too.
_READ = """\
find "$1" -xdev -type f -size -65536k -print0 | shuf -z -n "$2" | xargs -0 -r sha256sum --
"""


def read_sample(host: HostAddress, directory: str, *, timeout_s: float) -> Finding:
    """Read up to 20 files of up to 64 MiB each, chosen by chance, and say how it went."""
    argv = ("sh", "-c", _READ, "read-sample", directory, str(_FILES))
    finished = run(host, argv, timeout_s=timeout_s, check=False)
    # find's own failures do not reach the pipe's end
    if finished.returncode or finished.stderr.strip():
        return Finding.failed(f"files in {directory} cannot be read: {finished.stderr.strip()[-500:]}")
    count = len(finished.stdout.splitlines())
    if not count:
        return Finding.unknown("it holds no file, so nothing could be read")
    return Finding.passed(f"{count} of its files were read")
