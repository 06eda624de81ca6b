"""Labelled texts: from which library does a docstring come? Or a file of your own.

Axes: n texts, V words of a vocabulary. A label is the position of a class, for
docstrings in ``LIBRARIES``.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from fmkit._check import require
from fmkit.data.docstrings import LIBRARIES, Document
from fmkit.data.text import without_near_duplicates
from fmkit.tasks._pairs import SUFFIXES, read_pairs

HIDDEN = "_"  # replaces a word that would give the library away
# The libraries, their usual short names, and the types that each is known for
NAMES = {
    *("numpy", "np", "scipy", "sp", "sklearn", "scikit", "matplotlib", "mpl", "plt"),
    *("pyplot", "pylab", "torch", "pytorch", "ndarray", "ndarrays", "tensor"),
    *("tensors", "estimator", "estimators", "axes", "artist", "artists"),
}
WORD = re.compile(r"[A-Za-z_](?:[\w.]*\w)?")
TEST_EVERY = 5  # of the texts of each class, one in five is for the test
# Chinese has no spaces between words, so each of its characters counts as one
LETTERS = re.compile(r"[\u3400-\u9fff]|[^\W\d_\u3400-\u9fff]+")


def library_task(
    documents: Iterable[Document], *, words: int
) -> tuple[list[str], Int64[Tensor, " n"]]:
    """Return the beginnings of `documents`, without telling names, and their labels.

    Each beginning has at most `words` words and ends with its last word. Of equal
    beginnings only the first is kept. Raises ValueError if `words` is less than 1 and
    if a document is of another library.
    """
    hidden = (replace(d, text=without_names(d.text)) for d in documents)
    return label_task(hidden, classes=LIBRARIES, words=words)


def label_task(
    documents: Iterable[Document], *, classes: Sequence[str], words: int
) -> tuple[list[str], Int64[Tensor, " n"]]:
    """Return the beginnings of `documents` and their labels, positions in `classes`.

    Each beginning has at most `words` words and ends with its last word. Of equal
    beginnings only the first is kept. Raises ValueError if `words` is less than 1 and
    if a document is of another class.
    """
    require(words >= 1, "words", "be at least 1", words)
    labels: dict[str, int] = {}
    for document in documents:
        rule = f"be labelled with one of {', '.join(classes)}"
        require(document.label in classes, "documents", rule, document.label)
        text = beginning(document.text, words=words)
        labels.setdefault(text, classes.index(document.label))
    return [*labels], torch.tensor([*labels.values()], dtype=torch.int64)


def load_labelled(
    path: str | Path,
) -> tuple[list[Document], list[Document], tuple[str, ...]]:
    """Load labelled texts from a CSV or JSONL file: train, test, and the classes.

    A line has a text and its label, in two columns or under two names, such as text and
    label. Near duplicates are dropped
    (:func:`fmkit.data.text.without_near_duplicates`). A fifth of the texts of each
    class, and at least one, is for the test; which ones depends on the texts alone.
    Classes are in the order of their names. Raises ValueError if there is no such file,
    if it is not of this form, if a text or a label is empty, and if there are fewer
    than 2 classes or 2 different texts of a class.
    """
    path = Path(os.path.expanduser(path))
    known = os.path.isfile(path) and path.suffix.lower() in SUFFIXES
    rule = f"be docstrings, or a file that exists, in {', '.join(SUFFIXES)}"
    require(known, "data", rule, str(path))
    pairs = read_pairs(path)
    for pair in pairs:
        require(all(map(str.strip, pair)), "data", "have no empty text or label", pair)
    documents = [Document(text, label.strip(), path.name) for text, label in pairs]
    documents = without_near_duplicates(documents)
    classes = tuple(sorted({document.label for document in documents}))
    require(len(classes) >= 2, "data", "have at least 2 different labels", classes)
    order = sorted(documents, key=lambda d: hashlib.sha256(d.text.encode()).digest())
    train, test = [], []
    for label in classes:
        of_class = [document for document in order if document.label == label]
        rule = f"have at least 2 different texts labelled {label}"
        require(len(of_class) >= 2, "data", rule, len(of_class))
        count = max(1, len(of_class) // TEST_EVERY)
        test += of_class[:count]
        train += of_class[count:]
    return train, test, classes


def without_names(text: str) -> str:
    """Replace words of `text` that identify the library on their own with ``HIDDEN``.

    These are words of code (a dot or an underscore inside, a capital after a small
    letter: ``stats.norm``, ``n_samples``, ``DataFrame``), and ``NAMES`` in capitals or
    small letters. All other words stay, even those that one library uses more often: a
    bag of words measures how much they reveal.
    """
    return WORD.sub(lambda match: _hidden(match[0]), text)


def beginning(text: str, *, words: int) -> str:
    """Return the first `words` words of `text`, with the white space between them.

    Raises ValueError if `words` is less than 1.
    """
    require(words >= 1, "words", "be at least 1", words)
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    return text[: ends[min(words, len(ends)) - 1]] if ends else ""


def bag_of_words(
    texts: Sequence[str], *, vocabulary: Sequence[str]
) -> Int64[Tensor, "n V"]:
    """Count each word of `vocabulary` in each text, in small letters."""
    number = {word: i for i, word in enumerate(vocabulary)}
    counts = torch.zeros(len(texts), len(vocabulary), dtype=torch.int64)
    for row, text in zip(counts, texts, strict=True):
        for word in words_of(text):
            if word in number:
                row[number[word]] += 1
    return counts


def words_of(text: str) -> list[str]:
    """Return the words of `text`, in small letters: runs of letters."""
    return LETTERS.findall(text.lower())


def _hidden(word: str) -> str:
    """Return `word`, or ``HIDDEN`` if it is code or one of ``NAMES``."""
    inner = word.strip("_.")
    code = re.search(r"[._]|[a-z][A-Z]", inner)
    return HIDDEN if code or inner.lower() in NAMES else word
