"""Values that reach a command by its environment, on this machine and by ssh, and show in no argument."""

from __future__ import annotations

import io

import pytest

from rules.hosts import HostAddress
from tasks.host import HostUnreachableError, run

HERE = HostAddress()
VALUE = 'o\'pen "sesame" $HOME `id` \\ \nsecond line'


@pytest.fixture(params=["here", "by ssh"])
def host(request: pytest.FixtureRequest) -> HostAddress:
    return HERE if request.param == "here" else request.getfixturevalue("remote")


def test_a_value_arrives_as_it_is(host):
    said = run(host, ["sh", "-c", 'printf %s "$WORD"'], env={"WORD": VALUE}).stdout
    assert said == VALUE


def test_the_rest_of_the_input_is_the_commands_own(host):
    finished = run(host, ["sh", "-c", 'printf %s "$A$B"; cat'], env={"A": "1", "B": "2"}, stdin=b"input")
    assert finished.stdout == "12input"


def test_arguments_and_exit_codes_are_as_without_it(host):
    finished = run(host, ["sh", "-c", 'printf %s "$1"; exit 3', "sh", "a b'c"], env={}, check=False)
    assert (finished.stdout, finished.returncode) == ("a b'c", 3)
    assert finished.argv[0] == "sh"


def test_programs_for_administrators_are_found(host):
    path = run(host, ["sh", "-c", 'printf %s "$PATH"'], env={}).stdout
    assert path.endswith("/usr/local/sbin:/usr/sbin:/sbin")


def test_no_command_line_holds_a_value(host):
    # looked at from within, when ssh, its server's shell and the command all are running
    everybody = run(
        host, ["sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null; true"], env={"W": "zzz-value-zzz"}
    )
    assert "proc" in everybody.stdout
    assert "zzz-value" not in everybody.stdout


def test_a_name_that_is_a_command_is_refused():
    far = HostAddress(name="far", address="127.0.0.1", port=1)
    with pytest.raises(ValueError, match="no names of variables"):
        run(far, ["true"], env={"A; rm -rf x": "1"})


def test_a_file_as_input_beside_an_environment_is_refused_on_a_remote_host():
    far = HostAddress(name="far", address="127.0.0.1", port=1, connect_timeout_s=1)
    with pytest.raises(ValueError, match="takes no file"):
        run(far, ["true"], env={"A": "1"}, stdin=io.BytesIO(b"x"))
    with pytest.raises(HostUnreachableError):
        run(far, ["true"], env={"A": "1"}, stdin=b"x")
