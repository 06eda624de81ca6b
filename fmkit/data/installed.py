"""What is installed beside this book, as a corpus: sources and documentation.

The sources hold their docstrings. :mod:`fmkit.data.text` drops near duplicates, and
splits the documents.
"""

import sysconfig
from collections.abc import Iterator
from email.message import Message
from importlib.metadata import Distribution, distributions
from pathlib import Path

from fmkit.data.docstrings import TESTS, Document

SUFFIXES = (".py", ".md", ".rst", ".txt")
LARGEST = 300_000  # bytes; a larger file is a table of data rather than text
LIBRARY = "Python"  # what the standard library is called among the distributions
OWN = "fmkit"  # left out, because it holds the tasks that a model is asked


def load_installed() -> list[Document]:
    """Load sources and documentation of all that is installed, in a fixed order.

    They are the files with the suffixes ``SUFFIXES`` of the standard library and of
    every distribution that :func:`licences` names, and the description in the metadata
    of each distribution, which is usually its README. A document has the name of its
    distribution as label, and its folder as group, so a split by group keeps the
    modules of a package on one side. Folders of tests are skipped, and so are files
    beside the metadata, such as licence texts, files of more than 300,000 bytes, and
    those that are not UTF-8. Duplicates are kept. Which documents there are depends on
    the versions installed.
    """
    documents = []
    folder = Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.rglob("*")):
        if "site-packages" not in path.parts:
            place = Path(LIBRARY) / path.relative_to(folder)
            documents += _read(path, LIBRARY, place)
    for name, distribution in _distributions():
        about = distribution.metadata.get_payload()
        if isinstance(about, str) and about.strip():
            documents.append(Document(about, name, f"{name} metadata"))
        for file in sorted(distribution.files or (), key=str):
            if not file.parts[0].endswith(".dist-info"):
                path = Path(distribution.locate_file(file))
                documents += _read(path, name, Path(file))
    return documents


def licences() -> dict[str, str]:
    """Return the licence of each distribution of the corpus, from its metadata.

    Keys are names with versions, and the standard library is among them. A distribution
    whose metadata names no licence is not in the corpus, and this book is not either.
    """
    version = sysconfig.get_python_version()
    found = {f"{LIBRARY} {version}": "PSF-2.0"}
    for name, distribution in _distributions():
        found[f"{name} {distribution.version}"] = _licence(distribution.metadata)
    return found


def _distributions() -> Iterator[tuple[str, Distribution]]:
    """Yield each distribution that names a licence, with its name, in order of names.

    They may be of the class of another package, importlib_metadata, if it is imported.
    """
    named = {d.metadata["Name"].lower(): d for d in reversed([*distributions()])}
    for name, distribution in sorted(named.items()):
        if name != OWN and _licence(distribution.metadata):
            yield name, distribution


def _licence(about: Message) -> str:
    """Return the licence that the metadata name, in the form that they have."""
    classified = [
        line.rsplit(" :: ", 1)[1]
        for line in about.get_all("Classifier", [])
        if line.startswith("License :: ") and not line.endswith("OSI Approved")
    ]
    in_words = (about.get("License") or "").strip()
    in_words = "" if in_words.upper() == "UNKNOWN" else in_words.split("\n")[0]
    return about.get("License-Expression") or ", ".join(classified) or in_words


def _read(path: Path, name: str, place: Path) -> Iterator[Document]:
    """Yield the document in a file, if it is text and no test."""
    wanted = path.suffix in SUFFIXES and TESTS.isdisjoint(place.parts)
    if wanted and path.is_file() and path.stat().st_size <= LARGEST:
        try:
            text = path.read_text(encoding="utf-8")  # its lines end in \n
        except UnicodeDecodeError:
            return
        if text.strip():
            folder = place.parent.as_posix()
            yield Document(text, name, name if folder == "." else folder)
