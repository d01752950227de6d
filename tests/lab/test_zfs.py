import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab.zfs import LabZfs
from tests.requirements import need_zfs

pytestmark = pytest.mark.xdist_group("zfs")
ROOT = Path(__file__).parents[2]


def daemons():
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "comm").read_text().strip()
            except OSError:
                continue
            if name == "zfs-fuse" and (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def zfs_mounts():
    return [line for line in Path("/proc/self/mounts").read_text().splitlines() if "zfs" in line.split()[2]]


def test_it_leaves_no_daemon_no_mount_and_no_file(tmp_path):
    need_zfs()
    with LabZfs(tmp_path / "zfs") as lab:
        lab.create("web")
        assert len(zfs_mounts()) == 2
        assert len(daemons()) == 1
    assert not zfs_mounts()
    assert not daemons()
    assert not os.path.ismount("/zfs-kstat")
    assert [path.name for path in (tmp_path / "zfs").iterdir()] == ["zfs-fuse.log"]


def test_what_a_killed_lab_left_is_taken_away_by_the_next(tmp_path):
    need_zfs()
    script = (
        "import sys, time; from pathlib import Path; from lab.zfs import LabZfs\n"
        "with LabZfs(Path(sys.argv[1])) as lab: print(lab.create('x').dataset, flush=True); time.sleep(60)"
    )
    argv = [sys.executable, "-c", script, str(tmp_path / "killed")]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout.readline()
        killed.send_signal(signal.SIGKILL)
    assert daemons()
    with LabZfs(tmp_path / "next") as lab:
        assert lab.zfs("list", "-H", "-o", "name").split() == [lab.pool]
    assert not daemons()
    assert not zfs_mounts()
