"""What a notebook takes: its parameters cell, values given for it, and their grids."""

import ast
import contextlib
import difflib
import hashlib
import itertools
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
import yaml
from nbformat import NotebookNode

from fmkit._check import Refused

KINDS = {"int": int, "float": float, "str": str, "bool": bool}


LISTS = ("list[int]", "list[float]", "list[str]")


class RerunError(Refused):
    """A chapter cannot be rerun, or failed: one sentence."""


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell, its annotation as text."""

    name: str
    kind: str
    default: object


def read_notebook(path: Path) -> NotebookNode:
    """Read a notebook; ``RerunError`` where there is none."""
    try:
        return nbformat.read(path, as_version=4)
    except OSError as error:
        raise RerunError(f"{path} cannot be read ({error.strerror}).") from error
    except Exception as error:  # nbformat has several words for it
        raise RerunError(f"{path} is no notebook ({type(error).__name__}).") from error


def parameters_of(notebook: NotebookNode) -> dict[str, Parameter]:
    """The parameters of a notebook by name: the annotated literals of its one cell.

    Unlike ``papermill.inspect_notebook`` it also reads values of several lines.
    Raises ``RerunError`` for anything else in that cell, which would keep its old
    value after papermill has injected new ones.
    """
    cells = [cell for cell in notebook.cells if "parameters" in tags_of(cell)]
    if len(cells) != 1:
        raise RerunError(f"one cell must be tagged parameters, got {len(cells)}.")
    try:
        lines = ast.parse(cells[0].source).body
    except SyntaxError as error:
        raise RerunError(f"the parameters cell does not parse ({error}).") from error
    return {line.name: line for line in map(_parameter, lines)}


def tags_of(cell: NotebookNode) -> list[str]:
    """The tags of a cell."""
    return cell.metadata.get("tags", [])


def _parameter(line: ast.stmt) -> Parameter:
    text = ast.unparse(line)
    wrong = RerunError(f"the parameters cell must hold annotated literals, got {text}.")
    if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
        raise wrong
    name, kind = line.target.id, ast.unparse(line.annotation)
    if kind not in (*KINDS, *LISTS):
        known = ", ".join([*KINDS, *LISTS])
        raise RerunError(f"{name} must be annotated with one of {known}, got {kind}.")
    try:
        value = ast.literal_eval(line.value)
    except (ValueError, TypeError):
        raise wrong from None
    return Parameter(name, kind, _as_kind(value, kind, name=name))


def from_arguments(
    arguments: list[str], parameters: dict[str, Parameter]
) -> dict[str, object]:
    """Values of ``name=value`` arguments, read as YAML where they are not text."""
    given: dict[str, object] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            raise RerunError(f"-p must be name=value, got {argument!r}.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise RerunError(f"the value of {name} is no YAML: {text!r}.") from None
        is_text = name in parameters and parameters[name].kind == "str"
        given[name] = text if is_text and not isinstance(value, str) else value
    return given


def read_profile(path: Path) -> dict[str, dict[str, object]]:
    """A profile: the parameters of each chapter by its name."""
    try:
        profile = yaml.safe_load(path.read_text())
    except OSError as error:
        raise RerunError(f"{path} cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = " ".join(str(error).split())
        raise RerunError(f"{path} is no YAML ({first}).") from error
    sections = profile.values() if isinstance(profile, dict) else [None]
    if not all(isinstance(section, dict) for section in sections):
        raise RerunError(f"{path} must map chapters to their parameters.")
    return profile


def section_of(path: Path, chapter: str) -> dict[str, object]:
    """The section of `chapter` in a profile, which must have one."""
    profile = read_profile(path)
    if chapter not in profile:
        known = ", ".join(profile)
        raise RerunError(f"{path} has no section {chapter}, only {known}.")
    return profile[chapter]


def checked(
    parameters: dict[str, Parameter], given: dict[str, object]
) -> dict[str, object]:
    """`given` with each value of its parameter's type; an integer may be a float.

    Raises ``RerunError`` for an unknown name, with the nearest one, and for a value of
    another type.
    """
    for name in given:
        if name not in parameters:
            near = difflib.get_close_matches(name, parameters, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            known = ", ".join(parameters)
            raise RerunError(f"no parameter is named {name}{hint}; there are {known}.")
    return {
        name: _as_kind(value, parameters[name].kind, name=name)
        for name, value in given.items()
    }


def _as_kind(value: object, kind: str, *, name: str) -> object:
    if kind in LISTS and isinstance(value, list):
        return [_as_kind(item, kind[5:-1], name=f"{name}'s items") for item in value]
    if kind == "float" and type(value) in (int, float, str):
        # YAML 1.1 takes 1e-3 for text: its numbers in powers have a point and a sign.
        with contextlib.suppress(ValueError):
            if math.isfinite(float(value)):
                return float(value)
    elif kind in KINDS and type(value) is KINDS[kind]:
        return value
    raise RerunError(f"{name} must be {kind}, got {value!r}.")


PLAIN = r"[a-z0-9_-]+(\.[a-z0-9_-]+)*"  # one file name on every system
LONGEST_NAME = 100  # characters of a folder's name; systems allow 255 bytes


@dataclass(frozen=True)
class Point:
    """One run of a sweep: its values of the grid, and all that the rerun is given."""

    varied: dict[str, object]
    given: dict[str, object]
    folder: Path


def grid_of(
    arguments: list[str], parameters: dict[str, Parameter]
) -> dict[str, list[object]]:
    """Values to try by name, from ``name=a,b,c``: YAML lists without their brackets.

    Values of parameters that are text stay text, 7 and no included. Raises
    ``RerunError`` for what a rerun would not take, for a name or a value given twice,
    and for no value.
    """
    grid: dict[str, list[object]] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            raise RerunError(f"-p must be name=value,value,…, got {argument!r}.")
        if name in grid:
            raise RerunError(f"{name} is given twice; one -p takes all its values.")
        is_text = name in parameters and "str" in parameters[name].kind
        values = _listed(name, text, yaml.BaseLoader if is_text else yaml.SafeLoader)
        grid[name] = [checked(parameters, {name: value})[name] for value in values]
        if not values:
            raise RerunError(f"{name} must have at least one value, got none.")
        for index, value in enumerate(grid[name]):
            if value in grid[name][:index]:
                raise RerunError(f"{name} has the value {text_of(value)} twice.")
    return grid


def _listed(name: str, text: str, loader: type) -> list[object]:
    try:
        values = yaml.load(f"[{text}]", Loader=loader)
    except (yaml.YAMLError, ValueError):  # the latter for a date that is none
        values = None
    if not isinstance(values, list):
        raise RerunError(f"the values of {name} are no YAML list: {text!r}.")
    return values


def points_of(
    grid: dict[str, list[object]], base: dict[str, object], out: Path
) -> list[Point]:
    """All combinations of a grid's values over `base`; the last name varies fastest."""
    combinations = itertools.product(*grid.values())
    each = [dict(zip(grid, values, strict=True)) for values in combinations]
    return [Point(varied, base | varied, out / name_of(varied)) for varied in each]


def name_of(varied: dict[str, object]) -> str:
    """A point's folder: ``seed=0,tau=0.1``, with a hash if it is long or not plain.

    Names are sorted, so that it does not depend on the order of ``-p``. Two points
    never have the same, on a system that ignores case neither.
    """
    varied = dict(sorted(varied.items()))
    lists = {name: v if isinstance(v, list) else [v] for name, v in varied.items()}
    texts = {name: [text_of(item) for item in v] for name, v in lists.items()}
    name = ",".join(f"{name}={'+'.join(items)}" for name, items in texts.items())
    pieces = [*texts, *(item for items in texts.values() for item in items or [""])]
    plain = all(re.fullmatch(PLAIN, piece) for piece in pieces)
    if plain and len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(json.dumps(varied).encode()).hexdigest()[:10]
    safe = re.sub(r"[^A-Za-z0-9_.=,+-]", "_", name)
    return f"{safe[:LONGEST_NAME]}-{digest}"


def text_of(value: object) -> str:
    """A parameter's value as ``-p`` takes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
