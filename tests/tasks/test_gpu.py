"""GPUs by the real pynvml on a library of our own, and by an nvidia-smi of our own; none is an answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.gpu import LabGpu, LabGpus
from rules.host_metrics import Gpu
from rules.hosts import HostAddress
from tasks.gpu import GpuError, read_gpus
from tests.requirements import need

MIB = 1 << 20
HERE = HostAddress()

#: Asked again and again by one process, since which library is NVML is settled when a process starts.
READER = """\
import json, sys
from rules.hosts import HostAddress
from tasks.gpu import GpuError, read_gpus
for _ in sys.stdin:
    try:
        gpus, note = read_gpus(HostAddress())
        said = {"gpus": [gpu.model_dump() for gpu in gpus], "note": note}
    except GpuError as error:
        said = {"error": str(error)}
    print(json.dumps(said), flush=True)
"""


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> LabGpus:
    need("gcc", package="gcc")
    return LabGpus(tmp_path_factory.mktemp("gpus"))


@pytest.fixture(scope="module")
def by_nvml(gpus: LabGpus) -> Iterator[Callable[[], dict[str, Any]]]:
    """What a process says that has our NVML."""
    # without another nvidia-smi, which would be asked where NVML finds nothing
    environment = {**os.environ, **gpus.environment, "PATH": "/nonexistent"}
    argv = (sys.executable, "-c", READER)
    with subprocess.Popen(
        argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:

        def ask() -> dict[str, Any]:
            reader.stdin.write("\n")
            reader.stdin.flush()
            return json.loads(reader.stdout.readline())

        yield ask
        reader.stdin.close()


@pytest.fixture
def by_smi(gpus: LabGpus, monkeypatch: pytest.MonkeyPatch) -> LabGpus:
    """This process with our nvidia-smi first; NVML is the machine's."""
    monkeypatch.setenv("PATH", f"{gpus.programs}:{os.environ['PATH']}")
    monkeypatch.setenv("LAB_NVML", gpus.environment["LAB_NVML"])
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a driver of its own, which is asked first")
    return gpus


def test_nvml_tells_load_and_memory_of_each_gpu_as_they_change(gpus, by_nvml):
    gpus.say(LabGpu(total_mib=8192, used_mib=2048, load_percent=40), LabGpu(total_mib=16384))
    first, second = (Gpu.model_validate(gpu) for gpu in by_nvml()["gpus"])
    assert (first.index, first.name, first.used_ratio) == (0, "Lab GPU", 0.4)
    assert (first.memory_used_bytes, first.memory_total_bytes) == (2048 * MIB, 8192 * MIB)
    assert first.memory_ratio == 0.25
    assert (second.index, second.used_ratio, second.memory_ratio) == (1, 0.0, 0.0)
    gpus.say(LabGpu(total_mib=8192, used_mib=8192, load_percent=100))
    (only,) = (Gpu.model_validate(gpu) for gpu in by_nvml()["gpus"])
    assert (only.used_ratio, only.memory_ratio) == (1.0, 1.0)


def test_a_gpu_that_cannot_say_is_no_number_and_no_error(gpus, by_nvml):
    gpus.say(LabGpu(total_mib=None, used_mib=None, load_percent=None))
    (gpu,) = (Gpu.model_validate(gpu) for gpu in by_nvml()["gpus"])
    assert (gpu.used_ratio, gpu.memory_ratio) == (None, None)


def test_no_driver_and_no_device_are_no_gpu_with_the_reason(gpus, by_nvml):
    gpus.unload()
    assert by_nvml() == {"gpus": [], "note": "NVML: Driver Not Loaded"}
    gpus.say()
    assert by_nvml() == {"gpus": [], "note": "NVML: no device"}


def test_a_gpu_that_fell_off_its_bus_is_an_error_and_not_no_gpu(gpus, by_nvml):
    gpus.lose()
    assert "GPU is lost" in by_nvml()["error"]


def test_where_nvml_is_not_found_nvidia_smi_is_asked(by_smi):
    by_smi.say(LabGpu(total_mib=8192, used_mib=1024, load_percent=7), LabGpu(total_mib=None, used_mib=None))
    (first, second), note = read_gpus(HERE)
    assert (first.name, first.used_ratio, first.memory_ratio, note) == ("Lab GPU", 0.07, 0.125, "")
    assert (second.used_ratio, second.memory_ratio) == (0.0, None)


def test_an_nvidia_smi_without_a_driver_is_no_gpu(by_smi):
    by_smi.unload()
    assert read_gpus(HERE) == ((), "no nvidia-smi with a device")


def test_other_words_of_nvidia_smi_are_an_error(by_smi, tmp_path, monkeypatch):
    broken = tmp_path / "nvidia-smi"
    broken.write_text("#!/bin/sh\necho 'Unable to determine the device handle for GPU 0000:01:00.0'\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(GpuError, match="Unable to determine"):
        read_gpus(HERE)


def test_a_remote_host_is_asked_by_ssh_and_may_have_none(remote):
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a GPU")
    assert read_gpus(remote) == ((), "no nvidia-smi with a device")
