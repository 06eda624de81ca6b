"""What a notebook is run with: values for its parameters, profiles, and grids."""

import contextlib
import difflib
import hashlib
import itertools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
import yaml
from nbformat import NotebookNode

from fmkit._check import one_line
from fmkit.assets.catalogue import ASSETS
from fmkit.runs.cells import (
    EITHER,
    KINDS,
    LISTS,
    Parameter,
    RerunError,
    as_kind,
    parameters_in,
    tags_of,
)

# Parameters whose value may be a path, and one that names a folder of the output.
PATHS, KEEP = ("data", "text", "tasks", "pretrained"), "keep"
PATH = rf"(\.{{1,2}}|~[^/]*)?[/{re.escape(os.sep)}]|(\.{{1,2}}|~)$"  # how one begins
NUMBERS = {
    "int": "[+-]?[0-9]+",
    "float": r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?",
}
BOOLS = {"true": True, "True": True, "false": False, "False": False}
MERGE = "tag:yaml.org,2002:merge"
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


def parameters_cell(notebook: NotebookNode) -> str:
    """Return the source of the cell tagged ``parameters``, comments included.

    Raises RerunError if there is not exactly one such cell.
    """
    cells = [cell for cell in notebook.cells if "parameters" in tags_of(cell)]
    if len(cells) != 1:
        raise RerunError(f"one cell must be tagged parameters, got {len(cells)}.")
    return cells[0].source


def parameters_of(notebook: NotebookNode) -> dict[str, Parameter]:
    """Return a notebook's parameters by name, from the cell tagged ``parameters``.

    Raises RerunError if there is not exactly one such cell, or if it holds anything but
    annotated literals, see :func:`fmkit.runs.cells.parameters_in`.
    """
    return parameters_in(parameters_cell(notebook))


def defaults_of(notebook: NotebookNode) -> dict[str, object]:
    """Return the values that a notebook's parameters cell gives, by name."""
    return {p.name: p.default for p in parameters_of(notebook).values()}


def from_arguments(
    arguments: list[str], parameters: dict[str, Parameter]
) -> dict[str, object]:
    """Read ``name=value`` arguments: each value as its parameter's type.

    The value of a text parameter is what stands after ``=``, as it stands; lists are
    those of YAML, such as ``[a, 'b, c']``. Raises RerunError for an unknown name, with
    the nearest known name, for a value of another type, and for a name given twice.
    """
    given: dict[str, object] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            raise RerunError(f"-p must be name=value, got {argument!r}.")
        if name in given:
            raise RerunError(f"{name} is given twice.")
        kind = _known(name, parameters).kind
        given[name] = _of_text(_content(name, text, kind), kind, name=name)
    return given


def _content(name: str, text: str, kind: str) -> object:
    """Return `text` as it stands, or the texts of a list if `kind` has one."""
    several = kind in EITHER and text.lstrip().startswith("[")
    if kind not in LISTS and not several:
        return text
    content = _in_yaml(text)
    if content is None:
        raise RerunError(f"{name} must be a list such as [a, 'b, c'], got {text!r}.")
    return content


def _in_yaml(text: str) -> object:
    """Read the texts in a line of YAML; None if it is not YAML, or marks a text."""
    try:
        # YAML joins lines, and would drop the signs of an anchor or a tag from a text.
        events = [vars(event) for event in yaml.parse(text, Loader=_Texts)]
        marked = any(event.get("anchor") or event.get("tag") for event in events)
        if len(text.splitlines()) == 1 and not marked:
            return yaml.load(text, Loader=_Texts)
    except (yaml.YAMLError, RecursionError):
        pass
    return None


def _of_text(content: object, kind: str, *, name: str) -> object:
    """Return the value of type `kind` that `content` writes, text or a list of texts.

    Numbers are decimal. Raises RerunError for anything else.
    """
    if isinstance(content, list) and kind in (*LISTS, *EITHER):
        item = kind.partition("list[")[2][:-1]
        return [_of_text(text, item, name=f"{name}'s items") for text in content]
    if isinstance(content, str):
        text = content.strip()
        if kind in ("str", *EITHER):
            return content
        if kind == "bool" and text in BOOLS:
            return BOOLS[text]
        if kind in NUMBERS and re.fullmatch(NUMBERS[kind], text):
            # Python refuses to read an integer of thousands of digits.
            with contextlib.suppress(ValueError):
                return as_kind(KINDS[kind](text), kind, name=name)
    rule = "true or false" if kind == "bool" else kind
    raise RerunError(f"{name} must be {rule}, got {content!r}.")


class _Texts(yaml.SafeLoader):
    """Read YAML with every value as text, whose parameter says what it stands for.

    YAML 1.1 alone would read no as false, 010 as 8 and 12:30 as 750. A value that is
    left out is None. Tags are refused; anchors and ``<<`` work.
    """

    yaml_implicit_resolvers = {"<": [(MERGE, re.compile("^<<$"))]}  # noqa: RUF012

    def text(self, node: yaml.ScalarNode) -> str | None:
        return node.value if node.value or node.style else None


_Texts.yaml_constructors = {
    "tag:yaml.org,2002:str": _Texts.text,
    MERGE: _Texts.text,  # in a list, where nothing can be merged
    "tag:yaml.org,2002:seq": _Texts.construct_yaml_seq,
    "tag:yaml.org,2002:map": _Texts.construct_yaml_map,
    None: _Texts.construct_undefined,
}


def read_profile(path: Path) -> dict[str, dict[str, tuple[object, int]]]:
    """Read a profile: the parameters of each chapter, by the chapter's name.

    Each is what was typed, text or a list of texts, and its line; :func:`section_of`
    makes values of them. Raises RerunError if the file cannot be read or holds anything
    else, or a name twice.
    """
    try:
        loader = _Texts(path.read_text(encoding="utf-8"))
        profile = _entries(loader, loader.get_single_node(), path)
        return {
            name: {
                parameter: (loader.construct_object(content, deep=True), line)
                for parameter, (content, line) in _entries(loader, node, path).items()
            }
            for name, (node, _) in profile.items()
        }
    except OSError as error:
        raise RerunError(f"{path} cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise RerunError(f"{path} is not YAML ({one_line(error)}).") from error


def _entries(
    loader: _Texts, node: yaml.Node | None, path: Path
) -> dict[str, tuple[yaml.Node, int]]:
    """Return the nodes of a mapping and their lines, by name."""
    if not isinstance(node, yaml.MappingNode):
        raise RerunError(f"{path} must map chapters to their parameters.")
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            line = key.start_mark.line + 1
            raise RerunError(f"{path}, line {line}: a name must be text.")
    own = [(str(key.value), key.start_mark.line + 1) for key, _ in node.value]
    names = [name for name, _ in own]
    for index, (name, line) in enumerate(own):
        if name in names[:index]:
            raise RerunError(f"{path}, line {line}: {name} is given twice.")
    loader.flatten_mapping(node)  # puts what << names before what is written here
    return {
        str(key.value): (value, key.start_mark.line + 1) for key, value in node.value
    }


def section_of(
    path: Path, chapter: str, parameters: dict[str, Parameter]
) -> dict[str, object]:
    """Return the section of `chapter` in a profile, read as ``-p`` is.

    Paths are relative to the profile's folder or, if nothing is there, to the folder in
    which the command was typed. Raises RerunError without such a section, and with the
    line of an unknown name or of a value of another type.
    """
    profile = read_profile(path)
    if chapter not in profile:
        known = ", ".join(profile)
        raise RerunError(f"{path} has no section {chapter}, only {known}.")
    section = {}
    for name, (content, line) in profile[chapter].items():
        try:
            kind = _known(name, parameters).kind
            section[name] = _of_text(content, kind, name=name)
        except RerunError as error:
            raise RerunError(f"{path}, line {line}: {error}") from error
    return located(parameters, section, folders=[path.parent, Path()])


def located(
    parameters: dict[str, Parameter],
    given: dict[str, object],
    *,
    folders: Sequence[Path] = (Path(),),
) -> dict[str, object]:
    """Return `given` with absolute paths, because a kernel runs in another folder.

    The value of a parameter in ``PATHS`` is a path if there is something at it in one
    of `folders`, unless it is the name of an asset or the parameter's default; else it
    is left as it is, as the name of a model on the hub must be. A text that begins like
    ``./``, ``../``, ``~/`` or ``/`` is always a path. So is that of ``keep``, where a
    mere name is that of a folder inside the output folder.
    """

    def place(name: str, value: object) -> object:
        if isinstance(value, list):
            return [place(name, item) for item in value]
        default = parameters[name].default
        known = default if isinstance(default, list) else [default]
        if not isinstance(value, str) or value in ("", *ASSETS, *known):
            return value
        path = os.path.expanduser(value)
        places = [str(Path(folder, path).absolute()) for folder in folders]
        there = places if name in PATHS else []
        likely = places[:1] if re.match(PATH, value) else [value]
        return next((p for p in there if os.path.exists(p)), likely[0])

    return {
        name: place(name, value) if name in (*PATHS, KEEP) else value
        for name, value in given.items()
    }


def _known(name: str, parameters: dict[str, Parameter]) -> Parameter:
    """Return the parameter `name`; raises RerunError with the nearest known name."""
    if name not in parameters:
        near = difflib.get_close_matches(name, parameters, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        known = ", ".join(parameters)
        raise RerunError(f"no parameter is named {name}{hint}; there are {known}.")
    return parameters[name]


def checked(
    parameters: dict[str, Parameter], given: dict[str, object]
) -> dict[str, object]:
    """Return `given`, values of Python, with each as its parameter's type.

    Raises RerunError for an unknown name, with the nearest known name, and for a value
    of another type.
    """
    return {
        name: as_kind(value, _known(name, parameters).kind, name=name)
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

    A value without a comma is read as that of a rerun; with commas, a text that has
    one itself is put in quotes. Raises RerunError for a value that a rerun would
    refuse, and for a name or a value that is given twice.
    """
    grid: dict[str, list[object]] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            raise RerunError(f"-p must be name=value,value,…, got {argument!r}.")
        if name in grid:
            raise RerunError(f"{name} is given twice; one -p takes all its values.")
        kind = _known(name, parameters).kind
        one = "," not in text
        contents = [_content(name, text, kind)] if one else _in_yaml(f"[{text}]")
        if not isinstance(contents, list):
            raise RerunError(f"{name} must be values such as a,'b, c', got {text!r}.")
        grid[name] = [_of_text(content, kind, name=name) for content in contents]
        same = [v if isinstance(v, list) else [v] for v in grid[name]]  # a and [a]
        for index, value in enumerate(grid[name]):
            if same[index] in same[:index]:
                raise RerunError(f"{name} has the value {text_of(value)} twice.")
    return grid


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
