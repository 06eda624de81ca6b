"""In-context learning of an operator, as in 14.3.1: ``2 ~ 3 = 5, 6 ~ 7 = 13``.

The module holds the task's documents and their tokens, its loss and score
(:func:`answer_loss`, :func:`answer_scores`), and the best possible predictor
(:func:`ideal_observer`).

The meaning of a symbol differs from document to document, so only the examples before
a question reveal it. Some pairs of a symbol and an operator, some pairs of operands,
and one operator never occur in training. A number is one token, because with digits as
tokens a small model learned far less in the same time.

Axes: B documents, K examples in each, T = 5K tokens, V vocabulary, o operators, p pairs
of a symbol and an operator, q pairs of operands.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64, Integer
from torch import Tensor

from fmkit import runtime
from fmkit._check import require
from fmkit._tensors import as_int64, require_below, require_shape

OPERATORS: dict[str, Callable[[int, int], int]] = {
    "a + b": lambda a, b: a + b,
    "|a - b|": lambda a, b: abs(a - b),
    "larger": max,
    "smaller": min,
    "a + 1": lambda a, b: a + 1,
    "19 - a": lambda a, b: 19 - a,
    "19 - larger": lambda a, b: 19 - max(a, b),
    "38 - a - b": lambda a, b: 38 - a - b,
    "a + b + 1": lambda a, b: a + b + 1,  # never occurs in training
}
KNOWN = len(OPERATORS) - 1  # operators that occur in training
NEVER = KNOWN  # the number of the operator that does not
SYMBOLS = "~!\"#$%&'()*+-./:;<>?@[\\]^_`{|}"
OPERANDS = torch.cartesian_prod(torch.arange(20), torch.arange(20))  # all (a, b)
ANSWERS = torch.tensor(  # (o, a, b)
    [[[f(a, b) for b in range(20)] for a in range(20)] for f in OPERATORS.values()]
)
UNSEEN_SHARE = 0.1  # of the pairs of operands: these never occur in training
SPLIT_SEED = 465  # the first for which the three pairs of the notes' prompt are unseen

# Tokens: the numbers themselves, then the symbols, then =
NUMBERS = 40
EQUALS = NUMBERS + len(SYMBOLS)
VOCABULARY = EQUALS + 1


@dataclass(frozen=True)
class Documents:
    """Documents drawn by :func:`draw_documents`, as numbers.

    Raises ValueError if the lengths differ, and if there is no such symbol, operator or
    operand.
    """

    symbols: Int64[Tensor, " B"]  # positions in SYMBOLS
    operators: Int64[Tensor, " B"]  # positions in OPERATORS
    operands: Int64[Tensor, "B K 2"]

    def __post_init__(self) -> None:
        require_shape("operands", self.operands, "B", "K", 2)
        B, K, _ = self.operands.shape
        ends = {"symbols": len(SYMBOLS), "operators": len(OPERATORS), "operands": 20}
        for name, end in ends.items():
            shape = (B, K, 2) if name == "operands" else (B,)
            numbers = as_int64(name, getattr(self, name), *shape)
            if runtime.on_host(numbers):
                require_below(name, numbers, end)
            object.__setattr__(self, name, numbers)

    @property
    def answers(self) -> Int64[Tensor, "B K"]:
        """The correct answer of each example."""
        a, b = self.operands.unbind(dim=2)
        return ANSWERS[self.operators[:, None], a, b]

    def texts(self) -> list[str]:
        """Write each document as a reader sees it: ``2 ~ 3 = 5, 6 ~ 7 = 13``."""
        examples = torch.cat([self.operands, self.answers[..., None]], dim=2)
        symbols = [SYMBOLS[s] for s in self.symbols.tolist()]
        return [
            ", ".join(f"{a} {s} {b} = {y}" for a, b, y in document)
            for s, document in zip(symbols, examples.tolist(), strict=True)
        ]


def symbol_pairs(*, seen: bool) -> Int64[Tensor, "p 2"]:
    """Return the pairs (symbol, operator) seen in training, or the eighth that is not.

    Each symbol lacks one operator, and the next symbol lacks the next operator: ``~``
    is never a + b.
    """
    pairs = torch.cartesian_prod(torch.arange(len(SYMBOLS)), torch.arange(KNOWN))
    lacking = pairs[:, 0] % KNOWN == pairs[:, 1]
    return pairs[~lacking if seen else lacking]


def operand_pairs(*, seen: bool) -> Int64[Tensor, "p 2"]:
    """Return the operands (a, b) seen in training, or the tenth that is not.

    They are the same at every call and for every seed of a run. For most unseen (a, b),
    (b, a) does occur in training, and most operators give both the same answer.
    """
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    order = torch.randperm(len(OPERANDS), generator=generator)
    cut = round(UNSEEN_SHARE * len(OPERANDS))
    return OPERANDS[order[cut:] if seen else order[:cut]]


def draw_documents(
    count: int,
    *,
    symbols: Int64[Tensor, "p 2"],
    operands: Int64[Tensor, "q 2"],
    examples: int,
    generator: torch.Generator,
) -> Documents:
    """Draw `count` documents of `examples` examples, each with one pair of `symbols`.

    No two examples of a document have the same operands (a, b). Raises ValueError if
    `count` is less than 1, if there are no `symbols`, and if `examples` is less than 1
    or more than there are pairs of operands.
    """
    require(count >= 1, "count", "be at least 1", count)
    require_shape("symbols", symbols, "p", 2)
    require_shape("operands", operands, "q", 2)
    require(len(symbols) >= 1, "symbols", "have at least 1 row", len(symbols))
    rule = f"be from 1 to the pairs of operands ({len(operands)})"
    require(1 <= examples <= len(operands), "examples", rule, examples)
    drawn = symbols[torch.randint(len(symbols), (count,), generator=generator)]
    order = torch.rand(count, len(operands), generator=generator).argsort(dim=1)
    return Documents(drawn[:, 0], drawn[:, 1], operands[order[:, :examples]])


def to_tokens(documents: Documents) -> Int64[Tensor, "B T"]:
    """Encode each example as five tokens: a, the symbol, b, ``=`` and the answer.

    There is no start symbol, because the first token is random and never predicted.
    """
    a, b = documents.operands.unbind(dim=2)
    symbol = (NUMBERS + documents.symbols)[:, None].expand_as(a)
    equals = torch.full_like(a, EQUALS)
    example = torch.stack([a, symbol, b, equals, documents.answers], dim=2)  # (B, K, 5)
    return example.flatten(1)


def answer_scores(
    u: Float[Tensor, "B T V"], x: Integer[Tensor, "B T"]
) -> tuple[Float[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """Return log p of each answer, in nats, and whether it is the most probable token.

    ``u[:, t]`` are the logits of the token *after* x_t, as a causal model returns them.
    The logits at each ``=`` therefore predict the answer. Entry k is given k correct
    examples. Raises ValueError if the shapes differ, if T is not a multiple of 5, and
    if an id is not below V; a GPU, which this would stop, is not asked for ids.
    """
    require_shape("u", u, "B", "T", "V")
    x = as_int64("x", x, *u.shape[:2])
    T = x.shape[1]
    require(T >= 5 and T % 5 == 0, "x", "have 5 tokens for each example", T)
    if runtime.on_host(x):  # cross_entropy would leave out an id of -100
        require_below("x", x, u.shape[2])
    at, y = u[:, 3::5], x[:, 4::5]
    return -F.cross_entropy(at.mT, y, reduction="none"), at.argmax(dim=2) == y


def answer_loss(
    u: Float[Tensor, "B T V"], x: Integer[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """Compute the mean of (14.8) over answers, in nats; log V for equal logits.

    Unlike the loss of a whole text it leaves out the questions, because they are random
    and cannot be predicted.
    """
    return -answer_scores(u, x)[0].mean()


def ideal_observer(
    documents: Documents,
) -> tuple[Float64[Tensor, "B K"], Float64[Tensor, "B K"]]:
    r"""Predict each answer as well as knowledge of the operators allows.

    .. math:: p(y \mid x, (x_i, y_i)_{i \le k}) =
        \sum_o p(o \mid (x_i, y_i)_{i \le k}) \, 1[o(x) = y]

    Returns the probability of the correct answer, and the chance that the most probable
    answer is correct, with ties broken at random. At first every operator is equally
    probable under every symbol; after k examples all operators that agree with them
    still are. Both values are 0 if no operator agrees. No predictor with the same
    knowledge is correct more often. Unlike a trained model, the observer does not know
    which pairs never occur in training.
    """
    a, b = documents.operands.unbind(dim=2)
    known = ANSWERS[:KNOWN, a, b]  # (o, B, K): the answer of each operator
    agrees = (known == documents.answers).long()
    agreed = torch.cat([torch.ones_like(agrees[..., :1]), agrees[..., :-1]], dim=2)
    left = agreed.cumprod(dim=2)  # agrees with all earlier examples
    same = (known[:, None] == known[None]).long()  # (o, o, B, K)
    votes = (same * left).sum(dim=1) * left  # for the answer of each that agrees
    best = votes.amax(dim=0)
    correct = (agrees * left).sum(dim=0)  # votes for the correct answer
    tied = (votes == best).sum(dim=0).double() / best.clamp(min=1)  # answers
    is_best = (correct == best) & (best > 0)
    p = correct.double() / left.sum(dim=0).clamp(min=1)
    return p, is_best / tied
