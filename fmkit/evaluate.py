"""Compute metrics of predictions, representations and texts. Nothing here prints.

n examples, q queries, m representation, k classes, r draws; T tokens.
"""

import math
import statistics
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Integer, Shaped
from torch import Tensor, nn

from fmkit import runtime
from fmkit._check import require
from fmkit._tensors import (
    as_int64,
    require_below,
    require_bools,
    require_finite,
    require_shape,
)
from fmkit.progress import progress

Interval = tuple[float, float, float]  # a mean, then the ends of its interval
Key = tuple[str, str, int]  # encoder, adaptation, number of labels of all classes
# (encoder, adaptation, labels, split): an accuracy for each draw or seed
Scores = Mapping[tuple[str, str, int, str], Sequence[float]]
RESAMPLES = 10_000  # of a bootstrap
LEVEL = 0.95  # share of the resampled means that an interval contains
ROUNDING = 1e-4  # of a probability or of a sum of them, at most
QUERIES_AT_ONCE = 1000  # of kNN: 200 MB of similarities to 50,000 examples


def accuracy(logits: Float[Tensor, "n k"], labels: Integer[Tensor, " n"]) -> float:
    """Return the share of examples whose largest logit is that of their label.

    Guessing gives 1/k. Raises ``ValueError`` without an example, if there is not one
    label from 0 to k - 1 for each, and if a logit is NaN, which would be the largest.
    """
    labels = _labels_of("logits", logits, labels)
    require(logits.dtype != torch.bool, "logits", "hold numbers", logits.dtype)
    nans = int(logits.isnan().sum())
    require(nans == 0, "logits", "hold no NaN", nans)
    return runtime.float64(logits.argmax(dim=1) == labels).mean().item()


def brier_score(p: Float[Tensor, "n k"], labels: Integer[Tensor, " n"]) -> float:
    r"""Return the mean squared distance of probabilities from the true classes.

    .. math:: \frac{1}{n} \sum_{i=1}^{n} \sum_{j=1}^{k} (p_j^{(i)} - 1[y^{(i)} = j])^2

    A perfect model scores 0, uniform probabilities 1 - 1/k, and a model that is certain
    and always wrong 2. Unlike accuracy, it punishes confidence in a wrong class more
    than doubt: the true probabilities have the lowest expected score. Raises
    ``ValueError`` without an example, if there is not one label from 0 to k - 1 for
    each, if a probability is negative, and if a row does not sum to 1. Source: Brier
    1950.
    """
    labels = _labels_of("p", p, labels)
    p = runtime.float64(p)
    total = p.sum(dim=1)
    worst = total[(total - 1).abs().argmax()].item()
    require(abs(worst - 1) < ROUNDING, "p", "sum to 1 in every row", round(worst, 4))
    least = p.min().item()
    require(least >= 0, "p", "hold no negative probability", least)
    true = F.one_hot(labels.to(p.device), p.shape[1])
    return (p - true).square().sum(dim=1).mean().item()


def reliability(
    confidence: Float[Tensor, " n"], correct: Bool[Tensor, " n"], *, bins: int
) -> list[tuple[float, float, int]]:
    """Return mean confidence, accuracy and size of groups of similar confidence.

    Groups are in the order of their confidence and equal in size, give or take one
    example. A calibrated model has equal confidence and accuracy in each group. Unlike
    with bins of equal width, no group is nearly empty. Raises ``ValueError`` if there
    are more bins than examples, if a confidence is not from 0 to 1, and if `correct` is
    not as long. Source: DeGroot and Fienberg 1983.
    """
    require_shape("confidence", confidence, "n")
    n = len(confidence)
    require_bools("correct", correct, n)
    inside = (confidence >= 0) & (confidence <= 1 + ROUNDING)  # NaN is not
    for wrong in confidence[~inside][:1].tolist():
        require(False, "confidence", "be from 0 to 1", wrong)
    require(1 <= bins <= n, "bins", f"be from 1 to the number of examples ({n})", bins)
    order = confidence.argsort(stable=True)
    return [
        (
            runtime.float64(confidence[group]).mean().item(),
            runtime.float64(correct[group]).mean().item(),
            len(group),
        )
        for group in order.tensor_split(bins)
    ]


@runtime.exact()
def knn_votes(
    bank: Float[Tensor, "n m"],
    labels: Integer[Tensor, " n"],
    queries: Float[Tensor, "q m"],
    *,
    classes: int,
    neighbours: int,
    tau: float,
) -> Float[Tensor, "q {classes}"]:
    r"""Return, for each class, the votes of the nearest labelled examples.

    .. math:: \sum_{i \in N(x)} 1[y^{(i)} = c] \,
        e^{\cos(\phi(x),\, \phi(x^{(i)})) / \tau}

    N(x) are the `neighbours` examples of the largest cosine. This is a classifier
    without a linear head w; :func:`accuracy` takes its votes as logits. They have the
    precision of the representations, at least float32. Raises ``ValueError`` if there
    are fewer examples than `neighbours`, if there is not one label below `classes` for
    each, if a representation has another width or is not finite, and if `tau` is not
    above 0. Source: Wu et al. 2018, section 3.4.
    """
    require_shape("bank", bank, "n", "m")
    n, m = bank.shape
    require_shape("queries", queries, "q", m)
    require(classes >= 1, "classes", "be at least 1", classes)
    require(1 <= neighbours <= n, "neighbours", f"be from 1 to {n}", neighbours)
    require(tau > 0, "tau", "be above 0", tau)
    labels = as_int64("labels", labels, n).to(bank.device)
    require_below("labels", labels, classes)
    precision = torch.promote_types(bank.dtype, queries.dtype)
    precision = torch.promote_types(precision, torch.float32)
    known, asked = _unit("bank", bank, precision), _unit("queries", queries, precision)
    votes = []
    for some in asked.split(QUERIES_AT_ONCE):
        cosine, nearest = (some @ known.T).topk(neighbours, dim=1)
        # Subtracting the largest keeps exp finite and the order of votes as it is
        weight = ((cosine - cosine[:, :1]) / tau).exp()
        empty = weight.new_zeros(len(some), classes)
        votes.append(empty.scatter_add_(1, labels[nearest], weight))
    return torch.cat(votes)


def alignment(phi_hat: Float[Tensor, "n m"], phi_tilde: Float[Tensor, "n m"]) -> float:
    r"""Return the mean squared distance of positive pairs on the unit sphere.

    .. math:: \frac{1}{n} \sum_{i=1}^{n} \lVert z(\hat x^{(i)}) - z(\tilde x^{(i)})
        \rVert^2

    z is the normalized representation, so the result is 2 minus twice the mean cosine;
    it is 0 if the two views of each pair are represented equally. Raises ``ValueError``
    without a pair, if the shapes differ, and if a value is not finite. Source: Wang and
    Isola 2020, with their alpha = 2.
    """
    require_shape("phi_hat", phi_hat, "n", "m")
    require(len(phi_hat) >= 1, "phi_hat", "have at least 1 row", len(phi_hat))
    require_shape("phi_tilde", phi_tilde, *phi_hat.shape)
    unit_hat = _unit("phi_hat", runtime.float64(phi_hat))
    unit_tilde = _unit("phi_tilde", runtime.float64(phi_tilde))
    return (unit_hat - unit_tilde).square().sum(dim=1).mean().item()


def uniformity(phi: Float[Tensor, "n m"]) -> float:
    r"""Return how unevenly representations cover the unit sphere; lower is more even.

    .. math:: \log \frac{2}{n (n - 1)} \sum_{i < j} e^{-2 \lVert z_i - z_j \rVert^2}

    It is 0 if all representations are one point, and about -4 if they are spread evenly
    on a sphere of many dimensions. Raises ``ValueError`` for a single example, and if a
    value is not finite. Source: Wang and Isola 2020, with their t = 2.
    """
    require_shape("phi", phi, "n", "m")
    require(len(phi) >= 2, "phi", "have at least 2 rows", len(phi))
    distance = torch.pdist(_unit("phi", runtime.float64(phi)))
    return distance.square().mul(-2).exp().mean().log().item()


def planar_maps(
    series: Sequence[Float[Tensor, "n m"]],
) -> list[Float[Tensor, "n 2"]]:
    """Map representations of the same examples at several times into the plane.

    A map is the first two principal components of the normalized representations. Each
    map is rotated or reflected to lie as close as possible to the next map (Procrustes,
    Schönemann 1966), because the directions of the components may change from one time
    to the next. Raises ``ValueError`` if there are not at least 2 columns and 2 rows,
    as many at every time, and if a value is not finite.
    """
    for phi in series:
        require_shape("series", phi, len(series[0]), "m")
        rule = "have at least 2 rows and 2 columns"
        require(min(phi.shape) >= 2, "series", rule, tuple(phi.shape))
    maps: list[Tensor] = []
    for phi in reversed(series):
        z = _unit("series", runtime.float64(phi))
        u, s, _ = torch.linalg.svd(z - z.mean(dim=0), full_matrices=False)
        points = u[:, :2] * s[:2]
        if maps:
            u, _, vh = torch.linalg.svd(points.T @ maps[-1])
            points = points @ u @ vh
        maps.append(points)
    return maps[::-1]


@runtime.exact()
def token_nats(
    model: nn.Module, windows: Sequence[Integer[Tensor, "_ _"]], *, bar: str = "tokens"
) -> Float[Tensor, " n"]:
    """Return -log p of each token, given the earlier tokens of its window.

    The first token of a window has no earlier one and gets no value. Windows are
    processed one at a time. The model is switched to eval mode, and its mode is
    restored afterwards. Precision is the model's on every device, also inside
    autocast; logarithms are float32. `bar` is the text of the progress bar. Raises
    ``ValueError`` without a window, if a row of one has fewer than 2 tokens, and if an
    id is no token of the model; a GPU, which this would stop, is not asked for ids.

    In the notes: (14.5).
    """
    require(len(windows) >= 1, "windows", "be at least 1", len(windows))
    windows = [as_int64("windows", window, "B", "T") for window in windows]
    shortest = min(window.shape[1] for window in windows)
    require(shortest >= 2, "windows", "have at least 2 tokens a row", shortest)
    was_training = model.training
    model.eval()
    nats = []
    with torch.no_grad():
        for window in progress(windows, bar=bar):
            u, x = model(window[:, :-1]).float(), window[:, 1:]
            if runtime.on_host(x):  # cross_entropy would leave out an id of -100
                require_below("windows", x, u.shape[-1])
            nats.append(F.cross_entropy(u.mT, x, reduction="none").flatten())
    model.train(was_training)
    return torch.cat(nats)


def strided_nats(
    model: nn.Module,
    sequence: Integer[Tensor, " n"],
    *,
    context: int,
    stride: int,
    batch_size: int = 64,
    bar: str = "tokens",
) -> Float[Tensor, " _"]:
    """Return -log p of each token but the first, none of them at the start of a window.

    Windows of T + 1 tokens, T the `context`, begin every `stride` tokens, and a window
    gives values to its last `stride` tokens only. So a token is predicted from the
    T - stride + 1 tokens before it or more, except the first T, which are predicted
    from all before them. A last window ends where the sequence does. If `stride` is T,
    the windows are those of :func:`fmkit.data.tokens.consecutive`, whose first tokens
    are predicted from few; half of T costs twice the time. Precision and mode are those
    of :func:`token_nats`. Raises ``ValueError`` if `stride` is not from 1 to T, if
    `sequence` is not longer than T, and if an id is no token of the model.

    Source: the sliding window of Baevski and Auli 2019.
    """
    T = context
    sequence = as_int64("sequence", sequence, "n")
    require(T >= 1, "context", "be at least 1", T)
    require(1 <= stride <= T, "stride", f"be from 1 to the context ({T})", stride)
    rule = f"have more tokens than the context ({T})"
    require(len(sequence) > T, "sequence", rule, len(sequence))
    require(batch_size >= 1, "batch_size", "be at least 1", batch_size)
    windows = sequence.unfold(0, T + 1, stride)
    rest = len(sequence) - 1 - T - stride * (len(windows) - 1)  # after the last window
    windows = [*windows.split(batch_size), sequence[None, -T - 1 :]]
    first, *others, last = token_nats(model, windows, bar=bar).split(T)
    values = [first, *(window[-stride:] for window in others), last[T - rest :]]
    return torch.cat(values)


def bits_per_byte(nats: float, *, tokens: int, text: str) -> float:
    """Convert the mean loss of the `tokens` of a text, in `nats`, to bits per byte.

    Unlike a loss per token, bits per byte can be compared between vocabularies: a
    compressor built on the model would need as many. A model that finds every byte
    equally likely has log2 256 = 8. Raises ``ValueError`` for an empty text, without
    tokens, and if `nats` is negative or NaN.
    """
    require(nats >= 0, "nats", "be at least 0", nats)
    require(tokens >= 1, "tokens", "be at least 1", tokens)
    size = len(text.encode())
    require(size >= 1, "text", "hold at least 1 byte", text)
    return nats * tokens / size / math.log(2)


def mean_interval(values: list[float], *, generator: torch.Generator) -> Interval:
    """Return the mean of `values` and its 95 % percentile bootstrap interval.

    The interval covers only what varied between the values (seeds, draws of labels). It
    is too narrow for a handful of values: for three it is nearly their range, for one
    it is that value. Raises ``ValueError`` without a value, and if one is not finite.
    Source: Efron 1979.
    """
    require(len(values) >= 1, "values", "hold at least 1 number", values)
    x = torch.tensor(values, dtype=torch.float64)
    require_finite("values", x)
    resampled = torch.randint(len(x), (RESAMPLES, len(x)), generator=generator)
    low, high = _ends(x[resampled].mean(dim=1))
    return x.mean().item(), low, high


def wilson(correct: Sequence[float | int]) -> Interval:
    r"""Return a share and its 95 % interval, which has a width at 0 and at 1 too.

    `correct` are 0 or 1 for each of n items. With the share p and z = 1.96 the ends are

    .. math:: \frac{p + z^2 / 2n \pm z \sqrt{p (1 - p) / n + z^2 / 4n^2}}{1 + z^2 / n}

    A bootstrap of n values that are all 1 has an interval of width zero, although the
    next item may well be a 0. A value between 0 and 1 counts as that part of an item: a
    tie of k answers gives 1/k. Raises ``ValueError`` without an item, and if a value is
    not from 0 to 1. Source: Wilson 1927.
    """
    n = len(correct)
    require(n >= 1, "correct", "hold at least 1 number", [*correct])
    for value in correct:
        require(0 <= value <= 1, "correct", "be from 0 to 1", value)
    z = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)
    p = sum(correct) / n
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At 0 and at 1 the share is itself an end, which rounding would miss
    low, high = (middle - half) / scale, (middle + half) / scale
    return p, max(0.0, min(p, low)), min(1.0, max(p, high))


def crossed_interval(
    values: Float[Tensor, "r n"], *, generator: torch.Generator
) -> Interval:
    """Return the mean of `values` and its 95 % interval over draws and examples.

    A row is a draw (of examples for a prompt, of a seed), a column an example on which
    every draw was measured. Rows and columns are resampled independently, so that a
    hard example stays hard in every draw. With one row the interval covers the examples
    alone. For a paired difference, pass the difference of two such tables. Like
    :func:`mean_interval`, it is too narrow for a handful of rows. Raises ``ValueError``
    without a value, and if one is not finite. Source: the pigeonhole bootstrap, Owen
    2007.
    """
    require_shape("values", values, "r", "n")
    r, n = values.shape
    require(values.numel() >= 1, "values", "hold at least 1 number", (r, n))
    require_finite("values", values)
    x = values.cpu().double()
    rows = _resampled_shares(r, generator)
    columns = _resampled_shares(n, generator)
    low, high = _ends(((rows @ x) * columns).sum(dim=1))
    return x.mean().item(), low, high


def _labels_of(
    name: str, rows: Tensor, labels: Integer[Tensor, " n"]
) -> Int64[Tensor, " n"]:
    """Return the labels of `rows` on their device, each the number of a column."""
    require_shape(name, rows, "n", "k")
    labels = as_int64("labels", labels, len(rows)).to(rows.device)
    require(len(labels) >= 1, "labels", "hold at least 1 example", len(labels))
    require_below("labels", labels, rows.shape[1])
    return labels


def _unit(
    name: str, x: Shaped[Tensor, "n m"], precision: torch.dtype = torch.float64
) -> Float[Tensor, "n m"]:
    """Normalize the rows of `x`; a row of zeros stays one.

    Raises ``ValueError`` if a value is not finite, and if the square of a length is
    too small or too large for `precision`.
    """
    require(x.shape[1] >= 1, name, "have at least 1 column", x.shape[1])
    require_finite(name, x)
    x = x.to(precision)
    z = F.normalize(x, dim=1)
    lost = (z.norm(dim=1) < 0.5) & (x != 0).any(dim=1)
    for wrong in x[lost][:1].abs().amax(dim=1).tolist():
        require(False, name, "have rows of a size that can be normalized", wrong)
    return z


def _resampled_shares(
    size: int, generator: torch.Generator
) -> Float[Tensor, "_ {size}"]:
    """Draw resamples of `size` things; return the share of each thing in each."""
    drawn = torch.randint(size, (RESAMPLES, size), generator=generator)
    one = torch.full(drawn.shape, 1 / size, dtype=torch.float64)
    return torch.zeros_like(one).scatter_add_(1, drawn, one)


def _ends(means: Float[Tensor, " _"]) -> tuple[float, float]:
    """Return the ends of the interval that contains the middle of resampled means."""
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = torch.quantile(means, tails).tolist()
    return low, high


def learning_curve(
    scores: Scores, encoder: str, adaptation: str, split: str = "test"
) -> list[tuple[int, list[float]]]:
    """Return a point for each number of labels: n_task and the values of all draws."""
    n_task = sorted(
        key[2] for key in scores if (*key[:2], key[3]) == (encoder, adaptation, split)
    )
    return [(n, [*scores[encoder, adaptation, n, split]]) for n in n_task]


def differences(
    scores: Scores, better: Key, worse: Key, split: str = "test"
) -> list[float]:
    """Return the difference of two accuracies for each draw of labels or seed.

    Both must have been measured with the same draws in the same order, so that the
    common effect of a draw cancels. The list is empty if one of the two was not
    measured. Raises ``ValueError`` if the numbers of draws differ.
    """
    a, b = scores.get((*better, split), []), scores.get((*worse, split), [])
    if not (a and b):
        return []
    require(len(a) == len(b), "worse", f"have {len(a)} values, as better", len(b))
    return [x - y for x, y in zip(a, b, strict=True)]


def each_in_points(gains: Sequence[float]) -> str:
    """Format differences of accuracies in percentage points: +1.2, +0.3, +2.0."""
    return ", ".join(f"{100 * gain:+.1f}" for gain in gains)


def in_points(mean: float, low: float, high: float) -> str:
    """Format a difference of accuracies in percentage points: +1.2 (+0.3 to +2.0)."""
    return f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
