"""Linear probes: w of (14.1) on a frozen representation, to a stated tolerance.

Axes: n examples, m representation, k classes, l values of lambda, p folds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Integer
from torch import Tensor

from fmkit import _logistic as logistic
from fmkit import runtime
from fmkit._check import Refused, require
from fmkit._tensors import as_int64, require_below, require_finite, require_shape

# Candidates for lambda, in units of the mean squared feature. On Animal-MNIST, with raw
# pixels or EfficientNet-Lite0 and 50 to 7,711 labels, a wider grid (1e-4 to 1e2) gained
# at most 0.005 of test accuracy.
LAMBDA_GRID = tuple(10 ** (i / 2) for i in range(-6, 3))
FOLDS = 5  # of cross-validation
REACH = 1e-150, 1e150  # sizes whose squares float64 can represent


@dataclass(frozen=True)
class LogisticPath:
    """Solutions of :func:`logistic_path`, from the largest lambda to the smallest."""

    lambdas: tuple[float, ...]
    weight: Float[Tensor, "l k m"]
    bias: Float[Tensor, "l k"]


@dataclass(frozen=True)
class Probe:
    """A linear probe, its lambda, and the accuracies that this lambda was chosen by."""

    weight: Float[Tensor, "k m"]
    bias: Float[Tensor, " k"]
    lambda_: float
    accuracy: dict[float, float]  # of each lambda, in cross-validation

    def logits(self, features: Float[Tensor, "n m"]) -> Float[Tensor, "n k"]:
        """Compute the logits u of every example, a column for each class.

        Raises ``ValueError`` if the features have another width.
        """
        require_shape("features", features, "n", self.weight.shape[1])
        return features.to(self.weight.dtype) @ self.weight.T + self.bias


def logistic_objective(
    features: Float[Tensor, "n m"],
    labels: Integer[Tensor, " n"],
    weight: Float[Tensor, "k m"],
    bias: Float[Tensor, " k"],
    *,
    lambda_: float,
) -> Float[Tensor, ""]:
    r"""Return the objective of (14.1) with cross-entropy and a ridge, in nats.

    .. math:: \frac{1}{n} \sum_{i=1}^{n} \Bigl( \log \sum_{j=1}^{k} e^{u_j^{(i)}}
        - u_{y^{(i)}}^{(i)} \Bigr) + \frac{\lambda}{2} \lVert W \rVert^2,
        \qquad u^{(i)} = W \phi(x^{(i)}) + b

    Unlike the notes, w is a matrix with a row for each class, and there are a ridge
    and a bias, to which the ridge does not apply. If both are 0, it is log k; with the
    best bias and no weight, it is the entropy of the labels. It is computed in the
    precision of its arguments. Raises ``ValueError`` if their shapes or precisions do
    not fit, without an example, if `lambda_` is negative, and if a label is not from 0
    to k - 1; a GPU, which this would stop, is not asked for labels.

    In the notes: (14.1).
    """
    require_shape("features", features, "n", "m")
    n, m = features.shape
    require(n >= 1, "features", "have at least 1 row", n)
    labels = as_int64("labels", labels, n)
    require_shape("weight", weight, "k", m)
    require_shape("bias", bias, len(weight))
    if runtime.on_host(labels):  # cross_entropy would leave out a label of -100
        require_below("labels", labels, len(weight))
    require(0 <= lambda_ < float("inf"), "lambda_", "be finite, at least 0", lambda_)
    for name, x in {"weight": weight, "bias": bias}.items():
        rule = f"have the precision of features ({features.dtype})"
        require(x.dtype == features.dtype, name, rule, x.dtype)
    u = features @ weight.T + bias
    return F.cross_entropy(u, labels) + lambda_ / 2 * weight.square().sum()


def logistic_path(
    features: Float[Tensor, "n m"],
    labels: Integer[Tensor, " n"],
    *,
    classes: int,
    lambdas: Sequence[float],
    tolerance: float = 1e-6,
) -> LogisticPath:
    """Minimize :func:`logistic_objective` for each of `lambdas`.

    `tolerance` bounds the norm of the gradient with respect to (s W, b) for centred
    features, where s is their root mean square. This bound means the same if the
    features are shifted, rotated, or scaled together with lambda. The result is
    float64, so for features on MPS it is on the CPU. Its biases sum to 0, and so do the
    weights of each feature, because a number added to those of all classes changes no
    probability and makes the ridge larger.

    Each lambda starts from the solution for the next larger one and takes L-BFGS steps
    (Liu and Nocedal 1989). They are preconditioned with the mean Hessian of the logits
    times the covariance of the features, as in the bound of Böhning (1992); this is
    diagonal in an eigenbasis that serves every lambda. Raises ``ValueError`` if the
    arguments have no solution, and ``RuntimeError`` if rounding keeps the norm of the
    gradient above `tolerance`.

    In the notes: linear probe.
    """
    labels, values = _checked(features, labels, classes, lambdas, tolerance)
    basis = logistic.eigenbasis(features)
    all_rows = torch.ones_like(basis.coordinates[:1])
    problem = logistic.problem_of(basis, labels, all_rows, classes=classes)
    scaled = [value / basis.size for value in values]
    path = logistic.path(problem, scaled, tolerance=tolerance)
    solutions = [logistic.linear(basis, coefficients[0]) for coefficients in path]
    return LogisticPath(
        tuple(values),
        torch.stack([weight for weight, _ in solutions]),
        torch.stack([bias for _, bias in solutions]),
    )


def linear_probe(
    features: Float[Tensor, "n m"],
    labels: Integer[Tensor, " n"],
    *,
    classes: int,
    generator: torch.Generator,
    tolerance: float = 1e-4,
) -> Probe:
    """Fit a linear probe (14.1) for classes, and choose its lambda by cross-validation.

    It minimizes :func:`logistic_objective`, which says how it departs from the notes;
    `tolerance` and the errors are those of :func:`logistic_path`. The candidates for
    lambda are ``LAMBDA_GRID`` times the mean squared feature. The most accurate one in
    stratified cross-validation on the given labels is taken, the largest if several
    are equal. There are five folds, or as many as the rarest class with at least two
    labels has labels; a class with one label is never held out. If every class has
    one label, nothing can be compared: the largest lambda is taken, and `accuracy` is
    empty. The result has the precision of the features, at least float32.

    In the notes: linear probe.
    """
    labels, grid = _checked(features, labels, classes, LAMBDA_GRID, tolerance)
    basis = logistic.eigenbasis(features)
    held_out = _held_out(labels, FOLDS, generator).to(basis.coordinates.device)
    # The first problem trains on every label, each of the others without one fold
    trained_on = torch.cat([torch.ones_like(basis.coordinates[:1]), ~held_out])
    problem = logistic.problem_of(basis, labels, trained_on, classes=classes)
    comparable = len(held_out) > 0
    grid = grid if comparable else grid[:1]
    values = [basis.size * value for value in grid]
    scaled = [value / basis.size for value in values]
    path = logistic.path(problem, scaled, tolerance=tolerance)
    accuracy, best = {}, None
    for value, coefficients in zip(values, path, strict=True):
        accuracy[value] = _accuracy(problem, coefficients[1:], held_out)
        if best is None or accuracy[value] > accuracy[best[0]]:
            best = value, coefficients[0]
    value, coefficients = best
    weight, bias = logistic.linear(basis, coefficients)
    like = features.to(torch.promote_types(features.dtype, torch.float32))[:0]
    weight, bias = (x.to(like.dtype).to(like.device) for x in (weight, bias))
    return Probe(weight, bias, value, accuracy if comparable else {})


def least_squares_probe(
    features: Float[Tensor, "n m"],
    targets: Float[Tensor, " n"],
    *,
    ridge: float = 0.0,
    bias: bool = False,
) -> tuple[Float[Tensor, " m"], Float[Tensor, ""]]:
    r"""Fit a linear probe (14.1) with squared loss: return w and the bias.

    .. math:: \min_w \frac{1}{n} \sum_{i=1}^{n} (y^{(i)} - w^\top \phi(x^{(i)}))^2

    If n < m, many w are optimal; the result is the one of least norm, which gradient
    descent from w = 0 reaches. Unlike the notes, it can have a bias (without `bias` it
    is 0), and a penalty of `ridge` times the squared norm of w, which does not apply to
    the bias. In squared units of the targets; w = 0 gives their mean square. The result
    is float64, so for features on MPS it is on the CPU. Raises ``ValueError`` if there
    is not one target for each row, if an argument has values that are not finite, if
    there are no features, and if `ridge` is negative.

    In the notes: linear probe, (14.1), squared error.
    """
    _check_features(features)
    require_shape("targets", targets, len(features))
    _check_sizes("targets", targets)
    require(0 <= ridge < float("inf"), "ridge", "be finite and at least 0", ridge)
    x = runtime.float64(features)
    y = runtime.float64(targets).to(x.device)
    x_mean, y_mean = (x.mean(dim=0), y.mean()) if bias else (x.new_zeros(()),) * 2
    x = x - x_mean
    if bias:
        # The mean is rounded. What it leaves far from 0 is the same in every row, and
        # would be a direction that the features do not have
        rest = x.mean(dim=0)
        x, x_mean = x - rest, x_mean + rest
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    # The features have a direction if its singular value exceeds float64 rounding
    present = s > s.max() * max(x.shape) * torch.finfo(s.dtype).eps
    shrunk = torch.where(present, s / (s.square() + len(x) * ridge), 0)
    w = v.T @ (shrunk * (u.T @ (y - y_mean)))
    return w, y_mean - (x_mean * w).sum()


def _accuracy(
    problem: logistic.Problem,
    coefficients: Float[Tensor, "p k r"],
    held_out: Bool[Tensor, "p n"],
) -> float:
    """Return the share of held-out labels that are predicted, over all folds."""
    predicted = problem.logits(coefficients).argmax(dim=1)
    correct = predicted == problem.one_hot.argmax(dim=0)
    return correct[held_out].double().mean().item()


def _check_features(features: Tensor) -> None:
    """Raise ``ValueError`` if there is no row or column, or a size is beyond REACH."""
    require_shape("features", features, "n", "m")
    require(len(features) >= 1, "features", "have at least 1 row", len(features))
    m = features.shape[1]
    require(m >= 1, "features", "have at least 1 column", m)
    _check_sizes("features", features)


def _check_sizes(name: str, x: Tensor) -> None:
    """Raise ``ValueError`` if a value is not finite, or the largest beyond REACH."""
    require_finite(name, x)
    least, most = (end.item() for end in x.aminmax())
    largest, (low, high) = max(-least, most), REACH
    rule = f"be 0 or have a largest size from {low} to {high}"
    require(largest == 0 or low <= largest <= high, name, rule, largest)


def _checked(
    features: Tensor,
    labels: Tensor,
    classes: int,
    lambdas: Sequence[float],
    tolerance: float,
) -> tuple[Int64[Tensor, " n"], list[float]]:
    """Check all arguments; return labels, and lambdas from the largest on."""
    require(classes >= 2, "classes", "be at least 2", classes)
    _check_features(features)
    labels = as_int64("labels", labels, len(features))
    require_below("labels", labels, classes)
    for missing in sorted(set(range(classes)) - set(labels.tolist()))[:1]:
        raise Refused(
            f"labels: class {missing} has no example, so its bias has no optimum."
        )
    values = sorted((float(value) for value in lambdas), reverse=True)
    require(len(values) >= 1, "lambdas", "be at least one", values)
    positive = all(0 < value < float("inf") for value in values)
    require(positive, "lambdas", "be finite and above 0", values)
    require(0 < tolerance <= 1, "tolerance", "be above 0 and at most 1", tolerance)
    return labels, values


def _held_out(
    labels: Int64[Tensor, " n"], folds: int, generator: torch.Generator
) -> Bool[Tensor, "p n"]:
    """Draw the folds: a row for each, true at the labels that it holds out.

    There is no row if no class has two labels.
    """
    labels = labels.cpu()
    counts = labels.bincount()
    repeated = counts[counts >= 2]
    folds = min(folds, int(repeated.min())) if len(repeated) else 0
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]
    order = order[counts[labels[order]] >= 2]
    # Deal labels out class by class, so that folds differ by at most one label a class
    held_out = torch.zeros(folds, len(labels), dtype=torch.bool)
    if folds:
        held_out[torch.arange(len(order)) % folds, order] = True
    return held_out
