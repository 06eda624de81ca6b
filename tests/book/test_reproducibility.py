"""The page on reproducibility: all that chapters found and took, and every record."""

import json
import math
import shutil
from pathlib import Path

import pytest
from nbformat.v4 import new_output
from support.notebooks import code, notebook, write

from fmkit.book.contents import chapters_of
from fmkit.book.reproducibility import page, times_of
from fmkit.runs.parameters import read_notebook
from fmkit.runs.record import METADATA, RecordError, new_record, record_in

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
RECORD = new_record("tiny", {"seed": 0}, device="a | b") | {
    **{"status": "finished", "seconds": 3.4, "peak_memory_mb": 9.0, "threads": 2},
    **{"versions": {"x": "1"}, "commit": "abc", "date": "2026-01-02T03:04"},
}


def finding(*values, low=None, high=None, unit=""):
    """A finding of a record."""
    holds = all((low or -math.inf) <= x <= (high or math.inf) for x in values)
    bounds = {"at_least": low, "at_most": high, "holds": holds}
    return {"values": [*values], "unit": unit, **bounds}


def carries(record):
    """A cell that shows a reproduction card with its record."""
    data, metadata = {"text/html": "<table></table>"}, {METADATA: json.dumps(record)}
    cell = code(f"run.card()  # {record['chapter']}")
    cell.outputs = [new_output("display_data", data, metadata=metadata)]
    return cell


@pytest.fixture
def results(tmp_path):
    """A folder of records with one of a chapter called tiny."""
    folder = tmp_path / "results"
    (folder / "tiny").mkdir(parents=True)
    shutil.copy(RESULTS / "zero_shot" / "harness.json", folder / "tiny" / "run.json")
    text = "# Recorded runs\n\n## tiny\n\nMade by hand.\n\n## other\n\nNot shown.\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder


def tiny(tmp_path, *records):
    path = tmp_path / "chapters" / "tiny.ipynb"
    return write(notebook(code("1", text="1"), *map(carries, records)), path)


def test_the_page_of_a_tiny_book(tmp_path, results):
    record = RECORD | {"findings": {"a < b": finding(0.5, high=0.75)}}
    path = tiny(tmp_path, RECORD | {"chapter": "other", "commit": "def"}, record)
    slower = results / "slower_processor.json"
    slower.write_text('{"seconds": {"tiny": 7.4}}', encoding="utf-8")
    text = page([path], results)
    row = (
        r"`tiny` | 3 s, 9 MB at most | 7 s | a \| b, 2 threads | x 1 | abc | 2026-01-02"
    )
    assert f"| {{doc}}{row}" in text
    assert times_of([path]) == {"tiny": "3 s"}
    assert "| a < b | 0.5 | at most 0.75 | 0.25 | yes |" in text
    assert "### A tiny chapter\n\nMade by hand.\n" in text
    assert "Not shown" not in text
    made = json.loads((results / "tiny" / "run.json").read_text(encoding="utf-8"))
    assert f"| run | 0 | {made['seconds']:,.0f} | {made['threads']} |" in text
    assert f"| {made['commit']} | {made['date'][:10]} |" in text


@pytest.mark.parametrize(
    ("found", "row"),
    [
        (finding(0.5, low=0.2), "0.5 | at least 0.2 | 0.3 | yes"),
        (finding(0.5, high=0.75), "0.5 | at most 0.75 | 0.25 | yes"),
        (finding(0.1, low=0.2), "0.1 | at least 0.2 | -0.1 | NO"),
        (
            finding(0.5, low=0.2, high=0.6),
            "0.5 | at least 0.2 and at most 0.6 | 0.1 | yes",
        ),
        (finding(0.123456, low=0.12345), "0.1235 | at least 0.1235 | 6e-06 | yes"),
        (finding(0.5, 0.3, low=0.2), "0.5, 0.3 | at least 0.2 | 0.1 | yes"),
        (
            finding(0.3, 0.1, low=0.2, unit="points"),
            "+30.0, +10.0 points | at least +20.0 | -10.0 | NO",
        ),
    ],
)
def test_a_margin_is_the_distance_from_the_nearest_bound(tmp_path, results, found, row):
    path = tiny(tmp_path, RECORD | {"findings": {"one": found}})
    assert f"| one | {row} |" in page([path], results)


def test_a_chapter_without_a_card(tmp_path, results):
    path = tiny(tmp_path, RECORD | {"chapter": "other"})
    with pytest.raises(RecordError, match=r"^tiny has no reproduction card with its "):
        page([path], results)
    path = tiny(tmp_path, RECORD)
    path.write_text(
        path.read_text(encoding="utf-8").replace(r"{\"", r"{"), encoding="utf-8"
    )
    with pytest.raises(RecordError, match=r"^tiny has a damaged record"):
        page([path], results)
    path = tiny(tmp_path, RECORD | {"schema": 2})
    with pytest.raises(RecordError, match=r"^tiny must have schema 1, got 2"):
        page([path], results)


def test_a_damaged_record(tmp_path, results):
    (results / "tiny" / "run.json").write_text('{"schema": 2}', encoding="utf-8")
    with pytest.raises(RecordError, match="must have schema 1, got 2"):
        page([tiny(tmp_path, RECORD)], results)


def test_all_of_this_book_is_on_its_page():
    chapters, findings = chapters_of(ROOT), 0
    text = page(chapters, RESULTS).replace("\\", "")
    for path in chapters:
        assert f"| {{doc}}`{path.stem}` | " in text
        for record in (RESULTS / path.stem).glob("*.json"):
            assert f"| {record.stem} |" in text
        findings += len(record_in(read_notebook(path), path.stem)["findings"])
    assert text.count(" | yes |\n") == findings > 0
