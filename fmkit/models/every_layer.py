"""Compute representations from every layer of a network, in one pass.

B batch, c channels, H and W height and width, m of all layers together.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fmkit.models.encoder import LayeredEncoder


class EveryLayer(nn.Module):
    """All layers of `phi`, each averaged over the image as the last one is.

    The layers are concatenated into one tensor, so that code for one representation
    (batches, a check that nothing changes) works for all of them. ``split``
    separates them again. The last layer equals phi(x).
    """

    def __init__(self, phi: LayeredEncoder):
        super().__init__()
        self.phi = phi

    def prepare(self, images: UInt8[Tensor, "B c H W"]) -> Tensor:
        return self.phi.prepare(images)

    def forward(self, x: Float[Tensor, "B c H W"]) -> Float[Tensor, "B m"]:
        return torch.cat([h.mean(dim=(2, 3)) for h in self.phi.activations(x)], dim=1)

    def split(self, outputs: Float[Tensor, "n m"]) -> dict[str, Tensor]:
        """Return the representation of each layer by its name, first layer first."""
        parts = outputs.split([*self.phi.widths.values()], dim=1)
        return dict(zip(self.phi.widths, parts, strict=True))
