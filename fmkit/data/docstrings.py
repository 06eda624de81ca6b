"""Docstrings of installed libraries: a corpus that every reader already has."""

import ast
import gc
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fmkit._check import require
from fmkit.progress import progress

LIBRARIES = ("numpy", "scipy", "sklearn", "matplotlib", "torch")
TESTS = {"test", "tests", "testing"}  # folders that are skipped
FEWEST_WORDS = 20  # a shorter docstring says little more than the name does


@dataclass(frozen=True)
class Document:
    """A text, its label, and the group that must stay on one side of a split."""

    text: str
    label: str  # its library; empty for a file
    group: str  # its module, or its file


def load_docstrings(libraries: Sequence[str] = LIBRARIES) -> list[Document]:
    """Load docstrings of modules, classes and functions with their library and module.

    They are read from the source files of the installed libraries, in the order of the
    files and of their lines. The files are parsed and never imported. Folders of tests
    and texts of fewer than 20 words are skipped, and so are texts that are not plain
    ASCII (1 in 60), because an alphabet of characters should be small. Duplicates are
    kept. Raises ValueError if a library is not installed.
    """
    files = [
        (library, folder, path)
        for library in libraries
        for folder in [_folder(library)]
        for path in sorted(folder.rglob("*.py"))
        if TESTS.isdisjoint(path.relative_to(folder).parts)
    ]
    documents = []
    with _no_garbage_collection():
        for library, folder, path in progress(files, bar="read docstrings"):
            module = ".".join(path.relative_to(folder.parent).with_suffix("").parts)
            group = module.removesuffix(".__init__")
            texts = _docstrings_in(path)
            documents += [Document(text, library, group) for text in texts]
    return documents


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Stop garbage collection, because looking for cycles takes half of the time.

    A syntax tree has none.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _folder(library: str) -> Path:
    """Return the folder of `library`, which is found without importing it."""
    spec = importlib.util.find_spec(library)
    rule = "be installed (`pip install scikit-learn` gives sklearn)"
    require(spec is not None and spec.origin is not None, "libraries", rule, library)
    return Path(spec.origin).parent


def _docstrings_in(path: Path) -> Iterator[str]:
    """Yield the docstrings in a source file that are ASCII and long enough."""
    source = path.read_bytes()
    if b'"""' not in source and b"'''" not in source:
        return  # no docstring of 20 words; parsing is what takes time
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a library's own "\d" in plain strings
            tree = ast.parse(source)
    except SyntaxError:
        return  # written for a newer Python; this one cannot import it either
    for node in _definitions(tree):
        text = ast.get_docstring(node) or ""
        if text.isascii() and len(text.split()) >= FEWEST_WORDS:
            yield text


def _definitions(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield `node` and the definitions in it, in the order of lines."""
    yield node
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _definitions(child)
