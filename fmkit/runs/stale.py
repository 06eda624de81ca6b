"""Whether a chapter's outputs still belong to its code and to the code it imports."""

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

PACKAGE = Path(__file__).parents[1]
HASH = "source_hash"  # under "fmkit" in a notebook's metadata


def is_stale(notebook: NotebookNode, *, package: Path = PACKAGE) -> bool:
    """Whether the hash stored with the outputs is another than the code's of today."""
    stored = notebook.metadata.get("fmkit", {}).get(HASH)
    return stored != source_hash(notebook, package=package)


def source_hash(notebook: NotebookNode, *, package: Path = PACKAGE) -> str:
    """Hash of all that decides the outputs: of the chapter and of what it imports.

    These are its code cells, the modules of `package` that it imports, transitively
    and found without running anything, without comments and docstrings, and the files
    beside a module that the module names.
    """
    cells = [c.source for c in notebook.cells if c.cell_type == "code"]
    digest = hashlib.sha256("\0".join(cells).encode())
    for path in sorted(_modules(cells, package)):
        module = ast.parse(path.read_text())
        digest.update(f"\0{path.relative_to(package)}\0{canonical(module)}".encode())
        for file in sorted(_files_named(module, path.parent)):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def canonical(tree: ast.AST) -> str:
    """A syntax tree as text, without docstrings, alike in every version of Python.

    ``ast.dump`` writes other fields from one version to the next; here empty ones are
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


def _modules(cells: list[str], package: Path) -> set[Path]:
    """Files of the modules of `package` that some code imports, transitively."""
    to_python = TransformerManager().transform_cell  # magics become calls
    pending = list(map(to_python, cells))
    found: set[Path] = set()
    while pending:
        try:
            tree = ast.parse(pending.pop())
        except SyntaxError:  # it will fail where it runs, which says more
            continue
        files = {path for name in _imported(tree) for path in _files_of(name, package)}
        pending += [path.read_text() for path in files - found]
        found |= files
    return found


def _imported(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that may be a module; some are names inside one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files_of(name: str, package: Path) -> Iterator[Path]:
    """The files that importing `name` runs: its packages' and its own."""
    first, *rest = name.split(".")
    if first != package.name:
        return
    folder = package
    yield folder / "__init__.py"
    for part in rest:
        folder = folder / part
        candidates = (folder.with_suffix(".py"), folder / "__init__.py")
        yield from (path for path in candidates if path.is_file())


def _files_named(module: ast.AST, folder: Path) -> set[Path]:
    """Files in a module's folder that a text in the module names: its data."""
    texts = {n.value for n in ast.walk(module) if isinstance(n, ast.Constant)}
    names = {text for text in texts if isinstance(text, str) and text}
    files = {path for path in folder.iterdir() if path.is_file()}
    return {path for path in files if path.name in names}
