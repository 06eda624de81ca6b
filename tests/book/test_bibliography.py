"""What the pages and the notes cite is in references.bib, and nothing else is."""

import re
from pathlib import Path

import pytest
from pybtex.database import parse_file

from fmkit.book import contents, portable
from fmkit.runs.parameters import read_notebook

ROOT = Path(__file__).resolve().parents[2]
KEYS = portable.keys_of(ROOT / "references.bib")
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
        notebook = portable.to_myst(read_notebook(path), KEYS)
        cited_on[path.stem] = set().union(*(cited(c.source) for c in notebook.cells))
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


ADDRESSES = {
    "doi": r"10\.\d{4,}/\S+",
    "eprint": r"(0[7-9]|[12]\d)(0[1-9]|1[0-2])\.\d{4,5}",  # of arXiv
    "url": r"https?://\S+",
}


def faulty(fields):
    """The addresses of an entry that cannot be one, or what it lacks."""
    given = {name for name in ADDRESSES if name in fields}
    wrong = {n for n in given if not re.fullmatch(ADDRESSES[n], fields[n])}
    if "eprint" in fields and int(f"20{fields['eprint'][:2]}") > int(fields["year"]):
        wrong |= {"eprint"}  # of a later year than the work
    if re.search(r"arXiv:|https?://", fields.get("note", "")):
        wrong |= {"note"}  # where nothing makes it a link
    return wrong or ({"none"} if not given else set())


def test_an_entry_leads_to_its_work(entries):
    assert {k: faulty(e.fields) for k, e in entries.items() if faulty(e.fields)} == {}
    for name in ("doi", "eprint", "url"):
        given = [e.fields[name] for e in entries.values() if name in e.fields]
        assert len(given) == len(set(given)), name


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"year": "2020", "eprint": "2002.05709"}, set()),
        ({"year": "2020", "doi": "10.1073/pnas.1903070116"}, set()),
        ({"year": "2020"}, {"none"}),
        ({"year": "2020", "eprint": "2013.05709"}, {"eprint"}),
        ({"year": "2019", "eprint": "2002.05709"}, {"eprint"}),
        ({"year": "2020", "doi": "https://doi.org/10.1/x"}, {"doi"}),
        ({"year": "2020", "url": "www.a.org"}, {"url"}),
        ({"year": "2020", "url": "https://a.org", "note": "arXiv:1"}, {"note"}),
    ],
)
def test_a_faulty_address_is_found(fields, wrong):
    assert faulty(fields) == wrong


def test_the_bibliography_has_a_link_for_each_entry(site, entries):
    page = (site / "chapters" / "bibliography.html").read_text(encoding="utf-8")
    items = re.findall(r'<div class="citation".*?\n</div>', page, re.DOTALL)
    assert len(items) == len(entries)
    assert [i for i in items if 'reference external" href="http' not in i] == []


def test_what_a_citation_looks_like():
    text = "As {cite:t}`he2022` and others {cite:p}`a1, b2`, {cite}`c3`, `d4`."
    assert cited(text) == {"he2022", "a1", "b2", "c3"}
