"""Show the results of a sweep together: a table as CSV, and a page with figures."""

import base64
import csv
import hashlib
import io
import itertools
import json
import math
import re
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

from nbformat import NotebookNode

from fmkit._check import one_line
from fmkit._writing import write_whole, writing
from fmkit.runs.cells import tags_of
from fmkit.runs.pages import environment
from fmkit.runs.parameters import read_notebook, text_of
from fmkit.runs.record import bounds_of, number_of, read_record

ENDED = ("finished", "failed")
SEED = "seed"  # the parameter over which means are taken
EACH = 5  # values of as many seeds are shown one by one, of more their spread
IMAGES = {"image/svg+xml": "svg", "image/png": "png"}  # taken from outputs, best first


@dataclass(frozen=True)
class Figure:
    """A figure of an executed notebook: what it shows, and its file."""

    place: tuple[int, int]  # the number of its cell, and its number within the cell
    caption: str
    alt: str
    file: str
    size: tuple[int, int]  # width and height in pixels
    digest: str  # of the file


@dataclass(frozen=True)
class Result:
    """What is known about one point of a sweep; `name` is its folder."""

    name: str
    varied: dict[str, object]
    status: str = "not run"  # or started, stale, failed, finished
    error: str | None = None
    record: dict[str, object] | None = None
    figures: tuple[Figure, ...] = ()
    page: str | None = None  # the file of its notebook as HTML
    unread: str | None = None  # why there is no such page

    @property
    def label(self) -> str:
        """Return the point's values in one line."""
        return ", ".join(_with_names(self.varied))

    @property
    def seed(self) -> str:
        """Return the point's seed as text, empty if seeds do not vary."""
        return text_of(self.varied.get(SEED, ""))

    @property
    def metrics(self) -> dict[str, float]:
        """Return the point's metrics by name; empty without a record."""
        return self.record["metrics"] if self.record else {}

    @property
    def findings(self) -> dict[str, dict[str, object]]:
        """Return the point's findings by sentence; empty without a record."""
        return self.record["findings"] if self.record else {}

    @property
    def broken(self) -> list[str]:
        """Return the sentences of the findings that do not hold at this point."""
        return [name for name, found in self.findings.items() if not found["holds"]]


def _with_names(values: dict[str, object]) -> list[str]:
    return [f"{name} = {text_of(value)}" for name, value in values.items()]


def read_result(notebook: Path, *, varied: dict[str, object]) -> Result:
    """Read a point that has ended, from its notebook and the record beside it.

    Raises RecordError or RerunError if one of them is missing or damaged.
    """
    record = read_record(notebook.with_name("record.json"))
    figures = extract_figures(notebook)
    name, status = notebook.parent.name, record["status"]
    return Result(name, varied, status, record["error"], record, figures)


def with_page(result: Result, notebook: Path) -> Result:
    """Write the notebook of a point as a page beside it; a sweep does without it.

    Whatever prevents it is named in the gallery.
    """
    if not notebook.is_file():
        return result
    try:
        from fmkit.runs.readable import write_readable  # which takes a while

        page = write_readable(
            notebook,
            title=f"{notebook.stem}: {result.label}",
            status=result.status,
            error=result.error,
            gallery="../index.html",
        )
    except Exception as error:  # nbconvert and what it uses raise errors of many kinds
        return replace(result, unread=f"{type(error).__name__}: {one_line(error)}")
    return replace(result, page=page.name)


def extract_figures(path: Path) -> tuple[Figure, ...]:
    """Write each image in a notebook's outputs into a file beside it, as SVG or PNG.

    Captions and alternative texts come from the cells' metadata, as on the pages.
    Raises RerunError if there is no notebook, Refused if a file cannot be written.
    """
    notebook = read_notebook(path)
    for suffix in IMAGES.values():
        for old in path.parent.glob(f"figure-*.{suffix}"):
            with writing(old):
                old.unlink(missing_ok=True)
    # Only a point whose parameters differ from the defaults has an injected cell.
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code = [cell for cell in code if "injected-parameters" not in tags_of(cell)]
    figures = []
    for number, cell in enumerate(code, start=1):
        for which, (suffix, image) in enumerate(_images(cell), start=1):
            file = path.with_name(f"figure-{number}-{which}.{suffix}")
            write_whole(file, image)
            shown = cell.metadata.get("mystnb", {})
            caption = shown.get("figure", {}).get("caption", f"Output of cell {number}")
            alt = shown.get("image", {}).get("alt", caption)
            digest = hashlib.sha256(image).hexdigest()
            place, size = (number, which), _size(suffix, image)
            figures.append(Figure(place, caption, alt, file.name, size, digest))
    return tuple(figures)


def _images(cell: NotebookNode) -> list[tuple[str, bytes]]:
    """Return the images that a cell shows, each with the suffix of its file."""
    images = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        kind = next((kind for kind in IMAGES if kind in data), None)
        if kind == "image/png":
            images.append((IMAGES[kind], base64.b64decode(data[kind])))
        elif kind:
            images.append((IMAGES[kind], data[kind].encode()))
    return images


def _size(suffix: str, image: bytes) -> tuple[int, int]:
    """Return the width and height of an image; (0, 0) if it does not say them."""
    if suffix == "png":
        return tuple(int.from_bytes(image[i : i + 4]) for i in (16, 20))
    root = ElementTree.fromstring(image)
    said = [root.get("width", ""), root.get("height", "")]
    if any("%" in length or not length for length in said):
        said = root.get("viewBox", "").split()[2:]
    numbers = [re.match(r"[0-9.]+", length) for length in said]
    if len(numbers) != 2 or not all(numbers):
        return 0, 0
    return tuple(round(float(number[0])) for number in numbers)


def write_table(path: Path, results: list[Result]) -> None:
    """Write one row per point: parameters, status, findings, and every metric."""
    metrics = metric_names(results)
    head = [*results[0].varied, "status", "error", "seconds", "findings"]
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow([*head, "findings_that_do_not_hold", *metrics])
    for result in results:
        counts = (len(result.findings), len(result.broken))
        seconds = result.record["seconds"] if result.record else ""
        values = [text_of(value) for value in result.varied.values()]
        values += [result.status, result.error or "", seconds]
        values += [*(counts if result.record else ("", ""))]
        rows.writerow([*values, *(result.metrics.get(name, "") for name in metrics)])
    write_whole(path, file.getvalue())


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, a smaller second line, and what it is sorted by."""

    text: str = ""
    detail: str = ""
    sort: float | None = None  # if not by its text
    bad: bool = False


@dataclass(frozen=True)
class Group:
    """Points that differ only in their seed, or a single point.

    `varied` are the values that they share; each member comes with its number.
    """

    varied: dict[str, object]
    members: tuple[tuple[int, Result], ...]

    @property
    def points(self) -> str:
        """Return the numbers of the points, as the script reads them."""
        return " ".join(str(number) for number, _ in self.members)

    @property
    def head(self) -> list[str]:
        """Return the shared values, each with its name."""
        return _with_names(self.varied) or ["all seeds"]

    @property
    def values(self) -> list[str]:
        """Return the shared values as text, which the script sorts as numbers too."""
        return [text_of(value) for value in self.varied.values()]

    @property
    def statuses(self) -> list[tuple[str, int]]:
        """Return each status, and how many members have it."""
        statuses = [result.status for _, result in self.members]
        return [(status, statuses.count(status)) for status in dict.fromkeys(statuses)]

    @property
    def seconds(self) -> Cell:
        taken = [r.record["seconds"] for _, r in self.members if r.record]
        if not taken:
            return Cell()
        mean = sum(taken) / len(taken)
        return Cell(f"{mean:.1f}", sort=mean)

    @property
    def hold(self) -> Cell:
        """Count the findings that hold."""
        whole = sum(len(result.findings) for _, result in self.members)
        hold = whole - sum(len(result.broken) for _, result in self.members)
        return Cell(f"{hold} of {whole}", sort=hold / whole) if whole else Cell()

    def metric(self, name: str) -> Cell:
        """Return the mean of a metric, with the values that it is taken over.

        Up to five are shown one by one, of more the standard deviation and the range.
        """
        values = [r.metrics[name] for _, r in self.members if name in r.metrics]
        if not values:
            return Cell()
        mean, many = sum(values) / len(values), len(self.members)
        detail = ""
        if many > 1 and len(values) <= EACH:
            detail = ", ".join(f"{value:.4g}" for value in values)
        elif many > 1:
            low, high = min(values), max(values)
            detail = f"± {statistics.stdev(values):.2g}, {low:.4g} to {high:.4g}"
        if len(values) < many:
            detail += f" ({len(values)} of {many} seeds)"
        return Cell(f"{mean:.4g}", detail, sort=mean)

    def finding(self, sentence: str) -> Cell:
        """Return the number of a finding; of several points, how often it holds."""
        found = [
            r.findings[sentence] for _, r in self.members if sentence in r.findings
        ]
        if not found:
            return Cell()
        numbers = [number_of(one) for one in found]
        hold = sum(one["holds"] for one in found)
        if len(self.members) == 1:
            return Cell(numbers[0], "" if hold else "does not hold", bad=not hold)
        detail = "; ".join(numbers) if len(numbers) <= EACH else ""
        text = f"holds at {hold} of {len(found)}"
        return Cell(text, detail, bad=hold < len(found))


def groups_of(results: list[Result]) -> list[Group]:
    """Return the points that differ only in their seed together, in their order.

    Returns nothing if the seed does not vary.
    """
    groups: dict[str, list[tuple[int, Result]]] = {}
    for number, result in enumerate(results):
        groups.setdefault(json.dumps(_shared(result)), []).append((number, result))
    if len(groups) == len(results):
        return []
    return [
        Group(_shared(members[0][1]), tuple(members)) for members in groups.values()
    ]


def _shared(result: Result) -> dict[str, object]:
    return {name: value for name, value in result.varied.items() if name != SEED}


def write_page(path: Path, results: list[Result], *, chapter: Path) -> None:
    """Write the gallery: a page that needs only the images in the points' folders.

    Without scripts it has all results; its script adds a chart, sorting and filters.
    """
    singles = [Group(r.varied, ((i, r),)) for i, r in enumerate(results)]
    groups, measured = groups_of(results), metric_names(results)
    parameters = _parameters(results)
    choices = [p for p in parameters if len(p["texts"]) > 1]
    views = {"means": groups, "points": singles} if groups else {"points": singles}
    page = (
        environment()
        .get_template("gallery.html")
        .render(
            title=f"Sweep of {chapter.stem}",
            count=count(results),
            alike=_alike(results),
            notebook=chapter.name,
            kept=[(path.parent / r.name / chapter.name).is_file() for r in results],
            results=results,
            views=views,
            metrics=measured,
            chosen=_first(groups or singles, measured),
            findings=_sentences(results),
            figures=_figures(results),
            choices=choices,
            # What a curve is most often drawn over comes first
            across=sorted(choices, key=lambda p: (p["name"] == SEED, not p["numbers"])),
            data=_script(results, parameters, measured),
            seed=SEED,
            ended=ENDED,
        )
    )
    write_whole(path, page)


def count(results: list[Result]) -> str:
    """Count the points, and the points of each status, in words."""
    statuses = [result.status for result in results]
    each = ", ".join(f"{statuses.count(s)} {s}" for s in dict.fromkeys(statuses))
    return f"{len(results)} {'point' if len(results) == 1 else 'points'}: {each}"


def _first(groups: list[Group], metrics: list[str]) -> str | None:
    """Return the first metric that is not the same for all groups, or the first."""
    for name in metrics:
        if len({group.metric(name).text for group in groups} - {""}) > 1:
            return name
    return metrics[0] if metrics else None


def _alike(results: list[Result]) -> list[str]:
    """Return the parameters that do not vary, from a point that has a record."""
    record = next((result.record for result in results if result.record), None)
    rest = record["parameters"] if record else {}
    return _with_names({k: v for k, v in rest.items() if k not in results[0].varied})


def _sentences(results: list[Result]) -> dict[str, str]:
    """Return every finding that some point has, with its bounds."""
    found = {s: one for r in reversed(results) for s, one in r.findings.items()}
    order = dict.fromkeys(s for r in results for s in r.findings)
    return {sentence: bounds_of(found[sentence]) for sentence in order}


def _figures(
    results: list[Result],
) -> list[tuple[str, list[tuple[int, Result, Figure]], bool]]:
    """Return the figures of each place: caption, figures, whether all are the same."""
    shown = [(i, r, f) for i, r in enumerate(results) for f in r.figures]
    shown.sort(key=lambda one: one[2].place)
    places = []
    for _, group in itertools.groupby(shown, key=lambda one: one[2].place):
        figures = [*group]
        same = len({figure.digest for *_, figure in figures}) == 1 < len(figures)
        places.append((figures[0][2].caption, figures, same))
    return places


def _parameters(results: list[Result]) -> list[dict[str, object]]:
    """Return what varies: its name, its values as text, and as numbers if they are."""
    parameters = []
    for name in results[0].varied:
        values = {text_of(r.varied[name]): r.varied[name] for r in results}
        numbers = [*values.values()] if all(map(_is_number, values.values())) else None
        parameters.append({"name": name, "texts": [*values], "numbers": numbers})
    return parameters


def _is_number(value: object) -> bool:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and math.isfinite(value)


def _script(
    results: list[Result], parameters: list[dict[str, object]], measured: list[str]
) -> str:
    """Return what the page's script reads, as JSON that may stand in HTML."""
    points = [
        {
            "at": [p["texts"].index(text_of(r.varied[p["name"]])) for p in parameters],
            "words": f"{r.label} {r.status} {r.error or ''}".lower(),
        }
        for r in results
    ]
    metrics = {name: [r.metrics.get(name) for r in results] for name in measured}
    data = {"seed": SEED, "parameters": parameters, "points": points}
    text = json.dumps(data | {"metrics": metrics}, ensure_ascii=False)
    return text.replace("<", "\\u003c")


def metric_names(results: list[Result]) -> list[str]:
    """List every metric that some point has, in the order of their first use."""
    return list(dict.fromkeys(name for result in results for name in result.metrics))
