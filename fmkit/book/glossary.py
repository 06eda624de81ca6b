"""A Sphinx extension: in a page's prose the first use of a term leads to the glossary.

Nothing has to be marked in a page. An entry of the glossary is its term, its Chinese
and its text; a line ``.. form, form`` above it, for Sphinx a comment, names what else
counts as the term. An ``s`` may follow each. Emphasis of a part of a term, or a line
break in it, hides it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

PAGE = "chapters/glossary"
GLOSSARY = re.compile(r"^```\{glossary\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ENTRY = re.compile(
    r"^(?:\.\. (?P<forms>.+)\n)?(?P<term>\S.*)\n  (?P<chinese>.+)\n\n  (?P<text>.+)$",
    re.MULTILINE,
)
# Headings and blocks of code are in no paragraph anyway.
NOT_PROSE = (nodes.figure, nodes.table, nodes.literal, nodes.math)
LINKS = (nodes.reference, addnodes.pending_xref)


@dataclass(frozen=True)
class Entry:
    term: str
    forms: tuple[str, ...]  # the term itself is the first
    chinese: str
    text: str

    @property
    def hint(self) -> str:
        """What hovering over a link shows."""
        first = self.text.split(". ")[0].rstrip(".")
        return f"{self.chinese}: {first}."


def entries_of(text: str) -> list[Entry]:
    """The entries of a page's glossaries, in their order."""
    return [
        Entry(
            term=entry["term"],
            forms=(entry["term"], *filter(None, (entry["forms"] or "").split(", "))),
            chinese=entry["chinese"],
            text=entry["text"],
        )
        for glossary in GLOSSARY.findall(text)
        for entry in ENTRY.finditer(glossary)
    ]


def link_first_uses(document: nodes.document, entries: list[Entry], page: str) -> None:
    """Make a cross-reference of each term's first use in the prose of a page.

    Where two terms begin at the same word the longer one is meant, and the shorter is
    not looked for inside it.
    """
    of_form = {form: entry for entry in entries for form in entry.forms}
    longest_first = map(_pattern, sorted(of_form, key=len, reverse=True))
    use = re.compile(rf"(?<![\w-])({'|'.join(longest_first)})s?(?![\w-])")
    linked = set()
    for text in [*document.findall(nodes.Text)]:
        if not _is_prose(text):
            continue
        parts, end = [], 0
        for match in use.finditer(text):
            entry = of_form.get(match[1]) or of_form[match[1].lower()]
            if entry.term not in linked:
                linked.add(entry.term)
                link = _cross_reference(match[0], entry, page)
                parts += [nodes.Text(text[end : match.start()]), link]
                end = match.end()
        if parts:
            text.parent.replace(text, [*parts, nodes.Text(text[end:])])


def _pattern(form: str) -> str:
    """A name keeps its capitals: transformers is a library, a Transformer a network."""
    return re.escape(form) if form != form.lower() else f"(?i:{re.escape(form)})"


def _is_prose(text: nodes.Text) -> bool:
    """Whether a text stands in a paragraph that somebody wrote, outside of all else."""
    inside_paragraph, node = False, text.parent
    while node is not None:
        shown_by_a_cell = "nb_element" in node
        if shown_by_a_cell or isinstance(node, NOT_PROSE + LINKS):
            return False
        inside_paragraph |= isinstance(node, nodes.paragraph)
        node = node.parent
    return inside_paragraph


def _cross_reference(words: str, entry: Entry, page: str) -> addnodes.pending_xref:
    shown = nodes.inline(words, words, hint=entry.hint)
    target = {"reftype": "term", "reftarget": entry.term, "refdomain": "std"}
    return addnodes.pending_xref(
        "", shown, **target, refdoc=page, refexplicit=True, refwarn=True
    )


def _link_page(app: Sphinx, document: nodes.document) -> None:
    page = app.env.docname
    if page.startswith("chapters/") and page != PAGE and PAGE in app.env.found_docs:
        text = Path(app.env.doc2path(PAGE)).read_text()
        link_first_uses(document, entries_of(text), page)


def _finish_links(app: Sphinx, document: nodes.document, page: str) -> None:
    """Give a link what Sphinx keeps only inside it while it looks for the target."""
    for shown in document.findall(nodes.inline):
        if "hint" in shown and isinstance(shown.parent, nodes.reference):
            shown.parent["reftitle"] = shown["hint"]
            shown.parent["classes"].append("glossary-term")


def setup(app: Sphinx) -> dict[str, bool]:
    """What Sphinx calls when ``_config.yml`` names this module."""
    app.connect("doctree-read", _link_page)
    app.connect("doctree-resolved", _finish_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
