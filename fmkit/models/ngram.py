"""The language model before neural networks: counts of runs of up to n tokens.

Axes: T tokens, g different k-grams (runs of k tokens) and one entry for all unseen
ones, c contexts (runs of k - 1 tokens) and one entry for all unseen ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64, Integer
from torch import Tensor

from fmkit._check import require
from fmkit._tensors import as_int64, require_integers
from fmkit.data.tokens import check_ids
from fmkit.progress import progress

NEVER_SEEN = torch.iinfo(torch.int64).max  # closes each list of codes
LEAST_DISCOUNT = 0.05  # so that unseen runs keep some probability
HELD_OUT = 0.1  # share of the tokens that choose the order


@dataclass(frozen=True)
class Level:
    """All k-grams of one length k, sorted by code.

    The last entry stands for every k-gram that was never seen.
    """

    codes: Int64[Tensor, " g"]  # number of the first k - 1 tokens, times V, plus last
    kept: Float64[Tensor, " g"]  # the count minus its discount
    reserved: Float64[Tensor, " c"]  # the sum of the discounts after a context
    total: Float64[Tensor, " c"]  # the sum of the counts after a context


@dataclass(frozen=True)
class NGram:
    r"""Interpolated Kneser-Ney: p of (14.5) from n - 1 previous tokens, n the order.

    .. math:: p_k(w \mid h) = \frac{c(hw) - D(c(hw)) + \sum_v D(c(hv)) \;
        p_{k-1}(w \mid h')}{\sum_v c(hv)}, \qquad p_0(w) = \frac{1}{V}

    where h are k - 1 tokens and h' is h without its first. If k = n, c counts how often
    hw occurs; for smaller k it counts how many different tokens precede hw. After an h
    that never occurs p_k is p_{k-1}. A model that has seen no text costs log V nats a
    token.

    Modified as in Chen and Goodman 1998: D depends on whether c is 1, 2 or more
    (:func:`fmkit.models.ngram.discounts`). On the characters of tinyshakespeare order 5
    reaches 1.56 nats this way, 1.58 with one discount (Kneser and Ney 1995), and 1.67
    with Witten-Bell smoothing (1991).
    """

    vocabulary: int
    levels: tuple[Level, ...]

    @property
    def order(self) -> int:
        return len(self.levels)

    def log_p(self, tokens: Integer[Tensor, "*B T"]) -> Float64[Tensor, "*B T"]:
        """Compute log p(x_t | up to n - 1 previous tokens) of every token, in nats.

        The first token of a row has no context, not even ⊥. Raises ``ValueError`` if an
        id is outside V, and for a single id without a row.
        """
        require(tokens.dim() >= 1, "tokens", "be rows", tuple(tokens.shape))
        check_ids(tokens, vocabulary=self.vocabulary)
        p = tokens.new_full(tokens.shape, 1 / self.vocabulary, dtype=torch.float64)
        number = torch.zeros_like(tokens, dtype=torch.int64)  # of the empty context
        for k, level in enumerate(self.levels, start=1):
            number, p = _mixed(
                level, tokens, number, p, k=k, vocabulary=self.vocabulary
            )
        return p.log()


def fit_ngram(tokens: Integer[Tensor, " T"], *, vocabulary: int, order: int) -> NGram:
    """Count the runs of up to `order` tokens, whose ids are below `vocabulary`.

    A run is stored as a pair: the number of its first k - 1 tokens, and its last token.
    Raises ``ValueError`` if the order or V is below 1, or an id is outside V.

    In the notes: language model, (14.5).
    """
    require(order >= 1, "order", "be at least 1", order)
    require(vocabulary >= 1, "vocabulary", "be at least 1", vocabulary)
    tokens = as_int64("tokens", tokens, "T")
    check_ids(tokens, vocabulary=vocabulary)
    levels: list[tuple[Tensor, Tensor]] = []
    for codes, counts, below in _counted(tokens, vocabulary=vocabulary, order=order):
        if below is not None:
            levels[-1] = levels[-1][0], below
        levels.append((codes, counts))
    contexts = [1, *(len(codes) + 1 for codes, _ in levels)]
    built = (
        _level(codes, counts, vocabulary=vocabulary, contexts=c)
        for (codes, counts), c in zip(levels, contexts, strict=False)
    )
    return NGram(vocabulary, tuple(built))


def log_p_of_orders(
    tokens: Integer[Tensor, " n"],
    held_out: Integer[Tensor, "*B T"],
    *,
    vocabulary: int,
    orders: Sequence[int],
) -> dict[int, Float64[Tensor, "*B T"]]:
    """Compute log p of every held-out token, in nats, by an n-gram of each order.

    The result is that of :func:`fit_ngram` and :meth:`NGram.log_p` for each order. But
    `tokens` are counted once for all orders, and memory holds two lengths of runs at a
    time. Raises ``ValueError`` if there is no order, if an order or V is below 1, if
    `held_out` is a single number, or if an id is outside V.
    """
    require(len(orders) >= 1, "orders", "be at least 1", len(orders))
    require(min(orders) >= 1, "order", "be at least 1", min(orders))
    require(vocabulary >= 1, "vocabulary", "be at least 1", vocabulary)
    require(held_out.dim() >= 1, "held_out", "be rows", tuple(held_out.shape))
    tokens = as_int64("tokens", tokens, "T")
    for ids in (tokens, held_out):
        check_ids(ids, vocabulary=vocabulary)
    p = held_out.new_full(held_out.shape, 1 / vocabulary, dtype=torch.float64)
    number = torch.zeros_like(held_out, dtype=torch.int64)
    before, contexts, found = None, 1, {}
    counted = _counted(tokens, vocabulary=vocabulary, order=max(orders))
    for k, (codes, counts, below) in enumerate(counted, start=1):
        if before is not None:
            level = _level(before, below, vocabulary=vocabulary, contexts=contexts)
            number, p = _mixed(
                level, held_out, number, p, k=k - 1, vocabulary=vocabulary
            )
            contexts = len(before) + 1
        if k in orders:
            level = _level(codes, counts, vocabulary=vocabulary, contexts=contexts)
            _, of_order = _mixed(level, held_out, number, p, k=k, vocabulary=vocabulary)
            found[k] = of_order.log()
        before = codes
    return found


def discounts(counts: Int64[Tensor, " g"]) -> Float64[Tensor, "4"]:
    r"""Compute D(0) = 0, D(1), D(2), and D(3), which holds for all larger counts.

    .. math:: D(j) = j - (j + 1) \frac{n_1}{n_1 + 2 n_2} \frac{n_{j+1}}{n_j}

    with n_j the number of runs whose count is j. Unlike the paper it adds 1 to each n_j
    and lets no discount fall below 0.05, because some n_j is 0 if runs are few or all
    very frequent. Source: Chen and Goodman 1998.
    """
    require_integers("counts", counts)
    n = [1.0 + int((counts == j).sum()) for j in range(5)]
    y = n[1] / (n[1] + 2 * n[2])
    D = [j - (j + 1) * y * n[j + 1] / n[j] for j in (1, 2, 3)]
    D = [0.0, *(max(d, LEAST_DISCOUNT) for d in D)]
    return torch.tensor(D, dtype=torch.float64, device=counts.device)


def choose_order(
    tokens: Integer[Tensor, " T"], *, vocabulary: int, orders: Sequence[int]
) -> tuple[int, dict[int, float]]:
    """Choose the best of `orders` inside `tokens`; return it and nats a token of each.

    Each order is counted on the first 90 % of the tokens and evaluated on the rest. If
    several are equal, the smallest is chosen. Raises ``ValueError`` if there is no
    order, if one is below 1, or if there are fewer than 2 tokens.
    """
    require(len(orders) >= 1, "orders", "be at least 1", len(orders))
    tokens = as_int64("tokens", tokens, "T")
    require(len(tokens) >= 2, "tokens", "be at least 2", len(tokens))
    require(min(orders) >= 1, "order", "be at least 1", min(orders))
    end = int(len(tokens) * (1 - HELD_OUT))
    first = max(0, end - max(orders) + 1)  # where the context of the first one begins
    options = {"vocabulary": vocabulary, "orders": orders}
    each = log_p_of_orders(tokens[:end], tokens[first:], **options)
    nats = {n: -each[n][end - first :].mean().item() for n in sorted(each)}
    return min(nats, key=nats.__getitem__), nats


def _counted(
    tokens: Int64[Tensor, " T"], *, vocabulary: int, order: int
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Count all k-grams, for k from 1 to `order`: yield three tensors for each k.

    They are the codes of the k-grams, how often each occurs, and how many different
    tokens precede each of the (k - 1)-grams that were yielded before. The third one is
    None for k = 1.
    """
    number = torch.zeros(len(tokens) + 1, dtype=torch.int64, device=tokens.device)
    below = None
    size = 0
    for k in progress(range(1, order + 1), bar="n-gram"):
        last = tokens[k - 1 :]
        codes, inverse, counts = torch.unique(
            number[: len(last)] * vocabulary + last,
            return_inverse=True,
            return_counts=True,
        )
        if k > 1:
            # Each distinct run adds 1 to the count of the run without its first token
            shorter = torch.empty_like(codes)
            shorter[inverse] = number[1:]
            below = shorter.bincount(minlength=size)
        yield codes, counts, below
        number, size = inverse, len(codes)


def _mixed(
    level: Level, tokens: Tensor, number: Tensor, p: Tensor, *, k: int, vocabulary: int
) -> tuple[Tensor, Tensor]:
    """Return the numbers of the k-grams of `tokens`, and p_k from p_{k-1}.

    `number` are those of the (k - 1)-grams.
    """
    last = tokens[..., k - 1 :]
    context = number[..., : last.shape[-1]]
    codes = context * vocabulary + last
    number = torch.searchsorted(level.codes, codes)
    number[level.codes[number] != codes] = len(level.codes) - 1
    lower, total = p[..., k - 1 :], level.total[context]
    mixed = (level.kept[number] + level.reserved[context] * lower) / total
    mixed = torch.where(total > 0, mixed, lower)
    return number, torch.cat([p[..., : k - 1], mixed], dim=-1)


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
