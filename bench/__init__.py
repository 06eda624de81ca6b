"""Side by side with a peer: ``python -m bench.<name>``; the last line is JSON.

Results are compared first; where a peer takes minutes, on the very run that is timed.
Ours and the peer run in turns, so that a busy moment of the machine hits both, and
`ratio` is the median of the paired ratios of their times: above 1, ours is faster.
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from fmkit.runtime import device_name, pick_device

T = TypeVar("T")


def timed(function: Callable[[], T]) -> tuple[float, T]:
    """How many seconds one call takes, and what it gives."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def side_by_side(
    ours: Callable[[], object], peer: Callable[[], object], *, rounds: int, label: str
) -> dict[str, float]:
    """Medians of both times, and of their ratios with its range; printed as a line."""
    pairs = [(timed(ours)[0], timed(peer)[0]) for _ in range(rounds)]
    return compared(pairs, label=label)


def compared(pairs: list[tuple[float, float]], *, label: str) -> dict[str, float]:
    """The same from times that were taken elsewhere: pairs of ours and the peer's."""
    ratios = sorted(theirs / own for own, theirs in pairs)
    found = {
        "ours": statistics.median(own for own, _ in pairs),
        "peer": statistics.median(theirs for _, theirs in pairs),
        "ratio": statistics.median(ratios),
    }
    print(
        f"{label:32} ours {found['ours']:7.2f} s   peer {found['peer']:7.2f} s   "
        f"ratio {found['ratio']:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        flush=True,
    )
    return found


def report(name: str, case: dict[str, float], *, equal: bool) -> None:
    """The last line: the case with the smallest ratio, and whether results agreed."""
    summary = {
        "name": name,
        **{key: round(value, 3) for key, value in case.items()},
        "unit": "s",
        "equal": equal,
        "device": device_name(pick_device()),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(summary))
