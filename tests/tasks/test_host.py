"""Commands and files, on this machine and by a real OpenSSH server on it."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.identity import started_ticks
from rules.errors import CommandError
from rules.hosts import HostAddress
from tasks import host as hosts
from tasks.host import HostUnreachableError, run, run_script

HERE = HostAddress()
ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["here", "by ssh"])
def host(request: pytest.FixtureRequest) -> HostAddress:
    return HERE if request.param == "here" else request.getfixturevalue("remote")


def is_gone(pid: int, *, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while started_ticks(pid) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_ssh_gets_every_option_and_the_command_as_one_quoted_word():
    host = HostAddress(
        name="db",
        address="10.0.0.7",
        user="deploy",
        port=2222,
        identity_file="/keys/id",
        known_hosts_file="/keys/known",
        connect_timeout_s=7,
    )
    assert hosts.ssh_argv(host, ["touch", "--", "a b'c", "$HOME"]) == (
        "ssh",
        "-T",
        *("-o", "BatchMode=yes"),
        *("-o", "StrictHostKeyChecking=yes"),
        *("-o", "ConnectTimeout=7"),
        *("-o", "ServerAliveInterval=5"),
        *("-o", "ServerAliveCountMax=3"),
        *("-o", "ControlMaster=no"),
        *("-o", "ControlPath=none"),
        *("-o", "UserKnownHostsFile=/keys/known"),
        *("-p", "2222"),
        *("-i", "/keys/id", "-o", "IdentitiesOnly=yes"),
        *("--", "deploy@10.0.0.7"),
        """exec setpriv --pdeathsig KILL -- touch -- 'a b'"'"'c' '$HOME'""",
    )


def test_ssh_without_user_and_keys_leaves_them_to_the_workers_configuration():
    argv = hosts.ssh_argv(HostAddress(address="[::1]"), ["true"])
    assert argv[-4:] == ("22", "--", "::1", "exec setpriv --pdeathsig KILL -- true")
    assert "-i" not in argv


def test_there_is_no_ssh_to_this_machine():
    with pytest.raises(ValueError, match="no address"):
        hosts.ssh_argv(HERE, ["true"])


def test_arguments_arrive_as_they_are(host):
    words = ["a b", "$HOME", "`id`", "it's", '"', "*", "", "line\nbreak", "-n"]
    assert run(host, ["printf", "%s\\0", *words]).stdout.split("\0")[:-1] == words


def test_both_outputs_are_told_apart(host):
    finished = run(host, ["sh", "-c", "echo out; echo err >&2"])
    assert (finished.stdout, finished.stderr, finished.returncode) == ("out\n", "err\n", 0)


def test_a_failure_carries_command_host_exit_code_and_output(host):
    argv = ("sh", "-c", "echo why >&2; exit 3")
    with pytest.raises(CommandError) as caught:
        run(host, argv)
    assert (caught.value.argv, caught.value.host, caught.value.returncode) == (argv, host.name, 3)
    assert caught.value.output == "why"


def test_a_failure_is_a_value_when_it_is_expected(host):
    assert run(host, ["false"], check=False).returncode == 1


def test_a_missing_program_is_a_failed_command(host):
    with pytest.raises(CommandError) as caught:
        run(host, ["no-such-program-anywhere"])
    assert caught.value.returncode == 127


def test_nothing_to_read_ends_at_once(host):
    assert run(host, ["cat"], timeout_s=10).stdout == ""


def test_megabytes_of_input_and_of_errors_do_not_deadlock(host):
    content = os.urandom(5_000_000)
    finished = run(host, ["sh", "-c", "tee /dev/stderr | sha256sum"], stdin=content)
    assert finished.stdout.split()[0] == hashlib.sha256(content).hexdigest()


def test_of_an_endless_output_the_end_is_kept():
    finished = run(HERE, ["sh", "-c", "head -c 20000000 /dev/zero | tr '\\0' x; echo end"])
    assert len(finished.stdout) == 8 << 20
    assert finished.stdout.endswith("xend\n")
    assert finished.dropped_bytes == 20_000_004 - (8 << 20)


def test_a_timeout_ends_the_whole_group():
    began = time.monotonic()
    with pytest.raises(CommandError) as caught:
        run(HERE, ["sh", "-c", "sleep 1000 & echo $! $$; wait"], timeout_s=0.5)
    assert caught.value.returncode is None
    assert all(is_gone(int(pid)) for pid in caught.value.output.split())
    assert time.monotonic() - began < 4


def test_who_ignores_the_request_to_end_is_killed():
    with pytest.raises(CommandError) as caught:
        run(HERE, ["sh", "-c", "trap '' TERM; echo $$; while :; do sleep 0.1; done"], timeout_s=0.3)
    assert is_gone(int(caught.value.output))


def test_a_command_that_closes_its_output_is_still_waited_for():
    finished = run(HERE, ["sh", "-c", "exec >&- 2>&-; sleep 0.5; exit 4"], check=False)
    assert finished.returncode == 4


@pytest.mark.parametrize(
    ("place", "outputs"), [("here", ""), ("here", ">/dev/null 2>&1"), ("by ssh", ">&- 2>&-")]
)
def test_a_daemon_left_behind_delays_little_and_lives(request, place, outputs):
    host = HERE if place == "here" else request.getfixturevalue("remote")
    finished = run(host, ["sh", "-c", f"setsid sleep 1000 {outputs} & echo $!"], timeout_s=30)
    daemon = int(finished.stdout)
    try:
        assert finished.duration_s < 5
        assert started_ticks(daemon) is not None
    finally:
        os.kill(daemon, signal.SIGKILL)


WAITING = """
import signal, sys
sys.path.insert(0, sys.argv[1])
from rules.hosts import HostAddress
from tasks.host import run

class Terminated(BaseException): ...
def terminate(*_): raise Terminated
signal.signal(signal.SIGTERM, terminate)
host = HostAddress.model_validate_json(sys.argv[2])
run(host, ["sh", "-c", 'echo $$ >"$1.new"; mv "$1.new" "$1"; exec sleep 1000', "sh", sys.argv[3]])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_command_outlives_who_waits_for_it(tmp_path, host, number):
    note = tmp_path / "pid"
    argv = [sys.executable, "-c", WAITING, str(ROOT), host.model_dump_json(), str(note)]
    # pytest may run with SIGINT ignored, which its children inherit
    with subprocess.Popen(["env", "--default-signal=INT", *argv], stderr=subprocess.DEVNULL) as waiting:
        while not note.exists():
            assert waiting.poll() is None
            time.sleep(0.05)
        command = int(note.read_text())
        assert started_ticks(command) is not None
        waiting.send_signal(number)
        assert waiting.wait(10) != 0
    assert is_gone(command)


def test_a_timeout_ends_the_remote_command_too(remote, tmp_path):
    note = tmp_path / "pid"
    with pytest.raises(CommandError) as caught:
        run(remote, ["sh", "-c", 'echo $$ >"$1"; exec sleep 1000', "sh", str(note)], timeout_s=2)
    assert caught.value.returncode is None
    assert is_gone(int(note.read_text()))


def test_a_host_that_does_not_answer_is_unreachable_even_where_failures_are_expected(remote):
    with pytest.raises(HostUnreachableError):
        hosts.exists(remote.model_copy(update={"port": 9}), "/")


def test_a_host_with_an_unknown_key_is_refused(remote, tmp_path):
    stranger = remote.model_copy(update={"known_hosts_file": str(tmp_path / "empty")})
    with pytest.raises(HostUnreachableError, match="verification failed"):
        run(stranger, ["true"])


def test_a_file_is_replaced_whole_with_its_mode(host, tmp_path):
    path = tmp_path / "it's a file"
    path.write_bytes(b"old")
    os.link(path, tmp_path / "old")
    hosts.write_file(host, str(path), b"\x00new\n")
    assert path.read_bytes() == b"\x00new\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "old").read_bytes() == b"old"  # another inode: nobody ever saw half a file
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, "old"]


def test_a_file_that_cannot_be_written_leaves_nothing(host, tmp_path):
    with pytest.raises(CommandError):
        hosts.write_file(host, str(tmp_path / "missing" / "file"), b"x")
    assert not list(tmp_path.iterdir())


def test_a_copy_has_the_same_checksum(host, tmp_path):
    content = os.urandom(3_000_001)
    (tmp_path / "from").write_bytes(content)
    hosts.copy_file(host, str(tmp_path / "from"), str(tmp_path / "to"))
    assert (tmp_path / "to").read_bytes() == content
    assert hosts.sha256(host, str(tmp_path / "to")) == hashlib.sha256(content).hexdigest()


def test_a_copy_cut_off_halfway_does_not_replace_the_file(host, tmp_path):
    path, source = tmp_path / "file", tmp_path / "half"
    path.write_bytes(b"old")
    source.write_bytes(b"half")
    argv = ("sh", "-c", hosts._WRITE, "copy", str(tmp_path / "new"), str(path), str(tmp_path), "8")
    with source.open("rb") as half, pytest.raises(CommandError, match="ended before 8 bytes"):
        run(host, argv, stdin=half)
    assert path.read_bytes() == b"old"
    assert not (tmp_path / "new").exists()


def test_a_link_is_made_and_replaced(host, tmp_path):
    link = str(tmp_path / "current")
    assert hosts.read_link(host, link) is None
    for target in ("releases/1", "releases/with space\n"):
        hosts.replace_link(host, link, target)
        assert hosts.read_link(host, link) == target
    (tmp_path / "releases").mkdir()
    hosts.replace_link(host, link, "releases")
    hosts.replace_link(host, link, "elsewhere")  # beside the directory that it led to, not inside
    assert hosts.read_link(host, link) == "elsewhere"
    assert not list((tmp_path / "releases").iterdir())


def test_a_directory_is_no_link_and_is_not_replaced_by_one(host, tmp_path):
    (tmp_path / "current").mkdir()
    assert hosts.read_link(host, str(tmp_path / "current")) is None
    with pytest.raises(CommandError):
        hosts.replace_link(host, str(tmp_path / "current"), "releases/1")
    assert [p.name for p in tmp_path.iterdir()] == ["current"]


def test_a_link_that_cannot_be_read_is_not_taken_for_none(host):
    with pytest.raises(CommandError, match="too long"):
        hosts.read_link(host, "/" + "x" * 5000)


def test_existence_and_free_space_are_told(host, tmp_path):
    assert hosts.exists(host, str(tmp_path))
    assert not hosts.exists(host, str(tmp_path / "no"))
    free = os.statvfs(tmp_path)
    assert hosts.free_bytes(host, str(tmp_path)) == pytest.approx(free.f_bavail * free.f_frsize, rel=0.2)


def test_open_files_are_read_from_where_they_are(tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    with (tmp_path / "file").open("rb", buffering=0) as file:
        file.seek(4)
        assert run(HERE, ["cat"], stdin=file).stdout == "456789"
    with pytest.raises(io.UnsupportedOperation):
        run(HERE, ["cat"], stdin=io.BytesIO(b"not a file"))


def test_a_script_gets_its_values_and_shows_both_outputs():
    text = run_script('echo "$URL"; echo warn >&2', env={"URL": "a; b"}, timeout_s=10)
    assert text == "a; b\nwarn\n"


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo first; false; echo later", "first"), ("false | cat", ""), ('echo "$UNSET_NAME"', "UNSET_NAME")],
    ids=["a command fails", "a pipe's beginning fails", "a value is missing"],
)
def test_a_script_fails_at_its_first_fault(script, said):
    with pytest.raises(CommandError) as caught:
        run_script(script, env={}, timeout_s=10)
    assert caught.value.returncode == 1
    assert said in caught.value.output
    assert "later" not in caught.value.output


def test_a_script_that_takes_too_long_is_killed_with_what_it_started():
    began = time.monotonic()
    with pytest.raises(CommandError) as caught:
        run_script("sleep 1000 & echo $! $$; wait", env={}, timeout_s=1)
    assert caught.value.returncode is None
    assert all(is_gone(int(pid)) for pid in caught.value.output.split())
    assert time.monotonic() - began < 5


def test_a_script_does_not_wait_for_what_it_leaves_behind():
    began = time.monotonic()
    daemon = int(run_script("setsid sleep 1000 & echo $!", env={}, timeout_s=30))
    try:
        assert time.monotonic() - began < 5
    finally:
        os.kill(daemon, signal.SIGKILL)


def test_a_script_cannot_fill_the_disk_with_its_output():
    with pytest.raises(CommandError) as caught:
        run_script("exec yes", env={}, timeout_s=30)
    assert len(caught.value.output) == 65_536


def test_a_script_dies_with_who_runs_it(tmp_path):
    note = tmp_path / "pid"
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tasks.host import run_script; "
        f"run_script('echo $$ >{note}.new; mv {note}.new {note}; exec sleep 1000', env={{}}, timeout_s=99)"
    )
    env = {**os.environ, "TMPDIR": str(tmp_path)}  # a killed process cannot tidy up
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, env=env) as running:
        while not note.exists():
            assert running.poll() is None
            time.sleep(0.05)
        running.kill()
    assert is_gone(int(note.read_text()))
