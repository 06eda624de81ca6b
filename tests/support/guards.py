"""Check what every chapter must have: a guard returns complaints about a notebook."""

import ast
import re
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.text import Text
from nbformat import NotebookNode

from fmkit.book.palette import NAMES
from fmkit.book.portable import CAPTION, LABEL
from fmkit.runs.parameters import RerunError, parameters_of, tags_of
from fmkit.runs.stale import NEEDS, PACKAGE, is_stale

CELLS, LINES, COLUMNS = 32, 25, 88  # the house style: about 25, about 20, 88
SIZE = 400_000  # bytes of a notebook with its outputs
DRAWS = (
    r"\bplt\.(?!rcParams|style|close)|\bplot\.(?!use_style|plain)\w+\(|\bdiagrams\.\w+\("
    r"|\.(imshow|plot|figure)\("
)
MYST = r"(?<!`)\{[a-z]\w*(?::\w+)*\}`[^`]*`|^:::.*|^```\{.*|^\([\w-]+\)=$"
IMAGE_FILE = r"\.(png|svg|jpe?g|gif)\s*$"


def parameters(notebook: NotebookNode) -> list[str]:
    """Demand one cell of annotated, commented literals, among them seed and device."""
    try:
        known = parameters_of(notebook)
    except RerunError as error:
        return [str(error)]
    wrong = []
    if "seed" not in known or known["seed"].kind != "int":
        wrong.append("there is no parameter seed: int")
    if "device" not in known or known["device"].default != "auto":
        wrong.append('there is no parameter device: str = "auto"')
    source = next(c.source for c in notebook.cells if "parameters" in tags_of(c))
    for line in ast.parse(source).body:
        text = source.splitlines()[line.lineno - 1 : line.end_lineno]
        if not re.search(r"#\s*\w", "\n".join(text)):
            wrong.append(f"no comment says what {line.target.id} is")
    return wrong


def executed(notebook: NotebookNode) -> list[str]:
    """Demand that every code cell ran, in order, without an error or text on stderr."""
    counts = [cell.execution_count for cell in _code(notebook)]
    wrong = []
    if counts != list(range(1, len(counts) + 1)):
        wrong.append(f"cells did not run once in order: {counts}")
    for cell, output in _outputs(notebook):
        if output.output_type == "error":
            wrong.append(f"cell {cell.execution_count} failed with {output.ename}")
        if output.get("name") == "stderr":
            wrong.append(f"cell {cell.execution_count} wrote to stderr")
    return wrong


def figures(notebook: NotebookNode) -> list[str]:
    """Demand that a cell that draws shows one image, with alt text and a caption.

    The caption is the cell after it. A cell tagged ``optional-figure`` draws only with
    other parameters than the chapter's own. It may show nothing, but must have both.
    """
    wrong = []
    for cell, after in zip(notebook.cells, [*notebook.cells[1:], None], strict=True):
        if cell.cell_type != "code":
            continue
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "").strip()
        images = [o for o in cell.outputs if _is_image(o)]
        draws = re.search(DRAWS, cell.source) or alt
        where = f"cell {cell.execution_count}"
        optional = "optional-figure" in tags_of(cell)
        if draws and len(images) != 1 and not (optional and not cell.outputs):
            wrong.append(f"{where} draws, but shows {len(images)} images")
        if (images or optional) and (not alt or re.search(IMAGE_FILE, alt)):
            wrong.append(f"{where} shows an image without alt text")
        captioned = after is not None and CAPTION in tags_of(after)
        if (images or optional) and not captioned:
            wrong.append(f"{where} shows an image without a caption")
        if images and len(cell.outputs) > 1:  # each output would get the caption
            wrong.append(f"{where} shows an image and something else")
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    if any(re.search(r"!\[\s*\]\(", text) for text in texts):
        wrong.append("a Markdown cell shows an image without alt text")
    return wrong


def words_in(figure: Figure) -> list[str]:
    """Demand labels in words: no key of an experiment, and no name of a variable.

    A key is a whole label or what stands before its first comma or colon. A name is
    known by its underscore, outside of mathematics; names of ticks may be tokens.
    """
    axes = [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
    ticks = {text.get_text() for axis in axes for text in axis.get_ticklabels()}
    shown = {text.get_text() for text in figure.findobj(Text) if text.get_visible()}
    wrong = []
    for text in sorted(shown):
        start = re.split("[,:]", text)[0].strip()
        words = re.sub(r"\$[^$]*\$", "", text)
        is_key = start in NAMES and start not in NAMES.values()
        if is_key or (re.search(r"\w_\w", words) and text not in ticks):
            wrong.append(f"a figure shows the key {text!r} in place of words")
    return wrong


def checks(notebook: NotebookNode) -> list[str]:
    """Demand findings, and cells whose text is compared on every change."""
    tags = {tag for cell in _code(notebook) for tag in tags_of(cell)}
    needed = ("finding", "nbval-check-output")
    wrong = [f"no cell is tagged {tag}" for tag in needed if tag not in tags]
    for cell in _code(notebook):
        if "nbval-check-output" in tags_of(cell) and not cell.outputs:
            wrong.append(f"cell {cell.execution_count} has no output to be compared")
    return wrong


def fresh(notebook: NotebookNode, *, package: Path = PACKAGE) -> list[str]:
    """Demand that the outputs were made by the current code."""
    stale = is_stale(notebook, package=package)
    return ["its outputs are stale: run make execute"] if stale else []


def solved(notebook: NotebookNode) -> list[str]:
    """Demand three exercises or more, each with a folded hint and a solution.

    Solutions are in the last section, in words and as code, and an exercise has a link
    to its own. At least one exercise must have a check, which its solution passes.
    """
    parts, solutions = _exercises(notebook), _solutions(notebook)
    wrong = [f"it has {len(parts)} exercises"] if len(parts) < 3 else []
    checked = set()
    for title, cells in parts.items():
        text = _text(cells)
        if "<details><summary>Hint</summary>" not in text:
            wrong.append(f"{title} has no hint that is folded away")
        link = re.search(r"^\[Solution\]\(#([\w-]+)\)$", text, re.MULTILINE)
        solution = solutions.get(link[1], []) if link else []
        if not _text(solution) or not _code_of(solution):
            wrong.append(f"{title} has no link to a solution in words and code")
        asked = {name for cell in _code_of(cells) for name in checks_in(cell)}
        answered = [cell for cell in _code_of(solution) if checks_in(cell)]
        if asked and not any("Right." in str(cell.outputs) for cell in answered):
            wrong.append(f"{title} has a check that its solution does not pass")
        checked |= asked
    wrong += [] if checked else ["none of its exercises can be checked"]
    return wrong


def _exercises(notebook: NotebookNode) -> dict[str, list[NotebookNode]]:
    """Return the cells of each exercise, by its heading, which begins with a number."""
    parts = _parts(notebook.cells, r"## (.*)")
    return {title: cells for title, cells in parts.items() if re.match(r"\d", title)}


def _solutions(notebook: NotebookNode) -> dict[str, list[NotebookNode]]:
    """Return the cells of each solution, without its heading, by its label."""
    last = list(_parts(notebook.cells, "(## Solutions)$").values())[-1:]
    parts = _parts(last[0] if last else [], rf"{LABEL}\n\n### ")
    return {label: cells[1:] for label, cells in parts.items()}


def _parts(cells: list[NotebookNode], start: str) -> dict[str, list[NotebookNode]]:
    """Divide cells where a Markdown cell matches; return the parts by what matched."""
    parts: dict[str, list[NotebookNode]] = {}
    current: list[NotebookNode] = []
    for cell in cells:
        match = re.match(start, cell.source) if cell.cell_type == "markdown" else None
        if match:
            current = parts.setdefault(match[1], [])
        current.append(cell)
    return parts


def _text(cells: list[NotebookNode]) -> str:
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def checks_in(cell: NotebookNode) -> list[str]:
    """Return the names of the exercises whose answers a cell checks."""
    return re.findall(r'^check\("([^"]+)"', cell.source, re.MULTILINE)


def readable(notebook: NotebookNode) -> list[str]:
    """Demand few and short cells, and no code in them that belongs into the package."""
    code = [cell for cell in _code(notebook) if NEEDS not in tags_of(cell)]
    wrong = [f"it has {len(code)} code cells"] if len(code) > CELLS else []
    for cell in code:
        lines, where = cell.source.splitlines(), f"cell {cell.execution_count}"
        if len(lines) > LINES:
            wrong.append(f"{where} has {len(lines)} lines")
        if any(len(line) > COLUMNS for line in lines):
            wrong.append(f"{where} is wider than {COLUMNS} columns")
        if re.search(r"^\s*class\s", cell.source, re.MULTILINE):
            wrong.append(f"{where} defines a class")
        if re.search(r"^\s*[!%]\s*(pip|conda)\b", cell.source, re.MULTILINE):
            wrong.append(f"{where} installs something")
    return wrong


def plain(notebook: NotebookNode) -> list[str]:
    """Demand Markdown that any program shows, and code that is folded everywhere."""
    wrong = [
        f"a Markdown cell has {found}, see fmkit.book.portable"
        for found in re.findall(MYST, _text(notebook.cells), re.MULTILINE)
    ]
    for cell in _code(notebook):
        where = f"cell {cell.execution_count}"
        folded = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        if "hide-input" in tags_of(cell) and not folded:
            wrong.append(f"{where} is folded on pages, but not in JupyterLab")
        words = cell.metadata.get("mystnb", {}).get("code_prompt_show")
        if "hide-input" in tags_of(cell) and not words:
            wrong.append(f"{where} is folded without words")
    return wrong


def small(path: Path) -> list[str]:
    """Demand a file that code hosts still show."""
    size = path.stat().st_size
    return [f"it has {size} bytes, more than {SIZE}"] if size > SIZE else []


EVERYWHERE = (parameters, executed, figures, fresh, plain, readable)
GUARDS = (*EVERYWHERE, checks)
OF_EXERCISES = (*EVERYWHERE, solved)


def _code(notebook: NotebookNode) -> list[NotebookNode]:
    return _code_of(notebook.cells)


def _code_of(cells: list[NotebookNode]) -> list[NotebookNode]:
    return [cell for cell in cells if cell.cell_type == "code"]


def _outputs(notebook: NotebookNode) -> list[tuple[NotebookNode, NotebookNode]]:
    return [(cell, output) for cell in _code(notebook) for output in cell.outputs]


def _is_image(output: NotebookNode) -> bool:
    return any(kind.startswith("image/") for kind in output.get("data", {}))
