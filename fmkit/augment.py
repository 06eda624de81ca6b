"""Batched random changes of pictures and of texts, on their device.

B batch, c channels, H and W height and width, s side of a view; T tokens.
"""

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from fmkit import runtime
from fmkit._check import require

LUMA = (0.299, 0.587, 0.114)  # what red, green and blue count for in grey, ITU-R BT.601


@dataclass(frozen=True)
class ViewConfig:
    """What a random view may be; the defaults crop, flip and nothing else.

    `area` bounds the share of the picture that a crop keeps and `ratio` its width over
    its height. `rotation` is the largest angle in degrees, either way. A factor of
    `brightness`, `contrast` and `saturation` is drawn from 1 - b to 1 + b, a shift of
    `hue` from -h to h turns of the colour circle; all four together apply with
    probability `jitter`. `flip` and `grey` are probabilities.
    """

    size: int  # side of a view in pixels
    area: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    rotation: float = 0.0
    jitter: float = 0.8
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey: float = 0.0

    def __post_init__(self) -> None:
        require(self.size >= 1, "size", "be at least 1 pixel", self.size)
        for name, most in (("area", 1.0), ("ratio", math.inf)):
            low, high = bounds = getattr(self, name)
            rule = f"be two numbers above 0 that ascend, at most {most}"
            require(0 < low <= high <= most, name, rule, bounds)
        for name in ("flip", "jitter", "grey", "brightness", "contrast", "saturation"):
            value = getattr(self, name)
            require(0 <= value <= 1, name, "be from 0 to 1", value)
        require(0 <= self.hue <= 0.5, "hue", "be from 0 to 0.5 turns", self.hue)
        rule = "be from 0 to 180 degrees"
        require(0 <= self.rotation <= 180, "rotation", rule, self.rotation)


@dataclass(frozen=True)
class Views:
    """One drawn view of each picture of a batch: where it looks and what it changes."""

    left: Float[Tensor, " B"]  # edges of the crop, in pixels of the picture
    top: Float[Tensor, " B"]
    width: Float[Tensor, " B"]
    height: Float[Tensor, " B"]
    flip: Bool[Tensor, " B"]
    angle: Float[Tensor, " B"]  # radians, counterclockwise
    brightness: Float[Tensor, " B"]
    contrast: Float[Tensor, " B"]
    saturation: Float[Tensor, " B"]
    hue: Float[Tensor, " B"]  # turns of the colour circle
    grey: Bool[Tensor, " B"]

    def __getitem__(self, rows: slice) -> "Views":
        return Views(*(getattr(self, field.name)[rows] for field in fields(self)))

    def to(self, device: torch.device) -> "Views":
        return Views(*(getattr(self, field.name).to(device) for field in fields(self)))


def random_views(
    images: UInt8[Tensor, "B c H W"],
    config: ViewConfig,
    *,
    generator: torch.Generator,
) -> Float[Tensor, "B c s s"]:
    """A random view of each picture, x_hat or x_tilde of 14.2: values from 0 to 1.

    Crop, flip, rotation and change of colour are drawn for every picture anew. Raises
    ``ValueError`` for pictures that are not bytes, that have other than 1 or 3
    channels, or that are smaller than a view. Source: Chen et al. 2020, appendix A.

    In the notes: augmentation, positive pair.
    """
    B, _, H, W = images.shape
    views = draw_views(config, B, height=H, width=W, generator=generator)
    return render_views(images, views, size=config.size)


def draw_views(
    config: ViewConfig, B: int, *, height: int, width: int, generator: torch.Generator
) -> Views:
    """Draw B views of pictures of that height and width: one draw a parameter.

    Unlike torchvision, which draws a crop again until it fits, a side that is longer
    than the picture's is cut to it.
    """

    def uniform(low: float = 0.0, high: float = 1.0) -> Tensor:
        draws = torch.rand(B, generator=generator, device=generator.device)
        return low + (high - low) * draws

    def happens(share: float) -> Tensor:
        return uniform() < share

    area = uniform(*config.area) * height * width
    ratio = uniform(*map(math.log, config.ratio)).exp()
    w = (area * ratio).sqrt().clamp(max=width)
    h = (area / ratio).sqrt().clamp(max=height)
    left, top = uniform() * (width - w), uniform() * (height - h)
    flip = happens(config.flip)
    angle = uniform(-1.0) * math.radians(config.rotation)
    jitter = happens(config.jitter)
    factors = [
        torch.where(jitter, 1 + uniform(-1.0) * strength, 1.0)
        for strength in (config.brightness, config.contrast, config.saturation)
    ]
    hue = torch.where(jitter, uniform(-1.0) * config.hue, 0.0)
    return Views(left, top, w, h, flip, angle, *factors, hue, happens(config.grey))


def render_views(
    images: UInt8[Tensor, "B c H W"], views: Views, *, size: int
) -> Float[Tensor, "B c s s"]:
    """The pictures as `views` see them, brought to `size` pixels a side.

    All geometry is one bilinear resampling; what lies outside a picture repeats its
    edge. Then come brightness, contrast, saturation, hue and grey, by torchvision's
    formulas, and in this order (in the paper it is drawn); on one channel the last
    three change nothing. Errors are those of :func:`random_views`.

    In the notes: augmentation.
    """
    B, c, H, W = images.shape
    is_bytes = images.dtype == torch.uint8
    require(is_bytes, "images", "be bytes, which no NaN can be among", images.dtype)
    require(c in (1, 3), "images", "have 1 or 3 channels", c)
    rule = f"be at least as large as a view ({size} by {size})"
    require(min(H, W) >= size, "images", rule, f"{H} by {W}")
    views = views.to(images.device)
    out = torch.empty(B, c, size, size, device=images.device)
    step = runtime.views_at_once(images.device)
    for start in range(0, B, step):
        rows = slice(start, start + step)
        some = views[rows]
        seen = F.grid_sample(
            images[rows].float(), _grid(some, H, W, size), "bilinear", "border", False
        )
        out[rows] = _recoloured(seen.flatten(2), some).view_as(seen)
    return out


def _grid(views: Views, H: int, W: int, size: int) -> Float[Tensor, "B s s 2"]:
    """Where each pixel of a view looks, in grid_sample's units: a picture is -1 to 1.

    A view's pixel (x, y), from -1 to 1 too, is flipped, stretched to the crop, turned
    about the crop's centre and moved there.
    """
    cos, sin = views.angle.cos(), views.angle.sin()
    w = torch.where(views.flip, -views.width, views.width)
    h = views.height
    centre_x = (2 * views.left + views.width) / W - 1
    centre_y = (2 * views.top + h) / H - 1
    # Turned counterclockwise on a y axis that points down
    rows = (w * cos / W, -h * sin / W, centre_x, w * sin / H, h * cos / H, centre_y)
    to_picture = torch.stack(rows, dim=1).view(-1, 3)  # (2B, 3)
    along = (torch.arange(size, device=w.device) * 2 + 1) / size - 1
    x, y = along.repeat(size), along.repeat_interleave(size)
    # One product for the batch: affine_grid's many small ones take seven times as long
    grid = to_picture @ torch.stack([x, y, torch.ones_like(x)])  # (2B, s s)
    return grid.view(-1, 2, size, size).permute(0, 2, 3, 1)


def _recoloured(x: Float[Tensor, "B c p"], views: Views) -> Float[Tensor, "B c p"]:
    """Bytes as floats, changed in place and brought to 0 to 1; p pixels."""
    B, c, _ = x.shape
    luma = x.new_tensor(LUMA if c == 3 else [1.0])
    brightness, contrast, saturation = (
        factor.view(B, 1, 1)
        for factor in (views.brightness, views.contrast, views.saturation)
    )
    x.mul_(brightness / 255).clamp_(max=1)
    mean = (x.mean(dim=2) @ luma).view(B, 1, 1)
    x.mul_(contrast).add_((1 - contrast) * mean).clamp_(0, 1)
    if c == 1:
        return x
    towards_grey = saturation * torch.eye(3).to(x) + (1 - saturation) * luma
    x = _hue_shifted((towards_grey @ x).clamp_(0, 1), views.hue)
    x[views.grey] = (luma @ x[views.grey]).unsqueeze(1)
    return x


def _hue_shifted(
    x: Float[Tensor, "B 3 p"], turns: Float[Tensor, " B"]
) -> Float[Tensor, "B 3 p"]:
    """`x`, in place, with its hue moved by a share of the colour circle.

    It is the way through HSV and back, but without its comparisons, which take four
    times as long as arithmetic. With k the hue in sixths of the circle from cyan, red
    is the largest number less the chroma times (2 - |k|) brought between 0 and 1;
    green and blue are the smallest plus that for k + 1 and k - 1.
    """
    r, g, b = x.unbind(dim=1)
    most, least = torch.maximum(r, g), torch.minimum(r, g)
    torch.maximum(most, b, out=most)
    torch.minimum(least, b, out=least)
    chroma = most - least
    # |k| = 2 + (r - g - b + least) / chroma, and blue above green is k above 0
    k = (r - g).sub_(b).add_(least).div_(chroma.clamp_min(1e-20)).add_(2)
    k.copysign_(b - g).add_(6 * turns[:, None])
    k.sub_((k / 6).round_(), alpha=6)  # from -3 to 3
    ends = k.new_tensor([0, -1, 1]).view(3, 1)
    t = (k[:, None] - ends).abs_().clamp_(1, 2)  # (B, 3, p)
    torch.addcmul(least - chroma, t[:, 0], chroma, out=r)
    torch.addcmul(most + chroma, t[:, 1], chroma, value=-1, out=g)
    torch.addcmul(most + chroma, t[:, 2], chroma, value=-1, out=b)
    return x


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


def mask_tokens(
    x: Int[Tensor, "B T"], *, share: float, mask: int, generator: torch.Generator
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Each token is replaced by the id `mask` with probability `share`; and which were.

    At least one of the batch is. Raises ``ValueError`` for a share that is not above 0
    or above 1. Source: Devlin et al. 2019, who leave a fifth of the chosen tokens in
    the text, half of them exchanged for others.

    In the notes: masked language model.
    """
    require(0 < share <= 1, "share", "be above 0 and at most 1", share)
    draws = torch.rand(x.shape, generator=generator, device=generator.device)
    masked = ((draws < share) | (draws == draws.min())).to(x.device)
    return x.masked_fill(masked, mask), masked
