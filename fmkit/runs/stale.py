"""Tell whether a notebook's stored outputs were made by the code and data of today."""

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode

from fmkit.runs.cells import code_of, results_named, tags_of, trees_of
from fmkit.runs.record import METADATA, results

PACKAGE = Path(__file__).parents[1]
HASH = "source_hash"  # under METADATA in a notebook
NEEDS = "needs-fmkit"  # the tag of a cell that only says what to install


def is_stale(notebook: NotebookNode, *, package: Path = PACKAGE) -> bool:
    """Tell whether the hash stored with the outputs differs from today's."""
    stored = notebook.metadata.get(METADATA, {}).get(HASH)
    return stored != source_hash(notebook, package=package)


def source_hash(notebook: NotebookNode, *, package: Path = PACKAGE) -> str:
    """Hash everything that decides a notebook's outputs.

    This is the code of its cells, except one that only says how to install fmkit; the
    modules of `package` that it imports, directly or
    not, without their comments and docstrings; the data files that these modules name,
    see :func:`data_of`; and each folder of ``results`` that cells or modules read.
    Nothing is executed.
    """
    counted = [cell for cell in notebook.cells if NEEDS not in tags_of(cell)]
    cells = code_of({"cells": counted})
    digest = hashlib.sha256("\0".join(cells).encode())
    trees = trees_of(cells)
    modules = _modules(trees, package)
    for path, module in sorted(modules.items()):
        name = path.relative_to(package).as_posix()
        digest.update(f"\0{name}\0{module.code}".encode())
    folders = results_named(trees).union(*(m.results for m in modules.values()))
    read = {results(name, package=package) for name in folders}
    read = read.union(*(module.data for module in modules.values()))
    for file in sorted({file for place in read for file in _files(place)}):
        digest.update(f"\0{'/'.join(file.parts[-2:])}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def canonical(tree: ast.AST) -> str:
    """Write a syntax tree as text, without docstrings, equal in every Python version.

    ``ast.dump`` writes other fields from one version to the next; here empty fields are
    left out.
    """
    parts = []
    for name in tree._fields:
        value = getattr(tree, name, None)
        if name == "body" and _has_docstring(tree):
            value = value[1:]
        if isinstance(tree, ast.Constant) and name == "value":
            parts.append(repr(value))
        elif value is not None and value != []:
            parts.append(f"{name}={_canonical_value(value)}")
    return f"{type(tree).__name__}({', '.join(parts)})"


def _canonical_value(value: object) -> str:
    if isinstance(value, ast.AST):
        return canonical(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_canonical_value, value))}]"
    return repr(value)


def _has_docstring(tree: ast.AST) -> bool:
    holders = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return isinstance(tree, holders) and ast.get_docstring(tree) is not None


def data_of(tree: ast.AST, path: Path) -> set[Path]:
    """Collect the files and folders that the module at `path` names by its own place.

    ``Path(__file__).with_name("names.txt")`` is a file or a folder beside the module,
    and ``Path(__file__).parent / "names.txt"`` is the same. ``Path(__file__).parent``
    alone is the whole folder. ``.parents[1]`` is a place to start from, not data.
    """
    place = _place(tree, path)
    if place is not None and place != path:
        return {place}
    children = ast.iter_child_nodes(tree)
    return {place for child in children for place in data_of(child, path)}


def _place(node: ast.AST, path: Path) -> Path | None:
    """Evaluate an expression of a path that begins with ``Path(__file__)``."""
    match node:
        case ast.Call(ast.Name("Path"), [ast.Name("__file__")]):
            return path
        case ast.Attribute(value, "parent"):
            start = _place(value, path)
            return start and start.parent
        case ast.Call(ast.Attribute(value, "with_name"), [ast.Constant(str(name))]):
            start = _place(value, path)
            return start and start.with_name(name)
        case ast.BinOp(left, ast.Div(), ast.Constant(str(name))):
            start = _place(left, path)
            return start and start / name
    return None


def _files(place: Path) -> Iterable[Path]:
    """List a file, or the files of a whole folder that are neither code nor hidden."""
    if place.is_file():
        return [place]
    files = (path for path in place.rglob("*") if path.is_file())
    return [f for f in files if f.suffix not in (".py", ".pyc") and f.name[0] != "."]


@dataclass(frozen=True)
class _Module:
    """What decides outputs in a module: its code, and what it imports and reads."""

    code: str
    imported: frozenset[str]
    results: frozenset[str]
    data: frozenset[Path]


@functools.cache  # notebooks share most of their modules, and parsing takes a while
def _module(path: Path, text: str) -> _Module:
    tree = ast.parse(text)
    return _Module(
        canonical(tree),
        frozenset(_imported(tree)),
        frozenset(results_named([tree])),
        frozenset(data_of(tree, path)),
    )


def _modules(trees: Iterable[ast.AST], package: Path) -> dict[Path, _Module]:
    """Read the modules of `package` that code imports, directly or not, by file."""
    pending = [name for tree in trees for name in _imported(tree)]
    modules: dict[Path, _Module] = {}
    while pending:
        for path in set(_files_of(pending.pop(), package)) - set(modules):
            modules[path] = _module(path, path.read_text(encoding="utf-8"))
            pending += modules[path].imported
    return modules


def _imported(tree: ast.AST) -> Iterator[str]:
    """Yield every dotted name that may be a module; some are names inside a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files_of(name: str, package: Path) -> Iterator[Path]:
    """Yield the files that importing `name` runs: its packages' and its own."""
    first, *rest = name.split(".")
    if first != package.name:
        return
    folder = package
    yield folder / "__init__.py"
    for part in rest:
        folder = folder / part
        candidates = (folder.with_suffix(".py"), folder / "__init__.py")
        yield from (path for path in candidates if path.is_file())
