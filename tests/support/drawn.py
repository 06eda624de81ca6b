"""A small Transformer for tests that compare what models say."""

import torch

from fmkit.models.transformer import Transformer, TransformerConfig


def drawn(config: TransformerConfig) -> Transformer:
    """A model with weights so large that what it says depends on all that it read."""
    model = Transformer(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) / 2)
    return model
