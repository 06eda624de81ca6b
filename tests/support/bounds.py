"""How far two orders of computing the same floating-point numbers may lie apart."""

import torch
from torch import nn


def rounding(
    additions: int, size: float, *, dtype: torch.dtype = torch.float32
) -> float:
    """Bound the difference after so many additions of partial sums of at most `size`.

    One addition errs by at most half of eps times the partial sum. The errors are
    nearly independent, so those of n additions have a standard deviation of
    0.29 eps sqrt(n) size; the bound is 3.5 of it. It depends on no processor.
    """
    return torch.finfo(dtype).eps * additions**0.5 * size


def additions_of(model: nn.Module) -> int:
    """Count the additions behind one output: the terms of one sum of each layer."""
    weights = [p for p in model.parameters() if p.dim() >= 2]
    return sum(weight[0].numel() for weight in weights)
