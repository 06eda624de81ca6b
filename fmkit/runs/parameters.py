"""What a notebook is run with: values for its parameters, profiles, and grids."""

import difflib
import hashlib
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
import yaml
from nbformat import NotebookNode

from fmkit.runs.cells import Parameter, RerunError, as_kind, parameters_in, tags_of

PLAIN = r"[a-z0-9_-]+(\.[a-z0-9_-]+)*"  # the same file name on every system
LONGEST_NAME = 100  # characters of a folder's name; systems allow 255 bytes


def read_notebook(path: Path) -> NotebookNode:
    """Read a notebook; raises RerunError if the file does not hold one."""
    try:
        return nbformat.read(path, as_version=4)
    except OSError as error:
        raise RerunError(f"{path} cannot be read ({error.strerror}).") from error
    except Exception as error:  # nbformat raises errors of many kinds
        kind = type(error).__name__
        raise RerunError(f"{path} is not a notebook ({kind}).") from error


def parameters_of(notebook: NotebookNode) -> dict[str, Parameter]:
    """Return a notebook's parameters by name, from the cell tagged ``parameters``.

    Raises RerunError if there is not exactly one such cell, or if it holds anything but
    annotated literals, see :func:`fmkit.runs.cells.parameters_in`.
    """
    cells = [cell for cell in notebook.cells if "parameters" in tags_of(cell)]
    if len(cells) != 1:
        raise RerunError(f"one cell must be tagged parameters, got {len(cells)}.")
    return parameters_in(cells[0].source)


def defaults_of(notebook: NotebookNode) -> dict[str, object]:
    """Return the values that a notebook's parameters cell gives, by name."""
    return {p.name: p.default for p in parameters_of(notebook).values()}


def from_arguments(
    arguments: list[str], parameters: dict[str, Parameter]
) -> dict[str, object]:
    """Read ``name=value`` arguments as YAML, except values of text parameters."""
    given: dict[str, object] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            raise RerunError(f"-p must be name=value, got {argument!r}.")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):  # the latter for an impossible date
            raise RerunError(f"the value of {name} is not YAML: {text!r}.") from None
        is_text = name in parameters and parameters[name].kind == "str"
        given[name] = text if is_text and not isinstance(value, str) else value
    return given


def read_profile(path: Path) -> dict[str, dict[str, object]]:
    """Read a profile: the parameters of each chapter, by the chapter's name.

    Raises RerunError if the file cannot be read or holds anything else.
    """
    try:
        profile = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RerunError(f"{path} cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, ValueError) as error:  # the latter for bytes and dates
        first = " ".join(str(error).split())
        raise RerunError(f"{path} is not YAML ({first}).") from error
    sections = profile.values() if isinstance(profile, dict) else [None]
    if not all(isinstance(section, dict) for section in sections):
        raise RerunError(f"{path} must map chapters to their parameters.")
    return profile


def section_of(path: Path, chapter: str) -> dict[str, object]:
    """Return the section of `chapter` in a profile; raises RerunError without one."""
    profile = read_profile(path)
    if chapter not in profile:
        known = ", ".join(map(str, profile))
        raise RerunError(f"{path} has no section {chapter}, only {known}.")
    return profile[chapter]


def checked(
    parameters: dict[str, Parameter], given: dict[str, object]
) -> dict[str, object]:
    """Return `given` with each value as its parameter's type.

    Raises RerunError for an unknown name, with the nearest known name, and for a value
    of another type.
    """
    for name in given:
        if name not in parameters:
            near = difflib.get_close_matches(str(name), parameters, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            known = ", ".join(parameters)
            raise RerunError(f"no parameter is named {name}{hint}; there are {known}.")
    return {
        name: as_kind(value, parameters[name].kind, name=name)
        for name, value in given.items()
    }


@dataclass(frozen=True)
class Point:
    """One run of a sweep: its values of the grid, and every value given to its run."""

    varied: dict[str, object]
    given: dict[str, object]
    folder: Path


def grid_of(
    arguments: list[str], parameters: dict[str, Parameter]
) -> dict[str, list[object]]:
    """Read the values to try, by name, from ``name=a,b,c``: YAML without brackets.

    Values of text parameters stay text, including 7 and no. Raises RerunError for a
    value that a rerun would refuse, for a name or a value that is given twice, and for
    a name without a value.
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
    except (yaml.YAMLError, ValueError):  # the latter for an impossible date
        values = None
    if not isinstance(values, list):
        raise RerunError(f"the values of {name} are not a YAML list: {text!r}.")
    return values


def points_of(
    grid: dict[str, list[object]], base: dict[str, object], out: Path
) -> list[Point]:
    """Combine a grid's values with `base`; the last name varies fastest."""
    combinations = itertools.product(*grid.values())
    points = [dict(zip(grid, values, strict=True)) for values in combinations]
    return [Point(varied, base | varied, out / name_of(varied)) for varied in points]


def name_of(varied: dict[str, object]) -> str:
    """Name a point's folder: ``seed=0,tau=0.1``, with a hash if long or not plain.

    Parameters are sorted, so the name does not depend on the order of ``-p``. Two
    points never get the same name, even on a system that ignores case.
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
    """Write a parameter's value as ``-p`` takes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
