"""Every built page as a browser without a network shows it: light, dark, on a phone."""

import base64
import gzip
import io
import json
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from fontTools.ttLib import TTFont
from PIL import Image
from support.browser import DESKTOP, PHONE, READY, barriers
from support.pages import (
    MADE_BY_SCRIPTS,
    ROOT,
    Page,
    read_by_people,
    without_text,
)

from fmkit.book import contents

MOST = 2_900_000  # bytes of a page with all that it loads
# And of what is sent, before images, by a server that compresses texts as all do
SENT = 660_000
OF_THE_FIRST = 300_000  # images included
SHIFT = 0.2  # of layout while it loads: formulas, and fonts on a busy machine (or 0.02)
IMAGES = {".png", ".gif", ".jpg", ".jpeg", ".svg"}
PACKED = IMAGES - {".svg"} | {".woff", ".woff2"}

# What moved, and how far, before anything else is done to the page
MOVED = """async () => {
  let shift = 0;
  new PerformanceObserver(list => {
    for (const entry of list.getEntries()) shift += entry.value;
  }).observe({type: "layout-shift", buffered: true});
  await document.fonts.ready;
  if (window.MathJax) await MathJax.startup.promise;
  await new Promise(resolve => setTimeout(resolve, 150));
  return shift;
}"""

# Of code tokens that look alike one is enough, and axe takes a third of the time; it
# passes over single letters
THIN = """() => {
  const seen = new Set();
  for (const token of document.querySelectorAll("pre span")) {
    if (token.textContent.trim().length < 2) continue;
    const box = token.closest("pre").parentElement.parentElement;
    const look = `${token.className} in ${box?.className}`;
    if (seen.has(look)) token.replaceWith(...token.childNodes);
    seen.add(look);
  }
}"""

# The slowest rule, once a theme: colours do not change with the width
ON_A_PHONE = {"color-contrast": {"enabled": False}}


# What is written too small to read, except in formulas
SMALL = """() => {
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const small = [];
  while (texts.nextNode()) {
    const { data, parentElement } = texts.currentNode;
    if (!data.trim() || parentElement.closest("mjx-container, span.math")) continue;
    if (!parentElement.checkVisibility()) continue;
    const size = parseFloat(getComputedStyle(parentElement).fontSize);
    if (size > 0 && size < 10) small.push(data); // 0 is for screen readers
  }
  return small;
}"""

CUT = """() => [...document.querySelectorAll(".cell_input pre")]
  .filter(code => code.scrollWidth > code.clientWidth).length"""


@dataclass(frozen=True)
class Visit:
    """What was seen of one page in one theme."""

    theme: str  # that it took
    console: list[str]  # errors and warnings
    elsewhere: list[str]  # addresses that are no file
    size: int  # bytes of the page and of every file that it asked for as it opened
    sent: int  # of these, compressed as a server does, before images
    first: int  # with images
    shift: float  # of the layout
    formulas: int  # in the file
    page: Page  # once its scripts ran
    width: int  # in pixels on a phone
    small: list[str]  # texts below 10 pixels, on a phone
    cut: int  # cells of code that scroll sideways on a desk
    violations: list[str]  # of axe's rules, serious and critical


def packed(file):
    """The bytes that a server sends of a file: texts are compressed."""
    data = file.read_bytes()
    return len(data if file.suffix in PACKED else gzip.compress(data))


def visit(browser, path, theme):
    """Open the page at `path` for a reader whose system is set to `theme`."""
    context = browser.new_context(viewport=PHONE, color_scheme=theme, offline=True)
    tab = context.new_page()
    console, addresses = [], set()
    tab.on("console", lambda message: console.append((message.type, message.text)))
    tab.on("pageerror", lambda error: console.append(("error", error.message)))
    tab.on("request", lambda request: addresses.add(request.url))
    tab.goto(path.as_uri())
    shift = tab.evaluate(MOVED)
    loaded = set(addresses)  # by itself, before a reader scrolls
    tab.evaluate(READY)
    tab.wait_for_timeout(400)  # the theme gives what scrolls a tab stop after 300 ms
    page = Page(tab.content())
    width = tab.evaluate("document.documentElement.scrollWidth")
    small = tab.evaluate(SMALL)
    tab.evaluate(THIN)
    violations = barriers(tab, ON_A_PHONE)
    tab.set_viewport_size(DESKTOP)
    violations += barriers(tab)
    cut = tab.evaluate(CUT)
    taken = tab.evaluate("document.documentElement.dataset.theme")
    context.close()
    parts = {urlsplit(address) for address in loaded}
    files = {Path(unquote(part.path)) for part in parts if part.scheme == "file"}
    sent = {file: packed(file) for file in files if file.is_file()}
    return Visit(
        theme=taken,
        console=[text for kind, text in console if kind in ("error", "warning")],
        elsewhere=[a for a in addresses if not a.startswith(("file:", "data:"))],
        size=sum(file.stat().st_size for file in sent),
        sent=sum(sent[file] for file in sent if file.suffix not in IMAGES),
        first=sum(sent.values()) if path.name == "index.html" else 0,
        shift=shift,
        formulas=path.read_text(encoding="utf-8").count('class="math notranslate'),
        page=page,
        width=width,
        small=small,
        cut=cut,
        violations=sorted(set(violations)),
    )


CHECKS = {
    "console": lambda seen: seen.console,
    "network": lambda seen: seen.elsewhere,
    "formulas": lambda seen: (
        len(seen.page.of("mjx-merror"))
        + abs(len(seen.page.of("mjx-container")) - seen.formulas)
    ),
    "alternative texts": lambda seen: without_text(seen.page),
    "overflow": lambda seen: max(0, seen.width - PHONE["width"]),
    "small text": lambda seen: seen.small,
    "code": lambda seen: seen.cut,
    "accessibility": lambda seen: seen.violations,
    "size": lambda seen: max(0, seen.size - MOST),
    "weight": lambda seen: (
        max(0, seen.sent - SENT) or max(0, seen.first - OF_THE_FIRST)
    ),
    "layout shift": lambda seen: seen.shift if seen.shift > SHIFT else 0,
    "tab stops": lambda seen: [
        formula
        for formula in seen.page.of("mjx-container")
        if "tabindex" in formula and "display" not in formula  # these may scroll
    ],
}


@pytest.fixture(scope="class")
def visits(request, site, browser):
    """Every page in the theme of the class, by its path."""
    paths = {str(path.relative_to(site)): path for path in read_by_people(site)}
    theme = request.cls.theme
    seen = {name: visit(browser, path, theme) for name, path in paths.items()}
    size, largest = max((seen[name].size, name) for name in seen)
    print(f"The largest page is {largest}: {size / 1e6:.2f} MB.")
    sent, heaviest = max((seen[name].sent, name) for name in seen)
    print(f"{heaviest} sends most: {sent / 1e3:.0f} kB, compressed, before images.")
    shift, moving = max((seen[name].shift, name) for name in seen)
    print(f"{moving} moves most: {shift:.3f}.")
    return seen


class EveryPage:
    """The pages in one theme: a class each, so that two processes share them."""

    @pytest.mark.parametrize("check", CHECKS)
    def test_is_sound(self, visits, check):
        matches = {name: CHECKS[check](seen) for name, seen in visits.items()}
        assert {name: wrong for name, wrong in matches.items() if wrong} == {}

    def test_takes_the_theme_of_the_system(self, visits):
        assert {seen.theme for seen in visits.values()} == {self.theme}

    def test_has_formulas_if_it_is_a_chapter(self, visits):
        names = [f"chapters/{path.stem}.html" for path in contents.chapters_of(ROOT)]
        assert [name for name in names if visits[name].formulas == 0] == []


class TestLight(EveryPage):
    theme = "light"


class TestDark(EveryPage):
    theme = "dark"


def test_an_equation_has_the_number_of_the_notes(site, browser):
    tab = browser.new_page()
    tab.goto((site / "chapters" / "pretraining_and_adaptation.html").as_uri())
    tab.evaluate(READY)
    assert re.search(r"<mtext[^>]*>\(14\.1\)</mtext>", tab.content())
    tab.close()


def prose(text):
    """The paragraphs of a page, a line each, without their tags."""
    matches = re.findall(r"<p>(.*?)</p>", text, re.DOTALL)
    return "\n".join(" ".join(re.sub("<[^>]*>", "", p).split()) for p in matches)


def phrases(site):
    """Of every page the first six plain words in a row that no other page has."""
    pages = [path for path in read_by_people(site) if path.name not in MADE_BY_SCRIPTS]
    texts = {
        str(path.relative_to(site)): prose(path.read_text(encoding="utf-8"))
        for path in pages
    }
    chosen = {}
    for name, text in texts.items():
        others = [other for key, other in texts.items() if key != name]
        runs = re.findall(r"^((?:[A-Za-z]+ ){6})", text, re.MULTILINE)
        own = (run for run in runs if not any(run in other for other in others))
        chosen[name] = next(own, None)
    return chosen


def found_by_search(tab, site, words):
    """The pages that are found once `words` are typed into the page of the search."""
    tab.goto((site / "search.html").as_uri())
    tab.locator("main input[type=search]").fill(words)
    tab.keyboard.press("Enter")
    tab.wait_for_function("""() => {
      const said = document.querySelector("#search-results .search-summary");
      return /finished|did not match/.test(said?.textContent);
    }""")
    links = tab.locator("#search-results li a")
    addresses = links.evaluate_all("links => links.map(link => link.href)")
    paths = {Path(unquote(urlsplit(address).path)) for address in addresses}
    return {str(path.relative_to(site)) for path in paths}


def test_search_finds_a_phrase_of_every_page(site, browser):
    tab = browser.new_page()
    chosen = phrases(site)
    assert [name for name, words in chosen.items() if words is None] == []
    matches = {words: found_by_search(tab, site, words) for words in chosen.values()}
    assert {n: matches[w] for n, w in chosen.items() if n not in matches[w]} == {}
    tab.close()


def test_search_quotes_prose(served, browser):
    """On a server, where the search may read the pages."""
    tab = browser.new_page()
    tab.goto(f"{served.address}/search.html?q=representations")
    quotes = tab.locator("#search-results li p.context")
    quotes.first.wait_for()
    tab.wait_for_timeout(500)
    texts = quotes.all_inner_texts()
    assert len(texts) > 3
    assert [text for text in texts if re.search(r"\\\(|import |\w = \w", text)] == []
    tab.close()


def sound(fault):
    """A small page without a fault but this one."""
    settings = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))[
        "sphinx"
    ]["config"]
    mathjax = (ROOT / "vendor" / "mathjax" / "es5" / "tex-chtml.js").as_uri()
    return rf"""<!doctype html>
      <html lang="en">
      <meta name="viewport" content="width=device-width, initial-scale=1">
      <title>Sound</title>
      <script>window.MathJax = {json.dumps(settings["mathjax3_config"])}</script>
      <script defer src="{mathjax}"></script>
      <main><h1>Sound</h1>
      <p>A formula: <span class="math notranslate">\(x^2\)</span></p>
      {fault}</main>"""


def complaints(browser, folder, fault, theme="light"):
    """The checks that find something on the small page."""
    path = folder / "page.html"
    path.write_text(sound(fault), encoding="utf-8")
    seen = visit(browser, path, theme)
    return [name for name, check in CHECKS.items() if check(seen)]


PUSH = """requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(() => {
  const box = document.createElement("div");
  box.style.height = "400px";
  document.querySelector("h1").before(box);
}, 50)))"""
TOKENS = "".join(f"<span class='k'>{token}</span>" for token in ("x", "for", "for"))


@pytest.mark.parametrize(
    ("check", "fault"),
    [
        ("console", "<script>console.error('broken')</script>"),
        ("console", "<script>broken()</script>"),
        ("console", "<script src='missing.js'></script>"),
        ("network", "<script>fetch('https://a.b/c.json').catch(() => 0)</script>"),
        ("network", "<link rel='stylesheet' href='https://a.b/c.css'>"),
        ("formulas", r'<p class="math notranslate">\(\frac{1\)</p>'),
        ("formulas", r'<p class="math notranslate">\(\unknown\)</p>'),
        ("formulas", r'<p class="math notranslate mathjax_ignore">\(x\)</p>'),
        ("alternative texts", "<img src='data:,' alt='../_images/a.png'>"),
        ("overflow", "<p style='width: 391px'>Wide.</p>"),
        ("small text", "<p style='font-size: 9px'>Small.</p>"),
        (
            "code",
            "<div class='cell_input'><pre tabindex='0' style='overflow: auto; "
            f"max-width: 300px'>{'x' * 89}</pre></div>",
        ),
        ("accessibility", "<p style='color: #999'>Pale.</p>"),
        ("accessibility", "<pre style='overflow: auto'>" + 60 * "long " + "</pre>"),
        ("accessibility", "<input>"),
        ("accessibility", "<details><p style='color: #999'>Pale.</p></details>"),
        ("accessibility", f"<style>.k {{ color: #999 }}</style><pre>{TOKENS}</pre>"),
        ("size", "<link rel='stylesheet' href='large.css'>"),
        ("weight", "<link rel='stylesheet' href='dense.css'>"),
        ("layout shift", f"<script>{PUSH}</script><p id='late'>Pushed.</p>"),
        ("tab stops", "<mjx-container tabindex='0'></mjx-container>"),
    ],
)
def test_a_planted_fault_is_found(browser, tmp_path, check, fault):
    (tmp_path / "large.css").write_text(" " * MOST, encoding="utf-8")
    dense = f"/* {secrets.token_hex(SENT)} */"
    (tmp_path / "dense.css").write_text(dense, encoding="utf-8")
    assert check in complaints(browser, tmp_path, fault)


def test_images_count_on_the_first_page(browser, tmp_path):
    noise = Image.frombytes("L", (500, 600), secrets.token_bytes(300_000))
    noise.save(tmp_path / "noise.png")
    heavy = {}
    for name in ("index", "page"):
        path = tmp_path / f"{name}.html"
        path.write_text("<img src='noise.png' alt='Noise.'>", encoding="utf-8")
        heavy[name] = CHECKS["weight"](visit(browser, path, "light"))
    assert 0 < heavy["index"] < 300_000
    assert heavy["page"] == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_fault_of_one_theme_is_found_there(browser, tmp_path, theme):
    """Of the dark one alone; and a sound page is found sound."""
    style = "@media (prefers-color-scheme: dark) { body { color: #888; } }"
    matches = complaints(browser, tmp_path, f"<style>{style}</style>", theme)
    assert matches == (["accessibility"] if theme == "dark" else [])


def test_a_chapter_that_the_index_lacks_is_not_found(browser, site, tmp_path):
    name = "chapters/zero_shot"
    start, _, rest = (
        (site / "searchindex.js").read_text(encoding="utf-8").partition("(")
    )
    index = json.loads(rest.rstrip().removesuffix(")"))
    [number] = [i for i, other in enumerate(index["docnames"]) if other == name]
    for word, pages in index["terms"].items():
        pages = pages if isinstance(pages, list) else [pages]
        index["terms"][word] = [page for page in pages if page != number]
    (tmp_path / "searchindex.js").write_text(
        f"{start}({json.dumps(index)})", encoding="utf-8"
    )
    (tmp_path / "_static").symlink_to(site / "_static")
    shutil.copy(site / "search.html", tmp_path)
    tab = browser.new_page()
    words = phrases(site)[f"{name}.html"]
    assert found_by_search(tab, site, words) - found_by_search(
        tab, tmp_path, words
    ) == {f"{name}.html"}
    tab.close()


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_a_moving_picture_can_be_stopped(site, browser, motion):
    """It stands still, from the beginning, for whoever prefers that."""
    context = browser.new_context(reduced_motion=motion)
    tab = context.new_page()
    tab.goto((site / "chapters" / "contrastive_learning.html").as_uri())
    button = tab.locator("button.pause")
    button.wait_for()
    moving, still = tab.locator("img[src$='.gif']"), tab.locator("canvas[role=img]")
    stands = motion == "reduce"
    for _ in range(2):
        assert moving.is_hidden() is stands
        assert still.is_visible() is stands
        assert button.inner_text() == ("Play" if stands else "Pause")
        button.click()
        stands = not stands
    assert still.get_attribute("aria-label") == moving.get_attribute("alt")
    context.close()


def test_a_heading_is_larger_than_those_below_it(site, browser):
    tab = browser.new_page(viewport=DESKTOP)
    tab.goto((site / "chapters" / "zero_shot.html").as_uri())
    looks = tab.evaluate("""() => ["h1", "h2", "h3"].map(name => {
      const style = getComputedStyle(document.querySelector(`.bd-article ${name}`));
      return [parseFloat(style.fontSize), parseFloat(style.fontWeight)];
    })""")
    sizes, weights = zip(*looks, strict=True)
    assert sizes[0] > sizes[1] > sizes[2]
    assert weights[0] >= weights[1] >= weights[2]
    code = "parseFloat(getComputedStyle(document.querySelector('pre')).fontSize)"
    assert tab.evaluate(code) >= 13
    tab.close()


def test_tables_of_prose_and_of_cells_look_alike(site, browser):
    looks = []
    for name, table in (("zero_shot", ".dataframe"), ("notation", ".table")):
        tab = browser.new_page(viewport=DESKTOP)
        tab.goto((site / "chapters" / f"{name}.html").as_uri())
        looks += tab.evaluate(
            """table => ["th", "td + td"].map(name => {
              const cell = document.querySelector(`.bd-article ${table} ${name}`);
              const style = getComputedStyle(cell);
              const row = getComputedStyle(cell.parentElement);
              return ["padding", "fontSize", "borderLeftWidth", "textAlign"]
                .map(key => style[key]).concat(row.backgroundColor);
            })""",
            table,
        )
        tab.close()
    assert looks[:2] == looks[2:]
    assert "14.4px" in looks[1][0]


def test_paper_is_white_in_the_dark(browser, site):
    page = browser.new_page(color_scheme="dark")
    page.goto((site / "index.html").as_uri())
    theme = "document.documentElement.dataset.theme"
    page.evaluate(f"addEventListener('beforeprint', () => {{ printed = {theme} }})")
    page.pdf()
    assert page.evaluate(f"[printed, {theme}]") == ["light", "dark"]
    page.close()


def test_a_page_has_the_book_s_typefaces(site, browser):
    """A line of prose has about 70 characters."""
    tab = browser.new_page(viewport=DESKTOP)
    tab.goto((site / "chapters" / "zero_shot.html").as_uri())
    loaded = tab.evaluate("""async () => {
      await document.fonts.ready;
      const ours = [...document.fonts].filter(face => face.family.includes("Book"));
      return ours.map(face => [face.family.replaceAll('"', ""), face.status]);
    }""")
    assert sorted({*map(tuple, loaded)}) == [
        ("Book Code", "loaded"),
        ("Book Text", "loaded"),
    ]
    first = tab.locator(".bd-article p").first
    lines = first.evaluate("""p => {
      const range = document.createRange();
      range.selectNodeContents(p);
      return new Set([...range.getClientRects()].map(box => Math.round(box.bottom / 8)))
        .size;
    }""")
    assert 60 <= len(first.inner_text()) / (lines - 0.5) <= 80
    tab.close()


def test_the_fonts_are_small(site):
    sheet = (site / "_static" / "fonts.css").read_text(encoding="utf-8")
    fonts = [base64.b64decode(data) for data in re.findall(r"base64,([^\"]*)", sheet)]
    assert len(fonts) == 3
    assert sum(map(len, fonts)) < 100_000
    for font in fonts:  # their licence reserves the name
        records = TTFont(io.BytesIO(font))["name"].names
        names = [str(record) for record in records if record.nameID in (1, 3, 4, 6, 16)]
        assert all(name.startswith("Book") for name in names)


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_animals_of_the_cover_are_large_enough(site, browser, width):
    """Sharp on a screen of two pixels to a CSS pixel, and not below 24 CSS pixels."""
    tab = browser.new_page(viewport={"width": width, "height": 900})
    tab.goto((site / "index.html").as_uri())
    cover = tab.locator("img.cover")
    shown = cover.bounding_box()
    rows, pixels = 9, cover.evaluate("image => image.naturalHeight")
    assert shown["height"] / rows > 24
    assert pixels / shown["height"] > 1.7
    ways = tab.locator(".ways a")
    boxes = [way.bounding_box() for way in ways.all()]
    assert len(boxes) == 2
    assert all(box["y"] + box["height"] < shown["y"] for box in boxes)
    tab.close()


def test_the_feet_of_neighbouring_cards_are_in_a_line(site, browser):
    tab = browser.new_page(viewport=DESKTOP)
    tab.goto((site / "index.html").as_uri())
    boxes = [f.bounding_box() for f in tab.locator(".chapters .sd-card-footer").all()]
    ends = [box["y"] + box["height"] for box in boxes]
    assert len(ends) == len(contents.chapters_of(ROOT))
    for left, right in zip(ends[::2], ends[1::2], strict=False):
        assert abs(left - right) < 1
    tab.close()


def test_what_is_folded_has_one_look(site, browser):
    """Hints and solutions, written in two ways, and cells."""
    tab = browser.new_page(viewport=DESKTOP)
    tab.goto((site / "chapters" / "zero_shot_exercises.html").as_uri())
    looks = tab.evaluate("""() => ["sd-dropdown", "hide"].map(kind => {
      const fold = document.querySelector(`.bd-article details.${kind}`);
      const style = getComputedStyle(fold.firstElementChild);
      return [style.fontSize, style.fontWeight, style.backgroundColor, style.padding,
              style.height, getComputedStyle(fold).boxShadow];
    })""")
    assert looks[0] == looks[1]
    tab.close()
