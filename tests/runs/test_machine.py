"""The environment of processes that compute, set before torch is loaded."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import joblib
import pytest
import torch
from support.notebooks import code, notebook, write

from fmkit.runs import machine
from fmkit.runs.rerun import rerun
from fmkit.runtime import device_name, pick_device

NAMES = [
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in (*NAMES, *machine.FOLDERS):
        monkeypatch.delenv(name, raising=False)


def test_threads_are_the_cores_that_the_process_may_use(monkeypatch):
    counted = {True: 3, False: 6}  # a quota, or physical cores of two threads each
    monkeypatch.setattr(
        joblib,
        "cpu_count",
        lambda only_physical_cores=False: counted[only_physical_cores],
    )
    chosen = machine.variables()
    assert [*chosen] == NAMES
    assert (chosen["OMP_NUM_THREADS"], chosen["MKL_NUM_THREADS"]) == ("3", "3")
    assert chosen["OMP_WAIT_POLICY"] == "passive"


def test_threads_respect_affinity():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no affinity")
    command = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    command += "from fmkit.runs.machine import usable_cores; print(usable_cores())"
    run = subprocess.run(
        [sys.executable, "-c", command],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert run.stdout == "1\n"


@pytest.mark.parametrize("name", NAMES)
def test_what_the_user_has_set_wins(monkeypatch, name):
    monkeypatch.setenv(name, "7")
    assert [*machine.variables()] == [other for other in NAMES if other != name]


def test_a_kernel_sees_them_and_this_process_is_as_before(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    expected = machine.variables() | {"OMP_WAIT_POLICY": "active"}
    before = dict(os.environ)
    cell = "import os, torch\nfound = {name: os.environ.get(name) for name in %r}\n"
    check = f"assert found == {expected!r}\n"
    check += f"assert torch.get_num_threads() == {expected['OMP_NUM_THREADS']}"
    path = write(notebook(code(cell % NAMES + check)), tmp_path / "chapter.ipynb")
    rerun(path, tmp_path / "out", given={})
    assert dict(os.environ) == before


@pytest.mark.parametrize("name", machine.FOLDERS)
def test_a_folder_is_that_where_its_variable_was_typed(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/reader")
    typed = {
        "my cache": str(tmp_path / "my cache"),
        "~/a": "/reader/a",
        "/b": "/b",
    }
    for text, folder in typed.items():
        monkeypatch.setenv(name, text)
        assert machine.variables()[name] == folder
    monkeypatch.setenv(name, "")
    assert name not in machine.variables()


def test_a_command_runs_in_this_environment(monkeypatch, tmp_path):
    """As ``make lab`` starts JupyterLab."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("FMKIT_CACHE", "my cache")
    shown = (*NAMES, "FMKIT_CACHE")
    command = f"import os; print([os.environ[name] for name in {shown}])"
    run = subprocess.run(
        [*(sys.executable, "-m", "fmkit.runs.machine"), sys.executable, "-c", command],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    values = os.environ | machine.variables()
    assert run.stdout == f"{[values[name] for name in shown]}\n"


def test_versions():
    assert machine.versions()["torch"] == torch.__version__
    assert set(machine.versions()) == {"python", "torch", "numpy", "fmkit"}


def test_versions_of_the_libraries_of_a_gpu(monkeypatch):
    monkeypatch.setattr(machine, "_knows_gpus", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "cuda" not in machine.versions()  # of a build for GPUs, where there is none
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = machine.versions()
    assert (found["cuda"], found["cudnn"]) == ("13.0", "91002")


def test_fmkit_may_be_a_folder_that_is_not_installed(monkeypatch):
    """As on a machine to which the code was copied."""
    installed = machine.version

    def version(name):
        if name == "fmkit":
            raise PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(machine, "version", version)
    assert machine.versions()["fmkit"] == "source"
    assert machine.versions()["torch"] == torch.__version__


def pretended(folder, *, cuda, hip):
    """An installation of torch that can be asked for its build, but not imported."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text("1 / 0", encoding="utf-8")
    text = f"cuda = {cuda!r}\nhip = {hip!r}\n"
    (folder / "torch" / "version.py").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("cuda", "hip", "device", "loaded"),
    [
        (None, None, "", False),
        (None, None, "cpu", False),
        (None, None, "mps", True),
        ("13.0", None, "cpu", False),
        ("13.0", None, "auto", True),
        (None, "7.0", "", True),
    ],
)
def test_torch_is_loaded_only_where_there_may_be_a_gpu(
    monkeypatch, tmp_path, cuda, hip, device, loaded
):
    pretended(tmp_path, cuda=cuda, hip=hip)
    monkeypatch.setenv("FMKIT_DEVICE", device)
    command = "from fmkit.runs.machine import default_device; print(default_device())"
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    monkeypatch.setenv("PYTHONPATH", paths)
    run = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, encoding="utf-8"
    )
    assert ("ZeroDivisionError" in run.stderr) is loaded
    assert loaded or run.stdout == f"cpu ({platform.machine()})\n"


def test_the_default_device_is_that_of_the_chapters(monkeypatch):
    monkeypatch.setenv("FMKIT_DEVICE", "cpu")
    assert machine.default_device() == device_name(torch.device("cpu"))
    monkeypatch.delenv("FMKIT_DEVICE")
    assert machine.default_device() == device_name(pick_device())
