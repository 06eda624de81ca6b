"""Low-rank updates (LoRA): finetuning that changes a matrix by one of low rank.

Axes: d inputs and e outputs of a layer, r rank; any number of batch axes. B is a matrix
here, as in the paper, and not the size of a batch.
"""

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fmkit._check import Refused, require


class LowRank(nn.Module):
    r"""A frozen linear layer with a trained update of rank r.

    .. math:: x \mapsto W x + b + \frac{\alpha}{r} B A x

    A is drawn from the global generator as in ``peft``, uniformly within 1 / sqrt(d)
    of 0. B is 0, so at first nothing changes. Unlike the paper, whose A is Gaussian,
    and unlike ``peft``, it has no dropout. Raises ``ValueError`` if `rank` is below 1
    or above the smaller side of W. Source: Hu et al. 2021.
    """

    def __init__(self, linear: nn.Linear, *, rank: int, alpha: float):
        super().__init__()
        limit = min(linear.weight.shape)
        require(1 <= rank <= limit, "rank", f"be from 1 to {limit}", rank)
        self.linear = linear
        self.scale = alpha / rank
        like = linear.weight.detach()
        self.A = nn.Parameter(like.new_empty(rank, linear.in_features))
        self.B = nn.Parameter(like.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch e"]:
        """Compute the output of the layer plus that of the update."""
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.A), self.B)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return one linear layer that computes the same: W + (alpha / r) B A.

        The layer itself stays as it is.
        """
        linear = copy.deepcopy(self.linear)
        linear.weight += self.scale * self.B @ self.A
        return linear


def with_low_rank(
    model: nn.Module, names: Sequence[str], *, rank: int, alpha: float
) -> nn.Module:
    """Return a copy of `model` in which only low-rank updates are trained.

    Every linear layer gets an update if its path in the model ends in one of `names`:
    its last part, or several parts (``out``, ``mlp.down``). Everything else is frozen.
    A matrix that computes queries, keys and values together gets one update, not
    three. Raises ``ValueError`` if no linear layer has one of `names`, and if `rank`
    does not fit.
    """
    model = copy.deepcopy(model).requires_grad_(False)
    linear = [n for n, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    for name in names:
        if not any(_ends_in(path, name) for path in linear):
            known = ", ".join(sorted({path.split(".")[-1] for path in linear}))
            raise Refused(
                f"names must be those of linear layers ({known}), got {name!r}."
            )
    for path in linear:
        if any(_ends_in(path, name) for name in names):
            layer = LowRank(model.get_submodule(path), rank=rank, alpha=alpha)
            model.set_submodule(path, layer)
    return model


def merge_low_rank(model: nn.Module) -> nn.Module:
    """Return a copy of `model` with each update added to its matrix, for full speed."""
    model = copy.deepcopy(model)
    for path, layer in [*model.named_modules()]:
        if isinstance(layer, LowRank):
            model.set_submodule(path, layer.merged())
    return model


def _ends_in(path: str, name: str) -> bool:
    """Return whether the last parts of a module's path are `name`."""
    return f".{path}".endswith(f".{name}")
