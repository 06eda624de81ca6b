"""Documents of examples of an operator under a symbol: ``2~3=5;6~7=13;`` (14.3.1).

What a symbol stands for differs from document to document, so the examples before a
question are all that tells. Pairs of a symbol and an operator, pairs of operands, and
one operator are held out of training.

B documents, K examples in each, T tokens, V vocabulary, o operators, p pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fmkit._check import require
from fmkit.data.tokens import START, Characters

OPERATORS: dict[str, Callable[[int, int], int]] = {
    "a + b": lambda a, b: a + b,
    "|a - b|": lambda a, b: abs(a - b),
    "larger": max,
    "smaller": min,
    "a + 1": lambda a, b: a + 1,
    "b + 1": lambda a, b: b + 1,
    "last digit of a + b": lambda a, b: (a + b) % 10,
    "last digit of ab": lambda a, b: a * b % 10,
    "a + b + 1": lambda a, b: a + b + 1,  # the last one is never seen in training
}
KNOWN = len(OPERATORS) - 1
NEVER = KNOWN  # the number of the operator that is never seen
SYMBOLS = "~!\"#$%&'()*+,-./:<>?@[\\]^_`{|}"
OPERANDS = torch.cartesian_prod(torch.arange(20), torch.arange(10))  # all (a, b)
ANSWERS = torch.tensor(  # (o, a, b)
    [[[f(a, b) for b in range(10)] for a in range(20)] for f in OPERATORS.values()]
)
HELD_OUT = 0.2  # of the pairs of operands
SPLIT_SEED = 30  # the first that holds out the three pairs of the notes' prompt
TOKENIZER = Characters("".join(sorted({*"0123456789=;", *SYMBOLS})))
EQUALS, END = TOKENIZER.encode("=;").tolist()


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
        """``2~3=5;6~7=13;`` of each document."""
        rows = zip(
            (SYMBOLS[s] for s in self.symbols.tolist()),
            self.operands.tolist(),
            self.answers.tolist(),
            strict=True,
        )
        return [
            "".join(f"{a}{s}{b}={y};" for (a, b), y in zip(xs, ys, strict=True))
            for s, xs, ys in rows
        ]


def symbol_pairs(*, seen: bool) -> Int64[Tensor, "p 2"]:
    """Symbols with known operators that occur in training, or the eighth that does not.

    Each symbol lacks one operator, the next symbol the next one: ``~`` is never a + b.
    """
    pairs = torch.cartesian_prod(torch.arange(len(SYMBOLS)), torch.arange(KNOWN))
    lacking = pairs[:, 0] % KNOWN == pairs[:, 1]
    return pairs[~lacking if seen else lacking]


def operand_pairs(*, seen: bool) -> Int64[Tensor, "p 2"]:
    """Operands (a, b) that occur in training, or the fifth that does not.

    The same at every call, whatever the seed of a run.
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

    All operands of a document differ, so that nothing can be copied. Raises
    ``ValueError`` for more examples than pairs of operands.
    """
    rule = f"be from 1 to the pairs of operands ({len(operands)})"
    require(1 <= examples <= len(operands), "examples", rule, examples)
    drawn = symbols[torch.randint(len(symbols), (count,), generator=generator)]
    order = torch.rand(count, len(operands), generator=generator).argsort(dim=1)
    return Documents(drawn[:, 0], drawn[:, 1], operands[order[:, :examples]])


def to_tokens(texts: Sequence[str]) -> Int64[Tensor, "B T"]:
    """A character a token, x_0 first and after the end of those that are shorter."""
    rows = [torch.cat([torch.tensor([START]), TOKENIZER.encode(t)]) for t in texts]
    return pad_sequence(rows, batch_first=True, padding_value=START)


def answer_places(
    x: Int[Tensor, "B T"],
) -> tuple[Bool[Tensor, "B T"], Int64[Tensor, "B T"]]:
    """Which tokens are an answer's, its ``;`` too, and how many examples ended before.

    What is left are the questions, whose tokens are drawn: nobody can predict them.
    """
    equals, ends = (x == EQUALS).long(), (x == END).long()
    example = ends.cumsum(dim=1) - ends
    return equals.cumsum(dim=1) - equals > example, example


def answer_loss(u: Float[Tensor, "B T V"], x: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
    """The mean of (14.8) over the tokens of answers; u[:, t] are logits of x[:, t].

    In nats a token. Unlike the loss of a whole text it leaves out what is drawn.
    """
    inside, _ = answer_places(x)
    return F.cross_entropy(u[inside], x[inside])


@dataclass(frozen=True)
class AnswerScores:
    """What a model makes of each answer, given the true examples before it."""

    log_p: Float[Tensor, "B K"]  # of the whole answer with its ``;``, in nats
    tokens: Int64[Tensor, "B K"]  # it has
    hits: Int64[Tensor, "B K"]  # those of them that were the likeliest next token

    @property
    def right(self) -> Bool[Tensor, "B K"]:
        """Whether it is what the model writes when it always takes the likeliest."""
        return self.hits == self.tokens


def answer_scores(u: Float[Tensor, "B T V"], x: Int[Tensor, "B T"]) -> AnswerScores:
    """Scores of the answers in x; u[:, t] are logits of x[:, t].

    Raises ``ValueError`` for documents that do not have as many examples each.
    """
    inside, example = answer_places(x)
    counts = (x == END).sum(dim=1)
    least, most = (end.item() for end in counts.aminmax())
    require(least == most, "x", "hold as many examples in every row", (least, most))
    log_p = -F.cross_entropy(u.float().mT, x, reduction="none")
    place = example.clamp(max=most - 1)  # what follows the last example is not inside

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(len(x), most).scatter_add_(1, place, values * inside)

    hit = (u.argmax(dim=-1) == x).long()
    return AnswerScores(total(log_p), total(inside.long()), total(hit))


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
