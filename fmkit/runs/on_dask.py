"""Run the points of a sweep as tasks of dask, on this machine or on many.

A task gets the notebook as text and returns the files of its point, so the machines
share no disk; each needs the same fmkit and the data. If a worker dies, dask runs its
tasks on another one.
"""

import contextlib
import logging
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import dask
import nbformat
from distributed import Client, Future, LocalCluster, Worker, get_worker
from distributed.utils import silence_logging_cmgr

from fmkit._check import Refused, one_line, require
from fmkit.runs import machine, point
from fmkit.runs.cells import RerunError
from fmkit.runs.engines import Ended, counted
from fmkit.runs.parameters import Point, read_notebook

ANSWER_SECONDS = 10.0  # for a scheduler to answer; one that is there needs one
FETCH_SECONDS = 60.0  # for a point's files, which are less than a megabyte
# Ctrl-C in a terminal reaches workers too; they are ended in order, by the cluster.
DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"


@dataclass(frozen=True)
class Sent:
    """A point that the scheduler has, and the time at which it got it."""

    point: Point
    future: Future
    start: float


class Dask:
    """Run each point as a task of a scheduler at `address`, or of a cluster made here.

    A point takes one thread of a worker, computes with `cores` threads and has `gpus`
    GPUs of its own, from a worker that was started with ``--resources GPU=…``; without
    `gpus` it has none. A cluster made here divides its cores as
    :class:`fmkit.runs.engines.Local` does unless `cores` is given; elsewhere a point
    has one by default. Raises RerunError if no scheduler answers, and Refused if there
    are too few GPUs.
    """

    def __init__(
        self,
        path: Path,
        points: list[Point],
        *,
        address: str | None,
        cores: int | None,
        gpus: int,
    ) -> None:
        # Not at the head: workers import this module, and need no torch.
        from fmkit.runs.stale import source_hash

        notebook = read_notebook(path)
        self._source = source_hash(notebook)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = []  # of another run, and most of what would travel
        self._path, self._text = path, nbformat.writes(notebook)
        self._gpus, self._sent = gpus, []
        self._group = f"{path.stem}-{uuid.uuid4().hex[:8]}"
        with contextlib.ExitStack() as stack:
            stack.enter_context(silence_logging_cmgr(logging.CRITICAL))
            if address is None:
                self._open_here(stack, cores, len(points))
            else:
                self._cores, self.room = cores or 1, len(points)
                self._client = stack.enter_context(_client(address))
                self.share = self._workers(address)
            self._stack = stack.pop_all()

    def _open_here(
        self, stack: contextlib.ExitStack, cores: int | None, points: int
    ) -> None:
        """Start a scheduler, and one worker with a thread for each point at a time."""
        whole, gpus = machine.usable_cores(), len(machine.gpus())
        require(self._gpus <= gpus, "gpus", f"be on this machine ({gpus})", self._gpus)
        self.room = min(max(whole // (cores or 1), 1), points)
        if self._gpus:
            self.room = min(self.room, gpus // self._gpus)
        self._cores = cores or max(whole // self.room, 1)
        self.share = f"dask runs {self.room} at a time with {self._each()}"
        cluster = LocalCluster(
            n_workers=1,
            threads_per_worker=self.room,
            resources={"GPU": gpus},
            dashboard_address="127.0.0.1:0",  # any port
            memory_limit=0,  # points are not in its process
            silence_logs=logging.CRITICAL,
            preload=DEAF,
        )
        self._client = stack.enter_context(Client(stack.enter_context(cluster)))

    def _workers(self, address: str) -> str:
        """Describe the workers; refuse if none of them has the GPUs of a point."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        able = [w for w in workers if w["resources"].get("GPU", 0) >= self._gpus]
        if not workers:
            return f"{address} has no worker yet, points wait for {self._each()}"
        if not able:
            many, own = counted(self._gpus, "GPU"), f"--resources GPU={self._gpus}"
            raise RerunError(f"no worker of {address} was started with {many} ({own}).")
        threads = sum(w["nthreads"] for w in able)
        place = f"{counted(len(able), 'worker')} of {address}"
        return f"{place} for {threads} at a time with {self._each()}"

    def _each(self) -> str:
        """Name what each point gets."""
        gpus = counted(self._gpus, "GPU") if self._gpus else "no GPU"
        return f"{counted(self._cores, 'core')} and {gpus} each"

    def start(self, new: Point) -> None:
        """Give a point to the scheduler."""
        task = point.Task(
            self._path.name,
            self._text,
            new.given,
            self._source,
            self._cores,
            self._gpus,
        )
        future = self._client.submit(
            _run,
            task,
            key=(self._group, new.folder.name),
            resources={"GPU": self._gpus} if self._gpus else None,
        )
        self._sent.append(Sent(new, future, time.monotonic()))

    def ended(self) -> list[Ended]:
        """Write the files of the points that have ended, and return these points."""
        over = []
        for sent in [s for s in self._sent if s.future.done()]:
            with contextlib.suppress(TimeoutError):  # its worker died: it runs again
                outcome = _outcome(sent)
                self._sent.remove(sent)
                folder = sent.point.folder
                point.keep(outcome.files, folder, notebook=self._path.name)
                over.append(Ended(sent.point, outcome.status, outcome.seconds))
        return over

    def close(self) -> None:
        """Take all tasks from the scheduler, and wait until workers have stopped."""
        with self._stack:
            self._client.cancel([sent.future for sent in self._sent])
            end = time.monotonic() + 2 * point.STOP_SECONDS
            while self._sent and time.monotonic() < end and self._still_runs():
                time.sleep(point.POLL_SECONDS)

    def _still_runs(self) -> bool:
        """Tell whether a worker runs a point of this sweep."""
        runs = self._client.run(_runs, self._group, on_error="ignore")
        return any(runs.values())


def _client(address: str) -> Client:
    try:
        return Client(address, timeout=ANSWER_SECONDS)
    except (OSError, ValueError) as error:  # ValueError for one that does not parse
        raise RerunError(f"no scheduler answers at {address}.") from error


def _outcome(sent: Sent) -> point.Outcome:
    """Return what a task left; raises TimeoutError if it is to run again.

    If dask could not run it, the log is one sentence that says why.
    """
    try:
        return sent.future.result(timeout=FETCH_SECONDS)
    except Exception as error:  # of any kind: other code, a lost scheduler
        if isinstance(error, TimeoutError) and sent.future.status != "error":
            raise
        kind = "" if isinstance(error, Refused) else f"{type(error).__name__}: "
        log = f"{kind}{one_line(error)}\n".encode()
        return point.Outcome(1, time.monotonic() - sent.start, {point.LOG: log})


def _run(task: point.Task) -> point.Outcome:
    """Run a point; this is what a worker does. Stops when the task is cancelled."""
    worker = get_worker()
    key = worker.get_current_task()

    def wanted() -> bool:
        state = worker.state.tasks.get(key)
        return state is not None and state.state == "executing"

    # dask sets threads and malloc for a worker; a point's process has its own settings.
    set_by_dask = dask.config.get("distributed.nanny.pre-spawn-environ").items()
    own = [n for n, value in set_by_dask if os.environ.get(n) == str(value)]
    return point.run(task, wanted=wanted, without=own, scratch=worker.local_directory)


def _runs(group: str, dask_worker: Worker) -> bool:
    """Tell whether a worker has a task of `group`; dask passes the worker."""
    keys = [*dask_worker.state.tasks]
    return any(isinstance(key, tuple) and key[0] == group for key in keys)
