"""Terms have Chinese and an order; their first uses lead to them, and nothing else."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from docutils import nodes
from docutils.core import publish_doctree
from myst_parser.parsers.docutils_ import Parser
from sphinx import addnodes

from fmkit.book import contents
from fmkit.book.glossary import PAGE, entries_of, link_first_uses

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / f"{PAGE}.md").read_text(encoding="utf-8")
ENTRIES = entries_of(TEXT)
NOTEBOOKS = contents.notebooks_of(ROOT)

SMALL = """
# Words

```{glossary}
.. probed
linear probe
  线性探测

  A linear function of what a model says. It is **trained**.

language model
  语言模型

  Says what comes next.

masked language model
  掩码语言模型

  Says what was hidden.

Transformer decoder
  解码器

  It writes.

Transformer
  Transformer 模型

  A network, as of a language model.
```
"""


def test_what_an_entry_is():
    probe, *_, network = entries_of(SMALL)
    assert (probe.term, probe.chinese) == ("linear probe", "线性探测")
    assert probe.forms == ("linear probe", "probed")
    assert probe.hint == "线性探测: A linear function of what a model says."
    assert network.forms == ("Transformer",)
    assert network.hint == "Transformer 模型: A network, as of a language model."


def test_no_entry_is_passed_over():
    unindented = re.findall(r"^(?![#`]|\.\. )\S.*\n  \S", TEXT, re.MULTILINE)
    assert len(ENTRIES) == len(unindented) > 50


def test_no_form_is_of_two_terms():
    forms = [form.lower() for entry in ENTRIES for form in entry.forms]
    assert sorted(forms) == sorted(set(forms))


def test_terms_are_in_order():
    for theme in TEXT.split("\n## ")[1:]:
        terms = [entry.term.lower() for entry in entries_of(theme)]
        assert terms == sorted(terms) != []


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.term)
def test_an_entry_has_chinese_and_whole_sentences(entry):
    assert re.search(r"[\u4e00-\u9fff]", entry.chinese)
    assert entry.text.endswith(".")
    assert not re.search(r"[`${}*]", entry.hint)  # it is shown as it stands


def links_of(page):
    """Return the links of a built page to the glossary: anchor and words."""
    pattern = (
        r'<a class="glossary-term [^>]*href="glossary\.html#([^"]+)"[^>]*>(.*?)</a>'
    )
    return [(a, re.sub("<.*?>", "", t)) for a, t in re.findall(pattern, page)]


def test_no_term_is_linked_twice_on_a_page(site):
    for path in (site / "chapters").glob("*.html"):
        anchors = [anchor for anchor, _ in links_of(path.read_text(encoding="utf-8"))]
        assert len(anchors) == len({*anchors}), path.stem


def test_every_term_is_linked_from_a_chapter_or_its_exercises(site):
    pages = [site / "chapters" / f"{path.stem}.html" for path in NOTEBOOKS]
    linked = {
        a for page in pages for a, _ in links_of(page.read_text(encoding="utf-8"))
    }
    terms = {entry.term: f"term-{entry.term.replace(' ', '-')}" for entry in ENTRIES}
    assert [term for term, anchor in terms.items() if anchor not in linked] == []


def linked(text, around=None):
    """Return what is linked in a small document: (term, words) in order."""
    settings = {"myst_enable_extensions": ["dollarmath", "colon_fence"]}
    document = publish_doctree(text, parser=Parser(), settings_overrides=settings)
    if around is not None:
        around += document.children
        document.children = []
        document += around
    link_first_uses(document, entries_of(SMALL), "chapters/a")
    links = document.findall(addnodes.pending_xref)
    return [(link["reftarget"], link.astext()) for link in links]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A linear probe.", ["linear probe"]),
        ("- A *linear probe*.", ["linear probe"]),
        ("> A linear probe.", ["linear probe"]),
        ("Linear Probe, or two", ["Linear Probe"]),
        ("linear probes", ["linear probes"]),
        ("It is probed.", ["probed"]),
        ("linear probing, a nonlinear probe, prelinear-linear probe", []),
        ("linear probe-like, linear probed", ["probed"]),
        ("masked language models", ["masked language models"]),
        (
            "A masked language model and a language model",
            ["masked language model", "language model"],
        ),
        (
            "A masked language model, then a masked language model.",
            ["masked language model"],
        ),
        ("A Transformer of transformers", ["Transformer"]),
        (
            "Transformer decoders, and a Transformer",
            ["Transformer decoders", "Transformer"],
        ),
        ("transformers, TRANSFORMER", []),
        ("A linear probe. A linear probe, probed.\n\nlinear probe", ["linear probe"]),
        ("It is probed by a linear probe.", ["probed"]),
        ("# A linear probe\n\nprobed", ["probed"]),
        ("`linear probe`", []),
        ("```\nlinear probe\n```", []),
        (r"$linear probe$ and $$linear probe$$", []),
        ("[a linear probe](https://a.b)", []),
        ("| linear probe |\n|--|\n| linear probe |", []),
        (":::{admonition} A linear probe\nIt is probed.\n:::", ["probed"]),
        (":::{figure} a.png\nA linear probe.\n\nA linear probe.\n:::", []),
    ],
)
def test_what_is_linked(text, expected):
    assert [words for _, words in linked(text)] == expected


def test_a_link_knows_its_term():
    assert linked("Probed.") == [("linear probe", "Probed")]


def test_what_a_cell_shows_is_not_linked():
    assert linked("A linear probe.", nodes.container(nb_element="cell_code")) == []


def test_words_that_lead_elsewhere_are_not_linked():
    document = publish_doctree("See [a linear probe](https://a.b).", parser=Parser())
    [link] = document.findall(nodes.reference)
    to_a_page = addnodes.pending_xref("", *link.children)  # what {doc} is at first
    link.parent.replace(link, to_a_page)
    link_first_uses(document, entries_of(SMALL), "chapters/a")
    assert [*document.findall(addnodes.pending_xref)] == [to_a_page]


def test_words_around_a_link_stay():
    document = publish_doctree("A linear probe of a language model.", parser=Parser())
    before = document.astext()
    link_first_uses(document, entries_of(SMALL), "chapters/a")
    assert document.astext() == before


@pytest.fixture
def small_site(tmp_path):
    """Builds two chapters and the glossary; Sphinx's exit status and its messages."""

    def build(builder, glossary=SMALL):
        (tmp_path / "chapters").mkdir()
        (tmp_path / "conf.py").write_text(
            "extensions = ['myst_parser', 'fmkit.book.glossary']", encoding="utf-8"
        )
        toc = "# B\n\nA linear probe.\n\n```{toctree}\nchapters/a\nchapters/b\n"
        files = {"index": f"{toc}{PAGE}\n```", PAGE: glossary}
        for name in ("chapters/a", "chapters/b"):
            files[name] = f"# {name}\n\nA linear *probe*, and linear probes.\n"
        for name, content in files.items():
            (tmp_path / f"{name}.md").write_text(content, encoding="utf-8")
        command = [sys.executable, "-m", "sphinx", "-n", "-W", "-b", builder]
        command += [str(tmp_path), str(tmp_path / builder)]
        run = subprocess.run(command, capture_output=True, encoding="utf-8")
        return run.returncode, run.stderr

    return build


@pytest.mark.parametrize(
    ("builder", "page", "glossary"),
    [
        ("html", "chapters/a.html", "glossary.html#term-linear-probe"),
        ("singlehtml", "index.html", "index.html#term-linear-probe"),
    ],
)
def test_a_link_on_a_page(builder, page, glossary, small_site, tmp_path):
    assert small_site(builder) == (0, "")
    text = (tmp_path / builder / page).read_text(encoding="utf-8")
    link = '<a class="glossary-term reference internal" href="([^"]*)" title="([^"]*)">'
    hint = "线性探测: A linear function of what a model says."
    pages = {"html": 1, "singlehtml": 2}[builder]  # neither index nor the glossary
    assert re.findall(link, text) == [(glossary, hint)] * pages


def test_a_link_to_no_entry_stops_the_build(small_site):
    status, log = small_site("html", f"# Words\n\n````text\n{SMALL}\n````")
    assert status != 0
    assert "term not in glossary: 'linear probe'" in log
