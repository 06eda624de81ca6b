"""Points as tasks of dask, on a cluster of two workers in processes of their own."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from distributed import Client, LocalCluster
from support.notebooks import RUN, code, notebook, write
from support.processes import (
    BEGUN,
    begun,
    is_alive,
    parent_of,
    started,
    stopped,
    wait_until,
)

import fmkit
from fmkit.cli import main
from fmkit.runs.engines import counted
from fmkit.runs.machine import usable_cores
from fmkit.runs.on_dask import Dask
from fmkit.runs.parameters import points_of, read_notebook
from fmkit.runs.record import read_record

FMKIT = str(Path(sys.executable).with_name("fmkit"))
SETTINGS = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"]
SETTINGS += ["MALLOC_TRIM_THRESHOLD_", "MPLBACKEND", "FMKIT_FINDINGS"]
CORES = max(usable_cores() // 2, 1)


@pytest.fixture(scope="module")
def cluster():
    """A scheduler with two workers of one thread, which claim to have two GPUs."""
    options = {"dashboard_address": ":0", "memory_limit": 0, "silence_logs": 50}
    with LocalCluster(
        n_workers=2, threads_per_worker=1, resources={"GPU": 2}, **options
    ) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        yield client


@pytest.fixture
def waiting(tmp_path):
    """A notebook that waits, if steps is 3 or more, for a file ``go``."""
    cell = code(BEGUN.format(folder=str(tmp_path)))
    return write(notebook(cell), tmp_path / "tiny.ipynb")


def arguments(path, out, given, on, *more):
    return ["sweep", str(path), "-p", given, "-o", str(out), "--on", on, *more]


def tasks_of(client):
    return client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))


def compared(folder):
    """What a point left, but for times."""
    record = read_record(folder / "record.json")
    for name in ("seconds", "date", "peak_memory_mb"):
        del record[name]
    cells = read_notebook(folder / "tiny.ipynb").cells
    cells = [(cell.source, cell.get("outputs")) for cell in cells]
    files = {path.name for path in folder.iterdir()}
    return record, cells, files, (folder / "source_hash.txt").read_bytes()


def test_a_grid_is_that_of_the_local_engine(cluster, tmp_path, capsys, monkeypatch):
    for name in SETTINGS:  # those for workers, which a cluster sets here too
        monkeypatch.delenv(name, raising=False)
    draw = "import torch\n\nrng = torch.Generator().manual_seed(seed)\n"
    draw += "x = torch.randn(400, 400, generator=rng)\n"
    draw += "run.metric('sum', (x @ x).sum().item())"
    show = "import matplotlib.pyplot as plt\n\nplt.plot(x[0]);"
    sees = f"import os\n\nprint([os.environ.get(name) for name in {SETTINGS}])"
    cells = code(RUN), code(draw), code(show), code(sees)
    path = write(notebook(*cells), tmp_path / "tiny.ipynb")
    here, there = tmp_path / "here", tmp_path / "there"
    local = ["sweep", str(path), "-p", "seed=1,2", "-o", str(here), "-j2"]
    assert main(local) == 0
    on = cluster.scheduler_address
    capsys.readouterr()
    assert main(arguments(path, there, "seed=1,2", on, "--cores", str(CORES))) == 0
    first = capsys.readouterr().out.splitlines()[0]
    share = f"2 workers of {on} for 2 at a time with {counted(CORES, 'core')}"
    assert first == f"tiny, 2 points: 2 not run; {share} and no GPU each"
    for point in ("seed=1", "seed=2"):
        assert compared(here / point) == compared(there / point)
        figures = sorted((here / point).glob("*.png"))
        assert figures
        assert all(
            (there / point / f.name).read_bytes() == f.read_bytes() for f in figures
        )
    metrics = [
        read_record(here / p / "record.json")["metrics"] for p in ("seed=1", "seed=2")
    ]
    assert metrics[0] != metrics[1]

    assert main(arguments(path, there, "seed=1,2", on)) == 0  # nothing is run again
    assert capsys.readouterr().out.startswith("tiny, 2 points: 2 finished\n")


def test_an_interrupted_driver_is_started_again(client, waiting, tmp_path, capsys):
    rest = arguments(waiting, tmp_path / "out", "steps=1,3", client.scheduler.address)
    record = tmp_path / "out" / "steps=1" / "record.json"

    def ready():
        return record.exists() and len(begun(tmp_path)) == 2

    status, printed, error = stopped([FMKIT, *rest], when=ready)
    assert (status, error) == (130, "fmkit: interrupted.\n")
    assert printed.splitlines()[-1].startswith("2 points: 1 finished, 1 not run; see ")
    assert not any(is_alive(pid) for _, *both in begun(tmp_path) for pid in both)
    assert tasks_of(client) == 0
    made = record.stat().st_mtime_ns

    (tmp_path / "go").touch()
    assert main(rest) == 0
    assert "tiny, 2 points: 1 finished, 1 not run; " in capsys.readouterr().out
    assert sorted(steps for steps, *_ in begun(tmp_path)) == [1, 3, 3]
    assert record.stat().st_mtime_ns == made
    assert tasks_of(client) == 0


def test_a_cluster_made_for_a_sweep_ends_with_it(waiting, tmp_path):
    """Ctrl-C in a terminal reaches its worker too, which says nothing about it."""
    command = [FMKIT, *arguments(waiting, tmp_path / "out", "steps=3", "dask")]
    status, printed, error = stopped(command, when=lambda: begun(tmp_path))
    assert (status, error) == (130, "fmkit: interrupted.\n")
    cores = usable_cores()
    share = (
        f"dask runs 1 at a time with {cores} core{'s' * (cores > 1)} and no GPU each"
    )
    assert printed.splitlines()[0] == f"tiny, 1 point: 1 not run; {share}"
    assert printed.splitlines()[-1].startswith("1 point: 1 not run; see ")
    assert not any(is_alive(pid) for pid in begun(tmp_path)[0][1:])


def test_other_code_on_a_worker(cluster, tmp_path):
    """The driver's fmkit differs in a module that the notebook imports."""
    folder = Path(fmkit.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(folder, tmp_path / "other" / "fmkit", ignore=ignored)
    with open(
        tmp_path / "other" / "fmkit" / "losses.py", "a", encoding="utf-8"
    ) as module:
        module.write("\nOTHER = 1\n")
    cell = code("from fmkit.losses import simclr_loss")
    path, out = write(notebook(cell), tmp_path / "tiny.ipynb"), tmp_path / "out"
    program = "import sys; from fmkit.cli import main; sys.exit(main())"
    rest = arguments(path, out, "seed=1", cluster.scheduler_address)
    run = subprocess.run(
        [sys.executable, "-P", "-c", program, *rest],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "other")},
        capture_output=True,
        encoding="utf-8",
    )
    assert (run.returncode, run.stderr) == (1, "fmkit: 1 of 1 points failed.\n")
    [failed] = [line for line in run.stdout.splitlines() if " failed: " in line]
    host = os.uname().nodename
    assert failed.startswith(f"seed=1 failed: {host} has other code (")
    assert not (out / "seed=1" / "record.json").exists()


def test_gpus_that_workers_lack(cluster, waiting, tmp_path, capsys):
    on, out = cluster.scheduler_address, tmp_path / "out"
    assert main(arguments(waiting, out, "steps=1", on, "--gpus", "3")) == 1
    said = f"no worker of {on} was started with 3 GPUs (--resources GPU=3)."
    assert capsys.readouterr().err == f"fmkit: {said}\n"
    assert not out.exists()

    assert main(arguments(waiting, out, "steps=1", on, "--gpus", "1")) == 1
    host = os.uname().nodename
    said = f"steps=1 failed: gpus of {host} must be at least 1, got 0."
    assert said in capsys.readouterr().out.splitlines()
    assert begun(tmp_path) == []


def test_a_scheduler_without_workers(waiting, tmp_path):
    points = points_of({"steps": [1]}, {}, tmp_path)
    with LocalCluster(n_workers=0, dashboard_address=":0", silence_logs=50) as empty:
        on = empty.scheduler_address
        engine = Dask(waiting, points, address=on, cores=None, gpus=1)
        engine.start(points[0])
        assert engine.ended() == []
        engine.close()
    each = "1 core and 1 GPU each"
    assert engine.share == f"{on} has no worker yet, points wait for {each}"


def test_workers_that_die(client, waiting, tmp_path):
    """One is killed, another is retired; each time the point is run again elsewhere.

    The kernel of the first ends although nothing stops it.
    """
    on, out = client.scheduler.address, tmp_path / "out"
    with started([FMKIT, *arguments(waiting, out, "steps=3", on)]) as process:
        wait_until(lambda: len(begun(tmp_path)) == 1)
        [*_, (_, kernel, rerun)] = begun(tmp_path)
        assert is_alive(kernel)
        os.kill(parent_of(rerun), signal.SIGKILL)
        wait_until(lambda: not is_alive(rerun) and not is_alive(kernel))

        wait_until(lambda: len(begun(tmp_path)) == 2)
        [*_, (_, kernel, rerun)] = begun(tmp_path)
        of = {pid: address for address, pid in client.run(os.getpid).items()}
        client.retire_workers([of[parent_of(rerun)]])
        wait_until(lambda: not is_alive(rerun) and not is_alive(kernel))

        wait_until(lambda: len(begun(tmp_path)) == 3)
        (tmp_path / "go").touch()
        printed, error = process.communicate()
    assert (process.returncode, error) == (0, "")
    assert printed.splitlines()[-1].startswith("1 point: 1 finished; see ")
