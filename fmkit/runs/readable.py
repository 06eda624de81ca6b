"""Write an executed notebook as a page that any browser reads, without a network."""

import base64
import functools
from html import escape
from pathlib import Path

import nbformat
from markupsafe import Markup
from nbconvert.filters import Highlight2HTML, ansi2html
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

from fmkit._writing import write_whole
from fmkit.runs.cells import tags_of
from fmkit.runs.pages import environment

STYLES = {"light": "default", "dark": "github-dark"}  # of code, pygments' names
# What a browser shows of an output, best first. Scripts of Jupyter are left out, as are
# widgets: both need Jupyter around them.
SHOWN = ("text/html", "text/markdown", "image/svg+xml", "image/gif", "image/png")
SHOWN += ("image/jpeg", "text/latex", "text/plain")


def write_readable(
    notebook: Path, *, title: str, status: str, error: str | None, gallery: str
) -> Path:
    """Write a notebook as HTML beside it, and return the path of the page.

    Code is folded, images are in the page, and formulas stay as they are written. The
    page of a notebook that did not finish ends at the last cell that ran. A page that
    is newer than its notebook is kept. `gallery` is the address of the page to go back
    to.

    Raises Refused if the page cannot be written, and errors of many kinds for a
    notebook that cannot be shown.
    """
    page = notebook.with_suffix(".html")
    if page.is_file() and page.stat().st_mtime_ns > notebook.stat().st_mtime_ns:
        return page
    node = nbformat.read(notebook, as_version=4)
    cells = [c for c in node.cells if "papermill-error-cell-tag" not in tags_of(c)]
    ran = len(cells)
    if status != "finished":
        executed = [c.get("execution_count") is not None for c in cells]
        ran = max((i for i, is_run in enumerate(executed, 1) if is_run), default=0)
    text = (
        environment()
        .get_template("notebook.html")
        .render(
            title=title,
            status=status,
            error=error,
            gallery=gallery,
            notebook=notebook.name,
            cells=[_cell(cell) for cell in cells[:ran]],
            rest=sum(cell.cell_type == "code" for cell in cells[ran:]),
            styles=_styles(),
        )
    )
    write_whole(page, text)
    return page


@functools.cache
def _styles() -> dict[str, str]:
    """Return the colours of code, in style sheets of the light and the dark page."""
    return {
        scheme: HtmlFormatter(style=style, nobackground=True).get_style_defs("pre.code")
        for scheme, style in STYLES.items()
    }


def _cell(cell: NotebookNode) -> dict[str, object]:
    """Return what the template shows of a cell."""
    if cell.cell_type != "code":
        text = escape(cell.source) if cell.cell_type == "raw" else _markdown(cell)
        return {"kind": cell.cell_type, "html": Markup(text)}
    shown = cell.metadata.get("mystnb", {})
    first = next((line for line in cell.source.splitlines() if line.strip()), "")
    outputs = [_output(output, shown) for output in cell.get("outputs", [])]
    return {
        "kind": "code",
        "number": cell.execution_count,
        "first": first.strip(),
        "html": Markup(_code(cell.source)),
        "outputs": outputs,
        "failed": any(output["kind"] == "error" for output in outputs),
        "caption": shown.get("figure", {}).get("caption"),
    }


def _markdown(cell: NotebookNode) -> str:
    attachments = cell.get("attachments", {})
    return _html_of(cell.source, attachments=attachments)


def _html_of(source: str, **options: object) -> str:
    """Return Markdown as HTML, formulas as they are written."""
    renderer = IPythonRenderer(escape=False, exclude_anchor_links=True, **options)
    return MarkdownWithMath(renderer=renderer).render(source)


def _code(source: str) -> str:
    highlighted = Highlight2HTML(extra_formatter_options={"nowrap": True})
    return highlighted(source)


def _output(output: NotebookNode, shown: dict[str, dict]) -> dict[str, object]:
    """Return what the template shows of an output: its kind, and HTML or an image."""
    if output.output_type == "stream":
        return {"kind": "text", "html": Markup(ansi2html(output.text))}
    if output.output_type == "error":
        lines = [ansi2html(line) for line in output.traceback]
        return {"kind": "error", "html": Markup("\n".join(lines))}
    kind = next((kind for kind in SHOWN if kind in output.data), "text/plain")
    content = output.data.get(kind, "")
    if kind.startswith("image/"):
        sizes = output.get("metadata", {}).get(kind, {})
        # SVG is text in a notebook. As an image, its names do not meet those of others.
        if kind == "image/svg+xml":
            content = base64.b64encode(content.encode()).decode()
        return {
            "kind": "image",
            "mime": kind,
            "data": content.replace("\n", ""),
            "alt": shown.get("image", {}).get("alt", "Output of this cell"),
            "width": sizes.get("width") if isinstance(sizes, dict) else None,
        }
    if kind == "text/html":
        return {"kind": "html", "html": Markup(content)}
    if kind == "text/markdown":
        return {"kind": "html", "html": Markup(_html_of(content))}
    return {"kind": "text", "html": Markup(ansi2html(content))}
