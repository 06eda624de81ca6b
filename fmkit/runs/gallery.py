"""Show the results of a sweep together: a table as CSV, and a page with figures."""

import base64
import csv
import hashlib
import html
import io
from dataclasses import dataclass
from pathlib import Path
from string import Template
from urllib.parse import quote

from nbformat import NotebookNode

from fmkit._writing import write_whole, writing
from fmkit.runs.cells import tags_of
from fmkit.runs.parameters import read_notebook, text_of
from fmkit.runs.record import bounds_of, number_of, read_record

ENDED = ("finished", "failed")
TEMPLATE = Path(__file__).with_name("gallery.html")


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
    status: str = "not run"  # or stale, failed, finished
    error: str | None = None
    record: dict[str, object] | None = None
    figures: tuple[Figure, ...] = ()

    @property
    def label(self) -> str:
        """Return the point's values in one line."""
        return ", ".join(self.values)

    @property
    def values(self) -> list[str]:
        """Return the point's values, each with its name."""
        return [f"{name} = {text_of(value)}" for name, value in self.varied.items()]

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


def read_result(notebook: Path, *, varied: dict[str, object]) -> Result:
    """Read a point that has ended, from its notebook and the record beside it.

    Raises RecordError or RerunError if one of them is missing or damaged.
    """
    record = read_record(notebook.with_name("record.json"))
    figures = extract_figures(notebook)
    name, status = notebook.parent.name, record["status"]
    return Result(name, varied, status, record["error"], record, figures)


def extract_figures(path: Path) -> tuple[Figure, ...]:
    """Write each PNG output of a notebook into a file beside it.

    Captions and alternative texts come from the cells' metadata, as on the pages.
    Raises RerunError if there is no notebook, Refused if a file cannot be written.
    """
    notebook = read_notebook(path)
    for old in path.parent.glob("figure-*.png"):
        with writing(old):
            old.unlink(missing_ok=True)
    # Only a point whose parameters differ from the defaults has an injected cell.
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code = [cell for cell in code if "injected-parameters" not in tags_of(cell)]
    figures = []
    for number, cell in enumerate(code, start=1):
        for which, png in enumerate(_images(cell), start=1):
            file = path.with_name(f"figure-{number}-{which}.png")
            write_whole(file, png)
            shown = cell.metadata.get("mystnb", {})
            caption = shown.get("figure", {}).get("caption", f"Output of cell {number}")
            alt = shown.get("image", {}).get("alt", caption)
            size = tuple(int.from_bytes(png[i : i + 4]) for i in (16, 20))
            digest = hashlib.sha256(png).hexdigest()
            place = (number, which)
            figures.append(Figure(place, caption, alt, file.name, size, digest))
    return tuple(figures)


def _images(cell: NotebookNode) -> list[bytes]:
    outputs = [output.get("data", {}) for output in cell.get("outputs", [])]
    images = [data["image/png"] for data in outputs if "image/png" in data]
    return [base64.b64decode(image) for image in images]


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


def write_page(path: Path, results: list[Result], *, chapter: Path) -> None:
    """Write the gallery: a page that needs only the images in the points' folders."""
    title = f"Sweep of {chapter.stem}"
    body = [
        f"<h1>{html.escape(title)}</h1>",
        *_summary(results),
        *_points(results, path.parent, chapter.name),
        *_findings(results),
        *_figures(results),
        *_metrics(results),
    ]
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    page = template.substitute(title=html.escape(title), body="\n".join(body))
    write_whole(path, page)


def count(results: list[Result]) -> str:
    """Count the points, and the points of each status, in words."""
    statuses = [result.status for result in results]
    each = ", ".join(f"{statuses.count(s)} {s}" for s in dict.fromkeys(statuses))
    return f"{len(results)} {'point' if len(results) == 1 else 'points'}: {each}"


def _summary(results: list[Result]) -> list[str]:
    lines = [f'<p>{count(results)}. All numbers: <a href="table.csv">table.csv</a></p>']
    record = next((result.record for result in results if result.record), None)
    if record:
        rest = {
            k: v for k, v in record["parameters"].items() if k not in results[0].varied
        }
        alike = ", ".join(f"{name} = {text_of(value)}" for name, value in rest.items())
        lines.append(f'<p class="faint">Alike in all: {html.escape(alike)}</p>')
    return lines


def _points(results: list[Result], out: Path, notebook: str) -> list[str]:
    rows = [["point", "status", "seconds", "findings that hold", "what went wrong"]]
    for result in results:
        label, status = html.escape(result.label), result.status
        if status in ENDED and (out / result.name / notebook).is_file():
            label = f'<a href="{quote(f"{result.name}/{notebook}")}">{label}</a>'
        if status == "failed":
            status = f'<span class="bad">{status}</span>'
        seconds = f"{result.record['seconds']:.1f}" if result.record else ""
        wrong = html.escape(result.error or "")
        count_of = len(result.findings)
        hold = f"{count_of - len(result.broken)} of {count_of}" if count_of else ""
        rows.append([label, status, seconds, hold, wrong])
    return ["<h2>Points</h2>", _table(rows, name="points")]


def _figures(results: list[Result]) -> list[str]:
    """Show each figure at every point, or once if it is the same at all points."""
    places = sorted({figure.place for result in results for figure in result.figures})
    lines = ["<h2>Figures</h2>"] if places else []
    for place in places:
        shown = [(r, f) for r in results for f in r.figures if f.place == place]
        lines.append(f"<h3>{html.escape(shown[0][1].caption)}</h3>")
        figures = [_figure(result, figure, result.label) for result, figure in shown]
        if len({figure.digest for _, figure in shown}) == 1 < len(shown):
            figures = [_figure(*shown[0], f"the same at {len(shown)} points")]
        lines += ['<div class="figures">', *figures, "</div>"]
    return lines


def _figure(result: Result, figure: Figure, label: str) -> str:
    label, alt = html.escape(label), html.escape(figure.alt)
    (width, height), href = figure.size, quote(f"{result.name}/{figure.file}")
    return (
        f'<figure><a href="{href}"><img src="{href}" alt="{label}: {alt}" '
        f'width="{width}" height="{height}" loading="lazy"></a>'
        f"<figcaption>{label}</figcaption></figure>"
    )


def _findings(results: list[Result]) -> list[str]:
    """Show a row for each finding and a column for each point that has any."""
    concluded = [result for result in results if result.findings]
    if not concluded:
        return []
    rows = [["finding", *map(_head, concluded)]]
    for sentence in dict.fromkeys(s for r in concluded for s in r.findings):
        found = [result.findings.get(sentence) for result in concluded]
        bounds = next(bounds_of(one) for one in found if one)
        cells = ["" if one is None else _finding(one) for one in found]
        rows.append([f"{html.escape(sentence)} ({html.escape(bounds)})", *cells])
    return ["<h2>Findings</h2>", _table(rows, name="findings")]


def _finding(finding: dict[str, object]) -> str:
    """Show the number of a finding, marked if the finding does not hold."""
    number = html.escape(number_of(finding))
    if finding["holds"]:
        return number
    return f'<span class="bad">{number}<br>does not hold</span>'


def _head(result: Result) -> str:
    return "<br>".join(map(html.escape, result.values))


def _metrics(results: list[Result]) -> list[str]:
    """Show a row for each metric and a column for each point that has any."""
    measured = [result for result in results if result.metrics]
    if not measured:
        return []
    rows = [["metric", *map(_head, measured)]]
    for name in metric_names(measured):
        values = [result.metrics.get(name) for result in measured]
        numbers = ["" if value is None else f"{value:.4g}" for value in values]
        rows.append([html.escape(name).replace("/", "/<wbr>"), *numbers])
    typed = '<input id="filter" type="search" placeholder="words of a name" '
    typed += 'aria-label="Show metrics whose names have these words" hidden>'
    table = _table(rows, name="metrics")
    return ["<h2>Metrics</h2>", typed, table]


def _table(rows: list[list[str]], *, name: str) -> str:
    """Write a table of cells that are HTML already, in a box that can scroll."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in rows[0])
    lines = [
        f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{c}</td>" for c in rest)
        for first, *rest in rows[1:]
    ]
    body = "</tr>\n".join(lines)
    return (
        f'<div class="box" id="{name}" tabindex="0" role="region" aria-label="{name}">'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tr>\n</tbody>"
        "\n</table></div>"
    )


def metric_names(results: list[Result]) -> list[str]:
    """List every metric that some point has, in the order of their first use."""
    return list(dict.fromkeys(name for result in results for name in result.metrics))
