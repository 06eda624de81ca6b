"""A labelled task without a download: from which library does a docstring come?

Axes: n texts, V words of a vocabulary. A label is the position of a library in
``LIBRARIES``.
"""

import re
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from fmkit._check import require
from fmkit.data.docstrings import LIBRARIES, Document

HIDDEN = "_"  # replaces a word that would give the library away
# The libraries, their usual short names, and the types that each is known for
NAMES = {
    *("numpy", "np", "scipy", "sp", "sklearn", "scikit", "matplotlib", "mpl", "plt"),
    *("pyplot", "pylab", "torch", "pytorch", "ndarray", "ndarrays", "tensor"),
    *("tensors", "estimator", "estimators", "axes", "artist", "artists"),
}
WORD = re.compile(r"[A-Za-z_](?:[\w.]*\w)?")


def library_task(
    documents: Iterable[Document], *, words: int
) -> tuple[list[str], Int64[Tensor, " n"]]:
    """Return the beginnings of `documents`, without telling names, and their labels.

    Each beginning has at most `words` words and ends with its last word. Of equal
    beginnings only the first is kept. Raises ValueError if `words` is less than 1 and
    if a document is of another library.
    """
    require(words >= 1, "words", "be at least 1", words)
    labels: dict[str, int] = {}
    for document in documents:
        known = document.label in LIBRARIES
        rule = f"be labelled with one of {', '.join(LIBRARIES)}"
        require(known, "documents", rule, document.label)
        text = beginning(without_names(document.text), words=words)
        labels.setdefault(text, LIBRARIES.index(document.label))
    return [*labels], torch.tensor([*labels.values()], dtype=torch.int64)


def without_names(text: str) -> str:
    """Replace words of `text` that identify the library on their own with ``HIDDEN``.

    These are words of code (a dot or an underscore inside, a capital after a small
    letter: ``stats.norm``, ``n_samples``, ``DataFrame``), and ``NAMES`` in capitals or
    small letters. All other words stay, even those that one library uses more often: a
    bag of words measures how much they reveal.
    """
    return WORD.sub(lambda match: _hidden(match[0]), text)


def beginning(text: str, *, words: int) -> str:
    """Return the first `words` words of `text`, with the white space between them."""
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
    """Return the words of `text`: runs of letters, in small letters."""
    return re.findall(r"[a-z]+", text.lower())


def _hidden(word: str) -> str:
    """Return `word`, or ``HIDDEN`` if it is code or one of ``NAMES``."""
    inner = word.strip("_.")
    code = re.search(r"[._]|[a-z][A-Z]", inner)
    return HIDDEN if code or inner.lower() in NAMES else word
