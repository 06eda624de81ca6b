"""The points of a sweep: values to try, their combinations, a folder for each."""

import hashlib
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from fmkit.rerun import Parameter, RerunError, checked

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
