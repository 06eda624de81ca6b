"""EfficientNet-Lite0 with the weights learned from the labelled ImageNet.

It is the U phi_theta_hat(x) of 14.2: phi computes 1280 features of an image, and U the
logits of ImageNet's 1000 classes from them. B batch, H and W height and width.
"""

import contextlib
import re
from collections import deque
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fmkit._check import Refused, one_line, require

BATCH_NORM_EPSILON = 1e-3  # as in TensorFlow; torch's own default is 1e-5
# expansion, kernel, stride, width, blocks: table 1 of Tan and Le 2019
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class ConvNorm(nn.Module):
    """Convolution padded like TensorFlow's SAME, batch norm, and ReLU6 if `relu`.

    SAME makes the output ceil(input / stride) pixels wide and adds the odd pixel of
    padding at the right and the bottom; torch would add it at the left and the top.
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        *,
        kernel: int,
        stride: int,
        groups: int,
        relu: bool,
    ):
        super().__init__()
        inside = kernel // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(
            width_in, width, kernel, stride, inside, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(width, eps=BATCH_NORM_EPSILON)
        self.relu = relu
        self.once: tuple[Tensor, Tensor] | None = None  # weight and bias of `frozen`

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        if stride > 1:
            x = F.pad(x, (*_same(x.shape[3], kernel, stride),
                          *_same(x.shape[2], kernel, stride)))  # fmt: skip
        x = self.bn(self.conv(x)) if self.training else self._normed(x)
        return F.relu6(x, inplace=True) if self.relu else x

    def _normed(self, x: Tensor) -> Tensor:
        conv, (weight, bias) = self.conv, self.once or self._folded()
        return F.conv2d(x, weight, bias, conv.stride, conv.padding, 1, conv.groups)

    def _folded(self) -> tuple[Tensor, Tensor]:
        """Fold batch norm, which is linear in eval mode, into the convolution."""
        bn = self.bn
        scale = bn.weight * (bn.running_var + bn.eps).rsqrt()
        weight = self.conv.weight * scale[:, None, None, None]
        return weight, bn.bias - bn.running_mean * scale

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Fold once for all batches inside this context, where no weight may change."""
        with torch.no_grad():
            self.once = self._folded()
        try:
            yield
        finally:
            self.once = None


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the padding before and after an axis that SAME adds."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class Block(nn.Module):
    """Inverted bottleneck: expand by 1 x 1, mix space channel by channel, project.

    The last step is linear, and the input is added if the shapes agree (Sandler et al.
    2018). Lite means no squeeze-and-excitation, and ReLU6 in place of swish.
    """

    def __init__(
        self, width_in: int, width: int, *, expansion: int, kernel: int, stride: int
    ):
        super().__init__()
        inner = expansion * width_in
        pointwise = {"kernel": 1, "stride": 1, "groups": 1}
        self.expand = nn.Identity()
        if expansion > 1:
            self.expand = ConvNorm(width_in, inner, **pointwise, relu=True)
        self.depthwise = ConvNorm(
            inner, inner, kernel=kernel, stride=stride, groups=inner, relu=True
        )
        self.project = ConvNorm(inner, width, **pointwise, relu=False)
        self.residual = stride == 1 and width_in == width

    def forward(self, x: Tensor) -> Tensor:
        h = self.project(self.depthwise(self.expand(x)))
        return x + h if self.residual else h


class EfficientNetLite0(nn.Module):
    """phi of EfficientNet-Lite0, up to the activation of the penultimate layer.

    Images are resized to `size` pixels a side. The weights were learned at 224; an
    image of 96 pixels costs a fifth of that. Weights and images are in channels-last
    layout: on two cores, at 96 pixels, 542 images a second in batches of 32, against
    240 in torch's default layout.
    """

    m = 1280

    def __init__(self, *, size: int = 224):
        super().__init__()
        require(size >= 32, "size", "be at least 32, the network's total stride", size)
        self.size = size
        self.stem = ConvNorm(3, 32, kernel=3, stride=2, groups=1, relu=True)
        blocks, width_in = [], 32
        for expansion, kernel, stride, width, count in STAGES:
            for i in range(count):
                shape = {"expansion": expansion, "kernel": kernel}
                block = Block(width_in, width, stride=stride if i == 0 else 1, **shape)
                blocks.append(block)
                width_in = width
        self.blocks = nn.Sequential(*blocks)
        self.ends = {*accumulate(count for *_, count in STAGES)}  # blocks of a stage
        self.top = ConvNorm(width_in, self.m, kernel=1, stride=1, groups=1, relu=True)
        self.to(memory_format=torch.channels_last)

    def prepare(self, images: UInt8[Tensor, "B c H W"]) -> Float[Tensor, "B 3 s s"]:
        """Convert bytes to values between 0 and 1 and resize; repeat a grey channel."""
        require(
            images.shape[1] in (1, 3), "images", "have 1 or 3 channels", images.shape[1]
        )
        x = images.float() / 255
        if x.shape[2:] != (self.size, self.size):
            shrinks = max(x.shape[2:]) > self.size
            x = F.interpolate(
                x, (self.size, self.size), mode="bilinear", antialias=shrinks
            )
        return x.expand(-1, 3, -1, -1)

    @property
    def widths(self) -> dict[str, int]:
        """The number of channels of each layer of ``activations``."""
        stages = {f"stage {i}": width for i, (*_, width, _) in enumerate(STAGES, 1)}
        return {"stem": 32, **stages, "top": self.m}

    def activations(self, x: Float[Tensor, "B 3 H W"]) -> Iterator[Tensor]:
        """Yield the feature maps of the stem, each of seven stages, and the top."""
        x = x.contiguous(memory_format=torch.channels_last)
        # Unlike most ImageNet networks, Lite sees (byte - 127) / 128 on all channels
        h = self.stem((x * 255 - 127) / 128)
        yield h
        for number, block in enumerate(self.blocks, 1):
            h = block(h)
            if number in self.ends:
                yield h
        yield self.top(h)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1280"]:
        """Compute representations of images with values between 0 and 1."""
        [h] = deque(self.activations(x), maxlen=1)
        return h.mean(dim=(2, 3))  # (B, 1280, H/32, W/32) -> (B, 1280)


def load_efficientnet_lite0(
    path: str | Path, *, size: int = 224
) -> tuple[EfficientNetLite0, nn.Linear]:
    """Load phi and U from the asset ``efficientnet-lite0``, both in eval mode.

    Raises ``ValueError`` if the file's keys or shapes are not those of this network.
    Weights: ml-illustrated's conversion of the TensorFlow release of 2020.

    In the notes: supervised pretraining, last layer.
    """
    saved = torch.load(path, weights_only=True, map_location="cpu")
    renamed = {_our_name(name): tensor for name, tensor in saved.items()}
    phi, U = EfficientNetLite0(size=size), nn.Linear(EfficientNetLite0.m, 1000)
    network = nn.ModuleDict({"phi": phi, "U": U})
    try:
        network.load_state_dict(renamed)
    except RuntimeError as error:
        why = one_line(error)
        raise Refused(f"{path} does not hold EfficientNet-Lite0 ({why}).") from error
    return phi.eval(), U.eval()


def _our_name(name: str) -> str:
    """Translate a name of the file: ``_fc.weight`` is ``U.weight`` here."""
    rules = (
        (r"^_conv_stem", "phi.stem.conv"),
        (r"^_bn0", "phi.stem.bn"),
        (r"^_conv_head", "phi.top.conv"),
        (r"^_bn1", "phi.top.bn"),
        (r"^_fc", "U"),
        (
            r"^_blocks\.(\d+)\._(expand|depthwise|project)_conv",
            r"phi.blocks.\1.\2.conv",
        ),
        # A block without expansion has no _bn0: _bn1 and _bn2 keep their places
        (r"^_blocks\.(\d+)\._bn0", r"phi.blocks.\1.expand.bn"),
        (r"^_blocks\.(\d+)\._bn1", r"phi.blocks.\1.depthwise.bn"),
        (r"^_blocks\.(\d+)\._bn2", r"phi.blocks.\1.project.bn"),
    )
    for pattern, ours in rules:
        name, changed = re.subn(pattern, ours, name)
        if changed:
            return name
    return name
