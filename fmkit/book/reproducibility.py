"""Make the page on reproducibility: each chapter's cost, findings, and recorded runs.

It is made from the records that executed notebooks carry, so it cannot be out of date.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fmkit._check import Refused
from fmkit.runs.parameters import read_notebook
from fmkit.runs.record import (
    bounds_of,
    card_of,
    in_unit,
    number_of,
    read_record,
    record_in,
)

PAGE = "chapters/reproducibility"
INTRODUCTION = """\
# Reproducibility

Every chapter ends with what it found and with a card that says on what it ran. This
page collects them whenever the pages are built. `commit` is the commit whose code,
recorded runs and parameters ran; `+changes` after it means that some of these differed
from it.
"""
FINDINGS = """
A finding is a sentence with a number and a bound on it. The bounds are checks: they
were set after the numbers had been seen, so that a change that breaks a conclusion is
noticed. At the chapter's own parameters, a finding that does not hold stops the
chapter; at others, the chapter says that it does not hold. The margin is the distance
of the number that is nearest to a bound. If it is small, another machine or another
seed may well break the finding.
"""
RECORDED = """
A run that takes too long for a page is made once, on a clean checkout. `commit` is that
checkout, so the run can be repeated.
"""


def page(chapters: Sequence[Path], results: Path) -> str:
    """Write the page in Markdown, from executed notebooks and the recorded runs.

    Raises RecordError for a chapter without a record and for a damaged record.
    """
    notebooks = {path.stem: read_notebook(path) for path in chapters}
    records = {name: record_in(notebook, name) for name, notebook in notebooks.items()}
    lines = [INTRODUCTION, "## What each chapter takes", ""]
    shown, slower = ("device", "versions", "commit", "date"), _slower_times(results)
    cards = {name: dict(card_of(record)) for name, record in records.items()}
    rows = [
        [f"{{doc}}`{name}`", card["took"], slower.get(name, ""), *map(card.get, shown)]
        for name, card in cards.items()
    ]
    lines += _table([["chapter", "took", "without AVX-512", *shown], *rows])
    lines += ["", "## What was found", FINDINGS]
    head = ["finding", "number", "check", "margin", "holds"]
    for name, record in records.items():
        if record["findings"]:
            rows = [_finding(*found) for found in record["findings"].items()]
            lines += [f"{{doc}}`{name}`", "", *_table([head, *rows]), ""]
    lines += ["## Recorded runs", RECORDED]
    commands = _sections(results / "README.md")
    for name in records:
        runs = [_run(path) for path in sorted(results.glob(f"{name}/*.json"))]
        if runs:
            head = ["record", "seed", "seconds", "threads", "device", "commit", "day"]
            title = notebooks[name].cells[0].source.split("\n")[0]
            lines += [f"##{title}", "", commands.get(name, ""), ""]
            lines += [*_table([head, *runs]), ""]
    return "\n".join(lines)


def times_of(chapters: Sequence[Path]) -> dict[str, str]:
    """Return what each chapter took, such as "72 s", by the name of its file."""
    records = {
        path.stem: record_in(read_notebook(path), path.stem) for path in chapters
    }
    return {name: f"{record['seconds']:.0f} s" for name, record in records.items()}


def _slower_times(results: Path) -> dict[str, str]:
    """Read what each notebook took in the run of ``tools/slower_processor.py``."""
    path = results / "slower_processor.json"
    if not path.is_file():
        return {}
    seconds = json.loads(path.read_text(encoding="utf-8"))["seconds"]
    return {name: f"{value:.0f} s" for name, value in seconds.items()}


def _finding(sentence: str, found: dict[str, object]) -> list[str]:
    """Write a finding: number, bounds, the distance from the nearest bound, holds."""
    numbers = found["values"]
    low, high = found["at_least"], found["at_most"]
    inside = [number - low for number in numbers] if low is not None else []
    inside += [high - number for number in numbers] if high is not None else []
    margin = in_unit(min(inside), found["unit"])
    holds = "yes" if found["holds"] else "NO"
    return [sentence, number_of(found), bounds_of(found), margin, holds]


def _run(path: Path) -> list[str]:
    record = read_record(path)
    numbers = f"{record['seed']}", f"{record['seconds']:,.0f}", f"{record['threads']}"
    commit, day = record["commit"] or "", record["date"][:10]
    return [path.stem, *numbers, record["device"], commit, day]


def _sections(path: Path) -> dict[str, str]:
    """Read the sections of the file that says how records were made, by chapter."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror}).") from error
    parts = re.split(r"^## (\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], map(str.strip, parts[2::2]), strict=True))


def _table(rows: list[list[str]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown; cells that are references stay."""
    for i, row in enumerate(rows):
        cells = (
            cell if cell.startswith("{doc}") else re.sub(r"([|*_~$])", r"\\\1", cell)
            for cell in row
        )
        yield f"| {' | '.join(cells)} |"
        if i == 0:
            yield "|:--" * len(row) + "|"
