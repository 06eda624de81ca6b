"""A grid of parameters: each point of it through the strict rerun, in parallel.

Every point has a process of its own, because a rerun sets its process's environment,
and a folder of its own, so that a sweep that was stopped can go on.
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
from fmkit.runs.gallery import Result, count, read_result, write_page, write_table
from fmkit.runs.machine import usable_cores
from fmkit.runs.parameters import (
    Point,
    RerunError,
    checked,
    parameters_of,
    points_of,
    read_notebook,
)
from fmkit.runs.record import RecordError
from fmkit.runs.rerun import rerun
from fmkit.runs.stale import source_hash

# In a point's folder: the hash of the code that ran, and what its process said.
SOURCE, LOG = "source_hash.txt", "log.txt"
POLL_SECONDS = 0.1
STOP_SECONDS = 10.0  # a rerun ends its kernel in about one


@dataclass(frozen=True)
class Child:
    """The process that runs a point, and when it began."""

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

    By default as many run at a time as there are cores, which are divided among them.
    Each point has a folder in `out`; one that finished there with the code of today is
    not run again. ``table.csv`` and ``index.html`` are written anew after each, and
    what happens is printed. Raises ``RerunError`` where a point failed, once the rest
    have finished, and ``KeyboardInterrupt`` where it is told to stop, once all
    processes have ended.
    """
    require(jobs is None or jobs >= 1, "jobs", "be at least 1", jobs)
    points = points_of(grid, checked(parameters_of(read_notebook(path)), base), out)
    # Not of what is left to run: numbers can depend on how many threads add them up.
    jobs = min(jobs or usable_cores(), len(points))
    threads = max(usable_cores() // jobs, 1)
    results = _results_before(points, path)
    waiting = [p for p in points if results[p.folder].status != "finished"]
    _write(path, out, [*results.values()])
    cores = f"{threads} of {usable_cores()} cores each"
    ready = f"{count([*results.values()])}; {jobs} at a time with {cores}"
    print(f"{path.stem}, {ready}", flush=True)
    with (
        _told_to_stop() as told,
        contextlib.closing(_run(waiting, path, jobs, threads, told)) as ended,
    ):
        for number, child in enumerate(ended, start=1):
            result = results[child.point.folder] = _result_after(child, path)
            _write(path, out, [*results.values()])
            with tqdm.external_write_mode():  # beside a bar
                said = _how(result, child.start)
                print(f"{said}; {len(waiting) - number} remain", flush=True)
        _conclude(out, [*results.values()], interrupted=bool(told))


def _write(path: Path, out: Path, results: list[Result]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_table(out / "table.csv", results)
        write_page(out / "index.html", results, chapter=path)
    except OSError as error:
        raise RerunError(f"{out} cannot be written ({error.strerror}).") from error


def _results_before(points: list[Point], path: Path) -> dict[Path, Result]:
    """What earlier sweeps left: finished where code and values are those of today."""
    notebook = read_notebook(path)
    defaults = {p.name: p.default for p in parameters_of(notebook).values()}
    source, results = source_hash(notebook), {}
    for point in points:
        results[point.folder] = Result(point.folder.name, point.varied)
        with contextlib.suppress(RecordError, RerunError, OSError, ValueError):
            found = read_result(point.folder / path.name, varied=point.varied)
            then, had = (point.folder / SOURCE).read_text(), found.record["parameters"]
            same = (then, had) == (source, had | defaults | point.given)
            if found.status == "finished" and same:
                results[point.folder] = found
            elif found.status == "finished":
                results[point.folder] = replace(results[point.folder], status="stale")
    return results


def _run(
    waiting: list[Point], path: Path, jobs: int, threads: int, told: list[int]
) -> Iterator[Child]:
    """Run points, `jobs` at a time, and yield each when it has ended, until `told`."""
    waiting, running = [*waiting], []
    bar = tqdm(
        total=len(waiting), desc=path.stem, unit="point", disable=None, leave=False
    )
    try:
        while (waiting or running) and not told:
            while waiting and len(running) < jobs:
                running.append(_start(waiting.pop(0), path, threads))
            for child in [c for c in running if c.process.poll() is not None]:
                running.remove(child)
                bar.update()
                yield child
            bar.refresh()  # its clock
            time.sleep(POLL_SECONDS)
    finally:
        bar.close()
        _stop(running)


def _start(point: Point, path: Path, threads: int) -> Child:
    point.folder.mkdir(parents=True, exist_ok=True)
    (point.folder / "record.json").unlink(missing_ok=True)
    # -P: what lies in the current folder is not taken for a module.
    command = [
        sys.executable,
        "-P",
        "-m",
        "fmkit.runs.sweep",
        str(path),
        str(point.folder),
    ]
    variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    variables["FMKIT_CLAIMS"] = "report"  # at the defaults too: as all other points
    with open(point.folder / LOG, "wb") as log:
        process = subprocess.Popen(
            [*command, json.dumps(point.given)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | variables,
            start_new_session=True,  # a terminal's Ctrl-C comes once, by way of _stop
        )
    return Child(point, process, time.monotonic())


def _stop(children: list[Child]) -> None:
    """Interrupt reruns, so that they end their kernels, and wait until they have."""
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
def _told_to_stop() -> Iterator[list[int]]:
    """The signals to stop that have come; collected, so that none comes between."""
    told: list[int] = []
    before = {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, lambda got, _: told.append(got))
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _result_after(child: Child, path: Path) -> Result:
    point, status = child.point, child.process.returncode
    try:
        result = read_result(point.folder / path.name, varied=point.varied)
    except (RecordError, RerunError):  # it failed before there was any
        result = Result(point.folder.name, point.varied)
    if status == 0 and result.status == "finished":
        return result
    # What the rerun does not foresee ends it, too, as if it were interrupted.
    if result.status == "failed" and result.error != "interrupted":
        return result
    said = (point.folder / LOG).read_text(errors="replace").strip().splitlines()
    last = said[-1] if said else f"its process ended with status {status}"
    return replace(result, status="failed", error=last)


def _how(result: Result, start: float) -> str:
    took = f"{result.name} {result.status} in {time.monotonic() - start:.0f} s"
    return f"{took}: {result.error}" if result.error else took


def _conclude(out: Path, results: list[Result], *, interrupted: bool) -> None:
    """Say what failed and where everything is; raise if anything did."""
    failed = [result for result in results if result.status == "failed"]
    for result in failed:
        print(f"{result.name} failed: {result.error}")
    print(f"{count(results)}; see {out / 'index.html'} and {out / 'table.csv'}")
    if interrupted:
        raise KeyboardInterrupt
    if failed:
        raise RerunError(f"{len(failed)} of {len(results)} points failed.")


def _run_point(path: str, folder: str, given: str) -> None:
    """What the process of one point does."""
    # A shell's job in the background ignores it, and so would what it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        (Path(folder) / SOURCE).write_text(source_hash(read_notebook(Path(path))))
        rerun(Path(path), Path(folder), given=json.loads(given))
    except RerunError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted")


if __name__ == "__main__":
    _run_point(*sys.argv[1:])
