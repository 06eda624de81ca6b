"""A Sphinx extension: what every page of the book has, and what it does without.

Figures are numbered by chapter and shown as SVG, light or dark, images have their
sizes, so that nothing moves while they load, a page loads MathJax only if it has a
formula, and the search reads prose, not code.
"""

import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from string import ascii_uppercase

import imagesize
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from fmkit.book.figures import FOLDER, INCH, shown

NOTEBOOK = ".ipynb"
IMAGE = re.compile(r"<img\b[^>]*>")
CODE = ("cell_input", "cell_output")  # a cell's code, and what it prints


def number_figures(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Number figures by chapter: 2.1 is the first one of the second chapter.

    A page of exercises continues its chapter. Pages that are no notebooks have letters.
    Return the names of all pages that may have figures, to be written with their new
    numbers.
    """
    numbers, letters = map(str, count(1)), iter(ascii_uppercase)
    for page in env.toctree_includes.get(env.config.root_doc, []):
        group = [page, *_below(env, page)]
        has_figures = any(env.toc_fignumbers.get(name) for name in group)
        if env.doc2path(page).endswith(NOTEBOOK):
            first = next(numbers)
        elif has_figures:
            first = next(letters)
        else:
            continue
        seen: dict[str, int] = {}
        for name in group:
            for kind, figures in env.toc_fignumbers.get(name, {}).items():
                for figure in figures:
                    seen[kind] = seen.get(kind, 0) + 1
                    figures[figure] = (first, seen[kind])
    return [*env.toc_fignumbers]


def _below(env: BuildEnvironment, page: str) -> Iterator[str]:
    """Yield the names of the pages below a page of the contents, in their order."""
    for name in env.toctree_includes.get(page, []):
        yield name
        yield from _below(env, name)


def without_code(document: nodes.document) -> nodes.document:
    """Return a copy of a page without its formulas and without the code of its cells.

    What a cell prints counts as code.
    """
    copy = document.deepcopy()
    for node in [*copy.findall(nodes.container)]:
        if set(CODE) & set(node["classes"]):
            for block in [*node.findall(nodes.literal_block)]:
                block.parent.remove(block)
    for formula in [
        *copy.findall(lambda n: isinstance(n, nodes.math | nodes.math_block))
    ]:
        formula.parent.remove(formula)
    return copy


def sized(body: str, files: dict[str, Path]) -> str:
    """Give the images of a page the width and the height of their files.

    `files` are the images by the names that the page uses. A file of 200 pixels an inch
    has two pixels for each of the page. An image that has a size already keeps it.
    """

    def replace(match: re.Match[str]) -> str:
        tag = match[0]
        source = re.search(r'\bsrc="([^"]*)"', tag)
        path = files.get(source[1].rpartition("/")[2]) if source else None
        if path is None or re.search(r'\b(width|height)="|style="[^"]*width', tag):
            return tag
        width, height = imagesize.get(path)
        if width < 1:
            return tag
        scale = max(1, round(imagesize.getDPI(path)[0] / INCH))
        size = f'width="{width // scale}" height="{height // scale}"'
        return f"<img {size}{tag.removeprefix('<img')}"

    return IMAGE.sub(replace, body)


def _finish(
    app: Sphinx, page: str, template: str, context: dict, document: nodes.document
) -> None:
    """Complete the context of a page, once the other extensions are done with it."""
    body = context.get("body", "")
    if app.builder.name == "html" and 'class="math' not in body:
        context["script_files"] = [
            script for script in context["script_files"] if not _is_mathjax(script)
        ]
    if body:
        source = Path(app.srcdir)
        files = {file: source / name for name, file in app.builder.images.items()}
        drawn = {path.stem: path for path in (source / FOLDER).rglob("*.svg")}
        target, paper = Path(app.outdir, "_images"), app.builder.name != "html"
        target.mkdir(exist_ok=True)
        context["body"] = sized(shown(body, drawn, target, paper=paper), files)


def _is_mathjax(script: object) -> bool:
    """Tell whether a script is MathJax or its settings."""
    settings = getattr(script, "attributes", {}).get("body") or ""
    return "mathjax" in str(getattr(script, "filename", script)).lower() or (
        settings.startswith("window.MathJax")
    )


def _index_prose(app: Sphinx) -> None:
    """Let the builder of the pages index their prose."""
    if app.builder.name == "html":
        index_page = app.builder.index_page
        app.builder.index_page = lambda page, document, title: index_page(
            page, without_code(document), title
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx, which calls this if ``_config.yml`` names the module."""
    app.connect("builder-inited", _index_prose)
    app.connect("env-get-updated", number_figures, priority=900)
    app.connect("html-page-context", _finish, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
