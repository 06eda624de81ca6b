"""A labelled task without a download: from which library does a docstring come?

n texts; a label is the place of its library in ``LIBRARIES``.
"""

import re
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from fmkit._check import require
from fmkit.data.docstrings import LIBRARIES, Document

HIDDEN = "_"  # stands for a word that would give the library away
# The libraries, their usual short names, and the types that each is known by
NAMES = {
    *("numpy", "np", "scipy", "sp", "sklearn", "scikit", "matplotlib", "mpl", "plt"),
    *("pyplot", "pylab", "torch", "pytorch", "ndarray", "ndarrays", "tensor"),
    *("tensors", "estimator", "estimators", "axes", "artist", "artists"),
}
WORD = re.compile(r"[A-Za-z_](?:[\w.]*\w)?")


def library_task(
    documents: Iterable[Document], *, words: int
) -> tuple[list[str], Int64[Tensor, " n"]]:
    """Beginnings of `documents` with telling names hidden, and their labels.

    Each has at most `words` words and ends where its last one does. Of beginnings that
    are equal only the first is kept. Raises ``ValueError`` for fewer than 1 word and
    for a document of another library.
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
    """`text` with ``HIDDEN`` in place of words that tell the library by themselves.

    Those are words that are code (a dot or an underscore inside, a capital after a
    small letter: `stats.norm`, `n_samples`, `DataFrame`), and ``NAMES`` however they
    are written. Everything else stays, the words that a library merely likes too: a bag
    of words says how much they tell.
    """
    return WORD.sub(lambda found: _shown(found[0]), text)


def beginning(text: str, *, words: int) -> str:
    """The first words of `text` as they are laid out, without what comes after them."""
    found = [match.end() for match in re.finditer(r"\S+", text)]
    return text[: found[min(words, len(found)) - 1]] if found else ""


def at_most(
    labels: Int64[Tensor, " n"], *, per_class: int, generator: torch.Generator
) -> Int64[Tensor, " k"]:
    """Places of `per_class` texts of each library, drawn; all of one that has fewer."""
    require(per_class >= 1, "per_class", "be at least 1", per_class)
    order = torch.randperm(len(labels), generator=generator)
    drawn = [order[labels[order] == name][:per_class] for name in labels.unique()]
    return torch.cat(drawn)


def bag_of_words(
    texts: Sequence[str], *, vocabulary: Sequence[str]
) -> Int64[Tensor, "n V"]:
    """How often each of `vocabulary` occurs in each text, in small letters."""
    number = {word: i for i, word in enumerate(vocabulary)}
    counts = torch.zeros(len(texts), len(vocabulary), dtype=torch.int64)
    for row, text in zip(counts, texts, strict=True):
        for word in words_of(text):
            if word in number:
                row[number[word]] += 1
    return counts


def words_of(text: str) -> list[str]:
    """The words of `text`: runs of letters, made small."""
    return re.findall(r"[a-z]+", text.lower())


def _shown(word: str) -> str:
    inner = word.strip("_.")
    code = re.search(r"[._]|[a-z][A-Z]", inner)
    return HIDDEN if code or inner.lower() in NAMES else word
