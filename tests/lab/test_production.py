import subprocess
import sys

import httpx

from lab.ports import is_listening
from lab.processes import marked
from lab.production import WORK_POOL, Production, load_state


def test_a_whole_production_runs_and_leaves_nothing(tmp_path, lab_cache):
    with Production(tmp_path, cache=lab_cache) as production:
        state = production.state
        assert all(process.is_alive() for process in state.processes)
        pools = httpx.post(f"{production.prefect.api_url}/work_pools/filter", json={}, timeout=30).json()
        assert [pool["name"] for pool in pools] == [WORK_POOL]
        assert httpx.get(production.applications["web"].url, timeout=5).status_code == 200
        ports = (production.postgres.port, production.prefect.port)
    assert not any(process.is_alive() for process in state.processes)
    assert not any(is_listening(port) for port in ports)
    assert list(marked(tmp_path)) == []


def test_a_temporary_production_removes_its_directory():
    production = Production(applications=())
    assert production.directory.is_dir()
    production.stop()
    assert not production.directory.exists()


def test_a_lab_stays_up_until_it_is_taken_down(tmp_path, lab_cache):
    (tmp_path / ".lab").mkdir()
    (tmp_path / ".lab" / "cache").symlink_to(lab_cache)
    home = tmp_path / ".lab" / "up"
    try:
        assert "Prefect UI" in command(tmp_path, "up", expect=0)
        state = load_state(home)
        assert httpx.get(state.addresses["Prefect UI"], timeout=10).is_success
        assert command(tmp_path, "up", expect=0)
        assert load_state(home).processes == state.processes
        state.processes[-1].kill()
        assert "has ended" in command(tmp_path, "status", expect=1)
    finally:
        command(tmp_path, "down", expect=0)
    assert not home.exists()
    assert list(marked(home)) == []
    assert "is down" in command(tmp_path, "status", expect=3)


def command(directory, name, *, expect):
    argv = [sys.executable, "-m", "lab", name]
    done = subprocess.run(argv, cwd=directory, check=False, capture_output=True, text=True, timeout=280)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout
