"""Bars: live while they run, and no trace of them afterwards."""

import contextlib
import io
import time

import pytest
from nbclient import NotebookClient
from support.notebooks import code, notebook

from fmkit.progress import REDRAW_SECONDS, progress


def test_items_come_through_unchanged():
    assert [*progress([3, 1, 2], label="x")] == [3, 1, 2]
    assert [*progress(iter("ab"), label="x", total=2)] == ["a", "b"]
    assert [*progress([], label="x")] == []


def test_nothing_is_written_where_stderr_is_a_file(capsys):
    list(progress(range(3), label="x"))
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_how_many_are_done():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    with contextlib.redirect_stderr(Terminal()) as terminal:
        for _ in progress(range(3), label="animals"):
            time.sleep(0.15)
    assert "animals" in terminal.getvalue()
    assert "/3" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")  # the line is wiped


SLOW = f"""\
import time
from fmkit.progress import progress

for i in progress(range(4), label="animals"):
    time.sleep({REDRAW_SECONDS + 0.05})
"""


@pytest.mark.parametrize("end", ["", "    if i == 2: break\n", "    1 / (i < 2)\n"])
def test_a_notebook_shows_a_bar_and_keeps_no_trace(end):
    seen = []

    class Watching(NotebookClient):
        def process_message(self, message, cell, index):
            if message["msg_type"] == "stream":
                seen.append(message["content"]["text"])
            return super().process_message(message, cell, index)

    whole = notebook(code(SLOW + end))
    Watching(whole, allow_errors=True, record_timing=False).execute()
    kinds = [output.output_type for output in whole.cells[-1].outputs]
    assert kinds == (["error"] if "1 /" in end else [])
    assert any("animals" in text and "2/4" in text for text in seen)
