"""The language model before neural ones: counts of runs of up to n tokens.

Axes: T tokens, g different k-grams (runs of k tokens) and a place for those never seen,
c contexts (runs of k - 1 tokens) and the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int, Int64
from torch import Tensor

from fmkit._check import require
from fmkit.data.tokens import check_ids
from fmkit.progress import progress

NEVER_SEEN = torch.iinfo(torch.int64).max  # closes each list of codes
LEAST_DISCOUNT = 0.05  # so that something is left for what was never seen
HELD_OUT = 0.1  # share of the tokens that choose the order


@dataclass(frozen=True)
class Level:
    """k-grams for one k: numbered in the order of their codes, the last is unseen."""

    codes: Int64[Tensor, " g"]  # number of the first k - 1 tokens, times V, + the last
    kept: Float64[Tensor, " g"]  # a count less its discount
    reserved: Float64[Tensor, " c"]  # the discounts after a context
    total: Float64[Tensor, " c"]  # the counts after a context


@dataclass(frozen=True)
class NGram:
    r"""Interpolated Kneser-Ney: p of (14.5) from the n - 1 tokens before, n the order.

    .. math:: p_k(w \mid h) = \frac{c(hw) - D(c(hw)) + \sum_v D(c(hv)) \;
        p_{k-1}(w \mid h')}{\sum_v c(hv)}, \qquad p_0(w) = \frac{1}{V}

    where h are k - 1 tokens and h' is h without its first. Where k = n, c counts how
    often hw occurs; below, how many different tokens stand before it. After an h that
    never occurs p_k is p_{k-1}. log V nats a token where nothing is known.

    Modified as in Chen and Goodman 1998: D depends on whether c is 1, 2 or more
    (:func:`discounts`). On the characters of tinyshakespeare order 5 reaches 1.56 nats
    so, 1.58 with one discount (Kneser and Ney 1995), and 1.67 with Witten-Bell
    smoothing (1991).
    """

    vocabulary: int
    levels: tuple[Level, ...]

    @property
    def order(self) -> int:
        return len(self.levels)

    def log_p(self, tokens: Int[Tensor, "*B T"]) -> Float64[Tensor, "*B T"]:
        """log p(x_t | the up to n - 1 tokens before) of every token of a row, in nats.

        The first token of a row is given nothing, not even ⊥ unless ⊥ is that token.
        Raises ``ValueError`` for an id outside V.
        """
        check_ids(tokens, vocabulary=self.vocabulary)
        p = tokens.new_full(tokens.shape, 1 / self.vocabulary, dtype=torch.float64)
        number = torch.zeros_like(tokens, dtype=torch.int64)  # of the empty context
        for k, level in enumerate(self.levels, start=1):
            last = tokens[..., k - 1 :]
            context = number[..., : last.shape[-1]]
            codes = context * self.vocabulary + last
            number = torch.searchsorted(level.codes, codes)
            number[level.codes[number] != codes] = len(level.codes) - 1
            lower, total = p[..., k - 1 :], level.total[context]
            mixed = (level.kept[number] + level.reserved[context] * lower) / total
            p[..., k - 1 :] = torch.where(total > 0, mixed, lower)
        return p.log()

    def next_probabilities(self, context: Int[Tensor, " T"]) -> Float64[Tensor, " V"]:
        """p(x_{T+1} | context) of every member of V; they sum to 1."""
        every = torch.arange(self.vocabulary, device=context.device)
        near = context[max(0, len(context) - self.order + 1) :]
        rows = torch.cat([near.expand(len(every), -1), every[:, None]], dim=1)
        return self.log_p(rows)[:, -1].exp()


def fit_ngram(tokens: Int[Tensor, " T"], *, vocabulary: int, order: int) -> NGram:
    """Count the runs of up to `order` tokens, of ids below `vocabulary`.

    A run is a pair: the number of its first k - 1 tokens, and its last. Raises
    ``ValueError`` for an order below 1 and an id outside V.

    In the notes: language model, (14.5).
    """
    require(order >= 1, "order", "be at least 1", order)
    check_ids(tokens, vocabulary=vocabulary)
    number = torch.zeros(len(tokens) + 1, dtype=torch.int64, device=tokens.device)
    levels: list[tuple[Tensor, Tensor]] = []
    for k in range(1, order + 1):
        last = tokens[k - 1 :]
        codes, found, counts = torch.unique(
            number[: len(last)] * vocabulary + last,
            return_inverse=True,
            return_counts=True,
        )
        if levels:
            # Each different run adds 1 to the run that it is without its first token
            shorter = torch.empty_like(codes)
            shorter[found] = number[1:]
            below = levels[-1][0]
            levels[-1] = below, shorter.bincount(minlength=len(below))
        levels.append((codes, counts))
        number = found
    contexts = [1, *(len(codes) + 1 for codes, _ in levels)]
    built = (
        _level(codes, counts, vocabulary=vocabulary, contexts=c)
        for (codes, counts), c in zip(levels, contexts, strict=False)
    )
    return NGram(vocabulary, tuple(built))


def discounts(counts: Int64[Tensor, " g"]) -> Float64[Tensor, "4"]:
    r"""D(0) = 0, D(1), D(2), and D(3), which holds for all larger counts.

    .. math:: D(j) = j - (j + 1) \frac{n_1}{n_1 + 2 n_2} \frac{n_{j+1}}{n_j}

    with n_j the number of runs whose count is j. Unlike the paper each n_j is one
    larger, and no discount is below 0.05: of few or very frequent runs some n_j is 0.
    Source: Chen and Goodman 1998.
    """
    n = [1.0 + int((counts == j).sum()) for j in range(5)]
    y = n[1] / (n[1] + 2 * n[2])
    D = [j - (j + 1) * y * n[j + 1] / n[j] for j in (1, 2, 3)]
    D = [0.0, *(max(d, LEAST_DISCOUNT) for d in D)]
    return torch.tensor(D, dtype=torch.float64, device=counts.device)


def choose_order(
    tokens: Int[Tensor, " T"], *, vocabulary: int, orders: Sequence[int]
) -> tuple[int, dict[int, float]]:
    """The best of `orders`, and the nats a token of each: chosen inside `tokens`.

    Each is counted on the first 90 % and measured on the rest; the smallest of equals
    is best. Raises ``ValueError`` without an order, and for fewer than 2 tokens.
    """
    require(len(orders) >= 1, "orders", "be at least 1", len(orders))
    require(len(tokens) >= 2, "tokens", "be at least 2", len(tokens))
    end = int(len(tokens) * (1 - HELD_OUT))
    nats = {}
    for order in progress(sorted(orders), label="order of the n-gram"):
        model = fit_ngram(tokens[:end], vocabulary=vocabulary, order=order)
        first = max(0, end - order + 1)  # what the first of the rest is given
        nats[order] = -model.log_p(tokens[first:])[end - first :].mean().item()
    return min(nats, key=nats.__getitem__), nats


def _level(codes: Tensor, counts: Tensor, *, vocabulary: int, contexts: int) -> Level:
    discount = discounts(counts)[counts.clamp(max=3)]
    context = codes // vocabulary
    empty = discount.new_zeros(contexts)
    return Level(
        torch.cat([codes, codes.new_tensor([NEVER_SEEN])]),
        torch.cat([counts - discount, discount.new_zeros(1)]),
        reserved=empty.index_add(0, context, discount),
        total=empty.index_add(0, context, counts.double()),
    )
