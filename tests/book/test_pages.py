"""What pages have and do without: numbers of figures, sizes, scripts, a lean index."""

import json
import re

from docutils import nodes
from fontTools.ttLib import TTFont
from PIL import Image
from support.notebooks import book, code, notebook, write
from support.pages import ROOT, Page, read_by_people

from fmkit.book import build as books
from fmkit.book import contents
from fmkit.book.execute import execute
from fmkit.book.pages import sized, without_code

CHAPTERS = [path.stem for path in contents.chapters_of(ROOT)]


def numbers(path):
    """The numbers of the figures of a page, in their order."""
    text = path.read_text(encoding="utf-8")
    return re.findall(r'caption-number">Fig\. ([\w.]+)', text)


def test_figures_are_numbered_by_chapter(site):
    for i, name in enumerate(CHAPTERS, 1):
        page = site / "chapters" / f"{name}.html"
        exercises = page.with_stem(f"{name}{contents.EXERCISES}")
        found = numbers(page) + (numbers(exercises) if exercises.exists() else [])
        assert found == [f"{i}.{k}" for k in range(1, len(found) + 1)], name
        assert found, name
    found = numbers(site / "chapters" / "interactive_figures.html")
    assert found == [f"A.{k}" for k in range(1, len(found) + 1)]


FIGURE = """
import matplotlib.pyplot as plt
plt.plot([steps, 2]);
"""


def test_a_reference_has_the_number_of_its_figure(tmp_path):
    """The second chapter's first figure is 2.1, from another page too."""
    named = {"caption": "A line.", "name": "a-line"}
    meta = {"figure": named, "image": {"alt": "A line."}}
    for name in ("one", "two"):
        cell = code(FIGURE, mystnb=meta | {"figure": named | {"name": f"line-{name}"}})
        write(notebook(cell), tmp_path / "chapters" / f"{name}.ipynb")
    execute(book(tmp_path, page="# A page\n\nSee {numref}`line-two`.\n"))
    page = books.html(tmp_path).with_name("chapters") / "page.html"
    assert '<span class="std std-numref">Fig. 2.1</span>' in page.read_text("utf-8")
    assert numbers(page.with_stem("one")) == ["1.1"]


def test_chapters_come_first(site):
    text = (site / "index.html").read_text(encoding="utf-8")
    [follows] = [a["href"] for a in Page(text).of("link") if a.get("rel") == "next"]
    assert follows == f"chapters/{CHAPTERS[0]}.html"
    menu = re.search(r'<nav class="bd-links.*?</nav>', text, re.DOTALL)[0]
    pages = re.findall(r'href="chapters/([\w/]+)\.html"', menu)
    places = [pages.index(name) for name in CHAPTERS]
    assert places == sorted(places)
    assert places[0] == 0
    assert pages.index("notation") > places[-1]


def test_images_have_their_sizes(site):
    for path in read_by_people(site):
        page = Page(path.read_text(encoding="utf-8"))
        for image in page.of("img"):
            if "logo__image" not in (image.get("class") or ""):
                file = path.parent / image["src"]
                shape = int(image["width"]), int(image["height"])
                with Image.open(file) as opened:
                    scale = max(1, round(opened.info.get("dpi", (100,))[0] / 100))
                    expected = tuple(side // scale for side in opened.size)
                assert shape == expected, (path.name, image["src"])


def test_an_image_with_a_size_keeps_it(tmp_path):
    path = tmp_path / "a.png"
    Image.new("L", (30, 20)).save(path)
    files = {"a.png": path}
    assert sized('<img alt="A." src="../b/a.png" />', files) == (
        '<img width="30" height="20" alt="A." src="../b/a.png" />'
    )
    Image.new("L", (30, 20)).save(path, dpi=(200, 200))
    assert 'width="15" height="10"' in sized('<img src="a.png">', files)
    for kept in (
        '<img src="a.png" width="7">',
        '<img src="a.png" style="width: 50%">',
        '<img src="other.png">',
        '<img alt="none">',
    ):
        assert sized(kept, files) == kept


def test_a_page_without_a_formula_loads_no_mathjax(site):
    without = []
    for path in read_by_people(site):
        text = path.read_text(encoding="utf-8")
        has_formula = 'class="math' in text
        assert ("tex-chtml" in text) == has_formula, path.name
        assert ("window.MathJax" in text) == has_formula, path.name
        without += [] if has_formula else [path.name]
    assert "index.html" in without


def test_only_its_page_loads_the_index_of_the_search(site):
    for path in read_by_people(site):
        text = path.read_text(encoding="utf-8")
        assert ("searchindex.js" in text) == (path.name == "search.html"), path.name


BRANDS = {"github", "gitlab"}  # in a font of their own


def test_the_font_has_every_icon(site):
    """The font of the theme, without the icons that no page shows."""
    folder = site / "_static" / "vendor" / "fontawesome" / "webfonts"
    [path] = folder.glob("fa-solid-900.woff2")
    assert path.stat().st_size < 10_000
    names = set()
    for page in read_by_people(site):
        text = page.read_text(encoding="utf-8")
        for classes in re.findall(r'class="([^"]*\bfas?\b[^"]*)"', text):
            names |= set(classes.split())
    style = (site / "_static" / "styles" / "pydata-sphinx-theme.css").read_text("utf-8")
    signs = {}
    for selectors, sign in re.findall(r'([^{}]*)\{(?:--fa|content):"\\(\w+)"', style):
        signs |= dict.fromkeys(re.findall(r"\.(fa-[\w-]+)", selectors), int(sign, 16))
    shown = {name: signs[name] for name in names if name in signs}
    assert {"fa-moon", "fa-download"} <= {*shown}  # with fa-solid, and with fas
    of_styles = re.findall(r'--pst-icon-([\w-]+):"([^"])"', style)
    shown |= {name: ord(sign) for name, sign in of_styles}
    assert "external-link" in shown
    has = TTFont(path).getBestCmap()
    assert {name for name, code in shown.items() if code not in has} <= BRANDS


def test_prose_without_its_code():
    document = nodes.section("", nodes.paragraph("", "Prose"))
    cell = nodes.container("", nodes.literal_block("", "code"), classes=["cell_input"])
    formula = nodes.paragraph("", "", nodes.math("", "x^2"), nodes.Text(" is kept"))
    document += [cell, formula, nodes.literal_block("", "a command")]
    assert without_code(document).astext() == "Prose\n\n\n\n is kept\n\na command"
    assert "code" in document.astext()


def test_the_index_has_prose_and_no_code(site):
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(text.partition("(")[2].rstrip().removesuffix(")"))
    words = set(index["terms"])
    assert {"silhouett", "contrast"} <= words
    assert not {"plt", "savefig", "assert_clos", "frac", "mathrm"} & words
