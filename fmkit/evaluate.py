"""Numbers about predictions. Nothing here prints. n examples, k classes."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fmkit._check import require


def accuracy(logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> float:
    """Share of examples whose largest logit is that of their label; 1/k by guessing."""
    require(len(labels) >= 1, "labels", "hold at least 1 example", len(labels))
    return (logits.argmax(dim=1) == labels).double().mean().item()


def mean_interval(
    values: list[float], *, generator: torch.Generator, level: float = 0.95
) -> tuple[float, float, float]:
    """The mean of `values` and the percentile bootstrap interval of that mean.

    The interval speaks only of what varied between the values (seeds, draws of labels).
    It is too narrow for a handful of them: of three it is nearly their range, of one it
    is that value. Raises ``ValueError`` without a value. Source: Efron 1979.
    """
    require(len(values) >= 1, "values", "be at least 1", values)
    require(0 < level < 1, "level", "be between 0 and 1", level)
    x = torch.tensor(values, dtype=torch.float64)
    resampled = torch.randint(len(x), (10_000, len(x)), generator=generator)
    tail = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(x[resampled].mean(dim=1), tail).tolist()
    return x.mean().item(), low, high
