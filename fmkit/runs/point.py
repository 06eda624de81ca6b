"""One point of a sweep: its process, here or on another machine.

Engines differ in where they start this process, see :mod:`fmkit.runs.engines`. It does
the same everywhere, and leaves the same files in its folder: the executed notebook,
``record.json``, the hash of the code that ran, and its output.
"""

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fmkit._check import Refused, require
from fmkit._writing import write_whole, writing
from fmkit.runs import machine
from fmkit.runs.cells import RerunError
from fmkit.runs.owner import owned
from fmkit.runs.parameters import read_notebook

# In a point's folder: the hash of the code that ran, and its process's output.
SOURCE, LOG, RECORD = "source_hash.txt", "log.txt", "record.json"
POLL_SECONDS = 0.1
PARENT_SECONDS = 0.2  # how often a point's process looks for its parent
STOP_SECONDS = 10.0  # a rerun ends its kernel in about one
# Windows can send a process no SIGINT, only Ctrl-Break to the group that it leads
INTERRUPT = getattr(signal, "CTRL_BREAK_EVENT", signal.SIGINT)
OWN_GROUP = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)

_TAKEN: set[str] = set()  # GPUs of the points that this process runs
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Task:
    """What another machine needs to run a point; no disk is shared with it."""

    chapter: str  # the name of the notebook's file
    notebook: str  # its text
    given: dict[str, object]
    source: str  # the hash of the code that must run
    cores: int
    gpus: int


@dataclass(frozen=True)
class Outcome:
    """What a point's process left: its exit status, its time, and its files by name."""

    status: int
    seconds: float
    files: dict[str, bytes]


def start(
    path: Path,
    folder: Path,
    given: dict[str, object],
    *,
    cores: int,
    variables: Mapping[str, str | None],
    source: str = "",
) -> subprocess.Popen:
    """Start the process that runs a point; it ends by itself if this process dies.

    `variables` are added to its environment, or removed from it if None. If `source` is
    given, it refuses to run other code. If a point of a sweep that was killed still
    runs in the folder, its end is waited for. Raises RerunError if another run has the
    folder, and Refused if a file cannot be written.
    """
    # -P: a file in the current folder is not imported in place of a module.
    command = [sys.executable, "-P", "-m", "fmkit.runs.point", str(path), str(folder)]
    command += [json.dumps(given), str(os.getpid()), source]
    added = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(cores))
    # A finding that does not hold must not cost a point.
    added = {**os.environ, **variables, **added, "FMKIT_FINDINGS": "report"}
    with owned(folder, patience=STOP_SECONDS):
        with writing(folder / RECORD):
            (folder / RECORD).unlink(missing_ok=True)
        with writing(folder / LOG):
            log = open(folder / LOG, "wb")  # noqa: SIM115
    with log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={name: value for name, value in added.items() if value is not None},
            start_new_session=True,  # a terminal's Ctrl-C comes once, from stop
            creationflags=OWN_GROUP,  # the same on Windows
        )


def stop(processes: list[subprocess.Popen]) -> None:
    """Interrupt reruns, wait until they have ended their kernels, or kill them."""
    for process in processes:
        process.send_signal(INTERRUPT)
    end = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run(
    task: Task,
    *,
    wanted: Callable[[], bool] = lambda: True,
    without: Iterable[str] = (),
    scratch: str | None = None,
) -> Outcome:
    """Run a point on a machine that has only fmkit, and return what it left.

    This is what an engine calls on another machine. The point is stopped as soon as
    `wanted` returns False. `without` names variables to remove from its environment.
    The notebook and its results are in a temporary folder of `scratch`. Raises Refused
    if the machine has too few GPUs.
    """
    began = time.monotonic()
    with (
        _gpus_taken(task.gpus) as gpus,
        tempfile.TemporaryDirectory(dir=scratch) as temporary,
    ):
        path, folder = Path(temporary) / task.chapter, Path(temporary) / "out"
        path.write_text(task.notebook, encoding="utf-8")
        process = start(
            path,
            folder,
            task.given,
            cores=task.cores,
            variables=dict.fromkeys(without) | {"CUDA_VISIBLE_DEVICES": ",".join(gpus)},
            source=task.source,
        )
        try:
            while process.poll() is None and wanted():
                time.sleep(POLL_SECONDS)
        finally:
            stop([process])
        left = [p for p in folder.iterdir() if p.is_file() and p.name[0] != "."]
        files = {path.name: path.read_bytes() for path in left}
        return Outcome(process.returncode, time.monotonic() - began, files)


@contextlib.contextmanager
def _gpus_taken(count: int) -> Iterator[list[str]]:
    """Take GPUs that no other point of this process has; points without get none."""
    with _LOCK:
        free = [name for name in machine.gpus() if name not in _TAKEN] if count else []
        taken = free[:count]
        place = f"gpus of {platform.node()}"
        require(len(taken) == count, place, f"be at least {count}", len(free))
        _TAKEN.update(taken)
    try:
        yield taken
    finally:
        with _LOCK:
            _TAKEN.difference_update(taken)


def keep(files: Mapping[str, bytes], folder: Path, *, notebook: str) -> None:
    """Write what a point left elsewhere.

    Raises RerunError if another run has the folder, Refused if it cannot be written.
    """
    with owned(folder, patience=STOP_SECONDS):
        for old in (RECORD, notebook):
            with writing(folder / old):
                (folder / old).unlink(missing_ok=True)
        # The record last: a point without a record has not finished.
        for name in sorted(files, key=lambda name: name == RECORD):
            write_whole(folder / name, files[name])


def _end_with(parent: int) -> None:
    """Interrupt this process as Ctrl-C does when its parent has died."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(STOP_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _main(path: str, folder: str, given: str, parent: str, source: str) -> None:
    """Rerun one point; this is what its process does."""
    # A shell's background job ignores SIGINT, and so would the processes it starts.
    for name in ("SIGINT", "SIGBREAK"):  # how Ctrl-Break arrives on Windows
        if number := getattr(signal, name, None):
            signal.signal(number, signal.default_int_handler)
    if os.name == "posix":  # Windows keeps the number of a parent that has ended
        _end_with(int(parent))
    try:
        # Imported here, because other machines import this module without running it.
        from fmkit.runs.rerun import rerun
        from fmkit.runs.stale import source_hash

        digest = source_hash(read_notebook(Path(path)))
        if source not in ("", digest):
            differing = f"{digest[:8]} in place of {source[:8]}"
            raise RerunError(f"{platform.node()} has other code ({differing}).")
        with owned(Path(folder)):
            write_whole(Path(folder) / SOURCE, digest)
        rerun(Path(path), Path(folder), given=json.loads(given))
    except Refused as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(1)  # at once, where Python would take torch apart first


if __name__ == "__main__":
    _main(*sys.argv[1:])
