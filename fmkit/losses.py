"""Losses as pure functions. B batch, c channels, H and W height and width."""

from jaxtyping import Float
from torch import Tensor

from fmkit._check import require


def reconstruction_loss(
    x_rebuilt: Float[Tensor, "B c H W"], x: Float[Tensor, "B c H W"]
) -> Float[Tensor, " B"]:
    r"""Squared error of a rebuilt picture: an l_pre(theta, x) of 14.1 for each picture.

    .. math:: \ell_\text{pre}(\theta, x^{(i)}) =
        \frac{1}{d} \lVert \text{rebuilt}^{(i)} - x^{(i)} \rVert^2

    with d = cHW. It is a loss of single examples, so L_pre is its mean over a batch or
    a data set. In squared units of `x`; the best constant picture, the mean of all,
    gives the mean variance of a pixel. Raises ``ValueError`` where shapes differ.
    Source: denoising autoencoders, Vincent et al. 2008.
    """
    alike = x_rebuilt.shape == x.shape
    require(alike, "x_rebuilt", f"have the shape {tuple(x.shape)}", x_rebuilt.shape)
    return (x_rebuilt.float() - x.float()).square().flatten(1).mean(dim=1)
