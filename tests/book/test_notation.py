"""The notation page names what the code has; on a broken table, what is wrong."""

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fmkit.book import contents
from fmkit.runs.parameters import read_notebook

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "chapters" / "notation.md"
HEADS = (
    ["symbol", "meaning", "in code", "中文"],
    ["symbol", "meaning", "in code", "shape", "中文"],
)


@dataclass
class Code:
    """What stands in the syntax trees of a piece of code."""

    names: set = field(default_factory=set)  # also of arguments and attributes
    dotted: set = field(default_factory=set)  # phi.m, and m.x of phi.m.x too
    letters: set = field(default_factory=set)  # of the shapes in annotations

    def add(self, text):
        for node in ast.walk(ast.parse(text)):
            match node:
                case ast.Name(id=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                    self.names.add(name)
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    self.names.add(name)
                case ast.Attribute(attr=name):
                    self.names.add(name)
                    parts = ast.unparse(node).split(".")
                    ends = (parts[i:] for i in range(len(parts) - 1))
                    self.dotted |= {".".join(end) for end in ends}
                case ast.Subscript(
                    value=ast.Name(),
                    slice=ast.Tuple(elts=[_, ast.Constant(value=str(shape))]),
                ):
                    self.letters |= set(shape.split())
        return self


def code_of_the_book():
    """All of the chapters' cells and of fmkit, and each module of fmkit by itself."""
    whole, modules = Code(), {}
    for path in (ROOT / "fmkit").rglob("*.py"):
        modules[path.stem] = Code().add(path.read_text(encoding="utf-8"))
        whole.add(path.read_text(encoding="utf-8"))
    for path in contents.chapters_of(ROOT):
        for cell in read_notebook(path).cells:
            if cell.cell_type == "code":
                whole.add(cell.source)
    return whole, modules


def rows_of(page):
    """Each row of the page's tables: its cells by the heads of their columns."""
    heads = None
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if not cells:
            heads = None
        elif heads is None:
            heads = cells
            assert heads in HEADS, heads
        elif not re.fullmatch(r"[:|-]+", line):
            yield dict(zip(heads, cells, strict=True))


def missing(snippet, code):
    """The names of a snippet that code does not have; all of one that is no Python."""
    try:
        tree = ast.parse(snippet, mode="eval")
    except SyntaxError:
        yield snippet
        return
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) if name not in code.names:
                yield name
            case ast.Attribute(value=ast.Name() | ast.Attribute()):
                if ast.unparse(node) not in code.dotted:
                    yield ast.unparse(node)
            case ast.Attribute(attr=name) if name not in code.names:
                yield name


def complaints(page, whole, modules):
    """A sentence for everything on the page that the code does not have."""
    for row in rows_of(page):
        symbol, names = row["symbol"], row["in code"]
        if not re.search("`[^`]", names):
            yield f"{symbol} has no name in the code."
        for snippet, place in re.findall(r"`([^`]+)`(?: in (\w+))?", names):
            if place == "shapes":
                wrong = {snippet} - whole.letters
            else:
                wrong = dict.fromkeys(missing(snippet, modules.get(place, whole)))
            where = f"in {place}" if place else "in a chapter's cell or in fmkit"
            yield from (f"{symbol}: there is no {name} {where}." for name in wrong)
        for shape in re.findall(r"`([^`]+)`", row.get("shape", "")):
            for letter in sorted(set(shape.split()) - whole.letters):
                yield f"{symbol}: no annotation has {letter} in a shape."
        if not re.search(r"[\u4e00-\u9fff]", row["中文"]):
            yield f"{symbol} has no Chinese."


def test_the_page_names_what_the_code_has():
    wrong = [*complaints(PAGE.read_text(encoding="utf-8"), *code_of_the_book())]
    assert not wrong, "\n".join(wrong)


SMALL = """
| symbol | meaning | in code | shape | 中文 |
|:--|:--|:--|:--|:--|
| $m$ | numbers | `m`, `phi.m` | `B m` | 表示维数 |
| $B$ | examples | `size`, `B` in shapes | | 批大小 |
| $p$ | probability | `softmax(u[:, t])[0].mean()` in losses | | 条件概率 |
"""
CODE = '''
def softmax(u: Float[Tensor, "B m"], t, size=3):
    """Not z, nor "k"."""
    m = model.phi.m  # and no w
    return u.mean(dim=m)
'''


def test_a_small_table_of_what_there_is():
    code = Code().add(CODE)
    assert [*complaints(SMALL, code, {"losses": code})] == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("`m`", "`z`", "$m$: there is no z in a chapter's cell or in fmkit."),
        ("`m`", "`w`", "$m$: there is no w in a chapter's cell or in fmkit."),
        ("phi.m", "m.phi", "$m$: there is no m.phi in a chapter's cell or in fmkit."),
        ("`B m`", "`B k`", "$m$: no annotation has k in a shape."),
        ("`B` in", "`t` in", "$B$: there is no t in shapes."),
        ("softmax(", "argmax(", "$p$: there is no argmax in losses."),
        ("mean(", "median(", "$p$: there is no median in losses."),
        ("u[:, t]", "u[:, s]", "$p$: there is no s in losses."),
        (
            "`size`",
            "`….mean()`",
            "$B$: there is no ….mean() in a chapter's cell or in fmkit.",
        ),
        ("`m`, `phi.m`", "its width", "$m$ has no name in the code."),
        ("表示维数", "", "$m$ has no Chinese."),
    ],
)
def test_what_a_broken_table_is_told(old, new, complaint):
    assert SMALL.count(old) == 1
    code = Code().add(CODE)
    page = SMALL.replace(old, new)
    assert [*complaints(page, code, {"losses": code})] == [complaint]
