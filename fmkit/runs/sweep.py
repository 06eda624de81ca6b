"""Run a chapter at every point of a grid of parameters, several points at a time.

Every point has its own process, because a rerun sets the environment of its process,
and its own folder, so a sweep that was stopped can continue. Where the processes run is
up to an engine, see :mod:`fmkit.runs.engines`.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from fmkit._check import Refused
from fmkit.runs.cells import RerunError
from fmkit.runs.engines import Ended, Engine, Local
from fmkit.runs.gallery import (
    Result,
    count,
    read_result,
    with_page,
    write_page,
    write_table,
)
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
                _write(path, out, results)
                print(f"{began}; {running.share}", flush=True)
                remain, started = len(waiting), set()
                for new, ends in _run(waiting, path, running, signals):
                    started |= {point.folder for point in new}
                    for ended in ends:
                        started.remove(ended.point.folder)
                        remain -= 1
                        result = results[ended.point.folder] = result_after(ended, path)
                        with tqdm.external_write_mode():  # beside a bar
                            print(_outcome(result, ended, remain), flush=True)
                    _write(path, out, results, started=started)
        else:
            print(began, flush=True)
        _write(path, out, results)
        _conclude(out, [*results.values()], interrupted=bool(signals))


def _write(
    path: Path, out: Path, results: dict[Path, Result], *, started: Iterable[Path] = ()
) -> None:
    """Write the table and the gallery, in which points that run now have started."""
    shown = results | {f: replace(results[f], status="started") for f in started}
    write_table(out / "table.csv", [*shown.values()])
    write_page(out / "index.html", [*shown.values()], chapter=path)


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
                results[point.folder] = with_page(before, point.folder / path.name)
            elif before.status == "finished":
                results[point.folder] = replace(results[point.folder], status="stale")
    return results


def _run(
    waiting: list[Point], path: Path, engine: Engine, signals: list[int]
) -> Iterator[tuple[list[Point], list[Ended]]]:
    """Start points, as many as the engine takes; yield those that started and ended.

    Stops when a signal has come; the points that run then are left to the engine.
    """
    waiting, running = [*waiting], 0
    bar = tqdm(
        total=len(waiting), desc=path.stem, unit="point", disable=None, leave=False
    )
    with contextlib.closing(bar):
        while (waiting or running) and not signals:
            ends, started = engine.ended(), []
            running -= len(ends)
            while waiting and running < engine.room and not signals:
                started.append(waiting.pop(0))
                engine.start(started[-1])
                running += 1
            bar.update(len(ends))
            if started or ends:
                yield started, ends
            bar.refresh()  # for its clock
            time.sleep(POLL_SECONDS)


def result_after(ended: Ended, path: Path) -> Result:
    """Read what a point's process left, and write its notebook as a page."""
    return with_page(_result_after(ended, path), ended.point.folder / path.name)


def _result_after(ended: Ended, path: Path) -> Result:
    """Read a result; the process's last words are the error, if there is no record."""
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
