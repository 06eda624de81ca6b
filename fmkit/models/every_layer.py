"""Representations from every layer of a network, in one pass.

B batch, c channels, H and W height and width, m of all layers together.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn


class Layers(nn.Module):
    """The layers of `phi`, each pooled over the picture as the last one is.

    `phi` has ``widths`` and ``activations``. The layers stand side by side in one
    tensor, so that what is made for one representation (batches, a check that nothing
    changes) works for all; :meth:`split` takes them apart. The last equals phi(x).
    """

    def __init__(self, phi: nn.Module):
        super().__init__()
        self.phi = phi

    def prepare(self, images: UInt8[Tensor, "B c H W"]) -> Tensor:
        return self.phi.prepare(images)

    def forward(self, x: Float[Tensor, "B c H W"]) -> Float[Tensor, "B m"]:
        return torch.cat([h.mean(dim=(2, 3)) for h in self.phi.activations(x)], dim=1)

    def split(self, outputs: Float[Tensor, "n m"]) -> dict[str, Tensor]:
        """The representation that each layer gives, by its name, the last one last."""
        parts = outputs.split([*self.phi.widths.values()], dim=1)
        return dict(zip(self.phi.widths, parts, strict=True))
