"""The page on reproducibility: all that chapters claim and took, and every record.

Planted by hand, one at a time, and each caught here: a margin with its sign, of the
farther bound, of an upper bound as of a lower one; another chapter's card; a claim
left out; records of one chapter only; commands left out, or of another chapter.
"""

import json
import shutil
from pathlib import Path

import pytest
from nbformat.v4 import new_output
from support.notebooks import code, notebook, write

from fmkit.book.contents import chapters_of
from fmkit.book.reproducibility import page, tables_of
from fmkit.runs.parameters import read_notebook
from fmkit.runs.record import RecordError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
CARD = [("reproduction card", "tiny"), ("took", "3 s, 9 MB at most")]
CARD += [("device", "a | b"), ("versions", "x 1"), ("commit", "abc"), ("date", "today")]
HEAD = ("claim", "value", "claimed", "holds")


def shown(rows):
    """A cell that shows a table, as records.show_table makes it."""
    cell = code(f"show({rows[0][0]!r})")
    lines = ("".join(f"<td>{text}</td>" for text in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    text = f'<table class="dataframe">{body}</table>'.replace("a < b", "a &lt; b")
    cell.outputs = [new_output("display_data", {"text/html": text})]
    return cell


@pytest.fixture
def results(tmp_path):
    """A folder of records with one of a chapter called tiny."""
    folder = tmp_path / "results"
    (folder / "tiny").mkdir(parents=True)
    shutil.copy(RESULTS / "zero_shot" / "harness.json", folder / "tiny" / "run.json")
    text = "# Recorded runs\n\n## tiny\n\nMade by hand.\n\n## other\n\nNot shown.\n"
    (folder / "README.md").write_text(text)
    return folder


def tiny(tmp_path, *tables):
    return write(notebook(*map(shown, tables)), tmp_path / "chapters" / "tiny.ipynb")


def test_the_page_of_a_tiny_book(tmp_path, results):
    claims = [HEAD, ("a < b", "0.5", "at most 0.75", "yes")]
    text = page([tiny(tmp_path, claims, CARD)], results)
    taken = r"| {doc}`tiny` | 3 s, 9 MB at most | a \| b | x 1 | abc | today |"
    assert taken in text
    assert "| a < b | 0.5 | at most 0.75 | 0.25 | yes |" in text
    assert "### A tiny chapter\n\nMade by hand.\n" in text
    assert "Not shown" not in text
    of = json.loads((results / "tiny" / "run.json").read_text())
    assert f"| run | 0 | {of['seconds']:,.0f} | {of['threads']} |" in text
    assert f"| {of['commit']} | {of['date'][:10]} |" in text


@pytest.mark.parametrize(
    ("value", "claimed", "margin"),
    [
        ("0.5", "at least 0.2", "0.3"),
        ("0.5", "at most 0.75", "0.25"),
        ("0.1", "at least 0.2", "-0.1"),
        ("0.5", "at least 0.2 and at most 0.6", "0.1"),
    ],
)
def test_a_margin_says_how_far_inside(tmp_path, results, value, claimed, margin):
    claims = [HEAD, ("one", value, claimed, "yes")]
    text = page([tiny(tmp_path, claims, CARD)], results)
    assert f"| one | {value} | {claimed} | {margin} | yes |" in text


def test_a_chapter_without_a_card(tmp_path, results):
    with pytest.raises(RecordError, match=r"^tiny shows no reproduction card: .*\.$"):
        page([tiny(tmp_path, [HEAD], [("reproduction card", "other")])], results)


def test_a_damaged_record(tmp_path, results):
    (results / "tiny" / "run.json").write_text('{"schema": 2}')
    with pytest.raises(RecordError, match="must have schema 1, got 2"):
        page([tiny(tmp_path, CARD)], results)


def test_all_of_this_book_is_on_its_page():
    chapters, claims = chapters_of(ROOT), 0
    text = page(chapters, RESULTS).replace("\\", "")
    for path in chapters:
        assert f"| {{doc}}`{path.stem}` | " in text
        for record in (RESULTS / path.stem).glob("*.json"):
            assert f"| {record.stem} |" in text
        tables = tables_of(read_notebook(path))
        claims += sum(len(rows) - 1 for rows in tables if rows[0][0] == "claim")
    assert text.count(" | yes |\n") == claims > 0
