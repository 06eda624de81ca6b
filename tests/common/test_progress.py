"""Bars: live while they run, and no trace of them afterwards."""

import contextlib
import io
import subprocess
import sys
import time

import pytest
from nbclient import NotebookClient
from support.notebooks import code, notebook, write

from fmkit.book.execute import strip
from fmkit.progress import REDRAW_SECONDS, progress
from fmkit.runs.parameters import read_notebook
from fmkit.runs.rerun import rerun


def test_items_come_through_unchanged():
    assert [*progress([3, 1, 2], bar="x")] == [3, 1, 2]
    assert [*progress(iter("ab"), bar="x", total=2)] == ["a", "b"]
    assert [*progress([], bar="x")] == []


def test_nothing_is_written_where_stderr_is_a_file(capsys):
    list(progress(range(3), bar="x"))
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_how_many_are_done():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    with contextlib.redirect_stderr(Terminal()) as terminal:
        for _ in progress(range(3), bar="animals"):
            time.sleep(0.15)
    assert "animals" in terminal.getvalue()
    assert "/3" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")  # the line is wiped


SLOW = f"""\
import time
from fmkit.progress import progress

print("before")
for i in progress(range(4), bar="animals"):
    time.sleep({REDRAW_SECONDS + 0.05})
    if i == 1:
        print("amid")
"""


class Watching(NotebookClient):
    """Keeps what is displayed on the way."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.seen = []

    def process_message(self, message, cell, index):
        data = message["content"].get("data", {})
        self.seen.append(data.get("text/plain", ""))
        return super().process_message(message, cell, index)


@pytest.mark.parametrize(
    "end", ["print('after')", "    if i == 2: break", "    1 / (i < 2)"]
)
def test_a_notebook_shows_a_bar_keeps_its_text_and_stores_no_trace(end):
    client = Watching(
        notebook(code(SLOW + end)), allow_errors=True, record_timing=False
    )
    whole = client.execute()
    assert any("animals" in text and "2/4" in text for text in client.seen)
    printed, *others = strip(whole).cells[-1].outputs
    assert printed.text == "before\namid\n" + "after\n" * ("after" in end)
    kinds = [output.output_type for output in others]
    assert kinds == (["error"] if "1 /" in end else [])


@pytest.mark.parametrize(("after", "shown"), [(0.0, True), (60.0, False)])
def test_a_bar_may_wait(after, shown):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    with contextlib.redirect_stderr(Terminal()) as terminal:
        for _ in progress(range(3), bar="animals", after=after):
            time.sleep(0.15)
    assert ("animals" in terminal.getvalue()) is shown
    slow = SLOW.replace('bar="animals"', f'bar="animals", after={after}')
    client = Watching(notebook(code(slow)), record_timing=False)
    client.execute()
    assert any("animals" in text for text in client.seen) is shown


def test_a_quick_loop_displays_nothing():
    client = Watching(
        notebook(code(SLOW.replace("time.sleep", "print"))), record_timing=False
    )
    assert len(client.execute().cells[-1].outputs) == 1
    assert not any("animals" in text for text in client.seen)


def test_a_rerun_and_nbval_take_the_bar(tmp_path):
    cell = code(SLOW + "print('after')", "nbval-check-output")
    path = write(notebook(cell), tmp_path / "chapter.ipynb")
    rerun(path, tmp_path / "out", given={})
    stored = strip(read_notebook(tmp_path / "out" / path.name))
    write(stored, path)
    assert [o.text for o in stored.cells[-1].outputs] == ["before\namid\nafter\n"]
    options = ["--nbval-lax", "--nbval-current-env", "-q", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-c", "/dev/null", str(path)],
        capture_output=True,
        encoding="utf-8",
    )
    assert run.returncode == 0, run.stdout
    assert "2 passed" in run.stdout
