"""Record a run: its parameters, metrics and findings, and its reproduction card.

A finding is a conclusion of a chapter: a sentence, the number that it rests on, and a
bound on that number. One that does not hold stops a run only at the chapter's own
parameters. These are the values of its parameters cell when ``fmkit execute`` made the
stored outputs; they are kept in the notebook's metadata, under ``fmkit``, where an
edited cell does not reach them. A notebook without that metadata has the values that
its parameters cell gives.
"""

import html
import json
import math
import os
import subprocess
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import torch
from IPython.display import display

from fmkit import ranks
from fmkit._check import Refused, require
from fmkit._writing import write_whole, writing
from fmkit.assets import hub
from fmkit.runs.cells import (
    as_kind,
    code_of,
    parameters_executed,
    results_named,
    tags_of,
    trees_of,
)
from fmkit.runs.machine import versions
from fmkit.runtime import device_name, peak_memory_mb, pick_device

SCHEMA = 1
FIELDS = {  # in the order of a record, each with its type in JSON
    "schema": int,
    "chapter": str,
    "parameters": dict,
    "metrics": dict,
    "findings": dict,
    "status": str,
    "error": (str, type(None)),
    "device": str,
    "threads": int,
    "processes": int,  # that computed together, each with its threads
    "seconds": (int, float),
    "peak_memory_mb": (int, float, type(None)),
    "versions": dict,
    "commit": (str, type(None)),
    "seed": int,
    "date": str,
}
FINDING = {"values", "unit", "at_least", "at_most", "holds"}  # of each finding
PACKAGE = Path(__file__).parents[1]
NO_MATHS = "mathjax_ignore tex2jax_ignore"  # classes in which a dollar is a dollar
METADATA = "fmkit"  # the key of what fmkit keeps in notebooks and in their outputs
OWN = "parameters"  # under it, in a notebook: the chapter's own


class FindingError(AssertionError):
    """A finding of a chapter does not hold at the chapter's own parameters."""


class RecordError(Refused):
    """A file or a notebook does not hold a record."""


class Run:
    """Keep the record of one run of a chapter while its cells are executed.

    `namespace` is ``globals()`` of a notebook. The parameters are the names of the
    parameters cell, with the values that they have now, so injected and edited values
    are seen. After each change the record is written to the file that
    ``FMKIT_RECORD`` names, if it is set, so a chapter that fails leaves a record too.

    A finding that does not hold stops the run if the parameters are the chapter's own;
    otherwise the list of findings says that it does not hold. ``FMKIT_FINDINGS`` set to
    ``stop`` or ``report`` overrides this. Raises Refused if no parameter is called seed
    or device, and if one has a value of another type.
    """

    def __init__(self, chapter: str, namespace: dict[str, object]) -> None:
        cells = namespace.get("In", [])
        # nbval keeps no history, and runs a chapter as its file holds it.
        cell = parameters_executed(cells) or parameters_executed(_tagged(chapter))
        parameters = {
            # papermill's own -p injects "[10]" and "false" as texts
            name: as_kind(namespace[name], parameter.kind, name=name)
            for name, parameter in cell.items()
            if name in namespace
        }
        for name in ("seed", "device"):
            require(name in parameters, "parameters", f"name {name}", [*parameters])
        defaults = {name: parameter.default for name, parameter in cell.items()}
        self._stops = _findings_stop(chapter, parameters, defaults)
        self._start = time.perf_counter()
        self._device = pick_device(parameters["device"])
        device = device_name(self._device)
        self.record = new_record(chapter, parameters, device=device)
        self._save()

    def metric(self, name: str, value: float) -> None:
        """Record a number under a new name, ``encoder/adaptation/labels/split``."""
        metrics = self.record["metrics"]
        require(name not in metrics, "name", "be new among the metrics", name)
        metrics[name] = _finite(name, value)
        self._save()

    def finding(
        self,
        sentence: str,
        value: float | list[float],
        *,
        unit: str = "",
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Record a conclusion of the chapter, the number it rests on, and its bounds.

        `sentence` ends without a full stop, because the number follows it. `value` is
        one number, or a list of those of several seeds or draws, and the finding holds
        if all of them are within the bounds. An empty list means that these parameters
        did not measure it: nothing is recorded. `unit` is
        "points" for a difference of two shares, "%" for a share, or any other text; the
        value and the bounds of the first two are shares, from -1 to 1.

        At the chapter's own parameters, for which the text is written, raises
        FindingError if the finding does not hold, and Refused if nothing was measured.
        """
        findings, bounded = self.record["findings"], (at_least, at_most) != (None, None)
        require(sentence not in findings, "sentence", "be new", sentence)
        require(bounded, "at_least or at_most", "be given", None)
        values = [*value] if isinstance(value, list | tuple) else [value]
        values = [_finite(sentence, v) for v in values]
        low = -math.inf if at_least is None else _finite("at_least", at_least)
        high = math.inf if at_most is None else _finite("at_most", at_most)
        if not values:
            rule = "have a value at the chapter's own parameters"
            require(not self._stops, sentence, rule, value)
            return
        found = findings[sentence] = {
            "values": values,
            "unit": unit,
            "at_least": None if at_least is None else low,
            "at_most": None if at_most is None else high,
            "holds": all(low <= number <= high for number in values),
        }
        self._save()
        if self._stops and not found["holds"]:
            rule = f"but must be {bounds_of(found)}"
            raise FindingError(f"{sentence}: {number_of(found)}, {rule}.")

    def what_we_found(self) -> None:
        """Show every finding so far with its number and its bounds, as a list."""
        plain, items = [], []
        for sentence, found in self.record["findings"].items():
            verdict = ": " if found["holds"] else ". Here this does not hold: "
            number, bounds = number_of(found), f"(check: {bounds_of(found)})"
            plain.append(f"- {sentence}{verdict}{number} {bounds}")
            sentence, number = html.escape(sentence), html.escape(number)
            number = f"<strong>{number}</strong> <small>{bounds}</small>"
            items.append(f"<li>{sentence}{verdict}{number}</li>")
        page = f'<ul class="findings {NO_MATHS}">{"".join(items)}</ul>'
        display({"text/html": page, "text/plain": "\n".join(plain)}, raw=True)

    def card(self) -> None:
        """Finish the record, and show what is needed to repeat this run.

        The record goes with the table, as metadata of the output: pages do not show
        it, and :func:`record_in` reads it. It is text, because nbformat would sort the
        names of a dictionary.
        """
        self.record["status"] = "finished"
        self._save()
        rows = [("reproduction card", self.record["chapter"]), *card_of(self.record)]
        display(_table(rows), raw=True, metadata={METADATA: json.dumps(self.record)})

    def kept(self, name: str) -> Path | None:
        """Return the path of a file in the folder that the parameter ``keep`` names.

        The folder is made. A relative one lies in the folder of the record, so each run
        has its own. None is returned if ``keep`` is empty, and in all processes but the
        first, which write nothing.
        """
        keep = self.record["parameters"]["keep"]
        if not keep or ranks.rank() > 0:
            return None
        folder = Path(os.environ.get("FMKIT_RECORD", "")).parent
        folder = (folder / os.path.expanduser(keep)).resolve()
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    @property
    def settings(self) -> dict[str, object]:
        """What decides the results: for :func:`fmkit.checkpoint.resume`.

        These are the parameters without ``device`` and ``keep``, and in a rerun the
        code, as the hash in ``FMKIT_SOURCE``.
        """
        parameters = self.record["parameters"]
        code = os.environ.get("FMKIT_SOURCE", "")[:8]
        kept = {n: v for n, v in parameters.items() if n not in ("device", "keep")}
        return kept | ({"code": code} if code else {})

    def _save(self) -> None:
        self.record["processes"] = ranks.size()  # the chapter may have joined others
        self.record["versions"] |= hub.commits  # of models by their ids, once loaded
        self.record["seconds"] = round(time.perf_counter() - self._start, 3)
        peak = peak_memory_mb(self._device)
        self.record["peak_memory_mb"] = None if peak is None else round(peak, 1)
        if os.environ.get("FMKIT_RECORD"):
            write_record(Path(os.environ["FMKIT_RECORD"]), self.record)


def new_record(
    chapter: str, parameters: dict[str, object], *, device: str
) -> dict[str, object]:
    """Make the record of a run that begins now."""
    return {
        "schema": SCHEMA,
        "chapter": chapter,
        "parameters": parameters,
        "metrics": {},
        "findings": {},
        "status": "running",
        "error": None,
        "device": device,
        "threads": torch.get_num_threads(),
        "processes": ranks.size(),
        "seconds": 0.0,
        "peak_memory_mb": None,
        "versions": versions(),
        "commit": commit(chapter),
        "seed": parameters.get("seed", 0),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_record(path: Path, record: dict[str, object]) -> None:
    """Write a record as JSON, completely or not at all.

    Raises Refused if it cannot be written.
    """
    write_whole(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def read_record(path: Path) -> dict[str, object]:
    """Read one record; raises RecordError if the file is missing or damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} holds no record ({error}).") from error
    return _checked(record, str(path))


def record_in(notebook: dict, name: str) -> dict[str, object]:
    """Return the record that the reproduction card of a notebook carries.

    Raises RecordError if there is no card of the chapter `name`, or if its record is
    damaged.
    """
    outputs = [o for cell in notebook["cells"] for o in cell.get("outputs", [])]
    texts = [output.get("metadata", {}).get(METADATA, "{}") for output in outputs]
    try:
        records = [json.loads(text) for text in texts]
    except ValueError as error:
        raise RecordError(f"{name} has a damaged record ({error}).") from error
    record = next((r for r in records if r.get("chapter") == name), None)
    if record is None:
        cure = "end it with run.card(), and run make execute"
        raise RecordError(f"{name} has no reproduction card with its record: {cure}.")
    return _checked(record, name)


def _checked(record: object, place: str) -> dict[str, object]:
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise RecordError(f"{place} must have schema {SCHEMA}, got {schema!r}.")
    record.setdefault("processes", 1)  # older records do not name it
    if "claims" in record:  # what older records call their findings
        claims = record.pop("claims").items()
        record["findings"] = {name: _of_claim(claim) for name, claim in claims}
    if set(record) != set(FIELDS):
        differing = ", ".join(sorted(set(record) ^ set(FIELDS)))
        raise RecordError(f"{place} must have the fields of a record, not {differing}.")
    for field, kind in FIELDS.items():
        if not isinstance(record[field], kind):
            raise RecordError(f"{place} has a wrong {field}: {record[field]!r}.")
    for name, found in record["findings"].items():
        if not isinstance(found, dict) or set(found) != FINDING:
            raise RecordError(f"{place}: finding {name} is damaged, got {found!r}.")
    for name, value in record["metrics"].items():
        if type(value) is not float or not math.isfinite(value):
            raise RecordError(f"{place}: metric {name} is not a number, got {value}.")
    return record


def _of_claim(claim: dict[str, object]) -> dict[str, object]:
    """Read a finding of an older record, which had one number and no unit."""
    if not isinstance(claim, dict) or "value" not in claim:
        return claim
    rest = {key: of for key, of in claim.items() if key != "value"}
    return {"values": [claim["value"]], "unit": "", **rest}


def results(chapter: str, *, package: Path | None = None) -> Path:
    """Return the folder of a chapter's recorded runs and of the models they trained.

    It is ``results/<chapter>`` beside `package` in a checkout, and inside it where
    fmkit was installed as a wheel. By default `package` is fmkit.
    """
    package = package or PACKAGE
    installed = package / "results"
    folder = installed if installed.is_dir() else package.parent / "results"
    return folder / chapter


def committed(chapter: str) -> dict[str, dict[str, object]]:
    """Read the recorded runs of a chapter, by name, from :func:`results`."""
    folder = results(chapter)
    return {path.stem: read_record(path) for path in sorted(folder.glob("*.json"))}


def scores_of(
    records: Iterable[dict[str, object]],
) -> dict[tuple[str, str, int, str], list[float]]:
    """Collect metrics by (encoder, adaptation, labels, split), with a value per run.

    This is the form of scores in :mod:`fmkit.evaluate`, where values usually differ by
    their draws; here they differ by their seeds. Only metrics that all runs have are
    kept, so the values at one position belong to one run, and only metrics whose number
    of labels is a number ("all" is not).
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


def commit(chapter: str) -> str | None:
    """Return the commit of the checkout that runs, else ``FMKIT_COMMIT``, else None.

    Set this variable where the code was copied without its checkout.
    "+changes" is added if what a run of `chapter` depends on differs from the commit:
    fmkit, the results that the chapter reads, and the code cells of its notebook.
    Outputs, also of other notebooks, change nothing.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PACKAGE), *arguments]
        run = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
        return run.stdout.strip()

    try:
        # This fails if the package is installed inside the checkout of something else.
        git("ls-files", "--error-unmatch", "__init__.py")
        short = git("rev-parse", "--short", "HEAD")
        return short + "+changes" * _is_changed(chapter, git)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("FMKIT_COMMIT") or None


def _is_changed(chapter: str, git: Callable[..., str]) -> bool:
    path = _notebook_of(chapter)
    notebook = _read(path) if path else {"cells": []}
    code = code_of(notebook)
    folders = {chapter, *results_named(trees_of(code))}
    places = [PACKAGE, *map(results, sorted(folders))]
    if git("status", "--porcelain", "--", *map(str, places)):
        return True
    if path is None:
        return False
    root, path = Path(git("rev-parse", "--show-toplevel")), path.resolve()
    if not path.is_relative_to(root):  # a copy, such as a worker of a cluster gets
        path = root / "chapters" / path.name
    try:
        name = path.relative_to(root).as_posix()
        return code_of(json.loads(git("show", f"HEAD:{name}"))) != code
    except (ValueError, subprocess.CalledProcessError):  # it is not in the commit
        return True


def _findings_stop(
    chapter: str, parameters: dict[str, object], defaults: dict[str, object]
) -> bool:
    """Tell whether a finding that does not hold stops this run."""
    asked, rule = os.environ.get("FMKIT_FINDINGS", ""), "be stop or report"
    require(asked in ("", "stop", "report"), "FMKIT_FINDINGS", rule, asked)
    path = _notebook_of(chapter)
    metadata = _read(path).get("metadata", {}) if path else {}
    own = metadata.get(METADATA, {}).get(OWN, defaults)
    return asked == "stop" or (asked == "" and parameters == own)


def _notebook_of(chapter: str) -> Path | None:
    """Find the file of a chapter: a kernel's folder is the notebook's, or the book's.

    JupyterLab, nbval and ``fmkit rerun`` start a kernel in the notebook's folder;
    papermill starts it in its own folder, and then the checkout has the chapter.
    """
    folders = (Path.cwd(), PACKAGE.parent / "chapters")
    paths = (folder / f"{chapter}.ipynb" for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def _tagged(chapter: str) -> list[str]:
    """Return the source of the parameters cell in the file of a chapter."""
    path = _notebook_of(chapter)
    cells = _read(path)["cells"] if path else []
    return ["".join(c["source"]) for c in cells if "parameters" in tags_of(c)]


def _read(path: Path) -> dict:
    """Read a notebook's file as JSON; one that is damaged, say half saved, is empty."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"cells": []}


def show_table(rows: list[tuple[str, ...]]) -> None:
    """Display a table, with the first row as its head, as HTML and as plain text."""
    display(_table(rows), raw=True)


def _table(rows: list[tuple[str, ...]]) -> dict[str, str]:
    """Write a table as HTML and as plain text, by MIME type."""
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
    table = f'<table class="dataframe {NO_MATHS}">{head}<tbody>{body}</tbody></table>'
    plain = "\n".join(line.rstrip() for line in lines)
    return {"text/html": table, "text/plain": plain}


def _finite(name: str, value: float) -> float:
    require(not isinstance(value, str | bool), name, "be a number", value)
    number = float(value)
    require(math.isfinite(number), name, "be finite", number)
    return number


def number_of(finding: dict[str, object]) -> str:
    """Write the number of a finding, or its numbers: "+2.1, +3.8 points", "74.0 %"."""
    values, unit = finding["values"], finding["unit"]
    text = ", ".join(in_unit(value, unit) for value in values)
    return f"{text} {unit}" if unit else text


def bounds_of(finding: dict[str, object]) -> str:
    """Write the bounds of a finding: "at least 0.2 and at most 0.6"."""
    bounds = [("at least", finding["at_least"]), ("at most", finding["at_most"])]
    unit = finding["unit"]
    given = [f"{word} {in_unit(b, unit)}" for word, b in bounds if b is not None]
    return " and ".join(given)


def in_unit(value: float, unit: str) -> str:
    """Write a value of a finding without its unit; see :meth:`Run.finding`."""
    if unit == "points":
        return f"{100 * value:+.1f}"
    return f"{100 * value:.1f}" if unit == "%" else f"{value:.4g}"


def card_of(record: dict[str, object]) -> list[tuple[str, str]]:
    """List what the card of a run shows, each with its name."""
    findings, memory = record["findings"].values(), record["peak_memory_mb"]
    device = f"{record['device']}, {record['threads']} threads"
    if record["processes"] > 1:
        device += f" in each of {record['processes']} processes"
    peak = "" if memory is None else f", {memory:.0f} MB at most"
    return [
        ("parameters", _pairs(record["parameters"], " = ")),
        ("findings", f"{sum(f['holds'] for f in findings)} of {len(findings)} hold"),
        ("device", device),
        ("took", f"{record['seconds']:.0f} s{peak}"),
        ("versions", _pairs(record["versions"], " ")),
        ("commit", record["commit"] or "no checkout"),
        ("date", record["date"]),
    ]


def _pairs(values: dict[str, object], sign: str) -> str:
    return ", ".join(f"{name}{sign}{value}" for name, value in values.items())
