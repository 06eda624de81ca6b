"""What a run was and what it gave: metrics, claims and the reproduction card."""

import html
import json
import math
import os
import subprocess
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import torch
from IPython.display import display

from fmkit._check import Refused, require
from fmkit.runs.machine import versions
from fmkit.runtime import device_name, peak_memory_mb, pick_device

SCHEMA = 1
STATUSES = ("running", "finished", "failed")
FIELDS = {  # in the order of a record, each with what JSON may hold there
    "schema": int,
    "chapter": str,
    "parameters": dict,
    "metrics": dict,
    "claims": dict,
    "status": str,
    "error": (str, type(None)),
    "device": str,
    "threads": int,
    "seconds": (int, float),
    "peak_memory_mb": (int, float, type(None)),
    "versions": dict,
    "commit": (str, type(None)),
    "seed": int,
    "date": str,
}
PACKAGE = Path(__file__).parents[1]


class ClaimError(AssertionError):
    """A number of the chapter is not what its text claims."""


class RecordError(Refused):
    """A file does not hold a record."""


class Run:
    """One run of a chapter: its parameters, metrics and claims, as they come in.

    The parameters are the annotated names of `namespace` with the values they have
    there, so that injected values are seen. After each change the record is written
    to the file ``FMKIT_RECORD`` names, if any: a chapter that fails leaves what it had.
    """

    def __init__(self, chapter: str, namespace: dict[str, object]) -> None:
        annotated = namespace.get("__annotations__", {})
        parameters = {name: namespace[name] for name in annotated if name in namespace}
        for name in ("seed", "device"):
            require(name in parameters, "parameters", f"name {name}", [*parameters])
        self._start = time.perf_counter()
        self._device = pick_device(parameters["device"])
        device = device_name(self._device)
        self.record = new_record(chapter, parameters, device=device)
        self._save()

    def metric(self, name: str, value: float) -> None:
        """Record one number as ``encoder/adaptation/labels/split``; once for a name."""
        metrics = self.record["metrics"]
        require(name not in metrics, "name", "be new among the metrics", name)
        metrics[name] = _finite(name, value)
        self._save()

    def claim(
        self,
        name: str,
        value: float,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Record that `value` keeps within its bounds, and check it.

        Raises ``ClaimError`` where it does not, unless ``FMKIT_CLAIMS`` is "report":
        text is written for the default parameters, other ones may break it.
        """
        claims, bounded = self.record["claims"], (at_least, at_most) != (None, None)
        require(name not in claims, "name", "be new among the claims", name)
        require(bounded, "at_least or at_most", "be given", None)
        number = _finite(name, value)
        low = -math.inf if at_least is None else _finite("at_least", at_least)
        high = math.inf if at_most is None else _finite("at_most", at_most)
        claims[name] = {
            "value": number,
            "at_least": None if at_least is None else low,
            "at_most": None if at_most is None else high,
            "holds": low <= number <= high,
        }
        self._save()
        if not claims[name]["holds"] and os.environ.get("FMKIT_CLAIMS") != "report":
            raise ClaimError(
                f"{name} is {number:.6g}, but {_bounds(claims[name])} is claimed."
            )

    def claims_table(self) -> None:
        """Show every claim so far with its value, its bounds and whether it holds."""
        rows = [
            (name, f"{c['value']:.4g}", _bounds(c), "yes" if c["holds"] else "NO")
            for name, c in self.record["claims"].items()
        ]
        show_table([("claim", "value", "claimed", "holds"), *rows])

    def card(self) -> None:
        """Finish the record and show what one needs to know to repeat this run."""
        self.record["status"] = "finished"
        self._save()
        show_table(_card_rows(self.record))

    def _save(self) -> None:
        self.record["seconds"] = round(time.perf_counter() - self._start, 3)
        peak = peak_memory_mb(self._device)
        self.record["peak_memory_mb"] = None if peak is None else round(peak, 1)
        if os.environ.get("FMKIT_RECORD"):
            write_record(Path(os.environ["FMKIT_RECORD"]), self.record)


def new_record(
    chapter: str, parameters: dict[str, object], *, device: str
) -> dict[str, object]:
    """The record of a run that has just begun."""
    return {
        "schema": SCHEMA,
        "chapter": chapter,
        "parameters": parameters,
        "metrics": {},
        "claims": {},
        "status": "running",
        "error": None,
        "device": device,
        "threads": torch.get_num_threads(),
        "seconds": 0.0,
        "peak_memory_mb": None,
        "versions": versions(),
        "commit": commit(),
        "seed": parameters.get("seed", 0),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_record(path: Path, record: dict[str, object]) -> None:
    """Write a record as JSON, whole or not at all."""
    write_whole(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all: somebody may have it open."""
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    staging.write_text(text, encoding="utf-8")
    os.replace(staging, path)


def read_record(path: Path) -> dict[str, object]:
    """Read one record; ``RecordError`` says what is wrong with a damaged one."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} holds no record ({error}).") from error
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise RecordError(f"{path} must have schema {SCHEMA}, got {schema!r}.")
    if set(record) != set(FIELDS):
        differing = ", ".join(sorted(set(record) ^ set(FIELDS)))
        raise RecordError(f"{path} must have the fields of a record, not {differing}.")
    for field, kind in FIELDS.items():
        if not isinstance(record[field], kind):
            raise RecordError(f"{path} has a wrong {field}: {record[field]!r}.")
    for name, value in record["metrics"].items():
        if type(value) is not float or not math.isfinite(value):
            raise RecordError(f"{path} has a metric {name} that is no number: {value}.")
    return record


def results(chapter: str) -> Path:
    """Where a chapter's recorded runs are committed, and what came out of them."""
    return PACKAGE.parent / "results" / chapter


def committed(chapter: str) -> dict[str, dict[str, object]]:
    """The committed records of a chapter, by their names, from ``results/<chapter>``.

    Empty where fmkit is installed apart from the book.
    """
    folder = results(chapter)
    return {path.stem: read_record(path) for path in sorted(folder.glob("*.json"))}


def scores_of(
    records: Iterable[dict[str, object]],
) -> dict[tuple[str, str, int, str], list[float]]:
    """Metrics of several runs by (encoder, adaptation, labels, split), a value a run.

    What :mod:`fmkit.evaluate` calls scores; here it is seeds that vary. Only metrics
    that all runs have are kept, so values of one place belong to one run, and only
    those whose labels are a number ("all" is none).
    """
    runs = [record["metrics"] for record in records]
    names = runs[0] if runs else {}
    scores = {}
    for name in (name for name in names if all(name in run for run in runs)):
        encoder, adaptation, labels, split = name.split("/")
        if labels.isdecimal():
            values = [run[name] for run in runs]
            scores[encoder, adaptation, int(labels), split] = values
    return scores


def commit() -> str | None:
    """The checkout's commit, "+changes" if files differ from it; None outside one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PACKAGE), *arguments]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        return run.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # else it is another's
        short = git("rev-parse", "--short", "HEAD")
        return short + "+changes" * bool(git("status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError):
        return None


def show_table(rows: list[tuple[str, ...]]) -> None:
    """Display a table, its first row the head, as HTML and as plain text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    cells = [
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        for tag, row in zip(["th", *["td"] * len(rows)], rows, strict=False)
    ]
    body = "".join(f"<tr>{row}</tr>" for row in cells[1:])
    head = f"<thead><tr>{cells[0]}</tr></thead>"
    table = f'<table class="dataframe">{head}<tbody>{body}</tbody></table>'
    plain = "\n".join(line.rstrip() for line in lines)
    display({"text/html": table, "text/plain": plain}, raw=True)


def _finite(name: str, value: float) -> float:
    require(not isinstance(value, str | bool), name, "be a number", value)
    number = float(value)
    require(math.isfinite(number), name, "be finite", number)
    return number


def _bounds(claim: dict[str, float | bool | None]) -> str:
    bounds = [("at least", claim["at_least"]), ("at most", claim["at_most"])]
    return " and ".join(f"{word} {b:.4g}" for word, b in bounds if b is not None)


def _card_rows(record: dict[str, object]) -> list[tuple[str, ...]]:
    claims, memory = record["claims"].values(), record["peak_memory_mb"]
    peak = "" if memory is None else f", {memory:.0f} MB at most"
    return [
        ("reproduction card", record["chapter"]),
        ("parameters", _pairs(record["parameters"], " = ")),
        ("claims", f"{sum(c['holds'] for c in claims)} of {len(claims)} hold"),
        ("device", f"{record['device']}, {record['threads']} threads"),
        ("took", f"{record['seconds']:.0f} s{peak}"),
        ("versions", _pairs(record["versions"], " ")),
        ("commit", record["commit"] or "no checkout"),
        ("date", record["date"]),
    ]


def _pairs(values: dict[str, object], sign: str) -> str:
    return ", ".join(f"{name}{sign}{value}" for name, value in values.items())
