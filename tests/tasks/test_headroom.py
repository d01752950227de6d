"""Headroom of the hosts as they are, and bandwidth by bytes that are really sent."""

from __future__ import annotations

import pytest

from rules.environment import GateLimits
from rules.finding import Result
from rules.hosts import HostAddress
from tasks.headroom import headroom_findings
from tests.tasks.deploying import settings_in
from tests.tasks.test_host_metrics import fleet_on

#: What any machine keeps, whatever else runs on it.
GENEROUS = {
    "max_cpu_ratio": 1.0,
    "min_memory_free_ratio": 0.0,
    "min_disk_free_ratio": 0.0,
    "min_gpu_memory_free_ratio": 0.0,
}
HERE = HostAddress()


def findings(tmp_path, *hosts, command_timeout_s=30.0, **limits):
    settings = settings_in(tmp_path, command_timeout_s=command_timeout_s)
    limits = GateLimits(**{**GENEROUS, **limits})
    return headroom_findings(fleet_on(*hosts), limits=limits, settings=settings)


def test_a_host_with_room_passes_with_its_numbers(tmp_path):
    found = findings(tmp_path, HERE)["headroom"]
    assert found.result is Result.PASSED
    for words in ("CPU in use", "memory", "disk of /srv/node-1", "GPU"):
        assert words in found.evidence


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("min_memory_free_ratio", "memory"),
        ("min_disk_free_ratio", "disk of /"),
        ("max_cpu_ratio", "CPU in use"),
    ],
)
def test_a_host_without_room_fails_and_says_what_is_short(tmp_path, limit, words):
    # nothing is idle to the last tick while it is looked at by a process of its own
    found = findings(tmp_path, HERE, **{limit: 0.0 if limit.startswith("max") else 1.0})["headroom"]
    assert found.result is Result.FAILED
    assert words in found.evidence


def test_the_workers_own_host_needs_no_bandwidth(tmp_path):
    assert findings(tmp_path, HERE)["network-bandwidth"].result is Result.NOT_APPLICABLE


def test_bandwidth_is_measured_to_the_host_that_is_remote(tmp_path, remote):
    found = findings(tmp_path, HERE, remote)["network-bandwidth"]
    assert found.result is Result.PASSED
    assert "lab-remote: 8 MiB sent in" in found.evidence
    slow = findings(tmp_path, remote, min_bandwidth_bytes_per_s=1e12)["network-bandwidth"]
    assert slow.result is Result.FAILED
    assert "(at least 1e+06 MB/s)" in slow.evidence


def test_what_was_not_sent_in_time_fails_where_the_limit_asks_for_more_than_that(tmp_path, remote):
    impatient = {"command_timeout_s": 0.05}
    late = findings(tmp_path, remote, **impatient, min_bandwidth_bytes_per_s=1e9)["network-bandwidth"]
    assert (late.result, late.evidence) == (
        Result.FAILED,
        "lab-remote: 8 MiB were not sent within 0.05 s",
    )
    unknown = findings(tmp_path, remote, **impatient, min_bandwidth_bytes_per_s=1.0)["network-bandwidth"]
    assert unknown.result is Result.UNKNOWN


def test_a_host_that_cannot_be_reached_is_unknown_and_does_not_pass(tmp_path, remote):
    gone = remote.model_copy(update={"name": "gone", "port": 1, "connect_timeout_s": 2})
    found = findings(tmp_path, HERE, gone)
    assert {item: finding.result for item, finding in found.items()} == {
        "headroom": Result.UNKNOWN,
        "network-bandwidth": Result.UNKNOWN,
    }
    assert "gone cannot be asked" in found["headroom"].evidence
