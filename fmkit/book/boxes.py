"""A Sphinx extension: set off key ideas, definitions, warnings and notes in boxes.

Pages need no markup for it that a code host or JupyterLab would show. A paragraph that
starts with "To remember:" becomes a box, and so does a quotation that starts with
``**Definition.**``, ``**Warning.**`` or ``**Note.**``. What is defined may follow in
parentheses, as in ``**Definition (linear probe).**``.
"""

import re

from docutils import nodes
from sphinx.application import Sphinx

KEY_IDEA = re.compile(r"To remember:\s+")
HEAD = re.compile(r"(Definition|Warning|Note)(?: \(.+\))?\.")


def set_off(document: nodes.document) -> None:
    """Replace the paragraphs and quotations of a page that are boxes."""
    for paragraph in [*document.findall(nodes.paragraph)]:
        first = next(iter(paragraph.children), None)
        start = isinstance(first, nodes.Text) and KEY_IDEA.match(first)
        if start:
            _replace(first, first[start.end() :])
            _capitalize(paragraph)
            box = _box("key-idea", "To remember")
            paragraph.replace_self(box)  # which takes over its ids
            paragraph["ids"] = []
            box += paragraph
    for quotation in [*document.findall(nodes.block_quote)]:
        first, head = map(quotation.next_node, (nodes.paragraph, nodes.strong))
        named = HEAD.fullmatch(head.astext()) if head is not None else None
        if named and first.astext().startswith(head.astext()):
            after = first[first.index(head) + 1 :]
            if after and isinstance(after[0], nodes.Text):
                _replace(after[0], after[0].lstrip())
            head.parent.remove(head)
            box = _box(named[1].lower(), head.astext().removesuffix("."))
            quotation.replace_self(box)
            box += quotation.children


def _box(kind: str, title: str) -> nodes.admonition:
    """Return an empty box; themes know the kinds "warning" and "note"."""
    return nodes.admonition("", nodes.title("", title), classes=["box", kind])


def _replace(text: nodes.Text, new: str) -> None:
    """Put another text into the place of a text, or nothing if it is empty."""
    text.parent.replace(text, nodes.Text(new) if new else [])


def _capitalize(paragraph: nodes.paragraph) -> None:
    """Make the first letter of a paragraph a capital, unless a formula precedes it."""
    first = paragraph.next_node(lambda node: not isinstance(node, nodes.TextElement))
    is_text = isinstance(first, nodes.Text)
    if is_text and not isinstance(first.parent, nodes.math | nodes.literal):
        _replace(first, first[:1].upper() + first[1:])


def _set_off_page(app: Sphinx, document: nodes.document) -> None:
    set_off(document)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx, which calls this if ``_config.yml`` names the module."""
    app.connect("doctree-read", _set_off_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
