"""What the pages and the notes cite is in references.bib, and nothing else is."""

import re
from pathlib import Path

import pytest
from pybtex.database import parse_file

from fmkit.book import contents
from fmkit.runs.parameters import read_notebook

ROOT = Path(__file__).resolve().parents[2]
NOTES = ROOT.parent / "shared" / "reference" / "chapter14.zh.md"
BY_THE_NOTES = {
    *("bommasani2021", "brown2020", "chen2020"),
    *("devlin2019", "kingma2014", "vaswani2017"),
}


@pytest.fixture(scope="module")
def entries():
    return parse_file(str(ROOT / "references.bib")).entries


def cited(text):
    """The keys that a page's text cites."""
    roles = re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text)
    return {key.strip() for keys in roles for key in keys.split(",")}


def by_page():
    """What each page of the book cites."""
    pages = [ROOT / "index.md", *(ROOT / "chapters").glob("*.md")]
    cited_on = {path.stem: cited(path.read_text(encoding="utf-8")) for path in pages}
    for path in contents.notebooks_of(ROOT):
        cells = read_notebook(path).cells
        cited_on[path.stem] = set().union(*(cited(cell.source) for cell in cells))
    return cited_on


def test_every_entry_is_cited_and_every_citation_has_an_entry(entries):
    assert set().union(*by_page().values()) == set(entries)


def test_what_the_notes_cite_is_said_on_the_page(entries):
    assert by_page()["bibliography"] == BY_THE_NOTES <= set(entries)


def test_these_are_all_that_the_notes_cite():
    if not NOTES.is_file():
        pytest.skip("there is no folder shared/reference beside the repository")
    named = r"\|(\w+) (?:et al\.|and \w+), (\d{4})\]\]"
    text = NOTES.read_text(encoding="utf-8")
    cited_on = re.findall(named, text)
    assert len(cited_on) == text.count("[[reference#")
    assert {f"{name.lower()}{year}" for name, year in cited_on} == BY_THE_NOTES


def test_an_entry_says_who_what_and_when(entries):
    for key, entry in entries.items():
        assert entry.persons["author"], key
        assert entry.fields["title"], key
        assert re.fullmatch(r"\d{4}", entry.fields["year"]), key


def test_what_a_citation_looks_like():
    text = "As {cite:t}`he2022` and others {cite:p}`a1, b2`, {cite}`c3`, `d4`."
    assert cited(text) == {"he2022", "a1", "b2", "c3"}
