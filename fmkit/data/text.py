"""Corpora in two parts, train and test: without duplicates, split by module or file.

Axes: n words of all documents, s shingles of a document.
"""

import hashlib
import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from fmkit._check import require
from fmkit._reading import read_text
from fmkit.assets import fetch
from fmkit.data._files import name_of, walk
from fmkit.data.docstrings import Document, load_docstrings

SUFFIXES = (".txt", ".md", ".rst", ".py")  # of the files that are read in a folder
SHINGLE = 13  # words, as in the overlap analysis of Brown et al. 2020 (GPT-3)
DUPLICATE = 0.2  # a document with a larger share of known shingles is dropped
TEST_SHARE = 0.1  # of the characters
NAMES = ("docstrings", "tinyshakespeare")


def load_corpus(text: str | Path) -> tuple[list[Document], list[Document]]:
    """Load train and test documents of the corpus called `text`, or from a path.

    ``docstrings`` are the docstrings of the libraries
    (:func:`fmkit.data.docstrings.load_docstrings`). A folder gives its files of plain
    text (``SUFFIXES``), one document each; links are followed, and hidden files are
    left out. In both cases near duplicates are dropped, and a tenth of the characters
    is held out for the test, by module or by file.
    ``tinyshakespeare`` and any single file are one text: the first 90 % of its
    characters are for training and the rest is for the test, as in nanoGPT.

    Raises ValueError if `text` is neither a name nor a path, if a file is not UTF-8,
    and if there is no text; ``AssetError`` if tinyshakespeare cannot be obtained.
    """
    if text == "docstrings":
        return split_by_group(without_near_duplicates(load_docstrings()))
    if text == "tinyshakespeare":
        return _cut(_read(fetch(text)["tinyshakespeare.txt"]), text)
    path = Path(os.path.expanduser(text))
    rule = f"be one of {', '.join(NAMES)}, or a file or a folder that exists"
    # Path("") is the current folder; Path.exists raises OSError for a whole text
    require(bool(str(text)) and os.path.exists(path), "text", rule, str(text))
    if path.is_file():
        return _cut(_read(path), str(text))
    paths = [p for p in walk(path) if p.suffix.lower() in SUFFIXES and p.is_file()]
    files = [Document(_read(p), "", name_of(p.relative_to(path))) for p in paths]
    files = without_near_duplicates([d for d in files if d.text.strip()])
    rule = f"hold at least 2 different texts, in files of {', '.join(SUFFIXES)}"
    require(len(files) >= 2, "text", rule, len(files))
    return split_by_group(files)


def _read(path: Path) -> str:
    """Read a text file; its lines end in ``\\n``, whatever system wrote it."""
    return read_text(path).replace("\r\n", "\n").replace("\r", "\n")


def _cut(text: str, name: str) -> tuple[list[Document], list[Document]]:
    """Cut a text into its first 90 % of characters and the rest."""
    rule = "name a text of at least 2 characters"
    require(len(text.strip()) >= 2, "text", rule, name)
    end = int(len(text) * (1 - TEST_SHARE))
    return [Document(text[:end], "", name)], [Document(text[end:], "", name)]


def without_near_duplicates(documents: Sequence[Document]) -> list[Document]:
    """Return `documents` without those that repeat earlier ones.

    A shingle is a run of 13 words; words are separated by white space. A document is
    dropped if more than a fifth of its shingles occur in documents kept before it. A
    document of fewer words is a single shingle.
    """
    runs = shingles([document.text for document in documents])
    seen = torch.zeros(1 + max((int(run.max()) for run in runs), default=0)).bool()
    kept = []
    for document, run in zip(documents, runs, strict=True):
        if seen[run].double().mean() <= DUPLICATE:
            seen[run] = True
            kept.append(document)
    return kept


def split_by_group(
    documents: Sequence[Document],
) -> tuple[list[Document], list[Document]]:
    """Split documents by group: train, and a test part of about 10 % of the characters.

    Groups are taken in the order of the SHA-256 of their names, which is as good as
    random and the same everywhere. A group is held out for the test if it fits into
    what remains of the tenth. If none fits, the smallest group is held out. Both parts
    keep that order, so any piece of either is a mixture. Raises ValueError if there are
    fewer than 2 groups.
    """
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(document.group, []).append(document)
    require(len(groups) >= 2, "documents", "be of at least 2 groups", len(groups))
    sizes = {name: sum(len(d.text) for d in groups[name]) for name in groups}
    order = sorted(groups, key=_digest)
    room = max(TEST_SHARE * sum(sizes.values()), min(sizes.values()))
    train, test = [], []
    for name in order:
        fits = sizes[name] <= room
        (test if fits else train).extend(groups[name])
        room -= sizes[name] * fits
    return train, test


def _digest(name: str) -> bytes:
    """Return the SHA-256 of a name, which may have bytes that are not UTF-8."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


def leakage(train: Sequence[Document], test: Sequence[Document]) -> float:
    """Return the share of the shingles of `test` that occur in `train`.

    :func:`without_near_duplicates` defines a shingle. Each counts as often as it
    occurs. The share is 0 if the two parts have no shingle in common.
    """
    runs = shingles([document.text for document in (*train, *test)])
    known = torch.cat(runs[: len(train)])
    return torch.isin(torch.cat(runs[len(train) :]), known).double().mean().item()


def shingles(texts: Sequence[str]) -> list[Int64[Tensor, " s"]]:
    """Number the 13-word runs of each text; numbers are equal exactly if the runs are.

    Runs of 2, 4 and 8 words are numbered in turn, each as a pair of runs half as long.
    Two overlapping runs of 8 words make a run of 13.
    """
    words, lengths = [], []
    for text in texts:
        split = text.split()
        split += [""] * (SHINGLE - len(split))  # a text of few words is one run
        words += split
        lengths.append(len(split))
    number = dict(zip(dict.fromkeys(words), count()))
    runs = np.fromiter(map(number.__getitem__, words), np.int64, len(words))
    for shift in (1, 2, 4, SHINGLE - 8):
        pairs = runs[:-shift] * len(words) + runs[shift:]
        runs = np.unique(pairs, return_inverse=True)[1]
    ends = np.cumsum(lengths)
    # Runs that cross from one text into the next are skipped
    return [
        torch.from_numpy(runs[end - length : end - SHINGLE + 1])
        for end, length in zip(ends, lengths, strict=True)
    ]
