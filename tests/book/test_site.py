"""What the built pages say and load, without a browser."""

import json
import re
from urllib.parse import unquote

import pytest
from support.pages import MADE_BY_SCRIPTS, ROOT, Page, without_text

from fmkit.book import contents
from fmkit.book.reproducibility import times_of
from fmkit.runs.parameters import read_notebook


def outside(page):
    """What a page would load from elsewhere; links that a reader follows are fine."""
    loading = page.of("script", "img", "link", "iframe", "source", "video", "audio")
    addresses = [a.get(key) or "" for a in loading for key in ("src", "href")]
    return [a for a in addresses if re.match(r"(https?:)?//", a)]


def anchors(page):
    """What a link can lead to inside a page."""
    return {a["id"] for _, a in page.tags if a.get("id")}


def leads_somewhere(path, link, places):
    """Whether a link of the page at `path` has a file, and an anchor in it."""
    file, _, anchor = unquote(link).partition("#")
    target = (path.parent / file).resolve() if file else path
    inside = places.get(target)
    return target.is_file() and (not anchor or inside is None or anchor in inside)


def test_pages_load_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert pages
    for path in pages:
        page = Page(path.read_text(encoding="utf-8"))
        assert (path.name, outside(page), without_text(page)) == (path.name, [], [])
    for path in site.rglob("*.css"):
        assert not re.search(
            r"(url\(|@import)\s*['\"]?(https?:)?//", path.read_text(encoding="utf-8")
        )


def test_the_first_page_says_how_long_chapters_take(site):
    text = (site / "index.html").read_text(encoding="utf-8")
    card = (
        r'runs in (\d+ s)</p>\s*</div>\s*<a class="[^"]*" href="chapters/(\w+)\.html"'
    )
    times = {name: seconds for seconds, name in re.findall(card, text)}
    assert times == times_of(contents.chapters_of(ROOT))


def test_links_inside_the_book_lead_somewhere(site):
    pages = {
        path: Page(path.read_text(encoding="utf-8"))
        for path in sorted(site.rglob("*.html"))
    }
    places = {path: anchors(page) for path, page in pages.items()}
    followed = 0
    for path, page in pages.items():
        for link in (a["href"] for a in page.of("a") if a.get("href")):
            if not re.match(r"\w+:", link) and path.name not in MADE_BY_SCRIPTS:
                assert leads_somewhere(path, link, places), (path.name, link)
                followed += 1
    assert followed > 500


def test_tables_that_a_chapter_shows_are_tables(site):
    """Without the right setting an output's Markdown table stays bars and dashes."""
    for path in contents.chapters_of(ROOT):
        cells = read_notebook(path).cells
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        kinds = [output.get("data", {}) for output in outputs]
        written = sum("<table" in kind.get("text/html", "") for kind in kinds)
        written += sum("|--" in kind.get("text/markdown", "") for kind in kinds)
        texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
        written += sum("\n|:--" in text for text in texts)
        page = Page(
            (site / "chapters" / f"{path.stem}.html").read_text(encoding="utf-8")
        )
        assert len(page.of("table")) == written, path.name


@pytest.mark.parametrize(
    ("tag", "wrong"),
    [
        ('<script src="https://a.b/c.js">', True),
        ('<link href="//a.b/c.css">', True),
        ('<img src="https://a.b/c.png" alt="A cat.">', True),
        ('<a href="https://a.b">', False),
        ('<script src="../_static/c.js">', False),
    ],
)
def test_what_counts_as_elsewhere(tag, wrong):
    assert bool(outside(Page(tag))) is wrong


@pytest.mark.parametrize(
    ("link", "expected"),
    [("#here", True), ("#nowhere", False), ("a.html#here", True), ("b.html", False)],
)
def test_what_counts_as_leading_somewhere(tmp_path, link, expected):
    path = tmp_path / "a.html"
    path.write_text('<p id="here">', encoding="utf-8")
    places = {path: anchors(Page(path.read_text(encoding="utf-8")))}
    assert leads_somewhere(path, link, places) is expected


@pytest.mark.parametrize(
    ("alt", "wrong"),
    [("", True), ("../_images/a.png", True), ("A cat.", False)],
)
def test_what_counts_as_alternative_text(alt, wrong):
    assert bool(without_text(Page(f'<img src="a.png" alt="{alt}">'))) is wrong


def test_readme_says_how_long_the_book_takes_without_avx_512():
    """The notebooks' seconds are recorded; the pages take half a minute more."""
    path = ROOT / "results" / "slower_processor.json"
    total = json.loads(path.read_text(encoding="utf-8"))["total"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{round((total + 30) / 60)} minutes when the processor" in readme
