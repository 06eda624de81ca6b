"""Between text and the ids that a model of 14.3 reads; long sequences and windows.

A tokenizer numbers the members of its vocabulary from 0 to V - 1. Number 0 is the start
symbol x_0, written ⊥, which marks the beginning of a document; no text encodes to it.
Axes: T tokens, B batch, n tokens of a whole corpus.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import tokenizers
import torch
from jaxtyping import Bool, Int, Int64
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from fmkit._check import require

START = 0  # the id of x_0 in every tokenizer here
START_PIECE = "⊥"  # how it is shown


class Tokenizer(ABC):
    """What characters, bytes and byte pairs have in common."""

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """V, with the start symbol."""

    @abstractmethod
    def encode(self, text: str) -> Int64[Tensor, " T"]:
        """The ids of `text`, without a start symbol."""

    def decode(self, ids: Int[Tensor, " T"]) -> str:
        """The text of `ids`: start symbols are left out, broken UTF-8 becomes �.

        Raises ``ValueError`` for an id outside V.
        """
        return self._text([i - 1 for i in self._inside(ids) if i != START])

    def pieces(self, ids: Int[Tensor, " T"]) -> list[str]:
        """The text of each id by itself, ⊥ for the start symbol; errors of `decode`."""
        inside = self._inside(ids)
        return [START_PIECE if i == START else self._text([i - 1]) for i in inside]

    @abstractmethod
    def _text(self, numbers: list[int]) -> str:
        """What `numbers`, each an id less 1, stand for together."""

    def _inside(self, ids: Tensor) -> list[int]:
        listed = ids.tolist()
        last = self.vocabulary - 1
        for i in (min(listed, default=0), max(listed, default=0)):
            require(0 <= i <= last, "ids", f"be from 0 to V - 1 ({last})", i)
        return listed


@dataclass(frozen=True)
class Characters(Tokenizer):
    """A token is a character: id i + 1 is character i of `alphabet`."""

    alphabet: str  # ascending, each once

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Characters":
        """The characters of `texts`: of those to train on."""
        return cls("".join(sorted(set().union(*texts))))

    @property
    def vocabulary(self) -> int:
        return len(self.alphabet) + 1

    def encode(self, text: str) -> Int64[Tensor, " T"]:
        """Raises ``ValueError`` for characters outside the alphabet."""
        unknown = "".join(sorted(set(text) - set(self.alphabet)))
        rule = "hold only characters of the alphabet (bytes spell any text)"
        require(not unknown, "text", rule, unknown)
        known, codes = (
            np.frombuffer(string.encode("utf-32-le"), np.uint32)
            for string in (self.alphabet, text)
        )
        return torch.from_numpy(np.searchsorted(known, codes) + 1)

    def _text(self, numbers: list[int]) -> str:
        return "".join(self.alphabet[i] for i in numbers)


@dataclass(frozen=True)
class Bytes(Tokenizer):
    """A token is a byte of UTF-8: id b + 1 is byte b."""

    vocabulary = 257

    def encode(self, text: str) -> Int64[Tensor, " T"]:
        return torch.tensor(list(text.encode()), dtype=torch.int64) + 1

    def _text(self, numbers: list[int]) -> str:
        return bytes(numbers).decode(errors="replace")


@dataclass(frozen=True)
class BytePairs(Tokenizer):
    """A token is a run of bytes: id i + 1 is token i of `model`, a byte-level BPE.

    Source: Sennrich et al. 2016; of bytes, and never across words, Radford et al. 2019.

    In the notes: footnote 6.
    """

    model: tokenizers.Tokenizer

    @classmethod
    def of(cls, texts: Iterable[str], *, vocabulary: int) -> "BytePairs":
        """Merge the pair that is most frequent in `texts` until V is `vocabulary`.

        It ends earlier where every word of them is a token. Raises ``ValueError``
        below 257: ⊥ and the bytes.
        """
        require(vocabulary >= 257, "vocabulary", "be at least 257", vocabulary)
        model = tokenizers.Tokenizer(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = decoders.ByteLevel()
        # Without ⊥, which a text could otherwise spell
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary - 1,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        model.train_from_iterator(texts, trainer)
        return cls(model)

    @property
    def vocabulary(self) -> int:
        return self.model.get_vocab_size() + 1

    def encode(self, text: str) -> Int64[Tensor, " T"]:
        # Of a batch, since only that way can offsets be left uncounted
        [encoding] = self.model.encode_batch_fast([text])
        return torch.tensor(encoding.ids, dtype=torch.int64) + 1

    def _text(self, numbers: list[int]) -> str:
        return self.model.decode(numbers)


def pack(documents: Iterable[Int[Tensor, " _"]], *, start: int) -> Int64[Tensor, " n"]:
    """All documents as one sequence, `start` before each: footnote 5 of 14.3.

    Every example of training is a run of it, a part of one document or of several.
    Raises ``ValueError`` without a document.

    In the notes: footnote 5, start symbol.
    """
    parts = [part for ids in documents for part in (torch.tensor([start]), ids)]
    require(len(parts) > 0, "documents", "be at least 1", 0)
    return torch.cat(parts)


def windows(
    sequence: Int64[Tensor, " n"],
    *,
    context: int,
    batch_size: int,
    generator: torch.Generator,
) -> Iterator[Int64[Tensor, "B T_and_1"]]:
    """Batches of runs of T + 1 tokens, T the `context`, without end.

    The beginning of each is drawn at random, any place being as likely. The first T
    tokens of a row go into the model and the last T are what it predicts. Raises
    ``ValueError`` for a sequence that is not longer than the context.

    In the notes: footnote 5.
    """
    _check_context(sequence, context)
    require(batch_size >= 1, "batch_size", "be at least 1", batch_size)
    offsets = torch.arange(context + 1, device=sequence.device)
    drawn_on, places = generator.device, len(sequence) - context

    def batch() -> Tensor:
        first = torch.randint(
            places, (batch_size, 1), generator=generator, device=drawn_on
        )
        return sequence[first.to(sequence.device) + offsets]

    return (batch() for _ in repeat(None))


def consecutive(
    sequence: Int64[Tensor, " n"], *, context: int, batch_size: int
) -> list[Int64[Tensor, "_ _"]]:
    """The sequence cut for evaluation: each token but the first is predicted once.

    Windows of T + 1 tokens, T the `context`, in order; each begins with the token that
    ended the one before it. What is left at the end is a shorter window, the last
    batch by itself, so nothing is padded. A token is predicted from between 1 and T
    others, so losses are a little above those of a window that slides. Raises
    ``ValueError`` for a sequence that is not longer than the context.
    """
    _check_context(sequence, context)
    require(batch_size >= 1, "batch_size", "be at least 1", batch_size)
    whole = sequence.unfold(0, context + 1, context)
    rest = sequence[len(whole) * context :]  # its first token was predicted before
    return [*whole.split(batch_size), *([rest[None]] if len(rest) > 1 else [])]


def crosses_documents(
    windows: Int[Tensor, "B T_and_1"], *, start: int
) -> Bool[Tensor, " B"]:
    """Which windows hold more than one document: `start` stands after their first."""
    return (windows[:, 1:] == start).any(dim=1)


def _check_context(sequence: Tensor, context: int) -> None:
    require(context >= 1, "context", "be at least 1", context)
    rule = f"have more tokens than the context ({context})"
    require(len(sequence) > context, "sequence", rule, len(sequence))
