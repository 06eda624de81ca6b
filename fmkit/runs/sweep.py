"""Run a chapter at every point of a grid of parameters, several points at a time.

Every point has its own process, because a rerun sets the environment of its process,
and its own folder, so a sweep that was stopped can continue.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from fmkit._check import require
from fmkit.runs.cells import RerunError
from fmkit.runs.gallery import Result, count, read_result, write_page, write_table
from fmkit.runs.machine import usable_cores
from fmkit.runs.parameters import (
    Point,
    checked,
    defaults_of,
    parameters_of,
    points_of,
    read_notebook,
)
from fmkit.runs.record import RecordError
from fmkit.runs.rerun import rerun
from fmkit.runs.stale import source_hash

# In a point's folder: the hash of the code that ran, and its process's output.
SOURCE, LOG = "source_hash.txt", "log.txt"
POLL_SECONDS = 0.1
STOP_SECONDS = 10.0  # a rerun ends its kernel in about one


@dataclass(frozen=True)
class Child:
    """The process that runs a point, and the time at which it began."""

    point: Point
    process: subprocess.Popen
    start: float


def sweep(
    path: Path,
    out: Path,
    *,
    grid: dict[str, list[object]],
    base: dict[str, object],
    jobs: int | None = None,
) -> None:
    """Run a chapter at every point of `grid` over `base`, `jobs` at a time.

    The cores are divided among the points that run at the same time; by default there
    are as many as cores. Each point has a folder in `out`; a point that has finished
    there with the same code and values is not run again. ``table.csv`` and
    ``index.html`` are written again after each point, and progress is printed.

    Raises RerunError if a point failed, after the others have finished, or if a folder
    cannot be written; raises KeyboardInterrupt if a signal asks it to stop, after all
    processes have ended.
    """
    require(jobs is None or jobs >= 1, "jobs", "be at least 1", jobs)
    points = points_of(grid, checked(parameters_of(read_notebook(path)), base), out)
    # From all points, not from those left to run: the order in which threads add can
    # change a number.
    cores = usable_cores()
    jobs = min(jobs or cores, len(points))
    threads = max(cores // jobs, 1)
    results = results_before(points, path)
    waiting = [p for p in points if results[p.folder].status != "finished"]
    _write(path, out, [*results.values()])
    share = f"{jobs} at a time with {threads} of {cores} cores each"
    print(f"{path.stem}, {count([*results.values()])}; {share}", flush=True)
    with (
        _signals_collected() as signals,
        contextlib.closing(_run(waiting, path, jobs, threads, signals)) as ended,
    ):
        for number, child in enumerate(ended, start=1):
            result = results[child.point.folder] = result_after(child, path)
            _write(path, out, [*results.values()])
            with tqdm.external_write_mode():  # beside a bar
                outcome = _outcome(result, child.start)
                print(f"{outcome}; {len(waiting) - number} remain", flush=True)
        _conclude(out, [*results.values()], interrupted=bool(signals))


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Refuse to go on, with one sentence, if `folder` cannot be written."""
    try:
        yield
    except OSError as error:
        raise RerunError(f"{folder} cannot be written ({error.strerror}).") from error


def _write(path: Path, out: Path, results: list[Result]) -> None:
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        write_table(out / "table.csv", results)
        write_page(out / "index.html", results, chapter=path)


def results_before(points: list[Point], path: Path) -> dict[Path, Result]:
    """Read the results of earlier sweeps; stale if their code or values differ."""
    notebook = read_notebook(path)
    defaults, source, results = defaults_of(notebook), source_hash(notebook), {}
    for point in points:
        results[point.folder] = Result(point.folder.name, point.varied)
        with contextlib.suppress(RecordError, RerunError, OSError, ValueError):
            before = read_result(point.folder / path.name, varied=point.varied)
            hashed = (point.folder / SOURCE).read_text(encoding="utf-8")
            values = before.record["parameters"]
            same = (hashed, values) == (source, values | defaults | point.given)
            if before.status == "finished" and same:
                results[point.folder] = before
            elif before.status == "finished":
                results[point.folder] = replace(results[point.folder], status="stale")
    return results


def _run(
    waiting: list[Point], path: Path, jobs: int, threads: int, signals: list[int]
) -> Iterator[Child]:
    """Run points, `jobs` at a time, and yield each that ends, until a signal comes."""
    waiting, running = [*waiting], []
    bar = tqdm(
        total=len(waiting), desc=path.stem, unit="point", disable=None, leave=False
    )
    try:
        while (waiting or running) and not signals:
            while waiting and len(running) < jobs:
                running.append(_start(waiting.pop(0), path, threads))
            for child in [c for c in running if c.process.poll() is not None]:
                running.remove(child)
                bar.update()
                yield child
            bar.refresh()  # for its clock
            time.sleep(POLL_SECONDS)
    finally:
        bar.close()
        _stop(running)


def _start(point: Point, path: Path, threads: int) -> Child:
    # -P: a file in the current folder is not imported in place of a module.
    start = [sys.executable, "-P", "-m", "fmkit.runs.sweep"]
    command = [*start, str(path), str(point.folder), json.dumps(point.given)]
    variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    variables["FMKIT_CLAIMS"] = "report"  # one false claim must not cost a point
    with _writing(point.folder):
        point.folder.mkdir(parents=True, exist_ok=True)
        (point.folder / "record.json").unlink(missing_ok=True)
        with open(point.folder / LOG, "wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | variables,
                start_new_session=True,  # a terminal's Ctrl-C comes once, from _stop
            )
    return Child(point, process, time.monotonic())


def _stop(children: list[Child]) -> None:
    """Interrupt reruns, wait until they have ended their kernels, or kill them."""
    for child in children:
        child.process.send_signal(signal.SIGINT)
    end = time.monotonic() + STOP_SECONDS
    for child in children:
        try:
            child.process.wait(max(end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()


@contextlib.contextmanager
def _signals_collected() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP, which would otherwise interrupt a write.

    Yields the list of those received.
    """
    signals: list[int] = []
    before = {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, lambda got, _: signals.append(got))
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def result_after(child: Child, path: Path) -> Result:
    """Read what a point's process left; its last words are the error, if no record."""
    point, status = child.point, child.process.returncode
    try:
        with _writing(point.folder):  # of its figures
            result = read_result(point.folder / path.name, varied=point.varied)
    except (RecordError, RerunError) as error:
        result = Result(point.folder.name, point.varied, error=str(error))
    if status == 0 and result.status == "finished":
        return result
    # An error that the rerun does not foresee looks as if it had been interrupted.
    if result.status == "failed" and result.error != "interrupted":
        return result
    lines = _lines(point.folder / LOG)
    last = lines[-1] if lines else f"its process ended with status {status}"
    if status == 0:  # it ran to its end, but its results cannot be read
        last = result.error
    return replace(result, status="failed", error=last)


def _lines(log: Path) -> list[str]:
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        text = f"{log} cannot be read ({error.strerror})."
    return text.strip().splitlines()


def _outcome(result: Result, start: float) -> str:
    took = f"{result.name} {result.status} in {time.monotonic() - start:.0f} s"
    return f"{took}: {result.error}" if result.error else took


def _conclude(out: Path, results: list[Result], *, interrupted: bool) -> None:
    """Print the points that failed and where the results are; raise if any failed."""
    failed = [result for result in results if result.status == "failed"]
    for result in failed:
        print(f"{result.name} failed: {result.error}")
    print(f"{count(results)}; see {out / 'index.html'} and {out / 'table.csv'}")
    if interrupted:
        raise KeyboardInterrupt
    if failed:
        raise RerunError(f"{len(failed)} of {len(results)} points failed.")


def _run_point(path: str, folder: str, given: str) -> None:
    """Rerun one point; this is what its process does."""
    # A shell's background job ignores SIGINT, and so would the processes it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        digest = source_hash(read_notebook(Path(path)))
        (Path(folder) / SOURCE).write_text(digest, encoding="utf-8")
        rerun(Path(path), Path(folder), given=json.loads(given))
    except RerunError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted")


if __name__ == "__main__":
    _run_point(*sys.argv[1:])
