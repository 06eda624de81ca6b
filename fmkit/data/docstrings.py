"""Text that every reader of this book has: docstrings of installed libraries."""

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
TESTS = {"test", "tests", "testing"}  # folders that are left out
FEWEST_WORDS = 20  # of a docstring; below it says little more than a name does


@dataclass(frozen=True)
class Document:
    """A text, what it is labelled with, and what it must not be parted from."""

    text: str
    label: str  # its library; empty for a file
    group: str  # its module, or its file


def docstrings(libraries: Sequence[str] = LIBRARIES) -> list[Document]:
    """Docstrings of modules, classes and functions, each with its library and module.

    They are read from the source files of the installed libraries, which are parsed
    and never imported, in the order of the files and of their lines. Left out are
    folders of tests, texts of fewer than 20 words, and those that are not plain ASCII
    (1 in 60), so that an alphabet of characters is small. Duplicates are left in.
    Raises ``ValueError`` for a library that is not installed.
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
        for library, folder, path in progress(files, label="read docstrings"):
            module = ".".join(path.relative_to(folder.parent).with_suffix("").parts)
            group = module.removesuffix(".__init__")
            texts = _docstrings_in(path)
            documents += [Document(text, library, group) for text in texts]
    return documents


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A syntax tree has no cycles, yet to look for them takes half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _folder(library: str) -> Path:
    """Where `library` lies. Looking for a package at the top does not import it."""
    spec = importlib.util.find_spec(library)
    rule = "be installed (`pip install scikit-learn` gives sklearn)"
    require(spec is not None and spec.origin is not None, "libraries", rule, library)
    return Path(spec.origin).parent


def _docstrings_in(path: Path) -> Iterator[str]:
    source = path.read_bytes()
    if b'"""' not in source and b"'''" not in source:
        return  # nothing of 20 words is there; to parse is what takes time
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a library's own "\d" in plain strings
            tree = ast.parse(source)
    except SyntaxError:
        return  # written for a newer Python; the library does not import it here
    for node in _definitions(tree):
        text = ast.get_docstring(node) or ""
        if text.isascii() and len(text.split()) >= FEWEST_WORDS:
            yield text


def _definitions(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """`node` and what is defined in it, in the order of lines."""
    yield node
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _definitions(child)
