"""Make the map of the notes: each of their items, its place, function and test.

``notes_map.toml`` lists the items. The place of an item in a chapter is a label in
front of the item, ``<a id="notes-footnote-5"></a>``, or the name of a figure. The
docstring of a function or a test ends with its items:
``In the notes: finetuning, (14.2).``

``python -m fmkit.book.notes_map`` writes the page and prints what is wrong.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fmkit.book.portable import LABEL
from fmkit.runs.parameters import read_notebook

ROOT = Path(__file__).resolve().parents[2]
PAGE = Path("chapters", "notes_map.md")
LIST = Path("fmkit", "book", "notes_map.toml")
MARK = "In the notes:"
KINDS = ("definition", "footnote", "figure", "example")  # need a place only
IN_CODE = ("equation", "loss", "algorithm")  # need a function and a test too
OF_THE_MAP = r"(notes|eq-14)-"  # begins the labels that need an item
INTRODUCTION = """\
<!-- Made by fmkit.book.notes_map from labels in chapters and docstrings. -->

# Map of the notes

This book follows the CS229 notes, chapter 14, *Self-supervised learning and foundation
models*, sections 14.1 to 14.3. Here is what these number or define, in their order:
equations, losses, algorithms, definitions, footnotes and the figure, and two of their
examples. Numbers are those of the notes; the words beside them are ours.

*Place* links to the passage of this book. The last column names the *function*, linked
to the {doc}`reference <api>` and without `fmkit`: `losses.simclr_loss` is imported by
`from fmkit.losses import simclr_loss`. The *test* after it checks the function against
the notes. Many tests compare it with a slow loop, which reads like the equation;
`pytest -k` with a test's name runs it. A definition or a remark without a computation
may have neither.

The page is made from labels in the chapters and from docstrings. `make test` fails if
a place, or a function or test that is due, is missing.
"""


@dataclass(frozen=True)
class Item:
    """Describe something that the notes number or name."""

    section: str
    kind: str
    name: str
    words: str  # what it is, in our words
    label: str  # of its place


@dataclass(frozen=True)
class Place:
    """Describe where a label is."""

    chapter: str  # name of the file, without its suffix
    heading: str  # nearest one above
    text: str  # that follows the label in its cell


@dataclass(frozen=True)
class Mark:
    """Hold the items that a docstring names."""

    name: str  # of a function, class or method: losses.simclr_loss
    items: list[str]
    module: Path


@dataclass(frozen=True)
class Map:
    """Hold all that the page is made of."""

    items: list[Item]
    places: dict[str, list[Place]]  # by label
    functions: list[Mark]
    tests: list[Mark]


def read(root: Path) -> Map:
    """Read the map of the repository in `root`."""
    package, tests = root / "fmkit", root / "tests"
    functions = [m for p in sorted(package.rglob("*.py")) for m in marks(p, package)]
    of_tests = [m for p in sorted(tests.rglob("test_*.py")) for m in marks(p, p.parent)]
    return Map(items_of(root / LIST), places_of(root), functions, of_tests)


def items_of(path: Path) -> list[Item]:
    """Read the list of items; an item without a label gets one made of its name."""
    items = []
    for section, rows in tomllib.loads(path.read_text(encoding="utf-8")).items():
        for kind, name, words, *label in rows:
            words_of_name = "-".join(re.findall(r"\w+", name.lower()))
            head = "eq" if kind == "equation" else "notes"
            own = label[0] if label else f"{head}-{words_of_name}"
            items.append(Item(section, kind, name, words, own))
    return items


def places_of(root: Path) -> dict[str, list[Place]]:
    """Find the places of all labels of Markdown cells and all names of figures."""
    places: dict[str, list[Place]] = {}
    for path in sorted((root / "chapters").glob("*.ipynb")):
        heading = ""
        for cell in read_notebook(path).cells:
            if cell.cell_type == "code":
                name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
                waiting, lines = [name] if name else [], ["a figure"]
            else:
                waiting, lines = [], cell.source.split("\n")
            for i, line in enumerate([*lines, ""]):
                label = re.fullmatch(LABEL, line.strip())
                if label:
                    waiting.append(label[1])
                elif line.strip() or i == len(lines):
                    if re.match("#+ ", line):
                        heading = line.lstrip("# ")
                    place = Place(path.stem, heading, "\n".join(lines[i:]))
                    for one in waiting:
                        places.setdefault(one, []).append(place)
                    waiting = []
    return places


def marked(label: str) -> str:
    """Return the line that gives a place its label."""
    return f'<a id="{label}"></a>'


def marks(path: Path, package: Path) -> Iterator[Mark]:
    """Yield the marks of a module, which is parsed and not imported."""
    module = ".".join(path.relative_to(package).with_suffix("").parts)
    pending = [
        (module, node) for node in ast.parse(path.read_text(encoding="utf-8")).body
    ]
    for name, node in pending:  # the list grows while it is read
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own = f"{name}.{node.name}"
            docstring = " ".join((ast.get_docstring(node) or "").split())
            if MARK in docstring:
                items = docstring.split(MARK)[1].strip().removesuffix(".").split(", ")
                yield Mark(own, items, path)
            pending += [(own, inside) for inside in node.body]


def reached(mark: Mark) -> set[str]:
    """Return the names in a test and in the helpers that it calls.

    Helpers are those of its module and of ``tests/support``, where it imports them.
    """
    parts: dict[str, ast.stmt] = {}
    support = next(x for x in mark.module.parents if x.name == "tests") / "support"
    own = ast.parse(mark.module.read_text(encoding="utf-8")).body
    imported = [x.module or "" for x in own if isinstance(x, ast.ImportFrom)]
    nodes: list[ast.stmt] = []
    for package, _, name in (module.partition(".") for module in imported):
        if package == support.name:
            text = (support / f"{name}.py").read_text(encoding="utf-8")
            nodes += ast.parse(text).body
    for node in (*nodes, *own):  # the nearer name wins
        targets = node.targets if isinstance(node, ast.Assign) else [node]
        parts |= {getattr(x, "name", getattr(x, "id", "")): node for x in targets}
    names: set[str] = set()
    pending = [mark.name.split(".")[1]]
    while pending:
        name = pending.pop()
        if name not in names:
            names.add(name)
            for node in ast.walk(parts[name]) if name in parts else ():
                for field in ("id", "attr", "arg"):  # a name, x.name, a fixture
                    pending += [getattr(node, field, None) or ""]
    return names


def complaints(whole: Map) -> Iterator[str]:
    """Yield a sentence for each incomplete item and each mark without an item."""
    names = [item.name for item in whole.items]
    labels = [item.label for item in whole.items]
    for one in sorted({x for x in names + labels if (names + labels).count(x) > 1}):
        yield f"{LIST.name} has {one} more than once."
    for label, places in whole.places.items():
        if re.match(OF_THE_MAP, label) and label not in labels:
            yield f"{places[0].chapter}: {marked(label)} is of no item of {LIST.name}."
    for mark in (*whole.functions, *whole.tests):
        for name in mark.items:
            if name not in names:
                yield f"{mark.name} is of {name!r}, which is no item of {LIST.name}."
    for mark in whole.tests:
        if not re.fullmatch(r"\w+\.test_\w+", mark.name):
            yield f"{mark.name} is marked, and pytest does not collect it."
    for item in whole.items:
        yield from _of_one(item, whole)


def _of_one(item: Item, whole: Map) -> Iterator[str]:
    """Yield what is wrong about one item."""
    if item.kind not in (*KINDS, *IN_CODE):
        yield f"{item.name} is of the kind {item.kind}, which is unknown."
    places = whole.places.get(item.label, [])
    label = marked(item.label)
    if not places:
        yield f"{item.name} has no place: put {label} before it in a chapter."
    if len(places) > 1:
        files = ", ".join(place.chapter for place in places)
        yield f"{item.name} has several places: {label} stands in {files}."
    for place in places:
        equation = place.text.split("$$")[1] if place.text.startswith("$$") else ""
        if not place.text:
            yield f"{place.chapter}: {label} stands before nothing."
        elif item.kind == "equation" and f"\\tag{{{item.name[1:-1]}}}" not in equation:
            yield f"{place.chapter}: {label} is not before the equation {item.name}."
    functions = [mark for mark in whole.functions if item.name in mark.items]
    tests = [mark for mark in whole.tests if item.name in mark.items]
    end = f'end a docstring with "{MARK} {item.name}."'
    if item.kind in IN_CODE and not functions:
        yield f"{item.name} has no function: {end}"
    if (item.kind in IN_CODE or functions) and not tests:
        yield f"{item.name} has no test: {end}"
    own = {mark.name.split(".")[-1] for mark in functions}
    for mark in tests:
        if own and not own & reached(mark):
            yield f"{mark.name} is of {item.name}, but uses no function of it."


def page(whole: Map) -> str:
    """Return the page, in Markdown: a table for each chapter within a section."""
    parts = [INTRODUCTION]
    section = chapter = ""
    for item in whole.items:
        places = whole.places.get(item.label, [])[:1]
        where = f"In {{doc}}`{places[0].chapter}`:" if places else "In no chapter yet:"
        if item.section != section:
            parts += [f"\n## {item.section}"]
        if (item.section, where) != (section, chapter):
            parts += [f"\n{where}\n", "| in the notes | place | function and test |"]
            parts += ["|:--|:--|:--|"]
        section, chapter = item.section, where
        links = "".join(f"[{place.heading}](#{item.label})" for place in places)
        names = [m.name for m in whole.functions if item.name in m.items]
        code = [f"{{py:obj}}`{name} <fmkit.{name}>`" for name in names]
        tests = [m.name.split(".")[1] for m in whole.tests if item.name in m.items]
        code = " ".join(code + [f"`{name}`" for name in tests])
        parts.append(f"| **{item.name}**: {item.words} | {links} | {code} |")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    whole = read(ROOT)
    (ROOT / PAGE).write_text(page(whole), encoding="utf-8")
    wrong = [*complaints(whole)]
    print("\n".join(wrong) or f"{PAGE} is written.")
    sys.exit(bool(wrong))
