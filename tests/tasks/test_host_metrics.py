"""A host says the same of itself by psutil here and by /proc behind ssh: it is the same machine."""

from __future__ import annotations

import os
import time

import pytest

from rules.errors import CommandError
from rules.fleet import Fleet
from rules.host_metrics import HostSample, use_between
from rules.hosts import HostAddress
from tasks.host_metrics import paths_by_host, read_host, read_hosts, use_over
from tests.rules.builders import instance

HERE = HostAddress()
PATHS = ("/", "/dev/shm", "/srv/not/there/yet")  # noqa: S108 - a file system of its own, only looked at


def fleet_on(*hosts: HostAddress) -> Fleet:
    members = [
        instance(f"node-{n}").model_copy(update={"host": host}) for n, host in enumerate(hosts, start=1)
    ]
    return Fleet(application="web", instances=tuple(members))


@pytest.fixture
def unreachable(remote: HostAddress) -> HostAddress:
    return remote.model_copy(update={"name": "gone", "port": 1, "connect_timeout_s": 2})


def agree(one: HostSample, other: HostSample) -> bool:
    """Whether two samples are of one machine at nearly one time."""
    return (
        abs(one.cpu_total_s - other.cpu_total_s) < 10 * (os.cpu_count() or 1)
        and abs(one.memory_ratio - other.memory_ratio) < 0.1
        and one.disks.keys() == other.disks.keys()
        and all(abs(one.disks[path] - other.disks[path]) < 0.02 for path in one.disks)
        and abs(one.network_bytes - other.network_bytes) < 50e6
    )


def test_both_ways_say_the_same(remote):
    local, by_ssh = read_host(HERE, PATHS), read_host(remote, PATHS)
    assert agree(local, by_ssh), (local, by_ssh)
    assert 0 < local.cpu_busy_s < local.cpu_total_s
    assert 0 < local.memory_ratio < 1


def test_a_path_that_is_not_there_yet_stands_for_where_it_will_be(remote):
    for host in (HERE, remote):
        disks = read_host(host, PATHS).disks
        assert disks["/srv/not/there/yet"] == pytest.approx(disks["/"], abs=0.01)
        there = os.statvfs("/dev/shm")  # noqa: S108 - as above
        assert disks["/dev/shm"] == pytest.approx(1 - there.f_bavail / there.f_blocks, abs=0.05)  # noqa: S108


def test_cpu_is_what_was_used_within_the_window():
    earlier = read_host(HERE)
    own_s = time.process_time()
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        pass
    used = use_between(earlier, read_host(HERE), 1.0)
    # others use this machine too, so this process's own part is what must be in it at least
    own_ratio = (time.process_time() - own_s) / (1.0 * (os.cpu_count() or 1))
    assert used.cpu_ratio >= 0.8 * own_ratio > 0


def test_each_host_of_a_fleet_is_asked_once_with_its_own_paths(remote):
    fleet = fleet_on(HERE, remote, HERE)
    assert paths_by_host(fleet) == {HERE: ("/", "/srv/node-1", "/srv/node-3"), remote: ("/", "/srv/node-2")}
    assert [use.host for use in use_over(fleet, 0.1)] == ["local", "lab-remote"]


def test_a_host_that_cannot_be_asked_is_an_error_and_never_the_workers_own_figures(unreachable):
    with pytest.raises(CommandError, match="gone"):
        read_hosts({HERE: ("/",), unreachable: ("/",)})
