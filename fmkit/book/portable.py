"""A Sphinx extension: notebooks are plain Markdown, and Sphinx reads them as MyST.

JupyterLab, VS Code, Colab and code hosts show a notebook as it is, so it contains no
role and no directive. What pages need is written in these forms:

=====================================  ==========================================
in a notebook                          for Sphinx
=====================================  ==========================================
``[Brown et al. (2020)](ADDRESS)``     a citation in the text; ADDRESS is that of
                                       an entry of ``references.bib``
``([Ho and Hu, 2020](ADDRESS))``       a citation in brackets; several are
                                       separated by ``"; "``
``<a id="eq-14-1"></a>``               a label, on a line of its own before a
                                       blank line
``[text](page.ipynb#eq-14-1)``         a link to a label; without a file to one
                                       of the same page
``[`f()`](../fmkit/train.py)``         a link to the reference of ``fmkit.train.f``
``<details><summary>Hint</summary>``   a dropdown, until ``</details>``; each
                                       before and after a blank line
a cell tagged ``caption``              the caption of the figure of the cell
                                       before, without ``**Figure.**``
=====================================  ==========================================

Links to other pages, formulas and all else are Markdown that Sphinx reads too. The
first code cell, which pages do not show, says how to install fmkit if it is missing.
``python -m fmkit.book.portable`` writes it into every notebook; it names the address
of the repository that is set in ``_config.yml``.
"""

import copy
import functools
import re
from pathlib import Path
from urllib.parse import quote

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell
from pybtex.database import parse_file
from sphinx.application import Sphinx

from fmkit.book.contents import notebooks_of, settings_of
from fmkit.runs.cells import tags_of
from fmkit.runs.parameters import read_notebook
from fmkit.runs.stale import NEEDS

ROOT = Path(__file__).resolve().parents[2]
CAPTION = "caption"  # the tag of a cell
FIGURE = "**Figure.** "  # begins a caption
LABEL = r'<a id="([\w-]+)"></a>'
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = r"\[([^\[\]]*)\]\(([^()\s]*)\)"  # its words and its address
CITED = re.compile(rf"\({LINK}(?:; {LINK})*\)|{LINK}(?:; {LINK})*")
IN_TEXT, IN_BRACKETS = r".* \(\d{4}\)", r".*, \d{4}"  # the words of a citation
FORMS = (
    (rf"^{LABEL}$", r"(\1)="),
    (r"^<details><summary>(.*)</summary>$", r":::{dropdown} \1"),
    (r"^</details>$", ":::"),
    (r"\]\([\w/]+\.(?:ipynb|md)(#[\w-]+)\)", r"](\1)"),
)
CODE = re.compile(r"\[`([\w.]+(?:\(\))?)`\]\(\.\./(fmkit/[\w/]+)\.py\)")


def address_of(fields: dict[str, str]) -> str:
    """Return the address of a work: on arXiv, by its DOI, or else its own."""
    if "eprint" in fields:
        return f"https://arxiv.org/abs/{fields['eprint']}"
    if "doi" in fields:
        return f"https://doi.org/{quote(fields['doi'])}"
    return fields.get("url", "")


@functools.cache
def keys_of(bibliography: Path) -> dict[str, str]:
    """Return the keys of a bibliography's entries, by their addresses."""
    entries = parse_file(str(bibliography)).entries
    return {address_of(entry.fields): key for key, entry in entries.items()}


def to_myst(notebook: NotebookNode, keys: dict[str, str]) -> NotebookNode:
    """Return a notebook with its Markdown as MyST, and captions as metadata.

    `keys` are those of the bibliography, by address. Raises ValueError if a caption
    does not follow a code cell or does not begin as one.
    """
    notebook = copy.deepcopy(notebook)
    cells: list[NotebookNode] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = markdown(cell.source, keys)
        if CAPTION not in tags_of(cell):
            cells.append(cell)
        elif cell.source.startswith(FIGURE) and cells[-1].cell_type == "code":
            shown = cells[-1].metadata.setdefault("mystnb", NotebookNode())
            figure = shown.setdefault("figure", NotebookNode())
            figure.caption = cell.source.removeprefix(FIGURE)
        else:
            raise ValueError(
                f"a caption begins with {FIGURE!r} and follows the code cell of its "
                f"figure, got {cell.source[:40]!r}."
            )
    notebook.cells = cells
    return notebook


def markdown(text: str, keys: dict[str, str]) -> str:
    """Return the text of a Markdown cell as MyST; fenced code stays as it is."""
    parts = FENCED.split(text)
    for i in range(0, len(parts), 2):
        parts[i] = CITED.sub(functools.partial(_cite, keys=keys), parts[i])
        parts[i] = CODE.sub(_refer, parts[i])
        for form, myst in FORMS:
            parts[i] = re.sub(form, myst, parts[i], flags=re.MULTILINE)
    return "".join(parts)


def links_in(text: str) -> list[tuple[str, str]]:
    """Return the words and the address of each link in a text."""
    return re.findall(LINK, text)


def _cite(match: re.Match[str], keys: dict[str, str]) -> str:
    """Return links with their citations as roles; another link stays."""
    links = links_in(match[0])
    if all(re.fullmatch(IN_BRACKETS, words) and at in keys for words, at in links):
        return f"{{cite:p}}`{','.join(keys[address] for _, address in links)}`"
    text = match[0]
    for words, address in links:
        if re.fullmatch(IN_TEXT, words) and address in keys:
            role = f"{{cite:t}}`{keys[address]}`"
            text = text.replace(f"[{words}]({address})", role)
    return text


def _refer(match: re.Match[str]) -> str:
    """Return the role for a link to a module whose text names a part of it."""
    name, module = match[1], match[2].replace("/", ".")
    part = name.removesuffix("()").rpartition(".")[2]
    return f"{{py:obj}}`{name} <{module}.{part}>`"


def says_what_is_missing(repository: str) -> str:
    """Return the code of the cell that stops a notebook if fmkit is not installed.

    `repository` is the address of the book's repository, or empty if it has none yet.
    """
    how = 'in the folder of the book, run pip install -e ".[runs]"'
    if repository:
        how = f'run pip install "fmkit[runs] @ git+{repository}"'
    return f"""\
from importlib.util import find_spec

if not find_spec("fmkit"):
    raise ModuleNotFoundError(
        'fmkit is missing: {how}'
    )"""


def with_what_is_missing(notebook: NotebookNode, repository: str) -> NotebookNode:
    """Return a notebook whose first code cell stops it if fmkit is not installed."""
    notebook = copy.deepcopy(notebook)
    metadata = {"jupyter": {"source_hidden": True}, "tags": [NEEDS, "remove-cell"]}
    first = new_code_cell(id=NEEDS, metadata=metadata)
    for cell in notebook.cells:
        first = cell if NEEDS in tags_of(cell) else first
    first.source = says_what_is_missing(repository)
    cells = [cell for cell in notebook.cells if cell is not first]
    start = next(i for i, cell in enumerate(cells) if cell.cell_type == "code")
    notebook.cells = [*cells[:start], first, *cells[start:]]
    return notebook


def repository_of(root: Path) -> str:
    """Return the address of the repository that the settings of the book name."""
    return settings_of(root)["repository"]["url"].rstrip("/")


def _read(app: Sphinx, page: str, content: list[str]) -> None:
    """Turn a notebook into MyST as Sphinx reads it; downloads stay as they are."""
    if app.env.doc2path(page).endswith(".ipynb"):
        [name] = app.config.bibtex_bibfiles
        notebook = nbformat.reads(content[0], as_version=4)
        content[0] = nbformat.writes(
            to_myst(notebook, keys_of(Path(app.srcdir) / name))
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx, which calls this if ``_config.yml`` names the module."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    for path in notebooks_of(ROOT):
        whole = with_what_is_missing(read_notebook(path), repository_of(ROOT))
        nbformat.write(whole, path)
    print("Every notebook says what to do if fmkit is missing.")
