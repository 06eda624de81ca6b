"""Side by side with a peer: ``python -m bench.<name>``; the last line is JSON.

Results are compared first; if a peer takes long, the results of the timed run are.
Ours and the peer run in turns, so that a busy moment of the machine hits both, and
`ratio` is the median of the paired ratios of their times: above 1, ours is faster.
``--small`` checks that a benchmark runs, at sizes whose times mean nothing.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from fmkit.runtime import device_name

T = TypeVar("T")
SMALL = "--small" in sys.argv[1:]


def timed(function: Callable[[], T]) -> tuple[float, T]:
    """Return how many seconds one call takes, on a GPU too, and its result."""
    _wait()
    start = time.perf_counter()
    result = function()
    _wait()
    return time.perf_counter() - start, result


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def side_by_side(
    ours: Callable[[], object], peer: Callable[[], object], *, rounds: int, label: str
) -> dict[str, float]:
    """Time both in turns; return what :func:`bench.compared` returns."""
    pairs = [(timed(ours)[0], timed(peer)[0]) for _ in range(rounds)]
    return compared(pairs, label=label)


def compared(pairs: list[tuple[float, float]], *, label: str) -> dict[str, float]:
    """Return the medians of both times and of their ratios, from pairs (ours, peer).

    Prints them as a line, with the range of the ratios.
    """
    ratios = sorted(theirs / own for own, theirs in pairs)
    case = {
        "ours": statistics.median(own for own, _ in pairs),
        "peer": statistics.median(theirs for _, theirs in pairs),
        "ratio": statistics.median(ratios),
    }
    print(
        f"{label:32} ours {case['ours']:7.2f} s   peer {case['peer']:7.2f} s   "
        f"ratio {case['ratio']:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        flush=True,
    )
    return case


def report(
    name: str, case: dict[str, float], *, equal: bool, device: torch.device
) -> None:
    """Print the last line: the case with the smallest ratio, and if results agreed.

    `device` is the one that computed, whatever others the machine has.
    """
    summary = {
        "name": name,
        **{key: round(value, 3) for key, value in case.items()},
        "unit": "s",
        "equal": equal,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        **({"small": True} if SMALL else {}),
    }
    print(json.dumps(summary))


def ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Most GFLOP/s that this machine gave in a product of two large matrices."""
    size = 512 if SMALL else 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=dtype)

    def product():
        return (a @ a)[0, 0].item()

    best = min(timed(product)[0] for _ in range(8))
    return 2 * size**3 / best / 1e9
