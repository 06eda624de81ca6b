"""Linear probes: w of (14.1) on a frozen representation, to a stated tolerance.

Axes: n examples, m representation, k classes, l values of lambda, p folds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fmkit import _logistic as logistic
from fmkit import runtime
from fmkit._check import Refused, require

# Candidates for lambda, in units of the mean squared feature. On Animal-MNIST, with raw
# pixels or EfficientNet-Lite0 and 50 to 7,711 labels, a wider grid (1e-4 to 1e2) gained
# at most 0.005 of test accuracy.
LAMBDA_GRID = tuple(10 ** (i / 2) for i in range(-6, 3))
FOLDS = 5  # of cross-validation


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
        """Compute the logits u of every example, a column for each class."""
        return features.to(self.weight.dtype) @ self.weight.T + self.bias


def logistic_objective(
    features: Float[Tensor, "n m"],
    labels: Int[Tensor, " n"],
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
    precision of its arguments.

    In the notes: (14.1).
    """
    u = features @ weight.T + bias
    return F.cross_entropy(u, labels) + lambda_ / 2 * weight.square().sum()


def logistic_path(
    features: Float[Tensor, "n m"],
    labels: Int[Tensor, " n"],
    *,
    classes: int,
    lambdas: Sequence[float],
    tolerance: float = 1e-6,
) -> LogisticPath:
    """Minimize :func:`logistic_objective` for each of `lambdas`.

    `tolerance` bounds the norm of the gradient with respect to (s W, b) for centred
    features, where s is their root mean square. This bound means the same if the
    features are shifted, rotated, or scaled together with lambda. The result is
    float64, so for features on MPS it is on the CPU. Its biases sum to 0, because a
    number added to all of them changes nothing.

    Each lambda starts from the solution for the next larger one and takes L-BFGS steps
    (Liu and Nocedal 1989). They are preconditioned with the mean Hessian of the logits
    times the covariance of the features, as in the bound of Böhning (1992); this is
    diagonal in an eigenbasis that serves every lambda. Raises ``ValueError`` if the
    arguments have no solution, and ``RuntimeError`` if rounding keeps the norm of the
    gradient above `tolerance`.

    In the notes: linear probe.
    """
    values = _checked(features, labels, classes, lambdas, tolerance)
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
    labels: Int[Tensor, " n"],
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
    grid = _checked(features, labels, classes, LAMBDA_GRID, tolerance)
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
    is float64, so for features on MPS it is on the CPU. Raises ``ValueError`` if an
    argument has values that are not finite, if there are no features, and if `ridge` is
    negative.

    In the notes: linear probe, (14.1), squared error.
    """
    require(len(features) >= 1, "features", "have at least 1 row", len(features))
    _require_finite("features", features)
    _require_finite("targets", targets)
    require(0 <= ridge < float("inf"), "ridge", "be finite and at least 0", ridge)
    x = runtime.float64(features)
    y = runtime.float64(targets).to(x.device)
    x_mean, y_mean = (x.mean(dim=0), y.mean()) if bias else (x.new_zeros(()),) * 2
    u, s, v = torch.linalg.svd(x - x_mean, full_matrices=False)
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


def _require_finite(name: str, values: Tensor) -> None:
    """Raise ``ValueError`` with the number of values that are not finite."""
    wrong = int((~values.isfinite()).sum())
    require(wrong == 0, name, "hold neither NaN nor infinite values", wrong)


def _checked(
    features: Tensor,
    labels: Tensor,
    classes: int,
    lambdas: Sequence[float],
    tolerance: float,
) -> list[float]:
    """Check all arguments; return lambdas from the largest to the smallest."""
    require(classes >= 2, "classes", "be at least 2", classes)
    rule = f"be one for each row ({len(features)})"
    require(len(labels) == len(features), "labels", rule, len(labels))
    for label in labels[(labels < 0) | (labels >= classes)][:1].tolist():
        require(False, "labels", f"be from 0 to {classes - 1}", label)
    for missing in sorted(set(range(classes)) - set(labels.tolist()))[:1]:
        raise Refused(
            f"labels: class {missing} has no example, so its bias has no optimum."
        )
    _require_finite("features", features)
    values = sorted((float(value) for value in lambdas), reverse=True)
    require(len(values) >= 1, "lambdas", "be at least one", values)
    positive = all(0 < value < float("inf") for value in values)
    require(positive, "lambdas", "be finite and above 0", values)
    require(tolerance > 0, "tolerance", "be above 0", tolerance)
    return values


def _held_out(
    labels: Int[Tensor, " n"], folds: int, generator: torch.Generator
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
