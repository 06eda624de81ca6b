"""A small Transformer for tests that compare the outputs of models."""

import torch

from fmkit.models.transformer import Transformer, TransformerConfig


def drawn(config: TransformerConfig) -> Transformer:
    """Draw weights so large that the output depends on every token of the input."""
    model = Transformer(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) / 2)
    return model
