"""Read the cells of a notebook: its code, its parameters, the results that it reads.

A kernel imports this module at the start of every chapter, so it needs no nbformat: a
notebook is the dictionary that its file holds.
"""

import ast
import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

from IPython.core.inputtransformer2 import TransformerManager

from fmkit._check import Refused

KINDS = {"int": int, "float": float, "str": str, "bool": bool}
LISTS = ("list[int]", "list[float]", "list[str]")
EITHER = ("str | list[str]",)  # a text, or a list where several are given
READERS = ("committed", "results")  # of fmkit.runs.record; each is given a folder


class RerunError(Refused):
    """A notebook cannot be run with these parameters, or its run failed."""


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell, with its annotation as text."""

    name: str
    kind: str
    default: object


def code_of(notebook: dict) -> list[str]:
    """Return the source of every code cell; in a file it is a list of lines."""
    cells = (cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    return ["".join(cell["source"]) for cell in cells]


def tags_of(cell: dict) -> list[str]:
    """Return the tags of a cell."""
    return cell["metadata"].get("tags", [])


def trees_of(sources: Iterable[str]) -> list[ast.Module]:
    """Parse each source, with its magics as calls.

    A source that does not parse is left out: it fails when it is executed, and that
    error says more.
    """
    to_python = TransformerManager().transform_cell
    trees = []
    for source in sources:
        with contextlib.suppress(SyntaxError):
            trees.append(ast.parse(to_python(source)))
    return trees


def results_named(trees: Iterable[ast.AST]) -> set[str]:
    """Collect the folders of ``results`` that code reads.

    They are the literals in calls of :func:`fmkit.runs.record.committed` and
    :func:`fmkit.runs.record.results`.
    """
    calls = (n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Call))
    names = set()
    for call in calls:
        function = getattr(call.func, "id", getattr(call.func, "attr", None))
        if function in READERS:
            values = [a.value for a in call.args if isinstance(a, ast.Constant)]
            names |= {value for value in values if isinstance(value, str)}
    return names


def parameters_in(source: str) -> dict[str, Parameter]:
    """Read a parameters cell: its annotated literals by name.

    Unlike ``papermill.inspect_notebook``, it also reads values of several lines.
    Raises RerunError if the cell holds anything else, because that would keep its old
    value after papermill has injected new ones.
    """
    try:
        lines = ast.parse(source).body
    except SyntaxError as error:
        raise RerunError(f"the parameters cell does not parse ({error}).") from error
    return {line.name: line for line in map(_parameter, lines)}


def parameters_executed(sources: list[str]) -> dict[str, Parameter]:
    """Find the parameters cell among the executed cells of a kernel.

    It is the last cell that holds annotated literals and nothing else. A kernel does
    not know the tags of its cells, and from Python 3.14 on a namespace no longer has
    the annotations of every cell. Empty if there is no such cell.
    """
    for source in reversed(sources):
        with contextlib.suppress(RerunError):
            if parameters := parameters_in(source):
                return parameters
    return {}


def _parameter(line: ast.stmt) -> Parameter:
    text = ast.unparse(line)
    wrong = RerunError(f"the parameters cell must hold annotated literals, got {text}.")
    if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
        raise wrong
    name, kind = line.target.id, ast.unparse(line.annotation)
    if kind not in (*KINDS, *LISTS, *EITHER):
        known = ", ".join([*KINDS, *LISTS, *EITHER])
        raise RerunError(f"{name} must be annotated with one of {known}, got {kind}.")
    try:
        value = ast.literal_eval(line.value)
    except (ValueError, TypeError):
        raise wrong from None
    return Parameter(name, kind, as_kind(value, kind, name=name))


def as_kind(value: object, kind: str, *, name: str) -> object:
    """Return `value` as the type that `kind` names; an integer may be a float.

    Raises RerunError if it is of another type or not finite.
    """
    if kind in EITHER and isinstance(value, (str, list)):
        one, several = kind.split(" | ")
        return as_kind(value, one if isinstance(value, str) else several, name=name)
    if kind in LISTS and isinstance(value, list):
        return [as_kind(item, kind[5:-1], name=f"{name}'s items") for item in value]
    if kind == "float" and type(value) in (int, float):
        with contextlib.suppress(OverflowError):
            if math.isfinite(float(value)):
                return float(value)
    elif kind in KINDS and type(value) is KINDS[kind]:
        return value
    raise RerunError(f"{name} must be {kind}, got {value!r}.")
