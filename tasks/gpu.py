"""GPUs of a host: by NVML here, by nvidia-smi behind ssh. No GPU is an answer, not an error."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pynvml  # type: ignore[import-untyped]

from rules.errors import DeployError
from rules.host_metrics import Gpu, parse_nvidia_smi
from rules.hosts import HostAddress
from tasks.host import run

# Prints nothing where there is no nvidia-smi, no device (6), no driver (9) or no library of it (12).
SMI_SCRIPT = """\
if command -v nvidia-smi >/dev/null 2>&1; then
    code=0
    said=$(timeout 20 nvidia-smi --format=csv,noheader,nounits \\
        --query-gpu=index,name,utilization.gpu,memory.used,memory.total) || code=$?
    case $code in
        0) printf '%s\\n' "$said" ;;
        6 | 9 | 12) ;;
        *) echo "nvidia-smi exited $code: $said" >&2; exit 1 ;;
    esac
fi
"""
_SMI_TIMEOUT_S = 30.0
_PERCENT = 100
_NO_GPU = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
_NOT_SAID = (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION)


class GpuError(DeployError):
    """A GPU is there, but it does not answer; nothing was changed."""


def read_gpus(host: HostAddress) -> tuple[tuple[Gpu, ...], str]:
    """Return the host's GPUs and, where there is none, why that is known.

    Raises:
        GpuError: there is a driver, but it fails.
        CommandError: the remote host cannot be asked, or its nvidia-smi fails.
    """
    if not host.address:
        gpus, note = _local()
        # NixOS keeps NVML where only the driver's own programs look
        return _by_nvidia_smi(host) if not gpus and shutil.which("nvidia-smi") else (gpus, note)
    return _by_nvidia_smi(host)


def _by_nvidia_smi(host: HostAddress) -> tuple[tuple[Gpu, ...], str]:
    said = run(host, ("sh", "-c", SMI_SCRIPT), timeout_s=_SMI_TIMEOUT_S).stdout
    try:
        gpus = parse_nvidia_smi(said)
    except ValueError as error:
        raise GpuError(f"host {host.name}: {error}") from error
    return gpus, "" if gpus else "no nvidia-smi with a device"


def _local() -> tuple[tuple[Gpu, ...], str]:
    try:
        with _nvml():
            gpus = tuple(_gpu(index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError as error:
        if error.value in _NO_GPU:
            return (), f"NVML: {error}"
        raise GpuError(f"NVML does not answer on the worker's host: {error}. See dmesg for Xid.") from error
    return gpus, "" if gpus else "NVML: no device"


@contextmanager
def _nvml() -> Iterator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    load = _said(pynvml.nvmlDeviceGetUtilizationRates, handle)
    memory = _said(pynvml.nvmlDeviceGetMemoryInfo, handle)
    return Gpu(
        index=index,
        name=str(pynvml.nvmlDeviceGetName(handle)),
        used_ratio=None if load is None else min(1.0, load.gpu / _PERCENT),
        memory_used_bytes=None if memory is None else int(memory.used),
        memory_total_bytes=None if memory is None else int(memory.total),
    )


def _said(question: Callable[[Any], Any], handle: Any) -> Any:
    """Return the answer; None where this GPU has none: a part of one (MIG) has no load of its own."""
    try:
        return question(handle)
    except pynvml.NVMLError as error:
        if error.value in _NOT_SAID:
            return None
        raise
