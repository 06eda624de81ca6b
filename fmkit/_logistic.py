"""Logistic regression with a ridge, for many lambdas and many weightings at once.

The solver under fmkit.probe, which checks the arguments and states what is minimized.
n examples, m representation, k classes, p problems, r coordinates, the bias last.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

FLOAT32_REACH = 5e-7  # gradient norm below which rounding to float32 shows
MOST_STEPS = 2000  # tens are usual, hundreds where lambda is tiny
MEMORY = 30  # steps that L-BFGS remembers


def exact_device(device: torch.device) -> torch.device:
    """`device`, or the CPU in place of MPS, which has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


@dataclass(frozen=True)
class Eigenbasis:
    """Centred features of mean square 1 in the eigenbasis of their covariance."""

    coordinates: Float[Tensor, "r n"]
    eigenvalues: Float[Tensor, " r"]
    rotation: Float[Tensor, "m r-1"]
    mean: Float[Tensor, " m"]
    size: float  # mean squared feature before it became 1


def eigenbasis(features: Float[Tensor, "n m"]) -> Eigenbasis:
    """Rotate into at most n directions, all that n rows span; the bias has a 1."""
    x = features.to(exact_device(features.device)).double()
    n, m = x.shape
    mean = x.mean(dim=0)
    size = (x - mean).square().mean().item()
    if size <= 1e-28 * x.square().mean().item():  # equal features, but for rounding
        mean, size = x[0], 1.0
    x = (x - mean) / size**0.5
    directions = torch.eye(m, dtype=x.dtype, device=x.device)
    if n < m:
        directions, triangle = torch.linalg.qr(x.T)
        x = triangle.T
    eigenvalues, rotation = torch.linalg.eigh(x.T @ x / n)
    ones = torch.ones(1, n, dtype=x.dtype, device=x.device)
    return Eigenbasis(
        torch.cat([rotation.T @ x.T, ones]),
        torch.cat([eigenvalues.clamp(min=0), ones[0, :1]]),
        directions @ rotation,
        mean,
        size,
    )


def linear(
    basis: Eigenbasis, coefficients: Float[Tensor, "k r"]
) -> tuple[Float[Tensor, "k m"], Float[Tensor, " k"]]:
    """Weight and bias for the features as they came."""
    weight = coefficients[:, :-1] @ basis.rotation.T / basis.size**0.5
    bias = coefficients[:, -1] - weight @ basis.mean
    return weight, bias - bias.mean()


@dataclass(frozen=True)
class Problem:
    """p logistic regressions on the same examples, each with weights of its own."""

    coordinates: Float[Tensor, "r n"]
    eigenvalues: Float[Tensor, " r"]
    penalized: Float[Tensor, " r"]  # 1, but 0 for the bias
    one_hot: Float[Tensor, "k n"]
    rows: Float[Tensor, "p 1 n"]  # weight of each example, of sum 1

    def to(self, dtype: torch.dtype) -> "Problem":
        return Problem(*(tensor.to(dtype) for tensor in vars(self).values()))

    def logits(self, coefficients: Float[Tensor, "p k r"]) -> Float[Tensor, "p k n"]:
        u = coefficients.flatten(0, 1) @ self.coordinates  # one product for all p
        return u.unflatten(0, coefficients.shape[:2])

    def gradient(
        self,
        coefficients: Float[Tensor, "p k r"],
        logits: Float[Tensor, "p k n"],
        lambda_: float,
    ) -> Float[Tensor, "p k r"]:
        residuals = (logits.softmax(dim=1) - self.one_hot) * self.rows
        fit = residuals.flatten(0, 1) @ self.coordinates.T
        return fit.view_as(coefficients) + lambda_ * self.penalized * coefficients

    def preconditioner(
        self, logits: Float[Tensor, "p k n"], lambda_: float
    ) -> Callable[[Tensor], Tensor]:
        """Division by (mean Hessian of the logits) x (covariance) + lambda."""
        p = logits.softmax(dim=1)
        weighted = p * self.rows
        mean_hessian = weighted.sum(dim=2).diag_embed() - weighted @ p.mT
        size, axes = torch.linalg.eigh(mean_hessian)
        size = size.clamp(min=1e-3 * size.max().item())  # it is singular along (1 .. 1)
        divisor = size[:, :, None] * self.eigenvalues + lambda_ * self.penalized
        return lambda gradient: axes @ ((axes.mT @ gradient) / divisor)


def problem_of(
    basis: Eigenbasis,
    labels: Int[Tensor, " n"],
    rows: Shaped[Tensor, "p n"],
    *,
    classes: int,
) -> Problem:
    """The problems in which `rows` says how much each example counts."""
    penalized = torch.ones_like(basis.eigenvalues)
    penalized[-1] = 0
    labels = labels.to(rows.device)
    one_hot = labels == torch.arange(classes, device=rows.device)[:, None]
    rows = rows.double() / rows.sum(dim=1, keepdim=True)
    return Problem(
        basis.coordinates, basis.eigenvalues, penalized, one_hot.double(), rows[:, None]
    )


def path(
    problem: Problem, lambdas: Sequence[float], *, tolerance: float
) -> Iterator[tuple[Float[Tensor, "p k r"], Float[Tensor, " p"]]]:
    """Coefficients and gradient norms for each lambda, from large to small.

    Steps are taken in float32, the norms in float64; where they are above `tolerance`,
    steps in float64 follow. Raises ``RuntimeError`` where these are not enough.
    """
    rough = problem.to(torch.float32)
    shape = (len(problem.rows), len(problem.one_hot), len(problem.eigenvalues))
    coefficients = problem.rows.new_zeros(shape)
    trend = torch.zeros_like(coefficients)
    reach = max(0.9 * tolerance, FLOAT32_REACH)
    for lambda_ in lambdas:
        start = coefficients
        coefficients = _minimize(rough, start.float(), trend.float(), lambda_, reach)
        coefficients = coefficients.double()
        norm = _gradient_norm(problem, coefficients, lambda_)
        if not (norm <= tolerance).all():
            still = torch.zeros_like(trend)
            coefficients = _minimize(problem, coefficients, still, lambda_, tolerance)
            norm = _gradient_norm(problem, coefficients, lambda_)
        if not (norm <= tolerance).all():
            raise RuntimeError(
                f"the gradient norm stays at {norm.max().item():.1e}, above the "
                f"tolerance {tolerance:.1e}, as far as rounding lets it fall."
            )
        trend = coefficients - start
        yield coefficients, norm


def _gradient_norm(
    problem: Problem, coefficients: Float[Tensor, "p k r"], lambda_: float
) -> Float[Tensor, " p"]:
    logits = problem.logits(coefficients)
    return problem.gradient(coefficients, logits, lambda_).flatten(1).norm(dim=1)


def _dot(
    a: Float[Tensor, "p i j"], b: Float[Tensor, "p i j"]
) -> Float[Tensor, "p 1 1"]:
    return (a * b).sum(dim=(1, 2), keepdim=True)


def _minimize(
    problem: Problem,
    coefficients: Float[Tensor, "p k r"],
    direction: Float[Tensor, "p k r"],
    lambda_: float,
    tolerance: float,
) -> Float[Tensor, "p k r"]:
    """L-BFGS steps, the first along `direction`, until each gradient is small."""
    logits = problem.logits(coefficients)
    gradient = problem.gradient(coefficients, logits, lambda_)
    precondition = problem.preconditioner(logits, lambda_)
    steps = deque(maxlen=MEMORY)
    downhill = _dot(gradient, direction) < 0
    direction = torch.where(downhill, direction, -precondition(gradient))
    for _ in range(MOST_STEPS):
        slope = _dot(gradient, direction)
        going = _dot(gradient, gradient) > tolerance**2
        going &= slope < 0  # rounding can leave no way down
        if not going.any():
            break
        direction, slope = (torch.where(going, x, 0) for x in (direction, slope))
        moves = problem.logits(direction)
        ridge = lambda_ * problem.penalized * direction
        of_ridge = _dot(ridge, coefficients), _dot(ridge, direction)
        length = _line_search(problem, logits, moves, slope, of_ridge)
        coefficients = coefficients + length * direction
        logits = logits + length * moves
        last, gradient = gradient, problem.gradient(coefficients, logits, lambda_)
        step, change = length * direction, gradient - last
        curvature = _dot(step, change)
        # A problem that is done takes steps of 0: they are left out
        steps.append((step, change, torch.where(curvature > 0, 1 / curvature, 0)))
        direction = -_inverse_hessian(gradient, steps, precondition)
    return coefficients


def _line_search(
    problem: Problem,
    logits: Float[Tensor, "p k n"],
    moves: Float[Tensor, "p k n"],
    slope: Float[Tensor, "p 1 1"],
    of_ridge: tuple[Float[Tensor, "p 1 1"], Float[Tensor, "p 1 1"]],
) -> Float[Tensor, "p 1 1"]:
    """Length of a step that leaves at most 0.3 of the slope: Newton's, in a bracket.

    `of_ridge` is the slope of the penalty at length 0, and its curvature. The search
    costs no product with the features, as logits are linear along a line.
    """
    length, low = torch.ones_like(slope), torch.zeros_like(slope)
    high = torch.full_like(slope, torch.inf)
    of_label = (problem.one_hot * moves).sum(dim=1, keepdim=True)  # (p, 1, n)
    for _ in range(20):
        p_moves = (logits + length * moves).softmax(dim=1) * moves
        mean = p_moves.sum(dim=1, keepdim=True)
        variance = (p_moves * moves).sum(dim=1, keepdim=True) - mean.square()
        here = _dot(mean - of_label, problem.rows) + of_ridge[0] + length * of_ridge[1]
        done = here.abs() <= 0.3 * slope.abs()
        if done.all():
            break
        low = torch.where(here < 0, length, low)
        high = torch.where(here > 0, length, high)
        curvature = _dot(variance.clamp(min=0), problem.rows) + of_ridge[1]
        newton = (length - here / curvature).minimum(10 * length)
        inside = (newton > low) & (newton < high)
        better = torch.where(inside, newton, (low + high) / 2)
        length = torch.where(done, length, better)
    return length


def _inverse_hessian(
    gradient: Float[Tensor, "p k r"],
    steps: Sequence[tuple[Tensor, Tensor, Tensor]],
    precondition: Callable[[Tensor], Tensor],
) -> Float[Tensor, "p k r"]:
    """The two loops of L-BFGS over (step, change, 1 / curvature), oldest first."""
    result, shares = gradient, []
    for step, change, scale in reversed(steps):
        shares.append(scale * _dot(step, result))
        result = result - shares[-1] * change
    result = precondition(result)
    for step, change, scale in steps:
        result = result + (shares.pop() - scale * _dot(change, result)) * step
    return result
