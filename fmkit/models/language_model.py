"""Keep a language model together with its tokenizer and its start symbol."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from fmkit._check import require
from fmkit.data.tokens import check_ids, padded
from fmkit.models.packed import packed


@dataclass(frozen=True)
class LanguageModel:
    """A model of text, the tokenizer that it was trained with, and its start symbol.

    Every loader of the package returns one. Raises ``ValueError`` if `start` is no id
    of the tokenizer. Models whose tokens are not text have neither a tokenizer nor a
    start symbol.
    """

    model: nn.Module
    tokenizer: Tokenizer | None
    start: int | None  # the id of x_0, written ⊥

    def __post_init__(self) -> None:
        if self.tokenizer is None:
            require(self.start is None, "start", "be None without tokens", self.start)
            return
        last = self.tokenizer.get_vocab_size() - 1
        known = self.start is not None and 0 <= self.start <= last
        rule = f"be the id of a token, from 0 to V - 1 ({last})"
        require(known, "start", rule, self.start)

    def to(self, device: torch.device | str) -> "LanguageModel":
        """Move the model to `device`, in place, and return the three again."""
        return replace(self, model=self.model.to(device))

    def packed(self) -> "LanguageModel":
        """Return the same with a model that a CPU decodes faster.

        See :func:`fmkit.models.packed.packed`.
        """
        return replace(self, model=packed(self.model))

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` after the start symbol.

        If the tokenizer itself adds special tokens (BERT's [CLS] and [SEP], Llama's
        start symbol), they are kept, and none is added twice.
        """
        # As a batch of one, because only batches can leave the offsets uncounted
        [encoding] = self.tokenizer.encode_batch_fast([text])
        ids = encoding.ids
        return ids if ids[:1] == [self.start] else [self.start, *ids]

    def ids(self, texts: Sequence[str], *, limit: int) -> Int[Tensor, "n T"]:
        """Return the ids of texts as rows, padded at the end.

        See :func:`fmkit.data.tokens.padded`. Each text is cut after `limit`
        tokens, the start symbol counted. Raises ``ValueError`` if a token has no vector
        in the model.
        """
        rows = padded([self.encode(text) for text in texts], limit=limit)
        check_ids(rows.clamp(min=0), vocabulary=self.model.config.vocabulary)
        return rows
