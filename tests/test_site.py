"""The built pages as a browser without a network shows them."""

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from fmkit import book as books
from fmkit.reproducibility import seconds_of
from fmkit.rerun import read_notebook

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "_build" / "html" / "index.html"
WITHOUT_FORMULAS = ("bibliography", "howto", "reproducibility")
MADE_BY_SCRIPTS = ("search.html", "genindex.html")
HARMLESS = (  # the theme's and its thebe extension's own, on every page
    "Identifier 'THEBE_JS_URL' has already been declared",
    "Got invalid theme mode",
    "[PST]: ",
    "[togglebutton]: ",
)


class Page(HTMLParser):
    """The parts of a page that are looked at."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def of(self, *names):
        return [attributes for tag, attributes in self.tags if tag in names]


def outside(page):
    """What a page would load from elsewhere; links that a reader follows are fine."""
    loading = page.of("script", "img", "link", "iframe", "source", "video", "audio")
    addresses = [a.get(key) or "" for a in loading for key in ("src", "href")]
    return [a for a in addresses if re.match(r"(https?:)?//", a)]


def without_text(page):
    """Images whose alternative text is missing or is the path of a file."""
    texts = {a.get("src"): (a.get("alt") or "").strip() for a in page.of("img")}
    path = re.compile(r"\S+\.(png|svg|jpe?g|gif)$")
    return [src for src, alt in texts.items() if not alt or path.match(alt)]


def anchors(page):
    """What a link can lead to inside a page."""
    return {a["id"] for _, a in page.tags if a.get("id")}


def leads_somewhere(path, link, places):
    """Whether a link of the page at `path` has a file, and an anchor in it."""
    file, _, anchor = unquote(link).partition("#")
    target = (path.parent / file).resolve() if file else path
    inside = places.get(target)
    return target.is_file() and (not anchor or inside is None or anchor in inside)


def is_current(page):
    """Whether the pages were built after the last change of what they are made of."""
    if not page.exists():
        return False
    roots = [ROOT / name for name in (*books.CONFIGURATION, *books.PAGES)]
    files = [file for root in roots for file in (root, *root.rglob("*"))]
    times = [file.stat().st_mtime for file in files if file.is_file()]
    return page.stat().st_mtime > max(times)


@pytest.fixture(scope="module")
def site():
    """The folder of the pages of the committed outputs."""
    return PAGE.parent if is_current(PAGE) else books.html(ROOT).parent


@pytest.fixture(scope="module")
def browser():
    """The path of Debian's browser."""
    found = shutil.which("chromium")
    if found is None:
        assert os.environ.get("CI") != "true", "CI needs the package chromium"
        pytest.skip("no chromium here, so nothing opens the pages")
    return found


def opened(browser, address, profile):
    """The page as it is once its scripts ran without a network, and its console."""
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-sync"]
    run = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", *quiet),
            *("--disable-component-update", f"--user-data-dir={profile}"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=20000"),
            *("--enable-logging=stderr", "--dump-dom", address.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    console = [line for line in run.stderr.splitlines() if ":CONSOLE:" in line]
    return run.stdout, console


def test_pages_load_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert pages
    for path in pages:
        page = Page(path.read_text())
        assert (path.name, outside(page), without_text(page)) == (path.name, [], [])
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", path.read_text())


def test_the_first_page_says_how_long_chapters_take(site):
    text = (site / "index.html").read_text()
    card = r'· (\d+ s)</p>\s*</div>\s*<a class="[^"]*" href="chapters/(\w+)\.html"'
    found = {name: seconds for seconds, name in re.findall(card, text)}
    assert found == seconds_of(books.chapters_of(ROOT))


def test_links_inside_the_book_lead_somewhere(site):
    pages = {path: Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
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
    for path in books.chapters_of(ROOT):
        outputs = [o for c in read_notebook(path).cells for o in c.get("outputs", [])]
        kinds = [output.get("data", {}) for output in outputs]
        written = sum("text/html" in kind for kind in kinds)
        written += sum("|--" in kind.get("text/markdown", "") for kind in kinds)
        page = Page((site / "chapters" / f"{path.stem}.html").read_text())
        assert len(page.of("table")) == written, path.name


def test_a_page_shows_formulas_and_alt_texts(site, browser, tmp_path):
    for path in sorted(site.glob("chapters/*.html")):
        text, console = opened(browser, path, tmp_path / path.stem)
        page = Page(text)
        formulas = path.read_text().count('class="math notranslate')
        assert len(page.of("mjx-container")) >= formulas, path.name
        assert formulas > 0 or path.stem in WITHOUT_FORMULAS
        assert page.of("mjx-merror") == []
        assert (outside(page), without_text(page)) == ([], [])
        assert [x for x in console if not any(h in x for h in HARMLESS)] == []


def test_an_equation_has_the_number_of_the_notes(site, browser, tmp_path):
    path = site / "chapters" / "pretraining_and_adaptation.html"
    text, _ = opened(browser, path, tmp_path)
    assert re.search(r"<mtext[^>]*>\(14\.1\)</mtext>", text)


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
    ("link", "right"),
    [("#here", True), ("#nowhere", False), ("a.html#here", True), ("b.html", False)],
)
def test_what_counts_as_leading_somewhere(tmp_path, link, right):
    path = tmp_path / "a.html"
    path.write_text('<p id="here">')
    places = {path: anchors(Page(path.read_text()))}
    assert leads_somewhere(path, link, places) is right


@pytest.mark.parametrize(
    ("alt", "wrong"),
    [("", True), ("../_images/a.png", True), ("A cat.", False)],
)
def test_what_counts_as_alternative_text(alt, wrong):
    assert bool(without_text(Page(f'<img src="a.png" alt="{alt}">'))) is wrong
