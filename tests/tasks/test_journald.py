"""What services log as errors, from a real systemd on a host of its own, reached by ssh."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lab.processes import wait_until
from lab.systemd import LabSystemd
from rules.errors import CommandError
from rules.hosts import HostAddress
from tasks.journald import JournalFollower, errors_since, journal_argv
from tests.requirements import need, need_systemd

#: Only one is booted at a time, so one worker should have them all.
pytestmark = pytest.mark.xdist_group("systemd")

UNIT = """\
[Service]
Type=oneshot
RemainAfterExit=no
ExecStart=/bin/cat {said}
"""
SAID = b"<6>all is well\n<3>no database\n<4>slow disk\n<2>no memory\n<7>details\n"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSystemd]:
    need_systemd()
    with LabSystemd(tmp_path_factory.mktemp("systemd"), name="lab-journald") as running:
        yield running


class Talker:
    """A unit that logs what it is given, each time that it is started."""

    def __init__(self, machine: LabSystemd) -> None:
        self.machine, self.unit = machine, f"talk-{os.urandom(4).hex()}.service"
        self.said = machine.directory / f"{self.unit}.said"
        self.remove: Callable[[], None] = machine.add_unit(self.unit, UNIT.format(said=self.said))

    def say(self, text: bytes) -> None:
        self.said.write_bytes(text)
        self.machine.run("systemctl", "start", self.unit)
        self.machine.run("journalctl", "--sync")


@pytest.fixture
def talker(machine: LabSystemd) -> Iterator[Talker]:
    talker = Talker(machine)
    yield talker
    talker.remove()


def now() -> datetime:
    return datetime.now(UTC)


def words(errors) -> list[tuple[str, int]]:
    return [(error.message, error.priority) for error in errors]


def test_only_errors_of_the_unit_are_read(machine, talker):
    other = Talker(machine)
    since = now()
    talker.say(SAID)
    other.say(b"<3>not asked for\n")
    errors = errors_since(machine.host, (talker.unit,), since)
    other.remove()
    assert words(errors) == [("no database", 3), ("no memory", 2)]
    assert {error.unit for error in errors} == {talker.unit}
    assert all(since <= error.at <= now() for error in errors)


def test_what_was_logged_before_is_left_out(machine, talker):
    talker.say(b"<3>old\n")
    time.sleep(0.01)
    since = now()
    assert errors_since(machine.host, (talker.unit,), since) == ()
    talker.say(b"<3>new\n")
    assert words(errors_since(machine.host, (talker.unit,), since)) == [("new", 3)]
    assert words(errors_since(machine.host, (talker.unit,), since - timedelta(minutes=5))) == [
        ("old", 3),
        ("new", 3),
    ]


def test_a_message_that_is_no_text_is_read_too(machine, talker):
    since = now()
    talker.say(b"<3>caf\xc3\xa9 \xff\x01 end\n<3>" + b"x" * 20_000 + b"\n")
    errors = errors_since(machine.host, (talker.unit,), since)
    assert errors[0].message == "café �\x01 end"
    assert len(errors) == 2
    assert len(errors[1].message) <= 500


def test_the_newest_are_read_when_there_are_many(machine, talker):
    since = now()
    talker.say(b"".join(b"<3>error %d\n" % number for number in range(50)))
    errors = errors_since(machine.host, (talker.unit,), since, limit=3)
    assert [error.message for error in errors] == ["error 47", "error 48", "error 49"]


def test_what_systemd_says_of_a_unit_that_fails_counts_as_its_own(machine):
    unit = f"fails-{os.urandom(4).hex()}.service"
    remove = machine.add_unit(unit, "[Service]\nType=oneshot\nExecStart=/bin/false\n")
    since = now()
    machine._finish("systemctl", "start", unit)
    machine.run("journalctl", "--sync")
    errors = errors_since(machine.host, (unit,), since)
    remove()
    assert [(error.unit, error.priority) for error in errors] == [(unit, 3)]
    assert "Failed to start" in errors[0].message


def test_a_follower_sees_errors_as_they_come(machine, talker):
    with JournalFollower(machine.host, (talker.unit,), now()) as follower:
        talker.say(SAID)
        took_s = wait_until(lambda: len(follower.errors()) == 2, timeout_s=20, what="two errors")
        talker.say(b"<3>again\n")
        wait_until(lambda: len(follower.errors()) == 3, timeout_s=20, what="a third error")
        assert follower.problem is None
    assert words(follower.errors()) == [("no database", 3), ("no memory", 2), ("again", 3)]
    assert took_s < 10


def test_a_follower_begins_at_its_moment_and_not_when_it_connects(machine, talker):
    talker.say(b"<3>before\n")
    time.sleep(0.01)
    since = now()
    talker.say(b"".join(b"<3>early %d\n" % number for number in range(20)))
    with JournalFollower(machine.host, (talker.unit,), since) as follower:
        wait_until(lambda: len(follower.errors()) == 20, timeout_s=20, what="what was logged early")
    assert follower.errors()[0].message == "early 0"


def test_a_follower_keeps_the_first_errors_and_counts_the_rest(machine, talker):
    with JournalFollower(machine.host, (talker.unit,), now(), limit=5) as follower:
        talker.say(b"".join(b"<3>error %d\n" % number for number in range(50)))
        wait_until(lambda: follower.dropped == 45, timeout_s=20, what="all errors")
    assert [error.message for error in follower.errors()] == [f"error {number}" for number in range(5)]


def test_a_follower_goes_on_where_it_was_cut_off(machine, talker):
    with JournalFollower(machine.host, (talker.unit,), now()) as follower:
        talker.say(b"<3>first\n")
        wait_until(lambda: len(follower.errors()) == 1, timeout_s=20, what="the first error")
        follower._child.kill()  # as a broken connection does
        talker.say(b"<3>meanwhile\n")
        wait_until(lambda: len(follower.errors()) == 2, timeout_s=20, what="the error logged meanwhile")
        assert follower.problem is None
    assert [error.message for error in follower.errors()] == ["first", "meanwhile"]


def test_a_problem_is_over_once_it_follows_again_though_no_error_comes(machine, talker):
    host = machine.host.model_copy(update={"connect_timeout_s": 2})
    with JournalFollower(host, (talker.unit,), now()) as follower:
        wait_until(lambda: follower._child is not None, timeout_s=20, what="a connection")
        follower._child.kill()
        wait_until(lambda: "exited -9" in str(follower.problem), timeout_s=20, what="a problem")
        wait_until(lambda: follower.problem is None, timeout_s=20, what="the end of the problem")
        talker.say(b"<3>heard\n")
        wait_until(lambda: len(follower.errors()) == 1, timeout_s=20, what="an error")


def test_a_stopped_follower_leaves_nothing_here_or_there(machine, talker):
    follower = JournalFollower(machine.host, (talker.unit,), now())
    follower.start()
    wait_until(lambda: running_there(machine, talker.unit), timeout_s=20, what="journalctl there")
    follower.stop()
    follower.stop()
    assert not follower._thread.is_alive()
    assert follower.problem is None
    wait_until(lambda: not running_there(machine, talker.unit), timeout_s=20, what="its end there")


def test_a_killed_process_leaves_no_follower_behind(machine, talker):
    script = (
        "import sys, time\n"
        "from datetime import UTC, datetime\n"
        "from rules.hosts import HostAddress\n"
        "from tasks.journald import JournalFollower\n"
        "host = HostAddress.model_validate_json(sys.argv[1])\n"
        "JournalFollower(host, (sys.argv[2],), datetime.now(UTC)).start()\n"
        "time.sleep(120)\n"
    )
    command = [sys.executable, "-c", script, machine.host.model_dump_json(), talker.unit]
    with subprocess.Popen(command) as child:
        try:
            wait_until(lambda: running_there(machine, talker.unit), timeout_s=120, what="journalctl there")
        finally:
            child.kill()
    wait_until(lambda: not running_there(machine, talker.unit), timeout_s=20, what="its end there")


def running_there(machine: LabSystemd, unit: str) -> bool:
    listed = machine.run("ps", "-ww", "-eo", "args")
    return any(line.startswith("journalctl") and unit in line for line in listed.splitlines())


def test_a_host_that_cannot_be_reached_is_a_problem_and_no_error(tmp_path):
    need("ssh", package="openssh-client")
    nobody = HostAddress(name="gone", address="127.0.0.1", port=1, known_hosts_file=str(tmp_path / "none"))
    with JournalFollower(nobody, ("web.service",), now()) as follower:
        wait_until(lambda: follower.problem is not None, timeout_s=20, what="a problem")
        assert "the journal of gone is not followed: journalctl exited 255" in follower.problem
    assert follower.errors() == ()
    with pytest.raises(CommandError):
        errors_since(nobody, ("web.service",), now())


def test_a_host_without_journalctl_is_a_problem_and_no_error(tmp_path, monkeypatch):
    need("setpriv", package="util-linux")
    directory = tmp_path / "bin"
    directory.mkdir()
    (directory / "setpriv").symlink_to(_which("setpriv"))
    monkeypatch.setenv("PATH", str(directory))
    with JournalFollower(HostAddress(), ("web.service",), now()) as follower:
        wait_until(lambda: follower.problem is not None, timeout_s=20, what="a problem")
        assert "journalctl" in follower.problem
        assert "127" in follower.problem
        monkeypatch.setenv("PATH", str(tmp_path))
        wait_until(lambda: "setpriv" in str(follower.problem), timeout_s=20, what="another problem")


def _which(program: str) -> Path:
    found = shutil.which(program)
    assert found
    return Path(found)


def test_without_units_there_is_nothing_to_follow():
    with JournalFollower(HostAddress(), (), now()) as follower:
        assert (follower.problem, follower.errors()) == (None, ())
    assert errors_since(HostAddress(), (), now()) == ()


def test_a_moment_without_a_time_zone_is_refused():
    with pytest.raises(ValueError, match="has no time zone"):
        JournalFollower(HostAddress(), ("web.service",), datetime(2026, 1, 1))  # noqa: DTZ001


def test_the_command_asks_for_errors_of_the_units_alone():
    fields = (
        "MESSAGE,PRIORITY,__REALTIME_TIMESTAMP,__CURSOR,"
        "UNIT,USER_UNIT,COREDUMP_UNIT,_SYSTEMD_USER_UNIT,_SYSTEMD_UNIT"
    )
    assert journal_argv(("a.service", "b.service")) == (
        "journalctl",
        "--output=json",
        f"--output-fields={fields}",
        "--priority=3",
        "--unit=a.service",
        "--unit=b.service",
        "--user-unit=a.service",
        "--user-unit=b.service",
    )
