"""Repack a model's linear layers, so that a CPU reads them faster."""

import copy

import torch
from torch import Tensor, nn

# Private operators of torch, as of 2.11 to 2.13; without them nothing is repacked
REORDER = "_reorder_linear_weight"
LINEAR = "_linear_pointwise"
HAS_BFLOAT16 = "_is_mkldnn_bf16_supported"
ROWS = 64  # blocks for 64 rows are the best, or as good, for 1, 8 and 64 of them


class _PackedLinear(nn.Module):
    """A linear layer whose matrix lies in oneDNN's blocks."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.bias = linear.bias
        reorder = getattr(torch.ops.mkldnn, REORDER)
        self.blocks = reorder(linear.weight.detach(), ROWS)

    def forward(self, x: Tensor) -> Tensor:
        product = getattr(torch.ops.mkldnn, LINEAR)
        return product(x, self.blocks, self.bias, "none", [], "")


def packed(model: nn.Module) -> nn.Module:
    """Return the same model with its linear layers repacked: up to twice as fast.

    A step of decoding reads every weight once, so it takes as long as reading them
    does. Repacked weights take their memory once more; all other tensors are shared
    with `model`. The result cannot be trained, moved or saved. If there is nothing to
    gain (another device, a torch without oneDNN, a precision that the processor lacks),
    the result is `model` itself.
    """
    weight = next(model.parameters())
    if weight.device.type != "cpu" or not _is_supported(weight.dtype):
        return model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    for module in [*twin.modules()]:
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, _PackedLinear(child))
    return twin


def _is_supported(dtype: torch.dtype) -> bool:
    operators = torch.ops.mkldnn
    if not all(hasattr(operators, name) for name in (REORDER, LINEAR, HAS_BFLOAT16)):
        return False
    if dtype == torch.bfloat16:
        return getattr(operators, HAS_BFLOAT16)()
    return dtype == torch.float32
