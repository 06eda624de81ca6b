"""The map of the notes: where each of their items is in the book, in fmkit, in tests.

`notes_map.toml` lists the items. A place is a label before what it names in a chapter,
``(notes-footnote-5)=``, or the name of a figure. A function or a test says in the last
sentence of its docstring what it is of: ``In the notes: finetuning, (14.2).``

    python -m fmkit.book.notes_map    writes the page, and says what is wrong
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fmkit.runs.parameters import read_notebook

ROOT = Path(__file__).resolve().parents[2]
PAGE = Path("chapters", "notes_map.md")
LIST = Path("fmkit", "book", "notes_map.toml")
MARK = "In the notes:"
KINDS = ("definition", "footnote", "figure", "example")  # these may be text alone
IN_CODE = ("equation", "loss", "algorithm")  # these need a function and a test
OF_THE_MAP = r"(notes|eq-14)-"  # how labels begin that need an item
INTRODUCTION = """\
<!-- Made by fmkit.book.notes_map from labels in chapters and docstrings. -->

# Map of the notes

This book follows the CS229 notes, chapter 14, *Self-supervised learning and foundation
models*, sections 14.1 to 14.3. Here is what these number or define, in their order:
equations, losses, algorithms, definitions, footnotes and the figure, and two of their
examples. Numbers are those of the notes; the words beside them are ours.

*Place* leads to where this book says it. The last column first names the *function*,
without `fmkit`: `losses.simclr_loss` is what `from fmkit.losses import simclr_loss`
imports. Then comes the *test* that holds it to the notes. Many compare it with a slow
loop, which reads like the equation. `pytest -k` with a test's name runs it. A word or a
remark that computes nothing may have neither.

The page is made from labels in the chapters and from docstrings. `make test` fails
where a place is missing, or a function or a test that is due.
"""


@dataclass(frozen=True)
class Item:
    """Something that the notes number or name."""

    section: str
    kind: str
    name: str
    words: str  # ours
    label: str  # of its place


@dataclass(frozen=True)
class Place:
    """Where a label stands."""

    chapter: str  # the name of its file
    heading: str  # the nearest above
    text: str  # what follows the label in its cell


@dataclass(frozen=True)
class Mark:
    """The items that a docstring names."""

    of: str  # a function, class or method: losses.simclr_loss
    items: list[str]
    module: Path


@dataclass(frozen=True)
class Map:
    """All that the page is made of."""

    items: list[Item]
    places: dict[str, list[Place]]  # by label
    functions: list[Mark]
    tests: list[Mark]


def read(root: Path) -> Map:
    """The map of the repository in `root`."""
    package, tests = root / "fmkit", root / "tests"
    functions = [m for p in sorted(package.rglob("*.py")) for m in marks(p, package)]
    of_tests = [m for p in sorted(tests.rglob("test_*.py")) for m in marks(p, p.parent)]
    return Map(items_of(root / LIST), places_of(root), functions, of_tests)


def items_of(path: Path) -> list[Item]:
    """The list of the items; without a label of its own an item's name makes it."""
    items = []
    for section, rows in tomllib.loads(path.read_text()).items():
        for kind, name, words, *label in rows:
            words_of_name = "-".join(re.findall(r"\w+", name.lower()))
            head = "eq" if kind == "equation" else "notes"
            own = label[0] if label else f"{head}-{words_of_name}"
            items.append(Item(section, kind, name, words, own))
    return items


def places_of(root: Path) -> dict[str, list[Place]]:
    """Every label of a Markdown cell and every name of a figure, with its places."""
    found: dict[str, list[Place]] = {}
    for path in sorted((root / "chapters").glob("*.ipynb")):
        heading = ""
        for cell in read_notebook(path).cells:
            if cell.cell_type == "code":
                name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
                waiting, lines = [name] if name else [], ["a figure"]
            else:
                waiting, lines = [], cell.source.split("\n")
            for i, line in enumerate([*lines, ""]):
                label = re.fullmatch(r"\(([\w-]+)\)=", line.strip())
                if label:
                    waiting.append(label[1])
                elif line.strip() or i == len(lines):
                    if re.match("#+ ", line):
                        heading = line.lstrip("# ")
                    place = Place(path.stem, heading, "\n".join(lines[i:]))
                    for one in waiting:
                        found.setdefault(one, []).append(place)
                    waiting = []
    return found


def marks(path: Path, package: Path) -> Iterator[Mark]:
    """The marks of a module, found without importing it."""
    module = ".".join(path.relative_to(package).with_suffix("").parts)
    pending = [(module, node) for node in ast.parse(path.read_text()).body]
    for name, node in pending:  # which grows
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own = f"{name}.{node.name}"
            said = " ".join((ast.get_docstring(node) or "").split())
            if MARK in said:
                items = said.split(MARK)[1].strip().removesuffix(".").split(", ")
                yield Mark(own, items, path)
            pending += [(own, inside) for inside in node.body]


def reached(mark: Mark) -> set[str]:
    """The names in a test, and in the helpers and fixtures of its module it names."""
    parts: dict[str, ast.stmt] = {}
    for node in ast.parse(mark.module.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node]
        parts |= {getattr(x, "name", getattr(x, "id", "")): node for x in targets}
    found, pending = set(), [mark.of.split(".")[1]]
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            for node in ast.walk(parts[name]) if name in parts else ():
                for field in ("id", "attr", "arg"):  # a name, x.name, a fixture
                    pending += [getattr(node, field, None) or ""]
    return found


def complaints(found: Map) -> Iterator[str]:
    """What is missing and what dangles, a sentence each."""
    names = [item.name for item in found.items]
    labels = [item.label for item in found.items]
    for one in sorted({x for x in names + labels if (names + labels).count(x) > 1}):
        yield f"{LIST.name} has {one} more than once."
    for label, places in found.places.items():
        if re.match(OF_THE_MAP, label) and label not in labels:
            yield f"{places[0].chapter}: ({label})= is of no item of {LIST.name}."
    for mark in (*found.functions, *found.tests):
        for name in mark.items:
            if name not in names:
                yield f"{mark.of} is of {name!r}, which is no item of {LIST.name}."
    for mark in found.tests:
        if not re.fullmatch(r"\w+\.test_\w+", mark.of):
            yield f"{mark.of} is marked, and pytest does not collect it."
    for item in found.items:
        yield from _of_one(item, found)


def _of_one(item: Item, found: Map) -> Iterator[str]:
    if item.kind not in (*KINDS, *IN_CODE):
        yield f"{item.name} is of the kind {item.kind}, which is unknown."
    places = found.places.get(item.label, [])
    label = f"({item.label})="
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
    functions = [mark for mark in found.functions if item.name in mark.items]
    tests = [mark for mark in found.tests if item.name in mark.items]
    end = f'end a docstring with "{MARK} {item.name}."'
    if item.kind in IN_CODE and not functions:
        yield f"{item.name} has no function: {end}"
    if (item.kind in IN_CODE or functions) and not tests:
        yield f"{item.name} has no test: {end}"
    own = {mark.of.split(".")[-1] for mark in functions}
    for mark in tests:
        if own and not own & reached(mark):
            yield f"{mark.of} is of {item.name}, but uses no function of it."


def page(found: Map) -> str:
    """The page, in Markdown: a table for each chapter within a section."""
    parts, section, chapter = [INTRODUCTION], "", ""
    for item in found.items:
        places = found.places.get(item.label, [])[:1]
        where = f"In {{doc}}`{places[0].chapter}`:" if places else "In no chapter yet:"
        if item.section != section:
            parts += [f"\n## {item.section}"]
        if (item.section, where) != (section, chapter):
            parts += [f"\n{where}\n", "| in the notes | place | function and test |"]
            parts += ["|:--|:--|:--|"]
        section, chapter = item.section, where
        links = "".join(f"[{place.heading}](#{item.label})" for place in places)
        names = [m.of for m in found.functions if item.name in m.items]
        code = [f"{{py:obj}}`{name} <fmkit.{name}>`" for name in names]
        tests = [m.of.split(".")[1] for m in found.tests if item.name in m.items]
        code = " ".join(code + [f"`{name}`" for name in tests])
        parts.append(f"| **{item.name}**: {item.words} | {links} | {code} |")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    found = read(ROOT)
    (ROOT / PAGE).write_text(page(found))
    wrong = [*complaints(found)]
    print("\n".join(wrong) or f"{PAGE} is written.")
    sys.exit(bool(wrong))
