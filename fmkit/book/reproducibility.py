"""The page on how to get the same numbers again: what chapters took, claim and used.

It is made of what executed notebooks show at their ends, so it cannot be out of date.
"""

import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from nbformat import NotebookNode

from fmkit.runs.parameters import read_notebook
from fmkit.runs.record import RecordError, read_record

PAGE = "chapters/reproducibility"
Rows = list[list[str]]
INTRODUCTION = """\
# Reproducibility

Every chapter ends with its claims and with a card that says what it ran on. Here they
are side by side, gathered anew whenever the pages are built. `+changes` after a commit
says that files differed from it.
"""
CLAIMS = """
A claim is a number with a bound. At the parameters of the page a chapter stops where
one does not hold. The margin is how far the value is inside its bound. Where it is
small, another machine or another seed may well be outside.
"""
RECORDED = """
What takes longer than a page may is run once, on a clean checkout. `commit` is that
checkout, so the run can be repeated as it was.
"""


def page(chapters: Sequence[Path], results: Path) -> str:
    """Its Markdown, from executed notebooks and from the folder of recorded runs.

    Raises ``RecordError`` for a chapter without a card and for a damaged record.
    """
    notebooks = {path.stem: read_notebook(path) for path in chapters}
    tables = {name: tables_of(notebook) for name, notebook in notebooks.items()}
    cards = {name: _card(name, of) for name, of in tables.items()}
    lines = [INTRODUCTION, "## What each chapter takes", ""]
    shown = ("took", "device", "versions", "commit", "date")
    rows = [[f"{{doc}}`{name}`", *map(of.get, shown)] for name, of in cards.items()]
    lines += _table([["chapter", *shown], *rows])
    lines += ["", "## What is claimed", CLAIMS]
    for name, of in tables.items():
        for head, *claims in of:
            if head[0] == "claim":
                rows = [[*row[:3], _margin(*row[1:3]), row[3]] for row in claims]
                lines += [f"{{doc}}`{name}`", ""]
                lines += [*_table([[*head[:3], "margin", head[3]], *rows]), ""]
    lines += ["## Recorded runs", RECORDED]
    commands = _sections(results / "README.md")
    for name in tables:
        runs = [_run(path) for path in sorted(results.glob(f"{name}/*.json"))]
        if runs:
            head = ["record", "seed", "seconds", "threads", "device", "commit", "day"]
            title = notebooks[name].cells[0].source.split("\n")[0]
            lines += [f"##{title}", "", commands.get(name, ""), ""]
            lines += [*_table([head, *runs]), ""]
    return "\n".join(lines)


def seconds_of(chapters: Sequence[Path]) -> dict[str, str]:
    """What each chapter took, by the name of its file: 51 s."""
    tables = {path.stem: tables_of(read_notebook(path)) for path in chapters}
    return {name: _card(name, of)["took"].split(",")[0] for name, of in tables.items()}


def tables_of(notebook: NotebookNode) -> list[Rows]:
    """The tables that a notebook shows, as the rows of their texts."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = (output.get("data", {}).get("text/html", "") for output in outputs)
    return [
        [
            [html.unescape(text) for text in re.findall(r"<t[hd]>(.*?)</t[hd]>", row)]
            for row in re.findall(r"<tr>(.*?)</tr>", text)
        ]
        for text in shown
        if text.startswith("<table")
    ]


def _card(name: str, tables: list[Rows]) -> dict[str, str]:
    for rows in tables:
        if rows[0] == ["reproduction card", name]:
            return dict(rows)
    raise RecordError(f"{name} shows no reproduction card: run.card() makes it.")


def _margin(value: str, claimed: str) -> str:
    """How far inside its nearest bound a value is, of what the table of claims says."""
    bounds = re.findall(r"at (least|most) (\S+)", claimed)
    inside = [
        (float(value) - float(bound)) * (1 if which == "least" else -1)
        for which, bound in bounds
    ]
    return f"{min(inside):.3g}"


def _run(path: Path) -> list[str]:
    of = read_record(path)
    numbers = f"{of['seed']}", f"{of['seconds']:,.0f}", f"{of['threads']}"
    return [path.stem, *numbers, of["device"], of["commit"] or "", of["date"][:10]]


def _sections(path: Path) -> dict[str, str]:
    """What stands below each heading of the file that says how records were made."""
    parts = re.split(r"^## (\w+)\n", path.read_text(), flags=re.MULTILINE)
    texts = map(str.strip, parts[2::2])
    return dict(zip(parts[1::2], texts, strict=True))


def _table(rows: Rows) -> Iterator[str]:
    for i, row in enumerate(rows):
        cells = (
            cell if cell.startswith("{doc}") else re.sub(r"([|*_~$])", r"\\\1", cell)
            for cell in row
        )
        yield f"| {' | '.join(cells)} |"
        if i == 0:
            yield "|:--" * len(row) + "|"
