"""Linear probes: w of (14.1) on a frozen representation, to a stated accuracy.

n examples, m representation, k classes, l values of lambda, p folds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fmkit import _logistic as logistic
from fmkit._check import require

# Times the mean squared feature. On Animal-MNIST, pixels and EfficientNet-Lite0 with 50
# to 7,711 labels, lambdas from 1e-4 to 1e2 outside it gained at most 0.005 on test.
LAMBDA_GRID = tuple(10 ** (i / 2) for i in range(-6, 3))


@dataclass(frozen=True)
class LogisticPath:
    """Solutions of :func:`logistic_path`, from the largest lambda to the smallest."""

    lambdas: tuple[float, ...]
    weight: Float[Tensor, "l k m"]
    bias: Float[Tensor, "l k"]
    gradient_norm: tuple[float, ...]


@dataclass(frozen=True)
class Probe:
    """A linear probe, with the lambda of its training and what that was chosen by."""

    weight: Float[Tensor, "k m"]
    bias: Float[Tensor, " k"]
    lambda_: float
    gradient_norm: float
    accuracy: dict[float, float]  # of each lambda, on labels held out of the training

    def logits(self, features: Float[Tensor, "n m"]) -> Float[Tensor, "n k"]:
        """u of every example: a column a class."""
        return features.to(self.weight.dtype) @ self.weight.T + self.bias


def logistic_objective(
    features: Float[Tensor, "n m"],
    labels: Int[Tensor, " n"],
    weight: Float[Tensor, "k m"],
    bias: Float[Tensor, " k"],
    *,
    lambda_: float,
) -> Float[Tensor, ""]:
    r"""(14.1) with cross-entropy and a ridge, in nats.

    .. math:: \frac{1}{n} \sum_{i=1}^{n} \Bigl( \log \sum_{j=1}^{k} e^{u_j^{(i)}}
        - u_{y^{(i)}}^{(i)} \Bigr) + \frac{\lambda}{2} \lVert W \rVert^2,
        \qquad u^{(i)} = W \phi(x^{(i)}) + b

    Unlike the notes, w is a matrix with a row a class, and there are a ridge and a
    bias, which the ridge spares. Zeros give log k; the best bias alone gives the
    entropy of the labels. Computed in the precision of its arguments.

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

    `tolerance` bounds the norm of the gradient by (sW, b) for centred features, s
    being their root mean square: a bound that means the same when the features are
    shifted, rotated or, lambda with them, scaled. The result is float64; its biases
    sum to 0, as a number added to all of them changes nothing.

    Each lambda starts from the next larger one and takes L-BFGS steps (Liu and
    Nocedal 1989). Their preconditioner is the mean Hessian of the logits times the
    covariance of the features, as in Böhning's bound (1992): diagonal in an eigenbasis
    that serves every lambda. Raises ``ValueError`` for arguments without a solution,
    ``RuntimeError`` where rounding keeps the gradient above `tolerance`.

    In the notes: linear probe.
    """
    values = _checked(features, labels, classes, lambdas, tolerance)
    basis = logistic.eigenbasis(features)
    everyone = torch.ones_like(basis.coordinates[:1])
    problem = logistic.problem_of(basis, labels, everyone, classes=classes)
    scaled = [value / basis.size for value in values]
    solved = [*logistic.path(problem, scaled, tolerance=tolerance)]
    lines = [logistic.linear(basis, coefficients[0]) for coefficients, _ in solved]
    return LogisticPath(
        tuple(values),
        torch.stack([weight for weight, _ in lines]).to(features.device),
        torch.stack([bias for _, bias in lines]).to(features.device),
        tuple(norm[0].item() for _, norm in solved),
    )


def linear_probe(
    features: Float[Tensor, "n m"],
    labels: Int[Tensor, " n"],
    *,
    classes: int,
    generator: torch.Generator,
    lambdas: Sequence[float] | None = None,
    folds: int = 5,
    tolerance: float = 1e-4,
) -> Probe:
    """Linear probe (14.1) for classes, its lambda chosen inside the labels given.

    It minimizes :func:`logistic_objective`, where departures from the notes are named;
    `tolerance` and the errors are those of :func:`logistic_path`. Lambda is the one
    most accurate in stratified cross-validation, the largest of equals; unless given,
    the candidates are ``LAMBDA_GRID`` times the mean squared feature. The rarest class
    that has two labels bounds the number of folds; a class with one is never held out.
    Where every class has one, nothing can be compared: the largest lambda is taken, and
    `accuracy` is empty. The result is as precise as the features, at least float32.

    In the notes: linear probe.
    """
    require(folds >= 2, "folds", "be at least 2", folds)
    candidates = LAMBDA_GRID if lambdas is None else lambdas
    values = _checked(features, labels, classes, candidates, tolerance)
    basis = logistic.eigenbasis(features)
    unit = basis.size if lambdas is None else 1.0
    held_out = _held_out(labels, folds, generator).to(basis.coordinates.device)
    # The first problem trains on every label, each other one without those of a fold
    trained_on = torch.cat([torch.ones_like(basis.coordinates[:1]), ~held_out])
    problem = logistic.problem_of(basis, labels, trained_on, classes=classes)
    values = [unit * value for value in values[: None if len(held_out) else 1]]
    scaled = [value / basis.size for value in values]
    path = logistic.path(problem, scaled, tolerance=tolerance)
    accuracy, best = {}, None
    for value, (coefficients, norm) in zip(values, path, strict=True):
        accuracy[value] = _accuracy(problem, coefficients[1:], held_out)
        if best is None or accuracy[value] > accuracy[best[0]]:
            best = value, coefficients[0], norm[0].item()
    value, coefficients, norm = best
    weight, bias = logistic.linear(basis, coefficients)
    like = features.to(torch.promote_types(features.dtype, torch.float32))[:0]
    found = accuracy if len(held_out) else {}
    return Probe(weight.to(like), bias.to(like), value, norm, found)


def least_squares_probe(
    features: Float[Tensor, "n m"],
    targets: Float[Tensor, " n"],
    *,
    ridge: float = 0.0,
    bias: bool = False,
) -> tuple[Float[Tensor, " m"], Float[Tensor, ""]]:
    r"""Linear probe (14.1) with squared loss: its w, and a bias that is 0 unless asked.

    .. math:: \min_w \frac{1}{n} \sum_{i=1}^{n} (y^{(i)} - w^\top \phi(x^{(i)}))^2

    Where n < m many w are best; this is the one of least norm, which gradient descent
    from w = 0 reaches. Unlike the notes it can have a bias, and a penalty of `ridge`
    times the squared norm of w, which spares the bias. In squared units of the
    targets; w = 0 gives their mean square. The result is float64. Raises
    ``ValueError`` for numbers that are not finite and for a negative ridge.

    In the notes: linear probe, (14.1), squared error.
    """
    require(len(features) >= 1, "features", "have at least 1 row", len(features))
    _require_finite("features", features)
    _require_finite("targets", targets)
    require(0 <= ridge < float("inf"), "ridge", "be finite and at least 0", ridge)
    home = features.device
    exact = logistic.exact_device(home)
    x, y = features.to(exact).double(), targets.to(exact).double()
    x_mean, y_mean = (x.mean(dim=0), y.mean()) if bias else (x.new_zeros(()),) * 2
    u, s, v = torch.linalg.svd(x - x_mean, full_matrices=False)
    # A direction is in the features where it stands out from float64 rounding
    present = s > s.max() * max(x.shape) * torch.finfo(s.dtype).eps
    shrunk = torch.where(present, s / (s.square() + len(x) * ridge), 0)
    w = v.T @ (shrunk * (u.T @ (y - y_mean)))
    return w.to(home), (y_mean - (x_mean * w).sum()).to(home)


def _accuracy(
    problem: logistic.Problem,
    coefficients: Float[Tensor, "p k r"],
    held_out: Bool[Tensor, "p n"],
) -> float:
    guessed = problem.logits(coefficients).argmax(dim=1)
    right = guessed == problem.one_hot.argmax(dim=0)
    return right[held_out].double().mean().item()


def _require_finite(name: str, values: Tensor) -> None:
    wrong = int((~values.isfinite()).sum())
    require(wrong == 0, name, "hold neither NaN nor infinite values", wrong)


def _checked(
    features: Tensor,
    labels: Tensor,
    classes: int,
    lambdas: Sequence[float],
    tolerance: float,
) -> list[float]:
    """The lambdas from large to small, once every argument is known to be right."""
    require(classes >= 2, "classes", "be at least 2", classes)
    same = len(labels) == len(features)
    require(same, "labels", f"be one for each row ({len(features)})", len(labels))
    for label in labels[(labels < 0) | (labels >= classes)][:1].tolist():
        require(False, "labels", f"be from 0 to {classes - 1}", label)
    missing = sorted(set(range(classes)) - set(labels.tolist()))
    rule = "be none (the bias of such a class has no optimum)"
    require(not missing, "classes without a label", rule, missing)
    _require_finite("features", features)
    values = sorted((float(value) for value in lambdas), reverse=True)
    require(len(values) >= 1, "lambdas", "be at least one", values)
    right = all(0 < value < float("inf") for value in values)
    require(right, "lambdas", "be finite and above 0", values)
    require(tolerance > 0, "tolerance", "be above 0", tolerance)
    return values


def _held_out(
    labels: Int[Tensor, " n"], folds: int, generator: torch.Generator
) -> Bool[Tensor, "p n"]:
    """A row a fold, true at the labels it holds out; no row where none can be."""
    labels = labels.cpu()
    counts = labels.bincount()
    several = counts[counts >= 2]
    folds = min(folds, int(several.min())) if len(several) else 0
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]
    order = order[counts[labels[order]] >= 2]
    # Dealt out class after class, so that folds differ by at most one label of a class
    held_out = torch.zeros(folds, len(labels), dtype=torch.bool)
    if folds:
        held_out[torch.arange(len(order)) % folds, order] = True
    return held_out
