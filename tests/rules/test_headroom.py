"""Headroom by the limits of the gate, and what hosts print of themselves."""

import pytest

from rules.environment import GateLimits
from rules.finding import Result
from rules.headroom import judge_bandwidth, judge_headroom
from rules.host_metrics import (
    Gpu,
    HostSample,
    HostUse,
    gpu_readings,
    host_readings,
    parse_nvidia_smi,
    parse_proc,
    use_between,
)

LIMITS = GateLimits()
GPU = Gpu(index=0, name="Tesla P4", used_ratio=0.5, memory_used_bytes=4 << 30, memory_total_bytes=8 << 30)
PRINTED = """\
== stat
cpu  100 10 50 800 40 0 0 0 60 0
== meminfo
MemTotal:       16000000 kB
MemAvailable:    4000000 kB
== net
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop
    lo: 9999999 1 0 0 0 0 0 0 9999999 1 0 0 0 0 0 0
  eth0:1000 1 0 0 0 0 0 0 500 1 0 0 0 0 0 0
   wg0: 700 1 0 0 0 0 0 0 700 1 0 0 0 0 0 0
veth12: 700 1 0 0 0 0 0 0 700 1 0 0 0 0 0 0
== df
/ 1000 250
/srv/with space 2000 1000
/proc/odd 0 0
== gpu
0, Tesla P4, 55, 1024, 8192
1, NVIDIA GH200, [N/A], [Not Supported], [N/A]
"""


def used(**fields: object) -> HostUse:
    known = {"host": "blue", "cpu_ratio": 0.1, "memory_ratio": 0.1, "disks": {"/srv/web": 0.1}}
    return HostUse.model_validate({**known, "network_bytes_per_s": 0.0, **fields})


def gpu(memory_used: int | None) -> Gpu:
    return GPU.model_copy(update={"memory_used_bytes": memory_used, "memory_total_bytes": 100})


@pytest.mark.parametrize(
    ("fields", "result"),
    [
        ({}, Result.PASSED),
        ({"cpu_ratio": 0.80}, Result.PASSED),
        ({"cpu_ratio": 0.81}, Result.FAILED),
        ({"cpu_ratio": None}, Result.UNKNOWN),
        ({"memory_ratio": 0.85}, Result.PASSED),
        ({"memory_ratio": 0.86}, Result.FAILED),
        ({"disks": {"/": 0.2, "/srv/web": 0.86}}, Result.FAILED),
        ({"disks": {"/": 0.85}}, Result.PASSED),
        ({"gpus": (gpu(90),)}, Result.PASSED),
        ({"gpus": (gpu(10), gpu(91))}, Result.FAILED),
        ({"gpus": (gpu(None),)}, Result.UNKNOWN),
        ({"cpu_ratio": None, "memory_ratio": 0.99}, Result.FAILED),
    ],
)
def test_each_of_cpu_memory_disk_and_gpu_memory_is_judged(fields, result):
    assert judge_headroom(used(**fields), LIMITS).result is result


def test_what_is_short_is_named_with_its_number_and_its_limit():
    found = judge_headroom(used(memory_ratio=0.9, disks={"/srv/web": 0.95}), LIMITS)
    assert found.evidence == (
        "blue: memory 10.0% free (at least 15%); blue: disk of /srv/web 5.0% free (at least 15%)"
    )
    assert "no GPU (none found)" in judge_headroom(used(), LIMITS).evidence


@pytest.mark.parametrize(
    ("elapsed_s", "result"), [(1.0, Result.PASSED), (8.0, Result.PASSED), (9.0, Result.FAILED)]
)
def test_bandwidth_is_bytes_by_seconds(elapsed_s, result):
    found = judge_bandwidth("green", 8 << 20, elapsed_s, LIMITS)
    assert found.result is result
    assert "8 MiB sent" in found.evidence
    assert "MB/s (at least 1 MB/s)" in found.evidence


def test_what_a_host_prints_is_read_without_what_would_count_twice():
    sample = parse_proc("blue", PRINTED)
    assert (sample.cpu_busy_s, sample.cpu_total_s) == (1.6, 10.0)
    assert sample.memory_ratio == 0.75
    assert sample.disks == {"/": 0.75, "/srv/with space": 0.5}
    assert sample.network_bytes == 1500
    assert [one.memory_ratio for one in sample.gpus] == [0.125, None]
    assert [one.used_ratio for one in sample.gpus] == [0.55, None]


def test_a_host_without_nvidia_smi_has_no_gpu():
    sample = parse_proc("blue", PRINTED.partition("0, Tesla")[0])
    assert (sample.gpus, sample.gpu_note) == ((), "no nvidia-smi")


@pytest.mark.parametrize("cut", ["== stat", "== meminfo", "MemAvailable", "== net", "== df", "== gpu"])
def test_a_section_that_is_missing_is_an_error_and_not_0(cut):
    with pytest.raises(ValueError, match=r"blue does not say what it has in use|invalid literal"):
        parse_proc("blue", PRINTED.replace(cut, "== other" if cut.startswith("==") else "Other"))


def test_other_words_of_nvidia_smi_are_an_error():
    with pytest.raises(ValueError, match="Unable to determine"):
        parse_nvidia_smi("Unable to determine the device handle for GPU")


def sample(**fields: object) -> HostSample:
    known = {"host": "blue", "cpu_busy_s": 10, "cpu_total_s": 100, "memory_ratio": 0.2, "disks": {"/": 0.5}}
    return HostSample.model_validate({**known, "network_bytes": 1000, **fields})


def test_two_samples_make_a_window():
    load = GPU.model_copy(update={"used_ratio": 1.0})
    later = sample(cpu_busy_s=15, cpu_total_s=110, memory_ratio=0.4, network_bytes=3000, gpus=(load,))
    between = use_between(sample(gpus=(GPU,)), later, 4.0)
    assert (between.cpu_ratio, between.network_bytes_per_s, between.disk_ratio) == (0.5, 500.0, 0.5)
    assert between.memory_ratio == pytest.approx(0.3)
    assert between.gpus[0].used_ratio == 0.75


def test_after_a_reboot_rates_are_unknown():
    between = use_between(sample(), sample(cpu_busy_s=1, cpu_total_s=2, network_bytes=0), 4.0)
    assert (between.cpu_ratio, between.network_bytes_per_s) == (None, None)


def test_the_worst_host_counts_and_a_silent_one_makes_it_unknown():
    hosts = [used(cpu_ratio=0.2, disks={"/": 0.9}), used(host="green", cpu_ratio=0.7)]
    found = {reading.name: (reading.value, reading.note) for reading in host_readings(hosts)}
    assert found["cpu_ratio"] == (0.7, "worst: green")
    assert found["disk_ratio"] == (0.9, "worst: blue")
    silent = host_readings([*hosts, used(host="red", cpu_ratio=None)])[0]
    assert (silent.status, silent.note) == ("no_data", "red cannot say")


def test_no_gpu_anywhere_is_absent_and_one_host_with_gpus_speaks_for_them():
    assert {reading.status for reading in gpu_readings([used(), used(host="green")])} == {"absent"}
    ratio, memory = gpu_readings([used(), used(host="green", gpus=(GPU, gpu(90)))])
    assert (ratio.value, memory.value, memory.note) == (0.5, 0.9, "worst: green")


def test_a_gpu_that_the_models_own_servers_claim_is_full_by_design():
    full = used(gpus=(gpu(99),))
    assert judge_headroom(full, GateLimits()).result == "failed"
    found = judge_headroom(full, GateLimits(), own_gpus={gpu(99).index})
    assert found.result == "passed"
    assert "the model's own" in found.evidence
