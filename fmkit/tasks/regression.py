"""Linear regression in a context: pairs (x_i, y_i), then an x without its y.

Each sequence has a weight vector of its own, so a model that predicts y at every place
must learn it from the pairs before. B sequences, n examples in each, d numbers in an x.
Source: Garg et al. 2022.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fmkit._check import require

SINGULAR = 1e-10  # of the largest eigenvalue: directions in which no x has shown itself


@dataclass(frozen=True)
class Regressions:
    """Sequences drawn by :func:`draw_regressions`; y is w^T x and noise."""

    x: Float[Tensor, "B n d"]
    y: Float[Tensor, "B n"]
    w: Float[Tensor, "B d"]

    def excess(self, y_hat: Float[Tensor, "B n"]) -> Float[Tensor, "B n"]:
        """(y_hat - w^T x)^2: by how much an error exceeds sigma^2, in expectation.

        Entry k (from 0) is of the prediction after k examples.
        """
        return (y_hat - _apply(self.x, self.w)).square()


def draw_regressions(
    count: int,
    *,
    examples: int,
    scales: Float[Tensor, " d"],
    sigma: float,
    generator: torch.Generator,
) -> Regressions:
    """w ~ N(0, I), x_j ~ N(0, scales_j^2), y ~ N(w^T x, sigma^2), all independent.

    `scales` are ones in training. Unlike in the paper, axes of other scales are those
    of the coordinates. Raises ``ValueError`` below 1 example and for a negative sigma.
    """
    require(examples >= 1, "examples", "be at least 1", examples)
    require(sigma >= 0, "sigma", "be at least 0", sigma)
    d = len(scales)
    w = torch.randn(count, d, generator=generator)
    x = torch.randn(count, examples, d, generator=generator) * scales
    noise = sigma * torch.randn(count, examples, generator=generator)
    return Regressions(x, _apply(x, w) + noise, w)


def skewed_scales(d: int) -> Float[Tensor, " d"]:
    """Scales with variances in proportion to 1/j^2 that sum to d, as of N(0, I).

    Source: the skewed covariance of Garg et al. 2022, section 4.
    """
    scales = 1 / torch.arange(1, d + 1)
    return scales * (d / scales.square().sum()).sqrt()


def ridge_predictions(
    x: Float[Tensor, "B n d"], y: Float[Tensor, "B n"], *, lambda_: float
) -> Float[Tensor, "B n"]:
    r"""w_k^T x_{k+1} at entry k, from 0 to n - 1, with w_k from the first k pairs.

    .. math:: w_k = \arg\min_w \sum_{i=1}^{k} (y_i - w^\top x_i)^2 + \lambda \|w\|^2

    The squares are summed, not averaged, so that lambda = sigma^2 makes it the mean of
    w given the pairs where w ~ N(0, I): no predictor has a lower expected square error.
    Lambda 0 is least squares; where pairs are fewer than d, its solution of least norm.
    In float64. Raises ``ValueError`` for a lambda below 0.
    """
    require(lambda_ >= 0, "lambda_", "be at least 0", lambda_)
    x, y = x.double(), y.double()
    gram = _of_earlier(x[..., :, None] * x[..., None, :])  # (B, n, d, d)
    moment = _of_earlier(x * y[..., None])
    eye = torch.eye(x.shape[2], dtype=x.dtype, device=x.device)
    inverse = torch.linalg.pinv(gram + lambda_ * eye, rtol=SINGULAR, hermitian=True)
    return (x * (inverse @ moment[..., None]).squeeze(3)).sum(dim=2)


def transformer_predictions(
    model: nn.Module, x: Float[Tensor, "B n d"], y: Float[Tensor, "B n"]
) -> Float[Tensor, "B n"]:
    r"""What a Transformer of 14.3 predicts from the first k pairs and x_{k+1}, at k.

    Its token k is the vector :math:`\sum_v z_v e_v` of the 2d + 1 numbers of z_k =
    (x_k, y_k, x_{k+1}), with x_0 and y_0 zero, and an embedding e_v for each of them.
    Of its logits the one of y is the prediction. Unlike in the paper, where an x and a
    y are a token each, it need not find out which y belongs to which x. Raises
    ``ValueError`` for a model with another vocabulary.
    """
    d = x.shape[2]
    rule = f"have a vocabulary of 2d + 1 ({2 * d + 1})"
    require(
        model.config.vocabulary == 2 * d + 1, "model", rule, model.config.vocabulary
    )
    pairs = torch.cat([x, y[..., None]], dim=2)
    earlier = torch.cat([torch.zeros_like(pairs[:, :1]), pairs[:, :-1]], dim=1)
    z = torch.cat([earlier, x], dim=2)
    return model.logits(model.contextualize(z @ model.embedding.weight))[..., d]


def _apply(x: Float[Tensor, "B n d"], w: Float[Tensor, "B d"]) -> Float[Tensor, "B n"]:
    return (x * w[:, None]).sum(dim=2)


def _of_earlier(terms: Float[Tensor, "B n *_"]) -> Float[Tensor, "B n *_"]:
    """Sums over the entries before each."""
    return terms.cumsum(dim=1) - terms
