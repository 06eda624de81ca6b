"""phi of a text: one vector, made of those that a language model has for its tokens.

Texts come as ids with -1 after the end of the shorter ones. B batch, T tokens, d width,
n texts.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fmkit._check import require
from fmkit.models.bert import Bert
from fmkit.models.transformer import Transformer

PADDING = -1  # no token of any vocabulary
Pool = Callable[[Float[Tensor, "B T d"], Bool[Tensor, "B T"]], Float[Tensor, "B d"]]


def last_token(
    c: Float[Tensor, "B T d"], real: Bool[Tensor, "B T"]
) -> Float[Tensor, "B d"]:
    """c_{T+1} of the notes: the vector of a text's last token, which has seen all.

    In the notes: representation of a text.
    """
    return c[torch.arange(len(c), device=c.device), real.sum(dim=1) - 1]


def first_token(
    c: Float[Tensor, "B T d"], real: Bool[Tensor, "B T"]
) -> Float[Tensor, "B d"]:
    """Of the first token: BERT's [CLS], or x_0, which sees no text where causal."""
    return c[:, 0]


def mean_of_tokens(
    c: Float[Tensor, "B T d"], real: Bool[Tensor, "B T"]
) -> Float[Tensor, "B d"]:
    """The mean over a text's own tokens."""
    c = c.masked_fill(~real[:, :, None], 0)
    return c.sum(dim=1) / real.sum(dim=1, keepdim=True)


class Summary(nn.Module):
    """phi of texts: what `pool` makes of the vectors that `encoder` has for the tokens.

    The encoder is a :class:`Transformer`, autoregressive or masked, or a
    :class:`Bert`. Padding changes nothing. Its logits are not computed. Train or eval
    mode is the encoder's.
    """

    def __init__(self, encoder: Transformer | Bert, pool: Pool):
        super().__init__()
        self.encoder, self.pool = encoder, pool
        self.m = encoder.config.width
        self.train(encoder.training)

    def prepare(self, tokens: Int[Tensor, "B T"]) -> Int[Tensor, "B S"]:
        """The columns that hold a token of some text. An empty text is an error."""
        real = tokens != PADDING
        empty = int((~real[:, :1]).sum())
        rule = "begin with a token in every row"
        require(empty == 0, "tokens", rule, f"{empty} without")
        return tokens[:, : int(real.sum(dim=1).max())]

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B d"]:
        real = tokens != PADDING
        filled = tokens.clamp(min=0)  # any token will do
        if isinstance(self.encoder, Bert):
            return self.pool(self.encoder(filled, real), real)
        seen = None if self.encoder.config.causal else real
        vectors = self.encoder.embed(filled)
        return self.pool(self.encoder.contextualize(vectors, real=seen), real)


def padded(texts: Sequence[Sequence[int]], *, most: int) -> Int[Tensor, "n T"]:
    """The ids of texts as rows of one tensor, each cut after `most` tokens."""
    require(len(texts) > 0, "texts", "be at least 1", len(texts))
    require(most >= 1, "most", "be at least 1", most)
    rows = [torch.tensor(ids[:most], dtype=torch.int64) for ids in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)
