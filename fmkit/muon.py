"""Muon: an optimizer whose update of a matrix has all singular values near 1.

Axes: r rows, c columns, n matrices of one shape.
"""

import math
from collections.abc import Callable, Iterable
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from fmkit import runtime
from fmkit._check import Refused, require

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: steep at 0, then near 1
ITERATIONS = 5
MOMENTUM = 0.95  # of the matrices, Jordan et al. 2024
BETAS = (0.9, 0.95)  # of AdamW for the other parameters
EPSILON = 1e-8
# Options of torch's optimizers that no group can have for itself here
FIXED = {"amsgrad", "betas", "eps", "maximize", "momentum", "nesterov", "ns_steps"}


class Muon(Optimizer):
    """Update `matrices` with Muon and `others` (embeddings, gains, biases) with AdamW.

    The update of a matrix is the orthogonal matrix nearest to its Nesterov momentum.
    So it is as large in directions that gradients rarely have as in frequent ones. It
    is multiplied by 0.2 times the root of the longer side of the matrix, which gives
    it the size of an update of Adam (Liu et al. 2025), so one learning rate serves
    both. Weight decay is decoupled and applies to `matrices` only.

    ``bench.lm_train`` measures how much sooner than AdamW it reaches a given loss.
    Unlike ``torch.optim.Muon``, it iterates in bfloat16 only if training computes in it
    (:func:`fmkit.runtime.trains_in_bfloat16`), because most CPUs emulate bfloat16: for
    the model of the chapter on language models, one step took 61 ms on one thread, and
    795 ms (13 times as long) with torch's Muon and fused AdamW.

    A group of parameters has the options ``lr``, ``weight_decay`` and ``muon``. A group
    that is added later gets Muon with the options given here. With ``"muon": False`` it
    gets AdamW, and weight decay only if it sets ``weight_decay``. `lr` may be a tensor
    of one element, but reading it makes the host wait for a GPU.

    Raises ``ValueError`` if there are no parameters, or some are not floating point or
    of float16; if a matrix does not have two axes; if `lr` or `weight_decay` is
    negative or not finite; and if a group sets an option that all groups share, such as
    ``momentum``.
    Source: Jordan et al. 2024.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        *,
        lr: float | Tensor,
        weight_decay: float = 0.1,
    ):
        groups = [{"params": [*matrices]}, {"params": [*others], "muon": False}]
        count = sum(len(group["params"]) for group in groups)
        require(count > 0, "parameters", "be at least one", count)
        defaults = {"lr": lr, "weight_decay": weight_decay, "muon": True}
        super().__init__(groups, defaults)

    def add_param_group(self, param_group: dict[str, object]) -> None:
        """Train more parameters: with Muon, or with AdamW if ``muon`` is False."""
        if not param_group.get("muon", True):
            param_group.setdefault("weight_decay", 0.0)
        super().add_param_group(param_group)
        try:
            _check(self.param_groups[-1])
        except Refused:
            self.param_groups.pop()
            raise

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        for i, group in enumerate(self.param_groups):
            group.setdefault("muon", i == 0)  # of earlier states, which do not say it

    @classmethod
    def of(cls, model: nn.Module, *, lr: float, weight_decay: float = 0.1) -> "Muon":
        """Make the optimizer of a Transformer.

        The matrices are those inside its ``blocks``. All other parameters, with the
        embedding and the matrix of the logits, get AdamW.
        """
        matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
        others = [p for p in model.parameters() if all(p is not q for q in matrices)]
        return cls(matrices, others, lr=lr, weight_decay=weight_decay)

    @torch.no_grad()
    def step(
        self, closure: Callable[[], Tensor | float] | None = None
    ) -> Tensor | float | None:
        """Update every parameter that has a gradient.

        If there is a `closure`, it first computes the loss and the gradients, and the
        loss is returned. Raises ``ValueError``, and updates nothing, if a gradient is
        sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        trained = [
            [p for p in group["params"] if p.grad is not None]
            for group in self.param_groups
        ]
        for p in chain(*trained):
            require(not p.grad.is_sparse, "gradients", "be dense", p.grad.layout)
        for group, parameters in zip(self.param_groups, trained, strict=True):
            lr, weight_decay = float(group["lr"]), float(group["weight_decay"])
            if not group["muon"]:
                self._adam(parameters, lr, weight_decay)
                continue
            alike = {}  # equal ones in one product
            for p in parameters:
                alike.setdefault((p.shape, p.dtype, p.device), []).append(p)
            for matrices in alike.values():
                self._muon(matrices, lr, weight_decay)
        return loss

    def _muon(self, matrices: list[Tensor], lr: float, weight_decay: float) -> None:
        """Update matrices of one shape."""
        grads = [p.grad for p in matrices]
        means = self._averages(matrices, "momentum")
        torch._foreach_lerp_(means, grads, 1 - MOMENTUM)
        ahead = torch.stack(torch._foreach_lerp(grads, means, MOMENTUM))
        low = runtime.trains_in_bfloat16(ahead.device)
        steps = orthogonal(ahead.bfloat16() if low else ahead).to(ahead.dtype)
        size = lr * 0.2 * max(matrices[0].shape) ** 0.5
        torch._foreach_mul_(matrices, 1 - lr * weight_decay)
        torch._foreach_add_(matrices, list(steps), alpha=-size)

    def _adam(self, others: list[Tensor], lr: float, weight_decay: float) -> None:
        """Update parameters of any shape with AdamW."""
        if not others:
            return
        b1, b2 = BETAS
        grads = [p.grad for p in others]
        means, squares = (self._averages(others, name) for name in ("mean", "square"))
        torch._foreach_lerp_(means, grads, 1 - b1)
        torch._foreach_lerp_(squares, torch._foreach_mul(grads, grads), 1 - b2)
        steps = []
        for p in others:
            steps.append(self.state[p].get("step", 0) + 1)
            self.state[p]["step"] = steps[-1]
        roots = torch._foreach_div(squares, [1 - b2**t for t in steps])
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, EPSILON)
        sizes = [-lr / (1 - b1**t) for t in steps]
        if weight_decay:
            torch._foreach_mul_(others, 1 - lr * weight_decay)
        torch._foreach_addcdiv_(others, means, roots, sizes)

    def _averages(self, parameters: list[Tensor], name: str) -> list[Tensor]:
        """Return a running average of each parameter; at first it is 0."""
        for p in parameters:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros_like(p)
        return [self.state[p][name] for p in parameters]


def _check(group: dict[str, object]) -> None:
    """Raise one sentence about the first thing in a group that Muon does not allow."""
    for name in ("lr", "weight_decay"):
        value = group[name]
        one = not isinstance(value, Tensor) or value.numel() == 1
        fits = one and 0 <= value < math.inf
        require(fits, name, "be one finite number, at least 0", value)
    if fixed := sorted(group.keys() & FIXED):
        rule = "be left out, because it is the same for all groups"
        require(False, fixed[0], rule, group[fixed[0]])
    for p in group["params"]:
        # In float16 the square of a small gradient is 0, and so is EPSILON
        real = p.is_floating_point() and p.dtype != torch.float16
        require(real, "parameters", "be floating point, but not float16", p.dtype)
        rule = "have two axes, or muon=False in their group"
        fits = p.dim() == 2 or not group["muon"]
        require(fits, "matrices", rule, tuple(p.shape))


def orthogonal(g: Float[Tensor, "n r c"]) -> Float[Tensor, "n r c"]:
    r"""Approximate the orthogonal factor of each matrix: U V^T of its SVD, U S V^T.

    .. math:: X \leftarrow a X + b (X X^\top) X + c (X X^\top)^2 X

    It iterates five times, from X of Frobenius norm 1. This changes singular values
    only, and brings those above 0.002 of the norm to between 0.68 and 1.21. A matrix
    of zeros stays zero. Source: Jordan et al. 2024, after Björck and Bowie 1971.
    """
    a, b, c = QUINTIC
    x = g.mT if g.shape[1] > g.shape[2] else g  # so that X X^T is the smaller product
    x = x / (x.norm(dim=(1, 2), keepdim=True) + EPSILON)
    for _ in range(ITERATIONS):
        xx = x @ x.mT
        x = a * x + (b * xx + c * (xx @ xx)) @ x
    return x.mT if g.shape[1] > g.shape[2] else x
