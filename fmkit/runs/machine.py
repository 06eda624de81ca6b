"""The environment of a process that computes: threads, waiting, memory.

OpenMP and glibc read these variables once, when they are loaded, so they must be set
before torch is imported: for every kernel that fmkit starts, and for JupyterLab. Hence
this module does not import torch. ``python -m fmkit.runs.machine COMMAND`` runs a
command in this environment.

Measured with the features of EfficientNet-Lite0 on two cores: torch's defaults give
235 images a second on an idle machine and 6 to 86 beside another busy process, because
its two OpenMP threads wait for each other by spinning. Passive waiting gives 40 to 170
there and, with the thresholds of malloc, 225 to 250 on an idle machine.
"""

import functools
import os
import platform
import runpy
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

# Freed memory up to this size stays with the process, because asking the system for it
# again costs a page fault for every 4 KiB. glibc ignores a larger mmap threshold.
KEPT_BYTES = 32 * 2**20
TRIM_BYTES = 512 * 2**20
FOLDERS = ("FMKIT_CACHE", "FMKIT_MIRROR", "HF_HOME", "HF_HUB_CACHE")


def usable_cores() -> int:
    """Return how many physical cores this process may use: as many threads pay.

    Respects the process's affinity and a container's quota, unlike `os.cpu_count` and
    torch's own default.
    """
    import joblib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the system does not tell its physical cores
        return joblib.cpu_count(only_physical_cores=True)


def variables() -> dict[str, str]:
    """Return the environment variables to set; what the user has set is left out.

    Except that the variables in ``FOLDERS`` become absolute: they mean the folder in
    which they were typed, and a kernel runs in that of its notebook.
    """
    count = str(usable_cores())
    chosen = {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OMP_WAIT_POLICY": "passive",
        "MALLOC_MMAP_THRESHOLD_": str(KEPT_BYTES),  # read by glibc alone
        "MALLOC_TRIM_THRESHOLD_": str(TRIM_BYTES),
    }
    added = {name: value for name, value in chosen.items() if name not in os.environ}
    typed = {name: os.environ[name] for name in FOLDERS if os.environ.get(name)}
    for name, folder in typed.items():
        added[name] = str(Path(os.path.expanduser(folder)).absolute())
    return added


def versions() -> dict[str, str]:
    """Return the versions that a number can depend on.

    Python, torch, numpy, fmkit and, if there is a GPU that uses them, CUDA and cuDNN.
    The version of fmkit is "source" if it runs from a folder and is not installed.
    """
    # Its metadata on PyPI leaves out the CUDA that torch was built for
    found = {"python": platform.python_version(), "torch": _torch()["__version__"]}
    found["numpy"] = version("numpy")
    try:
        found["fmkit"] = version("fmkit")
    except PackageNotFoundError:
        found["fmkit"] = "source"
    if not _knows_gpus():
        return found
    from fmkit.runtime import gpu_libraries

    return found | gpu_libraries()


def default_device() -> str:
    """Return the name of the device "auto"; imports torch only if a GPU is possible.

    Raises ValueError if ``FMKIT_DEVICE`` names a device that this machine lacks.
    """
    chosen = os.environ.get("FMKIT_DEVICE") or "auto"
    if chosen == "cpu" or (chosen == "auto" and not _knows_gpus()):
        return f"cpu ({platform.machine()})"
    from fmkit.runtime import device_name, pick_device

    return device_name(pick_device())


def gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.

    Imports torch only if a GPU is possible.
    """
    if not _knows_gpus():
        return []
    from fmkit.runtime import count_gpus

    number = count_gpus()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",") if named else map(str, range(number))
    return [name.strip() for name in names][:number]


def _knows_gpus() -> bool:
    """Tell whether torch was built for GPUs, without importing it."""
    return _torch()["cuda"] is not None or _torch()["hip"] is not None


@functools.cache
def _torch() -> dict[str, object]:
    """Return what torch says about its version, without importing it."""
    [folder] = find_spec("torch").submodule_search_locations
    return runpy.run_path(str(Path(folder) / "version.py"))


if __name__ == "__main__":
    os.environ.update(variables())
    os.execvp(sys.argv[1], sys.argv[1:])
