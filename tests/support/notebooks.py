"""Tiny notebooks and a tiny book for tests to run and to break."""

import base64
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from fmkit.book.figures import name_of

PNG = (  # 2 by 1 pixels
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAABCAYAAAD0In+KAAAADUlEQVR4nGP4z8DwHwQAD"
    "/8D/xoJEeEAAAAASUVORK5CYII="
)
PARAMETERS = """\
steps: int = 3  # T, steps
tau: float = 0.5  # temperature
name: str = "red"  # of a colour
shuffle: bool = True  # whether the order is drawn
sizes: list[int] = [1, 2]  # n_task
seed: int = 0  # of everything
device: str = "auto"  # where it runs"""
RUN = "from fmkit.runs.record import Run\n\nrun = Run('tiny', globals())"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def markdown(source: str, **metadata: object) -> NotebookNode:
    """A Markdown cell, its id made of its text."""
    return new_markdown_cell(source, id=_id(source), metadata=metadata)


def code(source: str, *tags: str, text: str = "", **metadata: object) -> NotebookNode:
    """A code cell, its id made of its source; `text` is what it printed."""
    if tags:
        metadata["tags"] = list(tags)
    outputs = [new_output("stream", name="stdout", text=text)] if text else []
    return new_code_cell(source, id=_id(source), metadata=metadata, outputs=outputs)


def notebook(
    *cells: NotebookNode, parameters: str = PARAMETERS, derived: str = ""
) -> NotebookNode:
    """A notebook of a title, a parameters cell, a derived cell and `cells`, as if run.

    Its kernel starts fast as long as it leaves fmkit alone, see ``RUN``.
    """
    head = [markdown("# A tiny chapter"), code(parameters, "parameters")]
    head += [code(derived)] if derived else []
    whole = new_notebook(cells=[*head, *cells], metadata={"kernelspec": KERNEL})
    numbered = (cell for cell in whole.cells if cell.cell_type == "code")
    for count, cell in enumerate(numbered, start=1):
        cell["execution_count"] = count
    return whole


def write(whole: NotebookNode, path: Path) -> Path:
    """Write a notebook, its folder made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(whole, path)
    return path


def figures_in(path: Path) -> set[str]:
    """The names of the files that have a notebook's figures as SVG, by its images."""
    cells = nbformat.read(path, 4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    pngs = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    return {name_of(base64.b64decode(png)) for png in pngs}


def _id(source: str) -> str:
    return "".join(c for c in source if c.isascii() and c.isalnum())[:40] or "empty"


def book(root: Path, **pages: str) -> Path:
    """A book in `root`: an index, the notebooks that are there, `pages` beside them."""
    configuration = Path(__file__).resolve().parents[2] / "_config.yml"
    chapters = sorted(path.stem for path in root.glob("chapters/*.ipynb"))
    listed = [f"  - file: chapters/{name}" for name in chapters]
    listed += [f"  - file: chapters/{name}" for name in pages]
    (root / "vendor").mkdir(parents=True)
    (root / "_config.yml").write_text(
        configuration.read_text(encoding="utf-8"), encoding="utf-8"
    )
    (root / "references.bib").touch()
    (root / "index.md").write_text("# A tiny book\n\nOf $x^2$.\n", encoding="utf-8")
    for name, text in pages.items():
        (root / "chapters").mkdir(exist_ok=True)
        (root / "chapters" / f"{name}.md").write_text(text, encoding="utf-8")
    toc = ["format: jb-book", "root: index", "chapters:", *listed]
    (root / "_toc.yml").write_text("\n".join(toc), encoding="utf-8")
    return root
