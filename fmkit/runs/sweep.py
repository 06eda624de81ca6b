"""Run a chapter at every point of a grid of parameters, several points at a time.

Every point has its own process, because a rerun sets the environment of its process,
and its own folder, so a sweep that was stopped can continue. Where the processes run is
up to an engine, see :mod:`fmkit.runs.engines`.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from fmkit._check import Refused
from fmkit.runs.cells import RerunError
from fmkit.runs.engines import Ended, Engine, Local
from fmkit.runs.gallery import Result, count, read_result, write_page, write_table
from fmkit.runs.owner import owned
from fmkit.runs.parameters import (
    Point,
    checked,
    defaults_of,
    located,
    parameters_of,
    points_of,
    read_notebook,
)
from fmkit.runs.point import LOG, POLL_SECONDS, SOURCE
from fmkit.runs.signals import handled
from fmkit.runs.stale import source_hash


def sweep(
    path: Path,
    out: Path,
    *,
    grid: dict[str, list[object]],
    base: dict[str, object],
    engine: Callable[[Path, list[Point]], Engine] = Local,
) -> None:
    """Run a chapter at every point of `grid` over `base`, on what `engine` makes.

    Each point has a folder in `out`; a point that has finished there with the same code
    and values is not run again. ``table.csv`` and ``index.html`` are written again
    after each point, and progress is printed.

    Raises RerunError if a point failed, after the others have finished, or if another
    run writes into `out`; raises Refused if a file cannot be written, and
    KeyboardInterrupt if a signal asks it to stop, after all processes have ended.
    Raises what making the engine raises.
    """
    parameters = parameters_of(read_notebook(path))
    points = [
        replace(point, given=located(parameters, point.given))
        for point in points_of(grid, checked(parameters, base), out)
    ]
    signals: list[int] = []  # collected, because each would interrupt a write
    stopping = "SIGINT", "SIGTERM", "SIGHUP"
    collected = handled(*stopping, by=lambda number, _: signals.append(number))
    with owned(out), collected:
        results = results_before(points, path)
        waiting = [p for p in points if results[p.folder].status != "finished"]
        began = f"{path.stem}, {count([*results.values()])}"
        if waiting:
            with contextlib.closing(engine(path, points)) as running:
                _write(path, out, [*results.values()])
                print(f"{began}; {running.share}", flush=True)
                ends = _run(waiting, path, running, signals)
                for number, ended in enumerate(ends, start=1):
                    result = results[ended.point.folder] = result_after(ended, path)
                    _write(path, out, [*results.values()])
                    line = _outcome(result, ended, len(waiting) - number)
                    with tqdm.external_write_mode():  # beside a bar
                        print(line, flush=True)
        else:
            _write(path, out, [*results.values()])
            print(began, flush=True)
        _conclude(out, [*results.values()], interrupted=bool(signals))


def _write(path: Path, out: Path, results: list[Result]) -> None:
    write_table(out / "table.csv", results)
    write_page(out / "index.html", results, chapter=path)


def results_before(points: list[Point], path: Path) -> dict[Path, Result]:
    """Read the results of earlier sweeps; stale if their code or values differ."""
    notebook = read_notebook(path)
    defaults, source, results = defaults_of(notebook), source_hash(notebook), {}
    for point in points:
        results[point.folder] = Result(point.folder.name, point.varied)
        with contextlib.suppress(OSError, ValueError):
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
    waiting: list[Point], path: Path, engine: Engine, signals: list[int]
) -> Iterator[Ended]:
    """Start points, as many as the engine takes, and yield each that ends.

    Stops when a signal has come; the points that run then are left to the engine.
    """
    waiting, running = [*waiting], 0
    bar = tqdm(
        total=len(waiting), desc=path.stem, unit="point", disable=None, leave=False
    )
    with contextlib.closing(bar):
        while (waiting or running) and not signals:
            while waiting and running < engine.room and not signals:
                engine.start(waiting.pop(0))
                running += 1
            for ended in engine.ended():
                running -= 1
                bar.update()
                yield ended
            bar.refresh()  # for its clock
            time.sleep(POLL_SECONDS)


def result_after(ended: Ended, path: Path) -> Result:
    """Read what a point's process left; its last words are the error, if no record."""
    point, status = ended.point, ended.status
    try:
        result = read_result(point.folder / path.name, varied=point.varied)
    except Refused as error:  # there is no record, or a figure cannot be written
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


def _outcome(result: Result, ended: Ended, remain: int) -> str:
    took = f"{result.name} {result.status} in {ended.seconds:.0f} s"
    took += f": {result.error}" if result.error else ""
    return f"{took}; {remain} remain"


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
