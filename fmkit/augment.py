"""Batched random changes of pictures, on their device.

B batch, c channels, H and W height and width.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fmkit._check import require


def mask_patches(
    x: Float[Tensor, "B c H W"],
    *,
    patch: int,
    share: float,
    generator: torch.Generator,
) -> Float[Tensor, "B c H W"]:
    """Each square of `patch` pixels is set to 0 with probability `share`.

    Squares are drawn independently, for every picture anew. Raises ``ValueError``
    where `patch` does not divide both sides of the picture, and for a share outside
    0 to 1. Source: masked autoencoders, He et al. 2022 (which hide an exact share).
    """
    B, _, H, W = x.shape
    divides = patch >= 1 and H % patch == 0 and W % patch == 0
    require(divides, "patch", f"divide the picture's sides ({H} and {W})", patch)
    require(0 <= share <= 1, "share", "be from 0 to 1", share)
    draws = torch.rand(
        B, 1, H // patch, W // patch, generator=generator, device=generator.device
    )
    seen = (draws >= share).to(x)
    return x * seen.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)
