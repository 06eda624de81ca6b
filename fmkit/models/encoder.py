"""State what an encoder must have to work with the rest of the package.

An encoder inherits from ``torch.nn.Module`` and from nothing here: it only needs
the attributes and methods below. A new one is a file of its own, and no other file
changes. B batch, c channels, H and W height and width, T tokens, d width of a token's
vector, m representation.
"""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int, Shaped
from torch import Tensor


@runtime_checkable
class Encoder(Protocol):
    """phi: examples in, a representation of m features out.

    For images use :class:`fmkit.models.resnet.ResNet` as an example; for texts wrap a
    :class:`~fmkit.models.encoder.TextEncoder` in :class:`fmkit.models.pooling.Pooled`.
    """

    m: int  # features of a representation

    def prepare(self, examples: Shaped[Tensor, "B ..."]) -> Tensor:
        """Turn stored examples (bytes of images, padded ids) into the input."""

    def forward(self, x: Tensor) -> Float[Tensor, "B m"]:
        """Compute the representation of each example of a batch."""


@runtime_checkable
class LayeredEncoder(Encoder, Protocol):
    """phi of images whose layers can be read, as by ``EveryLayer``."""

    @property
    def widths(self) -> dict[str, int]:
        """The name of each layer and its number of channels, first layer first."""

    def activations(self, x: Float[Tensor, "B c H W"]) -> Iterator[Tensor]:
        """Yield each layer's feature map, (B, channels, height, width).

        The last one, averaged over the image, is the representation.
        """


@runtime_checkable
class TextEncoder(Protocol):
    """A network that makes one vector of each token of a text."""

    @property
    def width(self) -> int:
        """d, the length of a token's vector."""

    def token_vectors(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T d"]:
        """Compute the vector of each token, for texts given as ids.

        Shorter texts end with ``PADDING``. Padding must not
        change a text's vectors; the vectors of padding itself may be anything finite.
        """
