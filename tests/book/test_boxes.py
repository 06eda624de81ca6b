"""Key ideas, definitions, warnings and notes are set off; nothing else is."""

import re

import pytest
from docutils import nodes
from docutils.core import publish_doctree
from myst_parser.parsers.docutils_ import Parser
from support.pages import ROOT

from fmkit.book import contents
from fmkit.book.boxes import set_off
from fmkit.runs.parameters import read_notebook


def page(text):
    """A page of Markdown with its boxes."""
    options = {"myst_enable_extensions": ["dollarmath"]}
    document = publish_doctree(
        f"# A page\n\n{text}\n", parser=Parser(), settings_overrides=options
    )
    set_off(document)
    return document


@pytest.mark.parametrize(
    ("text", "kind", "title", "words"),
    [
        (
            "To remember: labels are *dear*.",
            "key-idea",
            "To remember",
            "Labels are dear.",
        ),
        ("To remember: **all of\nit**.", "key-idea", "To remember", "All of\nit."),
        ("To remember: $u_t$ sees.", "key-idea", "To remember", "u_t sees."),
        ("> **Warning.** Do not.", "warning", "Warning", "Do not."),
        ("> **Note.** $x$ is it.", "note", "Note", "x is it."),
        (
            "> **Definition (a probe).** A\n> head.",
            "definition",
            "Definition (a probe)",
            "A\nhead.",
        ),
    ],
)
def test_a_box(text, kind, title, words):
    [box] = page(text).findall(nodes.admonition)
    assert box["classes"] == ["box", kind]
    assert [part.astext() for part in box] == [title, words]


def test_a_box_keeps_all_that_a_quotation_says():
    [box] = page("> **Note.** One.\n>\n> Two **Warning.**").findall(nodes.admonition)
    assert [part.astext() for part in box] == ["Note", "One.", "Two Warning."]


def test_a_box_has_the_label_before_it_once():
    document = page("(here)=\n> **Note.** One.\n\n(there)=\nTo remember: it.")
    kinds = {
        kind: node["classes"][1]
        for node in document.findall(nodes.admonition)
        for kind in node["ids"]
    }
    assert kinds == {"here": "note", "there": "key-idea"}
    marked = [name for node in document.findall(nodes.Element) for name in node["ids"]]
    assert sorted(marked) == sorted(set(marked))


@pytest.mark.parametrize(
    "text",
    [
        "We say To remember: no.",
        "To remembering: no.",
        "**Warning.** Not quoted.",
        "*To remember: no.*",
        "> Said: **Note.** Later.",
        "> **Note. And more.** All of it bold.",
        "> **Notes.** Another word.",
        "> **Warning** without a full stop.",
    ],
)
def test_what_is_no_box(text):
    document = page(text)
    assert [*document.findall(nodes.admonition)] == []
    assert document.astext().endswith(text.replace("*", "").removeprefix("> "))


def test_chapters_have_their_boxes(site):
    """No "To remember:" hides inside of a paragraph."""
    boxes = 0
    for path in contents.chapters_of(ROOT):
        cells = read_notebook(path).cells
        text = "\n\n".join(c.source for c in cells if c.cell_type == "markdown")
        html = (site / "chapters" / f"{path.stem}.html").read_text(encoding="utf-8")
        shown = re.findall(r'<div class="box ([\w-]+) admonition', html)
        shown += re.findall(r'<div class="admonition box ([\w-]+)', html)
        written = len(re.findall(r"[Rr]emember: ", text))
        assert shown.count("key-idea") == written > 0, path.name
        assert shown.count("definition") == text.count("> **Definition"), path.name
        assert shown.count("warning") == text.count("> **Warning."), path.name
        boxes += len(shown)
    assert boxes > 50
