"""Answers are counted from nginx's log as it grows, is renamed, cut off, and half written."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from rules.errors import BalancerError
from rules.traffic import Counts, NginxAddress
from tasks import nginx_log

B1, B2, G1 = "127.0.0.1:8001", "127.0.0.1:8002", "127.0.0.1:8003"
SIDES = {"blue": {"b1": B1, "b2": B2}, "green": {"g1": G1}}


def line(side: str = "blue", upstream: str = B1, status: int = 200, took_s: float = 0.010) -> str:
    return f"{side}\t{upstream}\t{status}\t{took_s:.3f}\n"


class Log:
    """A log as nginx writes it, and what is counted from it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.address = NginxAddress(directory="/nowhere", sides=SIDES, status_port=1, access_log=str(path))
        self.open = path

    def write(self, *lines: str) -> None:
        with self.open.open("a") as file:
            file.write("".join(lines))

    def rename(self, to: str) -> None:
        """As logrotate does: nginx writes on into the renamed one, until `reopen`."""
        self.open = self.path.rename(self.path.with_name(to))

    def reopen(self) -> None:
        self.open = self.path
        self.path.touch()

    def counts(self, side: str = "blue") -> Counts | None:
        return nginx_log.counts(self.address, side)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    made = Log(tmp_path / "a log.tsv")
    made.path.touch()
    return made


def test_answers_and_errors_of_each_side_are_counted(log):
    assert log.counts() == log.counts("green") == Counts()
    log.write(line(), line(status=500), line(status=404), line("green", G1), line("green", G1, 504))
    assert log.counts() == Counts(3, 1)
    assert log.counts("green") == Counts(2, 1)


def test_what_is_new_is_added_once(log):
    for number in range(1, 6):
        log.write(line(), line("green", G1, 502))
        for _ in range(2):
            assert (log.counts(), log.counts("green")) == (Counts(number, 0), Counts(number, number))


def test_a_request_counts_for_the_last_server_that_had_it(log):
    log.write(line(upstream=f"{B1}, {B2}"), line(upstream=B1), line(upstream="emily_active_blue", status=502))
    assert nginx_log.server_counts(log.address, "blue") == {"b1": Counts(1, 0), "b2": Counts(1, 0)}
    assert log.counts() == Counts(3, 1)


def test_nobody_is_counted_who_left_before_the_answer(log):
    log.write(line(status=499), line())
    assert log.counts() == Counts(1, 0)


def test_a_half_written_line_is_counted_when_it_is_whole(log):
    text = line(status=500)
    log.write(line(), text[:9])
    assert log.counts() == Counts(1, 0)
    log.write(text[9:])
    assert log.counts() == Counts(2, 1)
    log.write(text[:3])
    assert log.counts() == Counts(2, 1)


def test_the_rest_of_a_renamed_log_is_counted_too(log):
    log.write(line())
    assert log.counts() == Counts(1, 0)
    log.write(line(status=500))
    log.rename("a log.tsv.1")
    log.write(line())
    # nginx has not opened the new one yet
    assert log.counts() == Counts(3, 1)
    log.write(line())
    log.reopen()
    log.write(line(), line(status=503))
    assert log.counts() == Counts(6, 2)
    log.write(line())
    assert log.counts() == Counts(7, 2)


def test_a_log_that_is_removed_and_made_anew_goes_on(log):
    log.write(line(), line())
    assert log.counts() == Counts(2, 0)
    log.path.rename(log.path.with_name("moved"))
    log.path.with_name("moved").write_text("")  # packed away: nothing of it can be read any more
    log.reopen()
    log.write(line(status=500))
    assert log.counts() == Counts(3, 1)


def test_a_log_that_is_cut_off_is_read_from_its_new_beginning(log):
    log.write(*itertools.repeat(line(), 5))
    assert log.counts() == Counts(5, 0)
    log.path.write_text("")
    assert log.counts() == Counts(5, 0)
    log.write(line(status=500))
    assert log.counts() == Counts(6, 1)


def test_lines_of_another_form_count_for_nobody(log):
    log.write('127.0.0.1 - - [28/Nov/2026] "GET / HTTP/1.1" 500 12\n', line())
    assert log.counts() == Counts(1, 0)


def test_a_declared_log_that_is_not_there_is_an_error_not_silence(log):
    log.path.unlink()
    with pytest.raises(BalancerError, match=r"cannot be read(.|\n)*is not there(.|\n)*access_log"):
        log.counts()
    with pytest.raises(BalancerError, match="cannot be read"):
        nginx_log.mean_response_s(log.address, "blue")


def test_the_mean_is_of_the_newest_answers_of_that_side(log):
    assert nginx_log.mean_response_s(log.address, "blue") is None
    log.write(
        *itertools.repeat(line(took_s=9.0), 1_024), *itertools.repeat(line("green", G1, took_s=5.0), 10)
    )
    assert nginx_log.mean_response_s(log.address, "blue") == pytest.approx(9.0)
    log.write(*itertools.repeat(line(took_s=1.0), 1_024))
    assert nginx_log.mean_response_s(log.address, "blue") == pytest.approx(1.0)


def test_a_log_on_another_host_is_read_there(log, remote):
    log.write(line(), line(status=500))
    address = log.address.model_copy(update={"host": remote})
    for _ in range(2):
        assert nginx_log.counts(address, "blue") == Counts(2, 1)
    assert nginx_log.mean_response_s(address, "blue") == pytest.approx(0.010)
