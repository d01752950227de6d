"""The journal on disk and its mirror: what was written is there, whoever was killed meanwhile."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab.prefect_server import PrefectServer
from rules.entries import Decided, Done, Intent, Locked, Opened, Planned, line, parse
from rules.errors import ApiUnavailableError
from rules.rollout import plan_rollout
from rules.strategy import Canary
from rules.verdict import Outcome
from tasks.journal import JournalFile, Mirror, NoJournalError, journals, mirror_key, mirrored_lines
from tasks.prefect_api import PrefectApi
from tests.rules.builders import CHANGE, fleet, state
from tests.tasks.deploying import STEP, another_process, kill, opening, settings_in
from tests.tasks.gateway import Fault, api_through

ENTRIES = [
    Locked(token="token"),
    Planned(plan=plan_rollout(CHANGE, Canary(), fleet(), state(fleet()))),
    Intent(number=0, title="é | \n two\u2028lines\x85", undo=STEP.undo),
    Decided(title="watch", outcome=Outcome.PASS, reasons=("0 errors in 100 requests",)),
    Done(number=0),
]


@pytest.fixture
def opened() -> Opened:
    return opening()


@pytest.fixture
def journal(tmp_path: Path, opened: Opened) -> Iterator[JournalFile]:
    """A journal of this process, which lives."""
    file = JournalFile(tmp_path, opened.deployment)
    with file.begun(opened):
        yield file


@pytest.fixture
def api(prefect_api: PrefectServer, tmp_path: Path) -> Iterator[PrefectApi]:
    with PrefectApi(settings_in(tmp_path, api_patience_s=10)) as client:
        yield client


# --- on disk ---------------------------------------------------------------------------------------


def test_what_is_appended_reads_back_in_order(journal, opened):
    for entry in ENTRIES:
        journal.append(entry)
    assert journal.read().entries == (opened, *ENTRIES)


def test_an_entry_is_forced_to_the_disk_before_append_returns(journal, monkeypatch):
    synced: list[bytes] = []
    fsync = os.fsync

    def observed(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").read_bytes())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", observed)
    journal.append(ENTRIES[0])
    assert synced == [journal.path.read_bytes()]
    assert synced[0].endswith(line(ENTRIES[0]))


@pytest.mark.parametrize("torn", [b"{", line(ENTRIES[1])[:-1], "é".encode()[:1]], ids=["bit", "most", "byte"])
def test_a_line_torn_by_a_crash_is_cut_before_the_next_is_written(journal, opened, torn):
    journal.append(ENTRIES[0])
    with journal.path.open("ab") as file:
        file.write(torn)
    assert journal.read().entries == (opened, ENTRIES[0])
    journal.append(ENTRIES[2])
    assert journal.read().entries == (opened, ENTRIES[0], ENTRIES[2])
    assert torn not in journal.path.read_bytes().splitlines()


def test_a_journal_that_is_not_there_says_so(tmp_path):
    with pytest.raises(NoJournalError, match="no journal of web-1"):
        JournalFile(tmp_path, "web-1").read()
    assert journals(tmp_path / "nowhere") == ()


def test_a_deployment_is_begun_only_once(journal, opened):
    with pytest.raises(FileExistsError, match="has a journal already"), journal.begun(opened):
        pass
    assert journal.read().entries == (opened,)


def test_nobody_ever_sees_a_journal_without_its_opening_and_its_living_owner(tmp_path):
    begun, wrong = threading.Event(), []

    def is_begun(found: JournalFile) -> bool:
        return found.owner_lives() and found.owner_pid() == os.getpid() and found.read().state == "running"

    def look() -> None:
        while not begun.is_set():
            wrong.extend(found.deployment for found in journals(tmp_path) if not is_begun(found))

    watcher = threading.Thread(target=look)
    watcher.start()
    with ExitStack() as stack:
        for number in range(40):
            of = opening(deployment=f"web-{number}")
            stack.enter_context(JournalFile(tmp_path, of.deployment).begun(of))
        begun.set()
        watcher.join()
    assert wrong == []
    assert len(journals(tmp_path)) == 40


@pytest.mark.parametrize("sync", range(1, 4))
def test_a_process_killed_while_it_begins_leaves_a_whole_journal_or_none(tmp_path, opened, sync):
    def begin_and_die(_ready):
        syncs = iter(range(1, 10))
        fsync = os.fsync

        def fatal(descriptor: int) -> None:
            if next(syncs) == sync:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)

        os.fsync = fatal
        with JournalFile(tmp_path, opened.deployment).begun(opened):
            pass

    with another_process(begin_and_die) as pid:
        os.waitpid(pid, 0)
    for found in journals(tmp_path):
        assert found.read().entries == (opened,)
        assert not found.owner_lives()
    assert len(journals(tmp_path)) == (1 if sync == 3 else 0)
    if not journals(tmp_path):
        with JournalFile(tmp_path, opened.deployment).begun(opened):
            assert [found.deployment for found in journals(tmp_path)] == [opened.deployment]


def test_an_owner_lives_until_it_is_killed(tmp_path, opened):
    def begin(ready):
        with JournalFile(tmp_path, opened.deployment).begun(opened):
            ready()
            signal.pause()

    seen_from_here = JournalFile(tmp_path, opened.deployment)
    with another_process(begin) as pid:
        assert seen_from_here.owner_lives()
        assert seen_from_here.owner_pid() == pid
        kill(pid)
        assert not seen_from_here.owner_lives()
        assert seen_from_here.owner_pid() is None


def test_a_process_that_got_the_owners_old_number_is_not_the_owner(journal):
    note = journal.directory / "alive"
    note.write_text(json.dumps({**json.loads(note.read_text()), "started": "1"}))
    assert journal.owner_pid() is None


def test_the_step_lock_keeps_another_thread_out(journal, tmp_path):
    same = JournalFile(tmp_path, journal.deployment)
    with journal.exclusive(patience_s=0), pytest.raises(TimeoutError), same.exclusive(patience_s=0.1):
        pass
    with same.exclusive(patience_s=0):
        pass


def test_the_step_lock_keeps_another_process_out_until_that_is_killed(journal):
    def hold(ready):
        with journal.exclusive(patience_s=0):
            ready()
            signal.pause()

    with another_process(hold) as pid:
        with pytest.raises(TimeoutError), journal.exclusive(patience_s=0.1):
            pass
        waiting = threading.Timer(0.2, kill, [pid])
        waiting.start()
        with journal.exclusive(patience_s=10):
            pass
        waiting.join()


def test_a_journal_adopted_from_the_mirror_has_no_owner_here(tmp_path, opened):
    adopted = JournalFile(tmp_path, opened.deployment)
    adopted.adopt(line(opened))
    assert adopted.read().entries == (opened,)
    assert not adopted.owner_lives()
    adopted.adopt(line(opened) + line(ENTRIES[0]))
    assert adopted.read().entries == (opened, ENTRIES[0])
    assert [path.name for path in adopted.directory.iterdir()] == ["journal.jsonl"]
    assert [path.name for path in tmp_path.iterdir()] == [opened.deployment]


def test_until_when_the_lease_runs_can_be_read_without_the_api(journal):
    assert journal.lease_until() == 0
    journal.note_lease(until := time.time() + 60)
    assert journal.lease_until() == until
    (journal.directory / "lease_until").write_text("")
    assert journal.lease_until() == 0


def test_journals_come_in_the_order_of_their_last_change(tmp_path):
    for name in ("web-b", "web-a", "web-c"):
        JournalFile(tmp_path, name).adopt(line(opening(deployment=name)))
        time.sleep(0.02)
    assert [found.deployment for found in journals(tmp_path)] == ["web-b", "web-a", "web-c"]


# --- in the mirror ---------------------------------------------------------------------------------


def test_what_is_mirrored_reads_back_to_the_byte(api, journal, opened):
    mirror = Mirror(api, journal.deployment, flow_run_id=opened.flow_run_id, entries=[opened])
    for number, entry in enumerate(ENTRIES):
        journal.append(entry)
        mirror.add(entry)
        if number % 2:
            mirror.flush()
    mirror.flush()
    mirror.flush()
    assert mirrored_lines(api, journal.deployment) == journal.path.read_bytes()


def test_a_deployment_without_a_mirror_reads_as_nothing(api):
    assert mirrored_lines(api, "never-was") == b""


def test_a_later_copy_replaces_what_an_earlier_one_had_from_the_same_line_on(api, opened):
    first = Mirror(api, opened.deployment, flow_run_id=None, entries=[opened])
    first.add(ENTRIES[0])
    first.flush()
    first.add(ENTRIES[2])
    first.flush()
    recovery = Mirror(api, opened.deployment, flow_run_id=None, entries=[opened, ENTRIES[0], ENTRIES[4]])
    recovery.flush()
    assert parse(mirrored_lines(api, opened.deployment)) == (opened, ENTRIES[0], ENTRIES[4])


def test_a_copy_of_a_process_that_was_given_up_does_not_count_after_its_recovery(api, opened):
    given_up = Mirror(api, opened.deployment, flow_run_id=None, entries=[opened, Locked(token="old")])
    given_up.flush()
    taken_over = [opened, Locked(token="old"), Locked(token="new")]
    Mirror(api, opened.deployment, flow_run_id=None, entries=taken_over).flush()
    given_up.add(Done(number=7))
    given_up.flush()
    assert parse(mirrored_lines(api, opened.deployment)) == tuple(taken_over)


def test_a_copy_behind_a_gap_is_not_read(api, opened):
    Mirror(api, opened.deployment, flow_run_id=None, entries=[opened]).flush()
    metadata = {"first": "2", "token": "", "lines-00000": line(ENTRIES[0]).decode()}
    copy = {"key": mirror_key(opened.deployment), "type": "markdown", "data": "", "metadata_": metadata}
    api.request("POST", "artifacts/", copy)
    assert parse(mirrored_lines(api, opened.deployment)) == (opened,)


def test_a_mirror_of_more_than_one_page_reads_back_whole(api, opened, monkeypatch):
    monkeypatch.setattr("tasks.journal._PAGE", 20)  # ten times as much says no more
    mirror = Mirror(api, opened.deployment, flow_run_id=None, entries=[opened])
    for number in range(45):
        mirror.add(Done(number=number))
        mirror.flush()
    numbers = [entry.number for entry in parse(mirrored_lines(api, opened.deployment))[1:]]
    assert numbers == list(range(45))


def test_what_the_api_did_not_take_stays_queued_and_what_arrived_twice_is_read_once(
    prefect_api, tmp_path, opened
):
    with api_through(prefect_api.api_url, settings_in(tmp_path, api_patience_s=0.3)) as (api, between):
        mirror = Mirror(api, opened.deployment, flow_run_id=None, entries=[opened])
        between.faults = [Fault("artifacts/")]
        with pytest.raises(ApiUnavailableError):
            mirror.flush()
        between.faults = [Fault("artifacts/", lost=True)]
        mirror.add(ENTRIES[0])
        with pytest.raises(ApiUnavailableError):
            mirror.flush()
        between.faults = []
        mirror.withdraw()
        mirror.add(ENTRIES[4])
        mirror.flush()
        assert parse(mirrored_lines(api, opened.deployment)) == (opened, ENTRIES[4])


def test_each_flush_sends_what_is_new_and_a_page_of_bounded_size(tmp_path, opened):
    with api_through("", settings_in(tmp_path)) as (api, between):
        mirror = Mirror(api, opened.deployment, flow_run_id=opened.flow_run_id, entries=[opened])
        for number in range(1000):
            mirror.add(Intent(number=number, title=f"step {number}", undo=STEP.undo))
            mirror.flush()
    sizes = [len(request.body) for request in between.seen]
    assert len(sizes) == 1000
    assert max(sizes[1:]) < 6_000
    assert sizes[-1] == pytest.approx(sizes[100], abs=200)
    assert all(b'"lines-00001"' not in request.body for request in between.seen[1:]), "one entry, one piece"
