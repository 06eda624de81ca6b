"""Progress bars that are live in a terminal and in JupyterLab and leave no trace."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
REDRAW_SECONDS = 0.2  # often enough to look alive, rare enough to cost nothing


def progress(
    items: Iterable[T], *, bar: str, total: int | None = None, after: float = 0.0
) -> Iterator[T]:
    """Yield `items` and show how many are done, in a bar with the text `bar`.

    `total` is the number of `items`, if they have no length. No bar is shown if all are
    done within `after` seconds.

    In a notebook the bar is an output of its own, so what the cell prints stays. At the
    end this output has no data, and :func:`fmkit.book.execute.strip` removes it. In a
    terminal the bar is on stderr; if stderr is a file, no bar is shown.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if _in_notebook():
        yield from _text_bar(items, total, bar, after)
    else:
        shown = {"desc": bar, "disable": None, "leave": False, "delay": after}
        yield from tqdm(items, total=total, **shown)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__name__ == "ZMQInteractiveShell"


def _text_bar(
    items: Iterable[T], total: int | None, text: str, after: float
) -> Iterator[T]:
    display = sys.modules["IPython"].display.display
    start = drawn = time.monotonic()
    drawn += after
    output = None
    try:
        for done, item in enumerate(items):
            now = time.monotonic()
            if now - drawn > REDRAW_SECONDS:
                # Empty at first, too, because nbval compares it and sees no update.
                output = output or display({}, raw=True, display_id=True)
                bar = tqdm.format_meter(done, total, now - start, prefix=text, ncols=72)
                output.update({"text/plain": bar}, raw=True)
                drawn = now
            yield item
    finally:
        if output:
            output.update({}, raw=True)
