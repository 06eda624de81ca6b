"""Muon: steps for matrices that have all their singular values near 1.

r rows, c columns, n matrices of one shape.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from fmkit._check import require

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: steep at 0, near 1 from there
ITERATIONS = 5
EPSILON = 1e-8


class Muon(Optimizer):
    """Muon for `matrices`, AdamW for `others`: embeddings, gains, biases.

    A step of a matrix is the orthogonal matrix nearest to its momentum (Nesterov's), so
    a direction that gradients seldom have moves as far as one that they often have. It
    is scaled to the size of Adam's steps, 0.2 times the root of its longer side (Liu et
    al. 2025), so that one learning rate serves both kinds. Weight decay is decoupled
    and spares what is no matrix. bench.lm_train measures how much sooner than AdamW it
    comes to a given loss. torch's own works in bfloat16, which few processors are fast
    at. Raises ``ValueError`` for a matrix that is none. Source: Jordan et al. 2024.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        *,
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
    ):
        matrices = list(matrices)
        for matrix in matrices:
            require(matrix.dim() == 2, "matrices", "have two axes", tuple(matrix.shape))
        require(lr > 0, "lr", "be above 0", lr)
        for_matrices = {"momentum": momentum, "weight_decay": weight_decay}
        groups = [
            {"params": matrices, **for_matrices},
            {"params": list(others), "betas": betas},
        ]
        super().__init__(groups, {"lr": lr})

    @classmethod
    def of(cls, model: nn.Module, *, lr: float, weight_decay: float = 0.1) -> "Muon":
        """For a Transformer: the matrices in its ``blocks``, and all the others."""
        inside = [p for p in model.blocks.parameters() if p.dim() == 2]
        others = [p for p in model.parameters() if all(p is not q for q in inside)]
        return cls(inside, others, lr=lr, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if "betas" in group:
                self._adam(moved, group["lr"], *group["betas"])
            else:
                shapes = {p.shape for p in moved}
                for shape in sorted(shapes):  # those alike in one product
                    self._muon([p for p in moved if p.shape == shape], **_of(group))

    def _muon(
        self, matrices: list[Tensor], lr: float, momentum: float, weight_decay: float
    ) -> None:
        ahead = []
        for p in matrices:
            mean = self.state[p].setdefault("momentum", torch.zeros_like(p))
            mean.lerp_(p.grad, 1 - momentum)
            ahead.append(p.grad.lerp(mean, momentum))
        size = lr * 0.2 * max(matrices[0].shape) ** 0.5
        steps = orthogonal(torch.stack(ahead))
        torch._foreach_mul_(matrices, 1 - lr * weight_decay)
        torch._foreach_add_(matrices, list(steps), alpha=-size)

    def _adam(self, others: list[Tensor], lr: float, b1: float, b2: float) -> None:
        for p in others:
            state = self.state[p]
            if not state:
                state["step"] = 0
                state["mean"], state["square"] = (
                    torch.zeros_like(p),
                    torch.zeros_like(p),
                )
            state["step"] += 1
            state["mean"].lerp_(p.grad, 1 - b1)
            state["square"].lerp_(p.grad.square(), 1 - b2)
            t = state["step"]
            root = (state["square"] / (1 - b2**t)).sqrt_().add_(EPSILON)
            p.addcdiv_(state["mean"], root, value=-lr / (1 - b1**t))


def orthogonal(g: Float[Tensor, "n r c"]) -> Float[Tensor, "n r c"]:
    r"""The orthogonal factor of each matrix, about: U V^T of its U S V^T.

    .. math:: X \leftarrow a X + b (X X^\top) X + c (X X^\top)^2 X

    five times, from X of Frobenius norm 1. It acts on singular values alone, and takes
    those above 0.002 of the norm to between 0.68 and 1.21. Zeros stay zeros.
    Source: Jordan et al. 2024, after Björck and Bowie 1971.
    """
    a, b, c = QUINTIC
    x = g.mT if g.shape[1] > g.shape[2] else g  # the smaller product
    x = x / (x.norm(dim=(1, 2), keepdim=True) + EPSILON)
    for _ in range(ITERATIONS):
        xx = x @ x.mT
        x = a * x + (b * xx + c * (xx @ xx)) @ x
    return x.mT if g.shape[1] > g.shape[2] else x


def _of(group: dict) -> dict[str, float]:
    return {name: group[name] for name in ("lr", "momentum", "weight_decay")}
