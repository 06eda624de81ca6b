"""In-context linear regression: pairs (x_i, y_i), then an x without its y.

The module holds the sequences, the optimal predictors where a weight vector may be any
(:func:`ridge_predictions`) and where it is one of a list
(:func:`selecting_predictions`), and the way in which a Transformer reads a sequence
(:func:`transformer_predictions`). Each sequence has its own weight vector, so a model
that predicts y at every position must infer the weights from the earlier pairs.
Sources: Garg et al. 2022; for a list of weight vectors, Raventós et al. 2023.

Axes: B sequences, n examples in each, d coordinates of an x, M weight vectors.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fmkit import runtime
from fmkit._check import require
from fmkit._tensors import require_finite, require_shape

SINGULAR = 1e-10  # of the largest eigenvalue; below, no x has varied in that direction


@dataclass(frozen=True)
class Regressions:
    """Sequences drawn by :func:`draw_regressions`; y is w^T x plus noise.

    Raises ValueError if the shapes do not fit.
    """

    x: Float[Tensor, "B n d"]
    y: Float[Tensor, "B n"]
    w: Float[Tensor, "B d"]

    def __post_init__(self) -> None:
        require_shape("x", self.x, "B", "n", "d")
        B, n, d = self.x.shape
        require_shape("y", self.y, B, n)
        require_shape("w", self.w, B, d)

    def excess(self, y_hat: Float[Tensor, "B n"]) -> Float[Tensor, "B n"]:
        """Return (y_hat - w^T x)^2: the expected squared error in excess of sigma^2.

        Entry k, counted from 0, is for the prediction after k examples. Raises
        ValueError if there is not one prediction for each y.
        """
        require_shape("y_hat", y_hat, *self.y.shape)
        return (y_hat - _apply(self.x, self.w)).square()


def draw_regressions(
    count: int,
    *,
    examples: int,
    scales: Float[Tensor, " d"],
    sigma: float,
    generator: torch.Generator,
    tasks: Float[Tensor, "M d"] | None = None,
) -> Regressions:
    """Draw w ~ N(0, I), x_j ~ N(0, scales_j^2), y ~ N(w^T x, sigma^2), independently.

    With `tasks`, each w is one of its rows, all with the same probability. All `scales`
    are 1 in training. Unlike in the paper, the axes of other scales are the coordinate
    axes. Raises ValueError if `count` or `examples` is less than 1, if there is no
    scale or no task, if one is not finite, if tasks and scales have different numbers
    of coordinates, and if `sigma` is negative or infinite.
    """
    require(count >= 1, "count", "be at least 1", count)
    require_shape("scales", scales, "d")
    require(len(scales) >= 1, "scales", "be at least 1", len(scales))
    require_finite("scales", scales)
    require(examples >= 1, "examples", "be at least 1", examples)
    require(0 <= sigma < float("inf"), "sigma", "be finite and at least 0", sigma)
    d = len(scales)
    if tasks is None:
        w = torch.randn(count, d, generator=generator)
    else:
        _require_tasks(tasks, d)
        w = tasks[torch.randint(len(tasks), (count,), generator=generator)]
    x = torch.randn(count, examples, d, generator=generator) * scales
    noise = sigma * torch.randn(count, examples, generator=generator)
    return Regressions(x, _apply(x, w) + noise, w)


def skewed_scales(d: int) -> Float[Tensor, " d"]:
    """Return scales whose variances are proportional to 1/j^2 and sum to d.

    The variances of N(0, I) sum to d too.

    Raises ValueError if d is less than 1. Source: the skewed covariance of Garg et al.
    2022, section 4.
    """
    require(d >= 1, "d", "be at least 1", d)
    scales = 1 / torch.arange(1, d + 1)
    return scales * (d / scales.square().sum()).sqrt()


def ridge_predictions(
    x: Float[Tensor, "B n d"], y: Float[Tensor, "B n"], *, lambda_: float
) -> Float[Tensor, "B n"]:
    r"""Predict w_k^T x_{k+1} at entry k < n, with w_k from the first k pairs.

    .. math:: w_k = \arg\min_w \sum_{i=1}^{k} (y_i - w^\top x_i)^2 + \lambda \|w\|^2

    The squares are summed, not averaged. With lambda = sigma^2 and w ~ N(0, I), w_k is
    therefore the mean of w given the pairs, and no predictor has a lower expected
    squared error. Lambda 0 is least squares, with the solution of least norm if there
    are fewer than d pairs. Computed in float64. Raises ValueError if there is not one y
    for each x, if a value is not finite, and if lambda is negative or infinite.
    """
    require_shape("x", x, "B", "n", "d")
    require_shape("y", y, *x.shape[:2])
    require_finite("x", x)
    require_finite("y", y)
    finite = "be finite and at least 0"
    require(0 <= lambda_ < float("inf"), "lambda_", finite, lambda_)
    x, y = runtime.float64(x), runtime.float64(y)
    gram = _of_earlier(x[..., :, None] * x[..., None, :])  # (B, n, d, d)
    moment = _of_earlier(x * y[..., None])
    eye = torch.eye(x.shape[2], dtype=x.dtype, device=x.device)
    inverse = torch.linalg.pinv(gram + lambda_ * eye, rtol=SINGULAR, hermitian=True)
    return (x * (inverse @ moment[..., None]).squeeze(3)).sum(dim=2)


def selecting_predictions(
    x: Float[Tensor, "B n d"],
    y: Float[Tensor, "B n"],
    *,
    tasks: Float[Tensor, "M d"],
    sigma: float,
) -> Float[Tensor, "B n"]:
    r"""Predict w_k^T x_{k+1} at entry k < n, where w is one of the M `tasks`.

    .. math:: w_k = \sum_m p_m w_m, \qquad
       p_m \propto \exp\Bigl(-\frac{1}{2\sigma^2} \sum_{i=1}^{k}
       (y_i - w_m^\top x_i)^2\Bigr)

    p_m is the probability of task m given the first k pairs, if all tasks have the same
    probability before the first pair. No predictor has a lower expected squared error
    on sequences that :func:`draw_regressions` draws with these tasks. Computed in
    float64, with memory for B times M numbers. Raises ValueError if there is not one y
    for each x, if tasks and x have different numbers of coordinates, if there is no
    task, if a value is not finite, and if sigma is not positive. Source: the discrete
    MMSE estimator of Raventós et al. 2023, section 2.
    """
    require_shape("x", x, "B", "n", "d")
    require_shape("y", y, *x.shape[:2])
    require_finite("x", x)
    require_finite("y", y)
    _require_tasks(tasks, x.shape[2])
    require(0 < sigma < float("inf"), "sigma", "be finite and more than 0", sigma)
    x, y, tasks = runtime.float64(x), runtime.float64(y), runtime.float64(tasks)
    log_p = x.new_zeros(len(x), len(tasks))  # up to a constant in each row
    predictions = []
    for k in range(x.shape[1]):
        each = x[:, k] @ tasks.T  # (B, M): what every task predicts
        predictions.append((log_p.softmax(dim=1) * each).sum(dim=1))
        log_p = log_p - (y[:, k, None] - each).square() / (2 * sigma**2)
    return torch.stack(predictions, dim=1)


def transformer_predictions(
    model: nn.Module, x: Float[Tensor, "B n d"], y: Float[Tensor, "B n"]
) -> Float[Tensor, "B n"]:
    r"""Predict y with a Transformer of 14.3; entry k uses k pairs and x_{k+1}.

    Token k is the vector :math:`\sum_v z_v e_v` of the 2d + 1 coordinates of z_k =
    (x_k, y_k, x_{k+1}), with x_0 and y_0 zero, and one embedding e_v per coordinate.
    The logit of coordinate y is the prediction. Unlike in the paper, where an x and a y
    are separate tokens, the model need not learn which y belongs to which x. Raises
    ValueError if the vocabulary of the model is not 2d + 1, and if there is not one y
    for each x.
    """
    require_shape("x", x, "B", "n", "d")
    require_shape("y", y, *x.shape[:2])
    d = x.shape[2]
    rule = f"have a vocabulary of 2d + 1 ({2 * d + 1})"
    require(
        model.config.vocabulary == 2 * d + 1, "model", rule, model.config.vocabulary
    )
    pairs = torch.cat([x, y[..., None]], dim=2)
    earlier = torch.cat([torch.zeros_like(pairs[:, :1]), pairs[:, :-1]], dim=1)
    z = torch.cat([earlier, x], dim=2)
    # Autocast would round the coordinates to bfloat16, and with them every sum that a
    # block adds its output to, which is float32 where an embedding is looked up
    with torch.autocast(z.device.type, enabled=False):
        vectors = z.to(model.embedding.weight.dtype) @ model.embedding.weight
    return model.logits(model.contextualize(vectors))[..., d]


def _apply(x: Float[Tensor, "B n d"], w: Float[Tensor, "B d"]) -> Float[Tensor, "B n"]:
    return (x * w[:, None]).sum(dim=2)


def _require_tasks(tasks: Float[Tensor, "M d"], d: int) -> None:
    require_shape("tasks", tasks, "M", d)
    require(len(tasks) >= 1, "tasks", "be at least 1", len(tasks))
    require_finite("tasks", tasks)


def _of_earlier(terms: Float[Tensor, "B n *_"]) -> Float[Tensor, "B n *_"]:
    """Sum the entries before each entry."""
    return terms.cumsum(dim=1) - terms
