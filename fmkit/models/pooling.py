"""Pool the vectors of a text's tokens into one: phi of the text.

Texts are rows of ids, :func:`fmkit.data.tokens.padded`. B batch, T tokens, d width.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fmkit import runtime
from fmkit._check import require
from fmkit._tensors import require_bools, require_shape
from fmkit.data.tokens import PADDING
from fmkit.models.encoder import TextEncoder

Pool = Callable[[Float[Tensor, "B T d"], Bool[Tensor, "B T"]], Float[Tensor, "B d"]]


def last_token(
    c: Float[Tensor, "B T d"], real: Bool[Tensor, "B T"]
) -> Float[Tensor, "B d"]:
    """Return c_{T+1} of the notes: the vector of the last token, which sees the text.

    In the notes: representation of a text.
    """
    _check_texts(c, real)
    return c[torch.arange(len(c), device=c.device), real.sum(dim=1) - 1]


def first_token(
    c: Float[Tensor, "B T d"], real: Bool[Tensor, "B T"]
) -> Float[Tensor, "B d"]:
    """Return the vector of the first token: BERT's [CLS].

    In a causal model that is x_0, which has seen none of the text.
    """
    _check_texts(c, real)
    return c[:, 0]


def mean_of_tokens(
    c: Float[Tensor, "B T d"], real: Bool[Tensor, "B T"]
) -> Float[Tensor, "B d"]:
    """Average the vectors of a text's own tokens, without its padding."""
    _check_texts(c, real)
    c = c.masked_fill(~real[:, :, None], 0)
    return c.sum(dim=1) / real.sum(dim=1, keepdim=True)


class Pooled(nn.Module):
    """phi of texts: `pool` of the vectors that `encoder` has for the tokens.

    Padding changes nothing. The logits of the encoder are not computed. The module
    starts in the mode of the encoder, train or eval.
    """

    def __init__(self, encoder: TextEncoder, pool: Pool):
        super().__init__()
        self.encoder, self.pool = encoder, pool
        self.m = encoder.width
        self.train(encoder.training)

    def prepare(self, tokens: Int[Tensor, "B T"]) -> Int[Tensor, "B S"]:
        """Cut off the columns that hold padding only.

        Raises ``ValueError`` if a row does not begin with a token, or has one after
        padding. On a GPU nothing is cut or checked, because both would make the device
        wait.
        """
        if not runtime.on_host(tokens):
            return tokens
        real = tokens != PADDING
        _check_padding("tokens", real)
        return tokens[:, : int(real.sum(dim=1).max())]

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B d"]:
        return self.pool(self.encoder.token_vectors(tokens), tokens != PADDING)


def _check_texts(c: Tensor, real: Tensor) -> None:
    """Raise ``ValueError`` unless `real` tells which of the vectors are of tokens."""
    require_shape("c", c, "B", "T", "d")
    require_bools("real", real, *c.shape[:2])
    if runtime.on_host(real):
        _check_padding("real", real)


def _check_padding(name: str, real: Bool[Tensor, "B T"]) -> None:
    """Raise ``ValueError`` unless each row is tokens, at least one, then padding."""
    count = real.sum(dim=1)
    wrong = int(((count == 0) | (count != real.cumprod(dim=1).sum(dim=1))).sum())
    rule = "begin with a token in every row, and have padding only at the end"
    require(wrong == 0, name, rule, f"{wrong} without")
