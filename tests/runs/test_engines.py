"""Where points run: the share of each, GPUs, and an engine of a few lines."""

import importlib.util
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.notebooks import code, notebook, write
from support.processes import BEGUN, begun, is_alive, wait_until

from fmkit._check import Refused
from fmkit.cli import main
from fmkit.runs import machine, point
from fmkit.runs.engines import Ended, Local
from fmkit.runs.parameters import points_of, read_notebook
from fmkit.runs.stale import source_hash
from fmkit.runs.sweep import sweep

VISIBLE = "import os\n\nprint(os.environ.get('CUDA_VISIBLE_DEVICES'))"


@pytest.fixture
def on_gpus(monkeypatch):
    """A machine with these GPUs and six cores."""

    def pretend(*names):
        monkeypatch.delenv("FMKIT_DEVICE", raising=False)
        monkeypatch.setattr(machine, "gpus", lambda: [*names])
        monkeypatch.setattr(machine, "usable_cores", lambda: 6)

    return pretend


@pytest.fixture
def path(tmp_path):
    return write(notebook(code(VISIBLE)), tmp_path / "tiny.ipynb")


def printed(folder):
    """What the cells of an executed notebook printed."""
    cells = read_notebook(folder / "tiny.ipynb").cells
    return "".join(o.get("text", "") for c in cells for o in c.get("outputs", []))


@pytest.mark.parametrize(
    ("gpus", "given", "jobs", "room", "share"),
    [
        ("", {}, None, 6, "6 at a time with 1 of 6 cores each"),
        ("", {}, 4, 4, "4 at a time with 1 of 6 cores each"),
        ("35", {}, None, 2, "2 at a time with 3 of 6 cores each, on 2 GPUs"),
        ("35", {}, 4, 4, "4 at a time with 1 of 6 cores each, on 2 GPUs"),
        ("3", {}, None, 1, "1 at a time with 6 of 6 cores each, on 1 GPU"),
        ("35", {"device": "cuda"}, None, 2, "2 at a time with 3 of 6 cores each, on 2"),
        ("35", {"device": "cpu"}, None, 6, "6 at a time with 1 of 6 cores each"),
    ],
)
def test_share_of_a_point(on_gpus, path, tmp_path, gpus, given, jobs, room, share):
    on_gpus(*gpus)
    points = points_of({"seed": [*range(8)]}, given, tmp_path)
    engine = Local(path, points, jobs=jobs)
    assert engine.room == room
    assert engine.share.startswith(share)
    assert ("GPU" in engine.share) is ("GPU" in share or "on 2" in share)


def test_no_gpu_is_shared_out_where_the_variable_says_cpu(
    on_gpus, path, tmp_path, monkeypatch
):
    on_gpus("0", "1")
    points = points_of({"seed": [*range(8)]}, {}, tmp_path)
    monkeypatch.setenv("FMKIT_DEVICE", "cpu")
    assert Local(path, points).room == 6
    monkeypatch.setenv("FMKIT_DEVICE", "cuda")
    assert Local(path, points).room == 2


def test_each_point_has_a_gpu_of_its_own(on_gpus, path, tmp_path):
    on_gpus("3", "5")
    sweep(path, tmp_path / "out", grid={"seed": [0, 1]}, base={})
    seen = {printed(tmp_path / "out" / f"seed={seed}") for seed in range(2)}
    assert seen == {"3\n", "5\n"}


def test_more_points_than_gpus_take_turns(on_gpus, path, tmp_path, monkeypatch):
    on_gpus("3", "5")
    taken = []

    class Process:
        returncode = 0

        def poll(self):
            return 0

    def start(path, folder, given, *, cores, variables):
        taken.append(variables["CUDA_VISIBLE_DEVICES"])
        return Process()

    monkeypatch.setattr(point, "start", start)
    points = points_of({"seed": [*range(6)]}, {}, tmp_path)
    engine = Local(path, points, jobs=5)
    for new in points[:5]:
        engine.start(new)
    assert taken == ["3", "5", "3", "5", "3"]
    assert [ended.point for ended in engine.ended()] == points[:5]
    engine.start(points[5])
    assert taken[5] == "3"


@pytest.mark.parametrize(
    ("count", "visible", "names"),
    [
        (0, None, []),
        (3, None, ["0", "1", "2"]),
        (2, "4,7", ["4", "7"]),
        (2, "GPU-ab, GPU-cd", ["GPU-ab", "GPU-cd"]),
        (0, "", []),
        (0, "-1", []),
        (1, "4,99", ["4"]),  # CUDA stops at the first that is not there
    ],
)
def test_gpus_of_a_machine(monkeypatch, count, visible, names):
    monkeypatch.setattr(machine, "_knows_gpus", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.gpus() == names


def test_points_on_one_worker_have_different_gpus(on_gpus):
    on_gpus("3", "5", "7")
    with point._gpus_taken(2) as first, point._gpus_taken(1) as second:
        assert (first, second) == (["3", "5"], ["7"])
        with pytest.raises(Refused, match=r"gpus of .* at least 1, got 0\."):
            point._gpus_taken(1).__enter__()
        with point._gpus_taken(0) as none:
            assert none == []
    with point._gpus_taken(3) as again:
        assert again == ["3", "5", "7"]


class Threads:
    """An engine: points that share no disk with the sweep, in threads."""

    share, room = "two threads", 2

    def __init__(self, path, points):
        self.path, self.source = path, source_hash(read_notebook(path))
        self.pool, self.futures = ThreadPoolExecutor(self.room), {}
        self.stopped = threading.Event()

    def start(self, new):
        text = self.path.read_text(encoding="utf-8")
        task = point.Task(self.path.name, text, new.given, self.source, 1, 1)
        future = self.pool.submit(
            point.run, task, wanted=lambda: not self.stopped.is_set()
        )
        self.futures[future] = new

    def ended(self):
        over = []
        for future in [f for f in self.futures if f.done()]:
            new, left = self.futures.pop(future), future.result()
            point.keep(left.files, new.folder, notebook=self.path.name)
            over.append(Ended(new, left.status, left.seconds))
        return over

    def close(self):
        self.stopped.set()
        self.pool.shutdown()


def test_an_engine_is_a_few_lines(on_gpus, tmp_path, capsys):
    on_gpus("3", "5")
    fails = code("if steps == 2: raise ValueError('no')")
    path, out = write(notebook(code(VISIBLE), fails), tmp_path / "tiny.ipynb"), tmp_path
    with pytest.raises(Refused, match=r"1 of 2 points failed\."):
        sweep(path, out, grid={"steps": [1, 2]}, base={}, engine=Threads)
    shown = capsys.readouterr().out
    assert shown.startswith("tiny, 2 points: 2 not run; two threads\n")
    assert "steps=2 failed: cell 4: ValueError: no\n" in shown
    seen = {printed(out / f"steps={steps}") for steps in (1, 2)}
    assert seen == {"3\n", "5\n"}

    sweep(path, out, grid={"steps": [1]}, base={}, engine=None)  # it has finished
    assert capsys.readouterr().out.startswith("tiny, 1 point: 1 finished\n")


def test_a_point_that_is_not_wanted_any_more_stops(on_gpus, tmp_path):
    on_gpus("3")
    waits = code(BEGUN.format(folder=str(tmp_path)))
    path = write(notebook(waits), tmp_path / "tiny.ipynb")
    [new] = points_of({"seed": [1]}, {}, tmp_path / "out")
    engine = Threads(path, [new])
    engine.start(new)
    wait_until(lambda: begun(tmp_path))
    engine.close()
    [ended] = engine.ended()
    assert ended.status == 1
    assert not any(is_alive(pid) for pid in begun(tmp_path)[0][1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--on", "ray"], "--on must be dask or the address of a scheduler, such as"),
        (["--on", "HOST:8786"], "--on must be dask or the address of a scheduler, "),
        (["--on", "dask", "-j2"], "jobs must be left out with --on, see --cores, got"),
        (["--cores", "2"], "cores must be given together with --on, got 2."),
        (["--gpus", "1"], "gpus must be given together with --on, got 1."),
        (["--on", "dask", "--gpus", "0"], "gpus must be at least 1, got 0."),
        (["--on", "dask", "--cores", "0"], "cores must be at least 1, got 0."),
        (["--on", "dask", "--gpus", "3"], "gpus must be on this machine (2), got 3."),
        (["--on", "tcp://127.0.0.1:1"], "no scheduler answers at tcp://127.0.0.1:1."),
        (["--on", "tcp://127.0.0.1"], "no scheduler answers at tcp://127.0.0.1."),
        (["--on", "tcp://"], "no scheduler answers at tcp://."),
    ],
)
def test_what_is_refused(on_gpus, path, tmp_path, capsys, options, message):
    from fmkit.runs import on_dask

    on_gpus("0", "1")
    on_dask.ANSWER_SECONDS, before = 1.0, on_dask.ANSWER_SECONDS
    try:
        arguments = ["sweep", str(path), "-p", "seed=1", "-o", str(tmp_path / "out")]
        assert main([*arguments, *options]) == 1
    finally:
        on_dask.ANSWER_SECONDS = before
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"fmkit: {message}")
    assert shown.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_windows_interrupts_a_point_with_ctrl_break(monkeypatch, tmp_path):
    """Its Popen refuses SIGINT. Pretended here, and not tried on Windows itself."""
    sent, flags = [], []

    class Process:
        def __init__(self, *_, creationflags, **options):
            flags.append(creationflags)

        def send_signal(self, number):
            if number == signal.SIGINT:
                raise ValueError(f"Unsupported signal: {number}")
            sent.append(number)

        def wait(self, timeout):
            return 1

    with monkeypatch.context() as windows:
        windows.setattr(signal, "CTRL_BREAK_EVENT", 1, raising=False)
        windows.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 512, raising=False)
        spec = importlib.util.spec_from_file_location("on_windows", point.__file__)
        there = importlib.util.module_from_spec(spec)
        windows.setitem(sys.modules, "on_windows", there)
        spec.loader.exec_module(there)
        windows.setattr(subprocess, "Popen", Process)
        process = there.start(tmp_path, tmp_path, {}, cores=1, variables={})
        there.stop([process])
    assert (sent, flags) == ([1], [512])
    assert (point.INTERRUPT, point.OWN_GROUP) == (signal.SIGINT, 0)
