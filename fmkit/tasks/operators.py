"""Examples of an operator under a symbol, as in 14.3.1: ``2 ~ 3 = 5, 6 ~ 7 = 13``.

What a symbol stands for differs from document to document, so the examples before a
question are all that tells. Pairs of a symbol and an operator, pairs of operands, and
one operator are held out of training. A number is one token: of digits as tokens a
small model learned far less in the same time.

B documents, K examples in each, T = 5K tokens, V vocabulary, o operators, p pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from fmkit._check import require

OPERATORS: dict[str, Callable[[int, int], int]] = {
    "a + b": lambda a, b: a + b,
    "|a - b|": lambda a, b: abs(a - b),
    "larger": max,
    "smaller": min,
    "a + 1": lambda a, b: a + 1,
    "19 - a": lambda a, b: 19 - a,
    "19 - larger": lambda a, b: 19 - max(a, b),
    "38 - a - b": lambda a, b: 38 - a - b,
    "a + b + 1": lambda a, b: a + b + 1,  # the last one is never seen in training
}
KNOWN = len(OPERATORS) - 1
NEVER = KNOWN  # the number of the operator that is never seen
SYMBOLS = "~!\"#$%&'()*+-./:;<>?@[\\]^_`{|}"
OPERANDS = torch.cartesian_prod(torch.arange(20), torch.arange(20))  # all (a, b)
ANSWERS = torch.tensor(  # (o, a, b)
    [[[f(a, b) for b in range(20)] for a in range(20)] for f in OPERATORS.values()]
)
HELD_OUT = 0.1  # of the pairs of operands
SPLIT_SEED = 465  # the first that holds out the three pairs of the notes' prompt

# Tokens: the numbers themselves, then the symbols, then =
NUMBERS = 40
EQUALS = NUMBERS + len(SYMBOLS)
VOCABULARY = EQUALS + 1


@dataclass(frozen=True)
class Documents:
    """Examples drawn by :func:`draw_documents`, as numbers."""

    symbols: Int64[Tensor, " B"]  # places in SYMBOLS
    operators: Int64[Tensor, " B"]  # places in OPERATORS
    operands: Int64[Tensor, "B K 2"]

    @property
    def answers(self) -> Int64[Tensor, "B K"]:
        a, b = self.operands.unbind(dim=2)
        return ANSWERS[self.operators[:, None], a, b]

    def texts(self) -> list[str]:
        """``2 ~ 3 = 5, 6 ~ 7 = 13`` of each document, for readers."""
        examples = torch.cat([self.operands, self.answers[..., None]], dim=2)
        symbols = [SYMBOLS[s] for s in self.symbols.tolist()]
        return [
            ", ".join(f"{a} {s} {b} = {y}" for a, b, y in document)
            for s, document in zip(symbols, examples.tolist(), strict=True)
        ]


def symbol_pairs(*, seen: bool) -> Int64[Tensor, "p 2"]:
    """Symbols with known operators that occur in training, or the eighth that does not.

    Each symbol lacks one operator, the next symbol the next one: ``~`` is never a + b.
    """
    pairs = torch.cartesian_prod(torch.arange(len(SYMBOLS)), torch.arange(KNOWN))
    lacking = pairs[:, 0] % KNOWN == pairs[:, 1]
    return pairs[~lacking if seen else lacking]


def operand_pairs(*, seen: bool) -> Int64[Tensor, "p 2"]:
    """Operands (a, b) that occur in training, or the tenth that does not.

    The same at every call, whatever the seed of a run. Most (b, a) of those held out
    do occur in training, and most operators answer them alike.
    """
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    order = torch.randperm(len(OPERANDS), generator=generator)
    cut = round(HELD_OUT * len(OPERANDS))
    return OPERANDS[order[cut:] if seen else order[:cut]]


def draw_documents(
    count: int,
    *,
    symbols: Int64[Tensor, "p 2"],
    operands: Int64[Tensor, "q 2"],
    examples: int,
    generator: torch.Generator,
) -> Documents:
    """Documents of `examples` examples each, of a pair out of `symbols` for each.

    No two examples of a document have the same operands (a, b). Raises
    ``ValueError`` for more examples than pairs of operands.
    """
    rule = f"be from 1 to the pairs of operands ({len(operands)})"
    require(1 <= examples <= len(operands), "examples", rule, examples)
    drawn = symbols[torch.randint(len(symbols), (count,), generator=generator)]
    order = torch.rand(count, len(operands), generator=generator).argsort(dim=1)
    return Documents(drawn[:, 0], drawn[:, 1], operands[order[:, :examples]])


def to_tokens(documents: Documents) -> Int64[Tensor, "B T"]:
    """Five tokens an example: a, the symbol, b, ``=`` and the answer.

    No start symbol: the first token is drawn, and nobody is asked to predict it.
    """
    a, b = documents.operands.unbind(dim=2)
    symbol = (NUMBERS + documents.symbols)[:, None].expand_as(a)
    equals = torch.full_like(a, EQUALS)
    example = torch.stack([a, symbol, b, equals, documents.answers], dim=2)  # (B, K, 5)
    return example.flatten(1)


def answer_scores(
    u: Float[Tensor, "B T V"], x: Int64[Tensor, "B T"]
) -> tuple[Float[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """log p of each answer, in nats, and whether it is the likeliest token of all.

    ``u[:, t]`` are logits of the token *after* x_t, as a causal model gives them, so
    those at the ``=`` are of the answer, given k true examples at entry k.
    """
    at, y = u[:, 3::5], x[:, 4::5]
    return -F.cross_entropy(at.mT, y, reduction="none"), at.argmax(dim=2) == y


def answer_loss(
    u: Float[Tensor, "B T V"], x: Int64[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """The mean of (14.8) over answers, in nats an answer; log V for equal logits.

    Unlike the loss of a whole text it leaves out the questions, which are drawn: nobody
    can predict those.
    """
    return -answer_scores(u, x)[0].mean()


def ideal_observer(
    documents: Documents,
) -> tuple[Float64[Tensor, "B K"], Float64[Tensor, "B K"]]:
    r"""What one can know of each answer who knows the operators: p and right.

    .. math:: p(y \mid x, (x_i, y_i)_{i \le k}) =
        \sum_o p(o \mid (x_i, y_i)_{i \le k}) \, 1[o(x) = y]

    Beforehand every operator is as likely under every symbol; afterwards, all that
    agree with the k examples still are. `p` is that of the true answer; `right` is the
    chance to be right with the likeliest one, equally likely ones drawn. Both are 0
    where no operator is left that agrees. No predictor of the same knowledge is more
    often right. Unlike a model, it does not know which pairs training leaves out.
    """
    a, b = documents.operands.unbind(dim=2)
    known = ANSWERS[:KNOWN, a, b]  # (o, B, K): what each would answer
    agrees = (known == documents.answers).long()
    agreed = torch.cat([torch.ones_like(agrees[..., :1]), agrees[..., :-1]], dim=2)
    left = agreed.cumprod(dim=2)  # agrees with all examples before
    same = (known[:, None] == known[None]).long()  # (o, o, B, K)
    votes = (same * left).sum(dim=1) * left  # for the answer of each that is left
    best = votes.amax(dim=0)
    of_truth = (agrees * left).sum(dim=0)
    likeliest = (votes == best).sum(dim=0).double() / best.clamp(min=1)  # answers
    right = (of_truth == best) & (best > 0)
    p = of_truth.double() / left.sum(dim=0).clamp(min=1)
    return p, right / likeliest
