"""A Sphinx extension: link the first use of each term on a page to the glossary.

Pages need no markup for it. An entry of the glossary is a term, its Chinese and its
text; a line ``.. form, form`` above the entry, for Sphinx a comment, lists other forms
that count as the term. Each form may be followed by an ``s``. A term is not recognized
if a part of it is emphasized or if a line break divides it.
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
# Headings and blocks of code need no mention: they are outside of paragraphs
NOT_PROSE = (nodes.figure, nodes.table, nodes.literal, nodes.math)
LINKS = (nodes.reference, addnodes.pending_xref)


@dataclass(frozen=True)
class Entry:
    """Describe one entry of the glossary."""

    term: str
    forms: tuple[str, ...]  # the first is the term itself
    chinese: str
    text: str

    @property
    def hint(self) -> str:
        """Return the text that appears when the pointer is on a link."""
        first = self.text.split(". ")[0].rstrip(".")
        return f"{self.chinese}: {first}."


def entries_of(text: str) -> list[Entry]:
    """Return the entries of all glossaries on a page, in their order."""
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
    """Replace the first use of each term in the prose of a page by a cross-reference.

    If two terms begin at the same word, the longer one counts, and the shorter one is
    not looked for inside it.
    """
    by_form = {form: entry for entry in entries for form in entry.forms}
    longest_first = map(_pattern, sorted(by_form, key=len, reverse=True))
    use = re.compile(rf"(?<![\w-])({'|'.join(longest_first)})s?(?![\w-])")
    linked = set()
    for text in [*document.findall(nodes.Text)]:
        if not _is_prose(text):
            continue
        parts = []
        end = 0  # of the text that is in `parts`
        for match in use.finditer(text):
            entry = by_form.get(match[1]) or by_form[match[1].lower()]
            if entry.term not in linked:
                linked.add(entry.term)
                link = _cross_reference(match[0], entry, page)
                parts += [nodes.Text(text[end : match.start()]), link]
                end = match.end()
        if parts:
            text.parent.replace(text, [*parts, nodes.Text(text[end:])])


def _pattern(form: str) -> str:
    """Return a regular expression for a form; a form with capitals keeps them.

    transformers is a library and a Transformer a network.
    """
    return re.escape(form) if form != form.lower() else f"(?i:{re.escape(form)})"


def _is_prose(text: nodes.Text) -> bool:
    """Tell whether a text is part of a paragraph that an author wrote."""
    inside_paragraph = False
    node = text.parent
    while node is not None:
        output_of_a_cell = "nb_element" in node
        if output_of_a_cell or isinstance(node, NOT_PROSE + LINKS):
            return False
        inside_paragraph |= isinstance(node, nodes.paragraph)
        node = node.parent
    return inside_paragraph


def _cross_reference(words: str, entry: Entry, page: str) -> addnodes.pending_xref:
    """Return a cross-reference to an entry that shows `words`."""
    shown = nodes.inline(words, words, hint=entry.hint)
    target = {"reftype": "term", "reftarget": entry.term, "refdomain": "std"}
    return addnodes.pending_xref(
        "", shown, **target, refdoc=page, refexplicit=True, refwarn=True
    )


def _link_page(app: Sphinx, document: nodes.document) -> None:
    """Link the first uses on a page of the book, once Sphinx has read it."""
    page = app.env.docname
    if page.startswith("chapters/") and page != PAGE and PAGE in app.env.found_docs:
        text = Path(app.env.doc2path(PAGE)).read_text(encoding="utf-8")
        link_first_uses(document, entries_of(text), page)


def _finish_links(app: Sphinx, document: nodes.document, page: str) -> None:
    """Move the hint from the text of a resolved link to the link itself."""
    for shown in document.findall(nodes.inline):
        if "hint" in shown and isinstance(shown.parent, nodes.reference):
            shown.parent["reftitle"] = shown["hint"]
            shown.parent["classes"].append("glossary-term")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx, which calls this if ``_config.yml`` names the module."""
    app.connect("doctree-read", _link_page)
    app.connect("doctree-resolved", _finish_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
