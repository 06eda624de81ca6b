"""Pool the vectors of a text's tokens into one: phi of the text.

Texts are rows of ids, :func:`fmkit.data.tokens.padded`. B batch, T tokens, d width.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fmkit import runtime
from fmkit._check import require
from fmkit.data.tokens import PADDING
from fmkit.models.encoder import TextEncoder

Pool = Callable[[Float[Tensor, "B T d"], Bool[Tensor, "B T"]], Float[Tensor, "B d"]]


def last_token(
    c: Float[Tensor, "B T d"], real: Bool[Tensor, "B T"]
) -> Float[Tensor, "B d"]:
    """Return c_{T+1} of the notes: the vector of the last token, which sees the text.

    In the notes: representation of a text.
    """
    return c[torch.arange(len(c), device=c.device), real.sum(dim=1) - 1]


def first_token(
    c: Float[Tensor, "B T d"], real: Bool[Tensor, "B T"]
) -> Float[Tensor, "B d"]:
    """Return the vector of the first token: BERT's [CLS].

    In a causal model that is x_0, which has seen none of the text.
    """
    return c[:, 0]


def mean_of_tokens(
    c: Float[Tensor, "B T d"], real: Bool[Tensor, "B T"]
) -> Float[Tensor, "B d"]:
    """Average the vectors of a text's own tokens, without its padding."""
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

        Raises ``ValueError`` if a row does not begin with a token. On a GPU nothing is
        cut or checked, because both would make the device wait.
        """
        if not runtime.on_host(tokens):
            return tokens
        real = tokens != PADDING
        empty = int((~real[:, :1]).sum())
        rule = "begin with a token in every row"
        require(empty == 0, "tokens", rule, f"{empty} without")
        return tokens[:, : int(real.sum(dim=1).max())]

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B d"]:
        return self.pool(self.encoder.token_vectors(tokens), tokens != PADDING)
