"""A progress bar that is live in a terminal and in JupyterLab and leaves nothing."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
REDRAW_SECONDS = 0.2  # often enough to look alive, rare enough to cost nothing


def progress(
    items: Iterable[T], *, label: str, total: int | None = None
) -> Iterator[T]:
    """Yield `items`, showing how many are done; `total` where `items` has no length.

    In a notebook the bar is text in the output of its cell. At the end it is erased,
    and with it whatever the cell printed earlier, so that a stored notebook keeps no
    trace of it. In a terminal it is on stderr; where stderr is a file there is none.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    if _in_notebook():
        yield from _text_bar(items, total, label)
    else:
        yield from tqdm(items, total=total, desc=label, disable=None, leave=False)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__name__ == "ZMQInteractiveShell"


def _text_bar(items: Iterable[T], total: int | None, label: str) -> Iterator[T]:
    clear_output = sys.modules["IPython"].display.clear_output
    start = drawn = time.monotonic()
    try:
        for done, item in enumerate(items):
            now = time.monotonic()
            if now - drawn > REDRAW_SECONDS:
                clear_output(wait=True)
                meter = tqdm.format_meter
                print(meter(done, total, now - start, prefix=label, ncols=72))
                drawn = now
            yield item
    finally:
        if drawn != start:
            clear_output()
