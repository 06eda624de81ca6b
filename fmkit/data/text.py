"""Texts to train on and texts held out: no duplicates, and no module on both sides.

Axes: n words of all documents, s shingles of a document.
"""

import hashlib
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from fmkit._check import Refused, require
from fmkit.assets import fetch
from fmkit.data.docstrings import Document, docstrings

SUFFIXES = (".txt", ".md", ".rst", ".py")  # of the files read in a folder
SHINGLE = 13  # words, as in the overlap analysis of Brown et al. 2020 (GPT-3)
DUPLICATE = 0.2  # share of shingles seen before above which a document is dropped
HELD_OUT = 0.1  # share of the characters
NAMES = ("docstrings", "tinyshakespeare")


def corpus(name: str) -> tuple[list[Document], list[Document]]:
    """Texts to train on and held-out texts, of the corpus called `name` or at a path.

    ``docstrings`` are those of the libraries (:func:`docstrings`), and a folder gives
    its files of plain text (``SUFFIXES``), a document each: near duplicates are
    dropped, and a tenth is held out by module or by file. ``tinyshakespeare`` and any
    single file are one text: its first 90 % of characters to train on and the rest
    held out, as nanoGPT does it.

    Raises ``ValueError`` for what is neither a name nor a path, for a file that is not
    UTF-8 and where there is no text; ``AssetError`` where tinyshakespeare cannot be
    had.
    """
    if name == "docstrings":
        return split_by_group(without_near_duplicates(docstrings()))
    if name == "tinyshakespeare":
        return _cut(_read(fetch(name)["tinyshakespeare.txt"]), name)
    path = Path(name).expanduser()
    rule = f"be one of {', '.join(NAMES)}, or a file or a folder that exists"
    require(path.exists(), "name", rule, name)
    if path.is_file():
        return _cut(_read(path), name)
    found = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
    files = [Document(_read(p), "", p.relative_to(path).as_posix()) for p in found]
    files = without_near_duplicates([d for d in files if d.text.strip()])
    rule = f"hold 2 different texts or more, in files of {', '.join(SUFFIXES)}"
    require(len(files) >= 2, "name", rule, len(files))
    return split_by_group(files)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # without the mark of some editors
    except UnicodeDecodeError as error:
        got = f"byte {error.object[error.start]:#x} at {error.start}"
        raise Refused(f"{path} must be UTF-8 text, got {got}.") from error


def _cut(text: str, name: str) -> tuple[list[Document], list[Document]]:
    require(len(text.strip()) >= 2, "name", "lead to a text that is not empty", name)
    end = int(len(text) * (1 - HELD_OUT))
    return [Document(text[:end], "", name)], [Document(text[end:], "", name)]


def without_near_duplicates(documents: Sequence[Document]) -> list[Document]:
    """`documents` without those that repeat what stands in earlier ones.

    A document is dropped where more than a fifth of its shingles, all runs of 13 words,
    occur in documents kept before it; a shorter one is a single shingle. Words are
    what white space parts.
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
    """Documents to train on, and about a tenth of all characters, held out by group.

    Groups are taken in the order of the SHA-256 of their names: as good as random, and
    the same everywhere. One is held out where it fits into what is left of the tenth;
    where none fits, the smallest is. Both parts are in that order, so that a piece of
    either is a mixture. Raises ``ValueError`` where there are not two groups.
    """
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(document.group, []).append(document)
    require(len(groups) >= 2, "documents", "be of 2 groups or more", len(groups))
    sizes = {name: sum(len(d.text) for d in groups[name]) for name in groups}
    order = sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest())
    room = max(HELD_OUT * sum(sizes.values()), min(sizes.values()))
    train, held_out = [], []
    for name in order:
        fits = sizes[name] <= room
        (held_out if fits else train).extend(groups[name])
        room -= sizes[name] * fits
    return train, held_out


def leakage(train: Sequence[Document], held_out: Sequence[Document]) -> float:
    """Share of the shingles of `held_out` that occur in `train`.

    What :func:`without_near_duplicates` calls a shingle; each counts as often as it
    occurs. 0 where the two have nothing in common.
    """
    runs = shingles([document.text for document in (*train, *held_out)])
    known = torch.cat(runs[: len(train)])
    return torch.isin(torch.cat(runs[len(train) :]), known).double().mean().item()


def shingles(texts: Sequence[str]) -> list[Int64[Tensor, " s"]]:
    """The 13-word runs of each text as numbers, equal where the runs are, and exact.

    Runs of 2, 4 and 8 words are numbered one after the other, each as a pair of runs
    half as long. Two runs of 8 that overlap are a run of 13.
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
    # Runs that cross from a text into the next are passed over
    return [
        torch.from_numpy(runs[end - length : end - SHINGLE + 1])
        for end, length in zip(ends, lengths, strict=True)
    ]
