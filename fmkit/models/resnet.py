"""A residual network as phi_theta: images in, an m-dimensional representation out.

B batch, c channels, H and W height and width, m representation, k classes.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fmkit._check import require


@dataclass(frozen=True)
class ResNetConfig:
    """Shape of a ``ResNet``; the representation is as wide as the last stage.

    The default is for 28 x 28 silhouettes on a laptop: its stem halves the image.
    """

    channels: int = 1
    widths: tuple[int, ...] = (32, 64, 128)
    blocks: tuple[int, ...] = (1, 1, 1)
    stem_stride: int = 2

    @property
    def m(self) -> int:
        return self.widths[-1]


class Block(nn.Module):
    """Two 3 x 3 convolutions beside an identity, or a 1 x 1 if the shape changes.

    The basic block of He et al. 2016, "Deep Residual Learning".
    """

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


class ResNet(nn.Module):
    """phi_theta of 14.1 for small images. It has no head: U or w is kept apart.

    The stem is one 3 x 3 convolution, as usual for images of about 32 pixels. Unlike
    the ImageNet network it has no 7 x 7 convolution and no pooling before the stages.
    Weights and images are in channels-last layout, which is faster.

    In the notes: representation.
    """

    def __init__(self, config: ResNetConfig):
        super().__init__()
        same = len(config.widths) == len(config.blocks)
        require(same, "blocks", f"have one count for each of {config.widths}", config)
        self.config = config
        self.m = config.m
        width = config.widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(config.channels, width, 3, config.stem_stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        stages = []
        for stage, (wider, blocks) in enumerate(
            zip(config.widths, config.blocks, strict=True)
        ):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                stages.append(Block(width, wider, stride))
                width = wider
        self.stages = nn.Sequential(*stages)
        self.to(memory_format=torch.channels_last)

    def prepare(self, images: UInt8[Tensor, "B c H W"]) -> Float[Tensor, "B c H W"]:
        """Convert bytes to values between 0 and 1."""
        channels = self.config.channels
        require(
            images.shape[1] == channels,
            "images",
            f"have {channels} channel(s), as the network has",
            images.shape[1],
        )
        return images.float() / 255

    @property
    def widths(self) -> dict[str, int]:
        """The number of channels of each layer of ``activations``."""
        widths = self.config.widths
        stages = {f"stage {i}": width for i, width in enumerate(widths, 1)}
        return {"stem": widths[0], **stages}

    def activations(self, x: Float[Tensor, "B c H W"]) -> Iterator[Tensor]:
        """Yield the feature maps of the stem and of each stage, first layer first."""
        x = x.contiguous(memory_format=torch.channels_last)
        ends = {*accumulate(self.config.blocks)}
        h = self.stem(2 * x - 1)
        yield h
        for number, block in enumerate(self.stages, 1):
            h = block(h)
            if number in ends:
                yield h

    def forward(self, x: Float[Tensor, "B c H W"]) -> Float[Tensor, "B m"]:
        """Compute representations of images with values between 0 and 1."""
        [h] = deque(self.activations(x), maxlen=1)
        return h.mean(dim=(2, 3))  # (B, m, H', W') -> (B, m)
