"""Commands and files on a host: this machine, or one reached by OpenSSH with the same argv."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from prefect_shell import ShellOperation  # type: ignore[import-untyped]

from rules.errors import CommandError
from rules.hosts import HostAddress
from tasks.process import GUARD, Finished, finish

_SSH_FAILED = 255
_COPY_TIMEOUT_S = 1800.0
_TAIL_BYTES = 65_536
#: Where systems keep programs that only root has on PATH, such as zfs.
_ADMINISTRATORS_PROGRAMS = "/usr/local/sbin:/usr/sbin:/sbin"

# Values reach these as arguments, never as text of the script. One round trip by ssh does all of it.
# The size is compared because a connection that breaks looks like the end of the file to `cat`.
_WRITE = """\
set -eu
trap 'rm -f -- "$1"' EXIT
umask 022
cat >"$1"
[ "$(stat -c %s -- "$1")" = "$4" ] || { echo "input ended before $4 bytes" >&2; exit 1; }
chmod 0644 -- "$1"
sync -- "$1"
mv -T -- "$1" "$2"
sync -- "$3"
"""
_LINK = """\
set -eu
trap 'rm -f -- "$1"' EXIT
ln -s -- "$4" "$1"
mv -T -- "$1" "$2"
sync -- "$3"
"""
# The values come first on its input, quoted for the shell; `head` takes no byte more than it is told.
_WITH_ENVIRONMENT = """\
eval "$(head -c "$1")" || exit
PATH="$PATH:$2"
shift 2
exec "$@"
"""
# `bash "$0"` again under the guard, so that a script does not outlive a killed flow. The output goes to a
# file, of 64 MiB at most, because a daemon left behind would hold a pipe open for ever.
_SCRIPT = """\
[ "${SOVEREIGN_GUARDED-}" ] || SOVEREIGN_GUARDED=1 exec setpriv --pdeathsig KILL -- bash "$0"
exec >"$SOVEREIGN_OUTPUT" 2>&1
unset SOVEREIGN_GUARDED SOVEREIGN_OUTPUT
ulimit -Sf 65536
set -euo pipefail
"""


class HostUnreachableError(CommandError):
    """The host cannot be reached, or ssh lost it: whether the command ran there is not known."""


def run(
    host: HostAddress,
    argv: Sequence[str],
    *,
    timeout_s: float = 60.0,
    stdin: bytes | BinaryIO | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
) -> Finished:
    """Run `argv` on `host` and return how it ended; see `tasks.process.finish` for what is promised.

    On a remote host the command gets KILL when its connection ends, so it does not go on there either. A
    daemon that keeps its output open there holds the connection, and with it this call, until the timeout:
    give daemons an output of their own.

    Args:
        host: where.
        argv: the program and its arguments; no shell reads them.
        timeout_s: seconds until the command is ended.
        stdin: what it reads; None: nothing.
        env: added to its environment; no argument of any command holds a value of it, here or there. With
            it, also an empty one, PATH ends with the directories of programs for administrators.
        check: whether an exit code other than 0 is an error.

    Raises:
        CommandError: it exited other than 0 and `check`, or it took longer than `timeout_s`.
        HostUnreachableError: ssh exited 255, with `check` or without. A remote command that was killed by
            a signal looks the same to ssh.
        ValueError: `env` holds no name of a variable, or goes to a remote host beside an open file.
    """
    finished = _finish(host, argv, timeout_s=timeout_s, stdin=stdin, env=env)
    failure = (tuple(argv), host.name, finished.returncode, finished.output)
    if host.address and finished.returncode == _SSH_FAILED:
        raise HostUnreachableError(*failure)
    if finished.returncode is None or (check and finished.returncode):
        raise CommandError(*failure)
    return finished.model_copy(update={"argv": tuple(argv)})


def _finish(
    host: HostAddress,
    argv: Sequence[str],
    *,
    timeout_s: float,
    stdin: bytes | BinaryIO | None,
    env: Mapping[str, str] | None,
) -> Finished:
    if env is None:
        words = ssh_argv(host, argv) if host.address else argv
        return finish(words, timeout_s=timeout_s, stdin=stdin)
    if not host.address:
        path = f"{os.environ.get('PATH', os.defpath)}:{_ADMINISTRATORS_PROGRAMS}"
        whole = {**os.environ, "PATH": path, **env}
        return finish(argv, timeout_s=timeout_s, stdin=stdin, env=whole)
    if not (stdin is None or isinstance(stdin, bytes)):
        raise ValueError("an environment goes to a remote host by the command's input: it takes no file")
    exports = _exports(env)
    words = ("sh", "-c", _WITH_ENVIRONMENT, "with-environment", str(len(exports)), _ADMINISTRATORS_PROGRAMS)
    return finish(ssh_argv(host, (*words, *argv)), timeout_s=timeout_s, stdin=exports + (stdin or b""))


def _exports(env: Mapping[str, str]) -> bytes:
    if wrong := [name for name in env if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)]:
        raise ValueError(f"these are no names of variables: {wrong}")
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items()).encode()


def ssh_argv(host: HostAddress, argv: Sequence[str]) -> tuple[str, ...]:
    """Return the ssh command that runs `argv` on a remote `host`, asking nobody anything.

    Raises:
        ValueError: `host` has no address.
    """
    if not host.address:
        raise ValueError(f"host {host.name} has no address to reach by ssh")
    options = ["BatchMode=yes", "StrictHostKeyChecking=yes", f"ConnectTimeout={host.connect_timeout_s}"]
    options += ["ServerAliveInterval=5", "ServerAliveCountMax=3"]
    # a shared connection would outlive this command's, and the command there with it
    options += ["ControlMaster=no", "ControlPath=none"]
    if host.known_hosts_file:
        options.append(f"UserKnownHostsFile={host.known_hosts_file}")
    identity = ("-i", host.identity_file, "-o", "IdentitiesOnly=yes") if host.identity_file else ()
    address = host.address.strip("[]")
    return (
        *("ssh", "-T"),
        *(word for option in options for word in ("-o", option)),
        *("-p", str(host.port)),
        *identity,
        *("--", f"{host.user}@{address}" if host.user else address),
        f"exec {shlex.join([*GUARD, *argv])}",
    )


def read_link(host: HostAddress, path: str) -> str | None:
    """Return what the link at `path` points to; None: nothing is there, or it is no link.

    Raises:
        CommandError: it cannot be told, for instance because a directory is not readable.
    """
    argv = ("env", "LC_ALL=C", "readlink", "--verbose", "--no-newline", "--", path)
    finished = run(host, argv, check=False)
    if finished.returncode == 0:
        return finished.stdout
    if finished.stderr.rstrip().endswith(("No such file or directory", "Invalid argument")):
        return None
    raise CommandError(argv, host.name, finished.returncode, finished.output)


def replace_link(host: HostAddress, path: str, target: str) -> None:
    """Make `path` a link to `target`, atomically and durably; an old link there is replaced.

    Raises:
        CommandError: it could not; the old link is in place, unless the last step, the directory's sync,
            is what failed.
    """
    run(host, ("sh", "-c", _LINK, "replace-link", *_places(path), target))


def write_file(host: HostAddress, path: str, content: bytes) -> None:
    """Make `path` a file of that `content`, mode 0644, atomically and durably.

    Raises:
        CommandError: it could not; an old file is in place, unless only the directory's sync failed.
    """
    run(host, ("sh", "-c", _WRITE, "write-file", *_places(path), str(len(content))), stdin=content)


def copy_file(
    host: HostAddress, local_path: str, remote_path: str, *, timeout_s: float = _COPY_TIMEOUT_S
) -> None:
    """Copy a file of this machine to `remote_path`, mode 0644, atomically and durably, in constant memory.

    Raises:
        OSError: `local_path` cannot be read.
        CommandError: it could not; an old file is in place, unless only the directory's sync failed.
    """
    with Path(local_path).open("rb") as source:
        size_bytes = os.fstat(source.fileno()).st_size
        argv = ("sh", "-c", _WRITE, "copy-file", *_places(remote_path), str(size_bytes))
        run(host, argv, timeout_s=timeout_s, stdin=source)


def sha256(host: HostAddress, path: str, *, timeout_s: float = _COPY_TIMEOUT_S) -> str:
    """Return the SHA-256 of the file at `path`, in 64 hexadecimal digits."""
    return run(host, ("sha256sum", "--zero", "--", path), timeout_s=timeout_s).stdout[:64]


def free_bytes(host: HostAddress, path: str) -> int:
    """Return how many bytes an ordinary user can still write on the file system that holds `path`."""
    return int(run(host, ("df", "-B1", "--output=avail", "--", path)).stdout.split()[-1])


def exists(host: HostAddress, path: str) -> bool:
    """Return whether `path` leads to something; a link that leads nowhere does not."""
    argv = ("test", "-e", path)
    finished = run(host, argv, check=False)
    if finished.returncode not in (0, 1):
        raise CommandError(argv, host.name, finished.returncode, finished.output)
    return finished.returncode == 0


def run_script(script: str, *, env: Mapping[str, str], timeout_s: float) -> str:
    """Run a user's bash `script` on this machine with `set -euo pipefail`; return the end of its output.

    Values reach it only by `env`, which is added to this process's own environment.

    Raises:
        CommandError: it failed or took longer than `timeout_s` (its process group is then killed);
            carries the end of its output, both streams.
    """
    with tempfile.TemporaryDirectory(prefix="sovereign-script-") as directory:
        output = Path(directory) / "output"
        output.touch()
        returncode = _run_bash(script, {**env, "SOVEREIGN_OUTPUT": str(output)}, timeout_s)
        text = _tail(output)
    if returncode != 0:
        raise CommandError(("bash", "(script)"), HostAddress().name, returncode, text)
    return text


def _run_bash(script: str, env: dict[str, str], timeout_s: float) -> int | None:
    """Return the script's exit code; None: it was killed, because it took longer than `timeout_s`."""
    late = threading.Event()
    with ShellOperation(commands=[_SCRIPT + script], env=env, stream_output=False) as operation:
        shell = operation.trigger(_sync=True, stdin=subprocess.DEVNULL)

        def kill() -> None:
            late.set()
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)

        timer = threading.Timer(timeout_s, kill)
        timer.start()
        try:
            shell.wait_for_completion(_sync=True)
        except RuntimeError:  # says only what return_code says
            return None if late.is_set() else shell.return_code
        finally:
            timer.cancel()
    return 0


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read().decode(errors="replace")


def _places(path: str) -> tuple[str, str, str]:
    """Return a temporary name beside `path`, `path`, and their directory."""
    place = PurePosixPath(path)
    return str(place.with_name(f".{place.name}.{secrets.token_hex(6)}.new")), path, str(place.parent)
