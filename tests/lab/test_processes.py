import os
import signal
import subprocess
import sys
import textwrap

import pytest

from lab import processes
from lab.identity import MARK, started_ticks

STUBBORN = """
    import signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(child.pid, flush=True)
    time.sleep(60)
"""
SLEEPER = "import time; print('ready', flush=True); time.sleep(60)"


def start(directory, code, *, name="program"):
    return processes.start(
        name,
        [sys.executable, "-c", textwrap.dedent(code)],
        log=directory / f"{name}.log",
        env={**os.environ, MARK: str(directory)},
    )


def said(process):
    processes.wait_until(lambda: bool(process.log_tail()), timeout_s=10, what="a word", process=process)
    return process.log_tail()


def test_stopping_ends_a_program_that_does_not_listen_and_its_children(tmp_path):
    program = start(tmp_path, STUBBORN)
    child = int(said(program))
    program.stop(timeout_s=0.2)
    assert not program.is_alive()
    processes.wait_until(lambda: started_ticks(child) is None, timeout_s=5, what="the child to be gone")


def test_stopping_twice_is_fine(tmp_path):
    program = start(tmp_path, SLEEPER)
    program.stop()
    program.stop()
    assert not program.is_alive()


def test_a_recycled_pid_is_never_killed(tmp_path):
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        ours_once = processes.Process("gone", stranger.pid, started_ticks=1, log="/dev/null")
        ours_once.stop(timeout_s=0.1)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_programs_listen_to_ctrl_c_also_when_started_from_a_background_script(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        program = start(tmp_path, "import signal; print(signal.getsignal(signal.SIGINT), flush=True)")
        assert "default_int_handler" in said(program)
    finally:
        signal.signal(signal.SIGINT, before)
        program.stop()


def test_waiting_for_a_program_that_has_ended_fails_at_once_and_shows_its_log(tmp_path):
    program = start(tmp_path, "raise SystemExit('no memory')", name="model")
    with pytest.raises(processes.LabError, match=r"model ended.*\n?.*no memory"):
        processes.wait_until(lambda: False, timeout_s=30, what="the model", process=program)


def test_waiting_gives_up_in_time():
    with pytest.raises(processes.LabError, match="for a miracle: gave up"):
        processes.wait_until(lambda: False, timeout_s=0.05, what="a miracle")


def test_what_has_left_its_parents_and_its_session_is_found_by_its_mark(tmp_path):
    code = f"import os, time\nif os.fork() == 0:\n    os.setsid()\n    {SLEEPER.replace('; ', '; ')}"
    program = start(tmp_path, code)
    assert said(program) == "ready\n"
    processes.wait_until(lambda: not program.is_alive(), timeout_s=5, what="the parent to be gone")
    (orphan,) = processes.marked(tmp_path)
    assert len(processes.end_marked(tmp_path)) == 1
    assert started_ticks(orphan) is None
    assert processes.end_marked(tmp_path) == ()
