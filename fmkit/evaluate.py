"""Numbers about predictions, representations and texts. Nothing here prints.

n examples, q queries, m representation, k classes, r draws; T tokens.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fmkit import runtime
from fmkit._check import require
from fmkit.progress import progress

Interval = tuple[float, float, float]  # a mean and the two ends of its interval
Key = tuple[str, str, int]  # encoder, adaptation, number of labels in all
# For each (encoder, adaptation, labels, split) an accuracy for each draw or seed
Scores = Mapping[tuple[str, str, int, str], Sequence[float]]
RESAMPLES = 10_000  # of a bootstrap
QUERIES_AT_ONCE = 1000  # of kNN: 200 MB of similarities to 50,000 examples


def accuracy(logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> float:
    """Share of examples whose largest logit is that of their label; 1/k by guessing."""
    require(len(labels) >= 1, "labels", "hold at least 1 example", len(labels))
    return (logits.argmax(dim=1) == labels).double().mean().item()


def brier_score(p: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> float:
    r"""How far predicted probabilities lie from what came, squared; 0 is best.

    .. math:: \frac{1}{n} \sum_{i=1}^{n} \sum_{j=1}^{k} (p_j^{(i)} - 1[y^{(i)} = j])^2

    1 - 1/k where all classes are as likely, 2 for one that is sure and always wrong.
    Unlike accuracy it also punishes being sure of the wrong class more than doubting
    it: no other p has a lower expectation than the true one. Raises ``ValueError``
    without an example, and for rows that do not sum to 1. Source: Brier 1950.
    """
    require(len(labels) >= 1, "labels", "hold at least 1 example", len(labels))
    total = p.double().sum(dim=1)
    off = (total - 1).abs().max().item()
    require(off < 1e-4, "p", "sum to 1 in every row", f"{off:.2g} off")
    came = F.one_hot(labels, p.shape[1])
    return (p.double() - came).square().sum(dim=1).mean().item()


def reliability(
    confidence: Float[Tensor, " n"], right: Bool[Tensor, " n"], *, bins: int
) -> list[tuple[float, float, int]]:
    """For groups of like confidence: its mean, the share that is right, how many.

    Groups hold as many examples each, give or take one, from the least sure on. The
    first two numbers are equal where a model knows how sure it may be. Unlike with bins
    of equal width, no group is nearly empty. Raises ``ValueError`` for more bins than
    examples. Source: DeGroot and Fienberg 1983.
    """
    n = len(confidence)
    require(1 <= bins <= n, "bins", f"be from 1 to the examples ({n})", bins)
    order = confidence.argsort(stable=True)
    return [
        (
            confidence[group].double().mean().item(),
            right[group].double().mean().item(),
            len(group),
        )
        for group in order.tensor_split(bins)
    ]


def knn_votes(
    bank: Float[Tensor, "n m"],
    labels: Int[Tensor, " n"],
    queries: Float[Tensor, "q m"],
    *,
    classes: int,
    neighbours: int,
    tau: float,
) -> Float[Tensor, "q {classes}"]:
    r"""Votes of the nearest labelled examples for each class: a classifier without w.

    .. math:: \sum_{i \in N(x)} 1[y^{(i)} = c] \,
        e^{\cos(\phi(x),\, \phi(x^{(i)})) / \tau}

    with N(x) the `neighbours` examples of the largest cosine. To be read by
    :func:`accuracy`. Raises ``ValueError`` for more neighbours than examples and for a
    temperature that is not above 0. Source: Wu et al. 2018, section 3.4.
    """
    n = len(bank)
    require(1 <= neighbours <= n, "neighbours", f"be from 1 to {n}", neighbours)
    require(tau > 0, "tau", "be above 0", tau)
    known = F.normalize(bank.float(), dim=1)
    votes = []
    for some in F.normalize(queries.float(), dim=1).split(QUERIES_AT_ONCE):
        cosine, nearest = (some @ known.T).topk(neighbours, dim=1)
        # Less the largest, which changes no order and keeps exp finite
        weight = ((cosine - cosine[:, :1]) / tau).exp()
        empty = weight.new_zeros(len(some), classes)
        votes.append(empty.scatter_add_(1, labels[nearest], weight))
    return torch.cat(votes)


def alignment(phi_hat: Float[Tensor, "n m"], phi_tilde: Float[Tensor, "n m"]) -> float:
    r"""How far positive pairs lie apart on the sphere: 0 where views are alike.

    .. math:: \frac{1}{n} \sum_{i=1}^{n} \lVert z(\hat x^{(i)}) - z(\tilde x^{(i)})
        \rVert^2

    with z the normalized representation, so it is 2 less twice the mean cosine.
    Source: Wang and Isola 2020, with their alpha = 2.
    """
    both = phi_hat.double(), phi_tilde.double()
    unit_hat, unit_tilde = (F.normalize(x, dim=1) for x in both)
    return (unit_hat - unit_tilde).square().sum(dim=1).mean().item()


def uniformity(phi: Float[Tensor, "n m"]) -> float:
    r"""How evenly representations lie on the sphere: 0 at one point, lower is evener.

    .. math:: \log \frac{2}{n (n - 1)} \sum_{i < j} e^{-2 \lVert z_i - z_j \rVert^2}

    Evenly spread on a sphere of many dimensions it is about -4. Raises ``ValueError``
    for a single example. Source: Wang and Isola 2020, with their t = 2.
    """
    require(len(phi) >= 2, "phi", "have at least 2 rows", len(phi))
    distance = torch.pdist(F.normalize(phi.double(), dim=1))
    return distance.square().mul(-2).exp().mean().log().item()


def planar_maps(
    series: Sequence[Float[Tensor, "n m"]],
) -> list[Float[Tensor, "n 2"]]:
    """Representations of the same examples over time, each as a map in the plane.

    A map is the first two principal components of the normalized representations. As
    an axis may turn from one time to the next, each map is turned, or mirrored, to lie
    as near as it can to the one after it (Procrustes, Schönemann 1966).
    """
    maps: list[Tensor] = []
    for phi in reversed(series):
        z = F.normalize(phi.double(), dim=1)
        u, s, _ = torch.linalg.svd(z - z.mean(dim=0), full_matrices=False)
        points = u[:, :2] * s[:2]
        if maps:
            u, _, v = torch.linalg.svd(points.T @ maps[-1])
            points = points @ u @ v
        maps.append(points)
    return maps[::-1]


def token_nats(
    model: nn.Module, windows: Sequence[Int[Tensor, "_ _"]], *, label: str
) -> Float[Tensor, " n"]:
    """-log p of each token, given those before it in its window, the first left out.

    One window after the other. The model is in eval mode while it is asked, and then in
    the mode in which it came. Precision is the runtime's for the device of the tokens;
    logarithms are float32. `label` names the progress bar.

    In the notes: (14.5).
    """
    was_training = model.training
    model.eval()
    nats = []
    with torch.no_grad(), runtime.autocast(windows[0].device):
        for window in progress(windows, label=label):
            u, x = model(window[:, :-1]).float(), window[:, 1:]
            nats.append(F.cross_entropy(u.mT, x, reduction="none").flatten())
    model.train(was_training)
    return torch.cat(nats)


def bits_per_byte(nats: float, *, tokens: int, text: str) -> float:
    """Bits for a byte of `text`, of which each of its `tokens` takes `nats` on average.

    Unlike a loss per token it can be compared between vocabularies: it is what a
    compressor built on the model would need. log2 256 = 8 for bytes that are all alike
    to it. Raises ``ValueError`` for an empty text.
    """
    size = len(text.encode())
    require(size >= 1, "text", "hold at least 1 byte", text)
    return nats * tokens / size / math.log(2)


def mean_interval(
    values: list[float], *, generator: torch.Generator, level: float = 0.95
) -> Interval:
    """The mean of `values` and the percentile bootstrap interval of that mean.

    The interval speaks only of what varied between the values (seeds, draws of labels).
    It is too narrow for a handful of them: of three it is nearly their range, of one it
    is that value. Raises ``ValueError`` without a value. Source: Efron 1979.
    """
    require(len(values) >= 1, "values", "be at least 1", values)
    x = torch.tensor(values, dtype=torch.float64)
    resampled = torch.randint(len(x), (RESAMPLES, len(x)), generator=generator)
    return x.mean().item(), *_ends(x[resampled].mean(dim=1), level)


def crossed_interval(
    values: Float[Tensor, "r n"], *, generator: torch.Generator, level: float = 0.95
) -> Interval:
    """The mean of `values` and its interval, where both draws and examples varied.

    A row is a draw (of examples for a prompt, of a seed), a column an example on which
    every draw was measured. Rows and columns are resampled, each by itself, so that a
    hard example stays hard in every draw. With one row it speaks of the examples alone.
    A paired difference is that of two such tables. As with :func:`mean_interval`, it is
    too narrow for a handful of rows. Raises ``ValueError`` without a value. Source:
    the pigeonhole bootstrap, Owen 2007.
    """
    r, n = values.shape
    require(values.numel() >= 1, "values", "be at least 1", (r, n))
    x = values.double().cpu()
    shares = []  # of each row, and of each column, in a resample
    for size in (r, n):
        drawn = torch.randint(size, (RESAMPLES, size), generator=generator)
        share = torch.full(drawn.shape, 1 / size, dtype=x.dtype)
        shares.append(torch.zeros_like(share).scatter_add_(1, drawn, share))
    means = ((shares[0] @ x) * shares[1]).sum(dim=1)
    return x.mean().item(), *_ends(means, level)


def _ends(means: Float[Tensor, " _"], level: float) -> tuple[float, float]:
    """Of the middle `level` of resampled means."""
    require(0 < level < 1, "level", "be between 0 and 1", level)
    tail = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(means, tail).tolist()
    return low, high


def learning_curve(
    scores: Scores,
    encoder: str,
    adaptation: str,
    split: str = "test",
    *,
    generator: torch.Generator,
) -> list[tuple[int, float, float, float]]:
    """Points of accuracy against labels: n_task, the mean, and its interval's ends."""
    wanted = encoder, adaptation, split
    keys = sorted(key for key in scores if (*key[:2], key[3]) == wanted)
    return [
        (key[2], *mean_interval([*scores[key]], generator=generator)) for key in keys
    ]


def gain(
    scores: Scores,
    better: Key,
    worse: Key,
    split: str = "test",
    *,
    generator: torch.Generator,
) -> Interval:
    """Difference of two accuracies, draw by draw: its mean and interval.

    Both were measured with the same draws, in the same order, so what a draw does to
    both of them drops out. Raises ``ValueError`` where they are not as many.
    """
    a, b = scores[(*better, split)], scores[(*worse, split)]
    require(len(a) == len(b), "worse", f"have {len(a)} values, as better", len(b))
    differences = [x - y for x, y in zip(a, b, strict=True)]
    return mean_interval(differences, generator=generator)


def in_points(mean: float, low: float, high: float) -> str:
    """A difference of accuracies as text, in percentage points: +1.2 (+0.3 to +2.0)."""
    return f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
