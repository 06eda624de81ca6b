"""Where the points of a sweep run: the interface of engines, and the local one.

An engine is made for one sweep, from the notebook's path and all points. It decides
how many points run at a time, and which cores and GPUs each of them gets. Everything
that is the same for all engines, such as the table, the gallery, resuming and Ctrl-C,
is in :mod:`fmkit.runs.sweep`.
"""

import functools
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fmkit._check import require
from fmkit.runs import machine, point
from fmkit.runs.parameters import Point, defaults_of, read_notebook

ADDRESSES = ("tcp://", "tls://")  # of dask's schedulers


@dataclass(frozen=True)
class Ended:
    """A point whose process has ended; its files are in its folder."""

    point: Point
    status: int  # 0 if it ran to its end, as a process reports it
    seconds: float


class Engine(Protocol):
    """Run points somewhere; :func:`fmkit.runs.sweep.sweep` is the only caller.

    A point's files must be in its folder when :meth:`ended` returns it: the executed
    notebook, ``record.json``, ``source_hash.txt`` and ``log.txt``, whose last line is
    the error if there is no record. An engine on other machines has
    :func:`fmkit.runs.point.run` to make them there and :func:`fmkit.runs.point.keep` to
    write them here.
    """

    share: str  # what a point computes with, in words
    room: int  # how many points to start before one has ended

    def start(self, point: Point) -> None:
        """Start a point; returns at once."""

    def ended(self) -> list[Ended]:
        """Return the points that have ended since the last call; does not wait."""

    def close(self) -> None:
        """Stop the points that still run, wait for their end, and free everything."""


class Local:
    """Run each point in a process of this machine, with its share of the cores.

    As many run at a time as there are GPUs, if the points use them, else as many as
    there are cores; `jobs` is another number. GPUs are dealt in turns, one to a point.
    Raises Refused if `jobs` is not positive.
    """

    def __init__(
        self, path: Path, points: list[Point], *, jobs: int | None = None
    ) -> None:
        # From all points, not from those left to run: the order in which threads add
        # can change a number.
        cores = machine.usable_cores()
        gpus = machine.gpus() if _use_cuda(path, points) else []
        self.room = min(jobs or len(gpus) or cores, len(points))
        self._cores = max(cores // self.room, 1)
        self.share = f"{self.room} at a time with {self._cores} of {cores} cores each"
        self.share += f", on {counted(len(gpus), 'GPU')}" if gpus else ""
        self._path = path
        self._free = [gpus[i % len(gpus)] if gpus else None for i in range(self.room)]
        self._running: list[tuple[Point, subprocess.Popen, float, str | None]] = []

    def start(self, new: Point) -> None:
        gpu = self._free.pop(0)
        process = point.start(
            self._path,
            new.folder,
            new.given,
            cores=self._cores,
            variables={} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu},
        )
        self._running.append((new, process, time.monotonic(), gpu))

    def ended(self) -> list[Ended]:
        over = [child for child in self._running if child[1].poll() is not None]
        self._running = [child for child in self._running if child not in over]
        self._free += [gpu for *_, gpu in over]
        now = time.monotonic()
        return [
            Ended(old, process.returncode, now - began)
            for old, process, began, _ in over
        ]

    def close(self) -> None:
        point.stop([process for _, process, *_ in self._running])


def _use_cuda(path: Path, points: list[Point]) -> bool:
    """Tell whether a point asks for CUDA, or takes it if it is there."""
    default = defaults_of(read_notebook(path)).get("device", "auto")
    devices = {point.given.get("device", default) for point in points}
    if "auto" in devices:
        devices.add(os.environ.get("FMKIT_DEVICE") or "cuda")
    return "cuda" in devices


def counted(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def engine_of(
    on: str | None,
    *,
    jobs: int | None = None,
    cores: int | None = None,
    gpus: int | None = None,
) -> Callable[[Path, list[Point]], Engine]:
    """Return what makes an engine: for `on` None, "dask" or a scheduler's address.

    `jobs` is for the local engine only, `cores` and `gpus` of a point for the others.
    Raises Refused for anything else.
    """
    for name, number in {"jobs": jobs, "cores": cores, "gpus": gpus}.items():
        require(number is None or number >= 1, name, "be at least 1", number)
    if on is None:
        for name, number in {"cores": cores, "gpus": gpus}.items():
            require(number is None, name, "be given together with --on", number)
        return functools.partial(Local, jobs=jobs)
    known = "be dask or the address of a scheduler, such as tcp://HOST:8786"
    require(on == "dask" or on.startswith(ADDRESSES), "--on", known, on)
    require(jobs is None, "jobs", "be left out with --on, see --cores", jobs)
    from fmkit.runs.on_dask import Dask

    address = None if on == "dask" else on
    return functools.partial(Dask, address=address, cores=cores, gpus=gpus or 0)
