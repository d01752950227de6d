"""GPUs for machines without any: a libnvidia-ml of our own beneath the real pynvml.

It follows NVML's published C interface for the calls that are made; what it says stands in a file that a test
may change at any time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from lab.processes import LabError
from rules.frozen import Frozen

_BUILD_TIMEOUT_S = 60

_SOURCE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15 };
enum { MOST = 16 };

struct gpu { long total_mib, used_mib, load_percent; };
struct memory { unsigned long long total, free, used; };
struct utilization { unsigned gpu, memory; };

/* One GPU a line: MiB in total, MiB used, load in percent; -1 is "not supported", -2 a lost GPU. No file:
   no driver. Read again at each call. */
static int all(struct gpu *gpus)
{
    const char *path = getenv("LAB_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    int count = 0;
    if (!file) return -1;
    while (count < MOST && fscanf(file, "%ld %ld %ld", &gpus[count].total_mib, &gpus[count].used_mib,
                                  &gpus[count].load_percent) == 3) count++;
    fclose(file);
    return count;
}

static int one(void *device, struct gpu *gpu)
{
    struct gpu gpus[MOST];
    long count = all(gpus), index = (long)device - 1;
    if (count < 0) return DRIVER_NOT_LOADED;
    if (index < 0 || index >= count) return INVALID_ARGUMENT;
    *gpu = gpus[index];
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags)
{
    struct gpu gpus[MOST];
    return all(gpus) < 0 ? DRIVER_NOT_LOADED : SUCCESS;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int error)
{
    switch (error) {
    case SUCCESS: return "Success";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case GPU_IS_LOST: return "GPU is lost";
    default: return "Unknown Error";
    }
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
    struct gpu gpus[MOST];
    int found = all(gpus);
    if (found < 0) return DRIVER_NOT_LOADED;
    *count = (unsigned)found;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device)
{
    struct gpu gpu;
    *device = (void *)(long)(index + 1);
    return one(*device, &gpu);
}

int nvmlDeviceGetName(void *device, char *name, unsigned length)
{
    snprintf(name, length, "Lab GPU");
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *device, struct memory *memory)
{
    struct gpu gpu;
    int error = one(device, &gpu);
    if (error) return error;
    if (gpu.total_mib < 0) return gpu.total_mib == -2 ? GPU_IS_LOST : NOT_SUPPORTED;
    memory->total = (unsigned long long)gpu.total_mib << 20;
    memory->used = (unsigned long long)gpu.used_mib << 20;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(void *device, struct utilization *rates)
{
    struct gpu gpu;
    int error = one(device, &gpu);
    if (error) return error;
    if (gpu.load_percent < 0) return gpu.load_percent == -2 ? GPU_IS_LOST : NOT_SUPPORTED;
    rates->gpu = (unsigned)gpu.load_percent;
    rates->memory = gpu.total_mib > 0 ? (unsigned)(100 * gpu.used_mib / gpu.total_mib) : 0;
    return SUCCESS;
}
"""

_NVIDIA_SMI = """\
#!/bin/sh
# the CSV of nvidia-smi --query-gpu=index,name,utilization.gpu,memory.used,memory.total
[ -r "$LAB_NVML" ] || { echo 'NVIDIA-SMI has failed because no driver is loaded.'; exit 9; }
index=0
while read -r total used load; do
    [ "$load" -ge 0 ] || load='[N/A]'
    [ "$total" -ge 0 ] || { total='[N/A]'; used='[N/A]'; }
    echo "$index, Lab GPU, $load, $used, $total"
    index=$((index + 1))
done <"$LAB_NVML"
"""


class LabGpu(Frozen):
    """What one GPU says; None: it does not say that."""

    total_mib: int | None = 8192
    used_mib: int | None = 0
    load_percent: int | None = 0


class LabGpus:
    """The library and an `nvidia-smi`, in `directory`.

    A process sees the GPUs when it is started with `environment`: which library is NVML is settled then.

    Raises:
        LabError: there is no C compiler, or it fails.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self._says = self.directory / "gpus"
        self.programs = self.directory / "bin"
        self.programs.mkdir(parents=True, exist_ok=True)
        _compile(self.directory / "libnvidia-ml.so.1")
        smi = self.programs / "nvidia-smi"
        smi.write_text(_NVIDIA_SMI)
        smi.chmod(0o755)

    @property
    def environment(self) -> Mapping[str, str]:
        """What to start a process with, so that NVML is this library."""
        others = os.environ.get("LD_LIBRARY_PATH")
        path = f"{self.directory}:{others}" if others else str(self.directory)
        return {"LD_LIBRARY_PATH": path, "LAB_NVML": str(self._says)}

    def say(self, *gpus: LabGpu) -> None:
        """Have this many GPUs from now on, which say this."""
        lines = [
            " ".join(str(-1 if n is None else n) for n in (gpu.total_mib, gpu.used_mib, gpu.load_percent))
            for gpu in gpus
        ]
        self._write("".join(f"{line}\n" for line in lines))

    def lose(self) -> None:
        """Have one GPU that fell off its bus."""
        self._write("-2 -2 -2\n")

    def unload(self) -> None:
        """Have no driver."""
        self._says.unlink(missing_ok=True)

    def _write(self, text: str) -> None:
        new = self._says.with_suffix(".new")
        new.write_text(text)
        new.rename(self._says)


def _compile(library: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        raise LabError("no C compiler: install the Debian package gcc")
    argv = (compiler, "-shared", "-fPIC", "-O1", "-o", str(library), "-x", "c", "-")
    made = subprocess.run(
        argv, input=_SOURCE, text=True, capture_output=True, check=False, timeout=_BUILD_TIMEOUT_S
    )
    if made.returncode != 0:
        raise LabError(f"{compiler} exited {made.returncode}: {made.stderr[-1000:]}")
