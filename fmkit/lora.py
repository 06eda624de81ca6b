"""Low-rank updates (LoRA): finetuning in which a matrix changes by one of low rank.

*B batch axes, d numbers in and e numbers out of a layer, r rank.
"""

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fmkit._check import require


class LowRank(nn.Module):
    r"""A linear layer that stays as it is, and an update of rank r that is trained.

    .. math:: x \mapsto W x + b + \frac{\alpha}{r} B A x

    A is drawn as ``peft`` draws it, uniformly from within 1 / sqrt(d), by the global
    generator; B is 0, so that at first nothing changes. Unlike the paper's, whose A is
    Gaussian, and unlike ``peft``'s it has no dropout. Raises ``ValueError`` for a rank
    below 1 or above what the matrix has. Source: Hu et al. 2021.
    """

    def __init__(self, linear: nn.Linear, *, rank: int, alpha: float):
        super().__init__()
        most = min(linear.weight.shape)
        require(1 <= rank <= most, "rank", f"be from 1 to {most}", rank)
        self.linear = linear
        self.scale = alpha / rank
        like = linear.weight.detach()
        self.A = nn.Parameter(like.new_empty(rank, linear.in_features))
        self.B = nn.Parameter(like.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B e"]:
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.A), self.B)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One linear layer that computes the same: W + (alpha / r) B A."""
        linear = copy.deepcopy(self.linear)
        linear.weight += self.scale * self.B @ self.A
        return linear


def with_low_rank(
    model: nn.Module, names: Sequence[str], *, rank: int, alpha: float
) -> nn.Module:
    """A copy of `model` in which only low-rank updates are trained.

    They are added to each linear layer of one of `names`, the last part of its name in
    the model, or several (``out``, ``mlp.down``). Everything else is frozen. A matrix
    that makes queries, keys and values at once gets one update, not three. Raises
    ``ValueError`` for a name that no linear layer has, and for a bad rank.
    """
    model = copy.deepcopy(model).requires_grad_(False)
    for name in names:
        found = [n for n, layer in model.named_modules() if _is_called(n, name, layer)]
        require(len(found) > 0, "names", "be those of linear layers", name)
    for path, layer in [*model.named_modules()]:
        if any(_is_called(path, name, layer) for name in names):
            model.set_submodule(path, LowRank(layer, rank=rank, alpha=alpha))
    return model


def merge_low_rank(model: nn.Module) -> nn.Module:
    """A copy of `model` with each update added to its matrix: no slower than before."""
    model = copy.deepcopy(model)
    for path, layer in [*model.named_modules()]:
        if isinstance(layer, LowRank):
            model.set_submodule(path, layer.merged())
    return model


def _is_called(path: str, name: str, layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and f".{path}".endswith(f".{name}")
