"""Weights that show a mistake, and what a model held before."""

import torch
from torch import Tensor, nn

from fmkit.models.transformer import Transformer, TransformerConfig

# A base and an epsilon that show: those of real models are lost among few numbers
SMALL = TransformerConfig(
    vocabulary=11,
    context=12,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    hidden=6,
    rope_base=50.0,
    norm_epsilon=0.2,
)


def drawn(config: TransformerConfig) -> Transformer:
    """Draw weights so large that the output depends on every token of the input."""
    model = Transformer(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) / 2)
    return model


def redrawn(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Draw every weight of `model`: biases of 0 and scales of 1 hide mistakes."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            scales = "norm" in name and name.endswith("weight")
            weight.copy_(noise / 2 + scales)
    return model


def float64_model(config: TransformerConfig) -> Transformer:
    """Draw a model in float64, in eval mode."""
    generator = torch.Generator().manual_seed(1)
    return redrawn(Transformer(config).double().eval(), generator)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copy the weights and buffers of `model`."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    """Tell whether the weights and buffers are those of an earlier snapshot."""
    return all(torch.equal(model.state_dict()[name], before[name]) for name in before)
