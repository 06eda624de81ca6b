"""Solve logistic regression with a ridge, for many lambdas and weightings at once.

This is the solver of :mod:`fmkit.probe`, which checks the arguments and states the
objective. Axes: n examples, m representation, k classes, p problems, r coordinates,
with the bias last.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from fmkit import runtime

FLOAT32_REACH = 5e-7  # gradient norm below which rounding to float32 shows
MAX_STEPS = 2000  # tens are usual, hundreds if lambda is tiny
MAX_IDLE_STEPS = 30  # without a smaller gradient norm; then rounding keeps it up
MEMORY = 30  # steps that L-BFGS remembers


@dataclass(frozen=True)
class Eigenbasis:
    """Centred features of mean square 1, in the eigenbasis of their covariance."""

    coordinates: Float[Tensor, "r n"]
    eigenvalues: Float[Tensor, " r"]
    rotation: Float[Tensor, "m r-1"]
    mean: Float[Tensor, " m"]
    size: float  # mean squared feature before the scaling


def eigenbasis(features: Float[Tensor, "n m"]) -> Eigenbasis:
    """Rotate features into the at most n directions that n rows span.

    A last coordinate of 1 is added for the bias.
    """
    x = runtime.float64(features)
    n, m = x.shape
    mean = x.mean(dim=0)
    size = (x - mean).square().mean().item()
    if size <= 1e-28 * x.square().mean().item():  # equal rows, except for rounding
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
    """Turn coefficients into weight and bias for the original features."""
    weight = coefficients[:, :-1] @ basis.rotation.T / basis.size**0.5
    weight = weight - weight.mean(dim=0)  # no probability depends on this mean
    bias = coefficients[:, -1] - weight @ basis.mean
    return weight, bias - bias.mean()


@dataclass(frozen=True)
class Problem:
    """p logistic regressions on the same examples, with different weights of these."""

    coordinates: Float[Tensor, "r n"]
    eigenvalues: Float[Tensor, " r"]
    penalized: Float[Tensor, " r"]  # 1, and 0 for the bias
    one_hot: Float[Tensor, "k n"]
    rows: Float[Tensor, "p 1 n"]  # weights of the examples, which sum to 1

    def to(self, dtype: torch.dtype) -> "Problem":
        """Convert every tensor to a dtype."""
        return Problem(*(tensor.to(dtype) for tensor in vars(self).values()))

    def logits(self, coefficients: Float[Tensor, "p k r"]) -> Float[Tensor, "p k n"]:
        """Compute the logits of every example in every problem."""
        u = coefficients.flatten(0, 1) @ self.coordinates  # one product for all p
        return u.unflatten(0, coefficients.shape[:2])

    def gradient(
        self,
        coefficients: Float[Tensor, "p k r"],
        logits: Float[Tensor, "p k n"],
        lambda_: float,
    ) -> Float[Tensor, "p k r"]:
        """Compute the gradient of each objective with respect to its coefficients."""
        residuals = (logits.softmax(dim=1) - self.one_hot) * self.rows
        fit = residuals.flatten(0, 1) @ self.coordinates.T
        return fit.view_as(coefficients) + lambda_ * self.penalized * coefficients

    def preconditioner(
        self, logits: Float[Tensor, "p k n"], lambda_: float
    ) -> Callable[[Tensor], Tensor]:
        """Return division by (mean Hessian of the logits) x (covariance) + lambda."""
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
    """Return the problems in which `rows` are the weights of the examples."""
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
) -> Iterator[Float[Tensor, "p k r"]]:
    """Yield the coefficients for each lambda, which come from large to small.

    Steps are taken in float32, and gradient norms are computed in float64. If a norm is
    above `tolerance`, steps in float64 follow. Raises ``RuntimeError`` if a norm is
    still above it.
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
            none = torch.zeros_like(trend)
            coefficients = _minimize(problem, coefficients, none, lambda_, tolerance)
            norm = _gradient_norm(problem, coefficients, lambda_)
        if not (norm <= tolerance).all():
            raise RuntimeError(
                f"the gradient norm stays at {norm.max().item():.1e}, above the "
                f"tolerance {tolerance:.1e}, because of rounding."
            )
        trend = coefficients - start
        yield coefficients


def _gradient_norm(
    problem: Problem, coefficients: Float[Tensor, "p k r"], lambda_: float
) -> Float[Tensor, " p"]:
    """Compute the gradient norm of each problem."""
    logits = problem.logits(coefficients)
    return problem.gradient(coefficients, logits, lambda_).flatten(1).norm(dim=1)


def _dot(
    a: Float[Tensor, "p i j"], b: Float[Tensor, "p i j"]
) -> Float[Tensor, "p 1 1"]:
    """Compute the inner product in each problem."""
    return (a * b).sum(dim=(1, 2), keepdim=True)


def _minimize(
    problem: Problem,
    coefficients: Float[Tensor, "p k r"],
    direction: Float[Tensor, "p k r"],
    lambda_: float,
    tolerance: float,
) -> Float[Tensor, "p k r"]:
    """Take L-BFGS steps, the first along `direction`, until each gradient is small.

    A problem also stops if its gradient norm has not fallen for ``MAX_IDLE_STEPS``.
    """
    logits = problem.logits(coefficients)
    gradient = problem.gradient(coefficients, logits, lambda_)
    precondition = problem.preconditioner(logits, lambda_)
    steps = deque(maxlen=MEMORY)
    downhill = _dot(gradient, direction) < 0
    direction = torch.where(downhill, direction, -precondition(gradient))
    smallest = torch.full_like(downhill, torch.inf, dtype=gradient.dtype)
    idle = torch.zeros_like(downhill, dtype=torch.int)
    for _ in range(MAX_STEPS):
        slope = _dot(gradient, direction)
        square = _dot(gradient, gradient)
        idle = torch.where(square < smallest, 0, idle + 1)
        smallest = smallest.minimum(square)
        going = (square > tolerance**2) & (idle < MAX_IDLE_STEPS)
        going &= slope < 0  # with rounding there may be no way down
        if not going.any():
            break
        direction, slope = (torch.where(going, x, 0) for x in (direction, slope))
        moves = problem.logits(direction)
        ridge = lambda_ * problem.penalized * direction
        penalty = _dot(ridge, coefficients), _dot(ridge, direction)
        length = _line_search(problem, logits, moves, slope, penalty)
        coefficients = coefficients + length * direction
        logits = logits + length * moves
        last, gradient = gradient, problem.gradient(coefficients, logits, lambda_)
        step, change = length * direction, gradient - last
        curvature = _dot(step, change)
        # A problem that is done takes steps of 0, which must not count
        steps.append((step, change, torch.where(curvature > 0, 1 / curvature, 0)))
        direction = -_inverse_hessian(gradient, steps, precondition)
    return coefficients


def _line_search(
    problem: Problem,
    logits: Float[Tensor, "p k n"],
    moves: Float[Tensor, "p k n"],
    slope: Float[Tensor, "p 1 1"],
    penalty: tuple[Float[Tensor, "p 1 1"], Float[Tensor, "p 1 1"]],
) -> Float[Tensor, "p 1 1"]:
    """Return a step length that leaves at most 0.3 of the slope, by bracketed Newton.

    `penalty` has the slope of the ridge at length 0, and its curvature. The search
    needs no product with the features, because logits are linear along a line.
    """
    length, low = torch.ones_like(slope), torch.zeros_like(slope)
    high = torch.full_like(slope, torch.inf)
    label_moves = (problem.one_hot * moves).sum(dim=1, keepdim=True)  # (p, 1, n)
    for _ in range(20):
        p_moves = (logits + length * moves).softmax(dim=1) * moves
        mean = p_moves.sum(dim=1, keepdim=True)
        variance = (p_moves * moves).sum(dim=1, keepdim=True) - mean.square()
        at_length = _dot(mean - label_moves, problem.rows)
        at_length = at_length + penalty[0] + length * penalty[1]
        done = at_length.abs() <= 0.3 * slope.abs()
        if done.all():
            break
        low = torch.where(at_length < 0, length, low)
        high = torch.where(at_length > 0, length, high)
        curvature = _dot(variance.clamp(min=0), problem.rows) + penalty[1]
        newton = (length - at_length / curvature).minimum(10 * length)
        inside = (newton > low) & (newton < high)
        better = torch.where(inside, newton, (low + high) / 2)
        length = torch.where(done, length, better)
    return length


def _inverse_hessian(
    gradient: Float[Tensor, "p k r"],
    steps: Sequence[tuple[Tensor, Tensor, Tensor]],
    precondition: Callable[[Tensor], Tensor],
) -> Float[Tensor, "p k r"]:
    """Apply the inverse Hessian of L-BFGS to a gradient, by its two loops.

    Each of `steps` is (step, change of the gradient, 1 / curvature), the oldest first.
    """
    result, shares = gradient, []
    for step, change, scale in reversed(steps):
        shares.append(scale * _dot(step, result))
        result = result - shares[-1] * change
    result = precondition(result)
    for step, change, scale in steps:
        result = result + (shares.pop() - scale * _dot(change, result)) * step
    return result
