"""Batched random changes of images and of texts, on the device of the data.

Axes: B batch, c channels, H and W height and width, s side of a view; T tokens.
"""

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from fmkit import runtime
from fmkit._check import require

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in grey, ITU-R BT.601


@dataclass(frozen=True)
class ViewConfig:
    """The distribution of random views; the defaults crop and flip only.

    `area` bounds the share of the image that a crop keeps, and `ratio` the width of
    the crop over its height. `rotation` is the largest angle in degrees, in both
    directions. The factors of brightness, contrast and saturation are drawn from 1 - b
    to 1 + b, and the shift of the hue from -h to h turns of the colour circle. These
    four are applied together, with probability `jitter`. `flip` and `grey` are
    probabilities. Raises ``ValueError`` if a value is outside its range.
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
        for name, limit in (("area", 1.0), ("ratio", math.inf)):
            low, high = bounds = getattr(self, name)
            rule = f"be a lower and an upper bound, above 0 and at most {limit}"
            require(0 < low <= high <= limit, name, rule, bounds)
        for name in ("flip", "jitter", "grey", "brightness", "contrast", "saturation"):
            value = getattr(self, name)
            require(0 <= value <= 1, name, "be from 0 to 1", value)
        require(0 <= self.hue <= 0.5, "hue", "be from 0 to 0.5 turns", self.hue)
        rule = "be from 0 to 180 degrees"
        require(0 <= self.rotation <= 180, "rotation", rule, self.rotation)


@dataclass(frozen=True)
class Views:
    """One view of each image of a batch, as drawn: its crop and its changes."""

    left: Float[Tensor, " B"]  # edges of the crop, in pixels of the image
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
        """Return the views of some images of the batch."""
        return Views(*(getattr(self, field.name)[rows] for field in fields(self)))

    def to(self, device: torch.device) -> "Views":
        """Move every parameter to a device."""
        return Views(*(getattr(self, field.name).to(device) for field in fields(self)))


def random_views(
    images: UInt8[Tensor, "B c H W"],
    config: ViewConfig,
    *,
    generator: torch.Generator,
    rows: slice = slice(None),
) -> Float[Tensor, "_ c s s"]:
    """Return a random view of each image, x_hat or x_tilde of 14.2, from 0 to 1.

    Crop, flip, rotation and changes of colour are drawn independently for each image.
    They are drawn for all images, also if only the views of `rows` are wanted. Raises
    ``ValueError`` if the images are not bytes, do not have 1 or 3 channels, or are
    smaller than a view. Source: Chen et al. 2020, appendix A.

    In the notes: augmentation, positive pair.
    """
    B, _, H, W = images.shape
    views = draw_views(config, B, height=H, width=W, generator=generator)
    return render_views(images[rows], views[rows], size=config.size)


def two_views(
    images: UInt8[Tensor, "B c H W"],
    config: ViewConfig,
    *,
    generator: torch.Generator,
    rows: slice = slice(None),
) -> Float[Tensor, "_ c s s"]:
    """Return two random views of each image, x_hat of all and then x_tilde of all.

    Rows i and B + i are a positive pair, and ``phi(views).chunk(2)`` gives the two
    arguments of :func:`fmkit.losses.nt_xent_loss`. If only the views of `rows` are
    wanted, all are drawn as well. Raises the errors of :func:`random_views`.

    In the notes: positive pair.
    """
    options = {"generator": generator, "rows": rows}
    pair = [random_views(images, config, **options) for _ in range(2)]
    return torch.cat(pair)


def draw_views(
    config: ViewConfig, B: int, *, height: int, width: int, generator: torch.Generator
) -> Views:
    """Draw the parameters of B views of images of one height and width.

    Unlike torchvision, which draws a crop again until it fits, a side that is longer
    than that of the image is cut to it.
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
    """Render the views of images, `size` pixels a side.

    All geometry is one bilinear resampling; the edge of an image is repeated outside
    it. Brightness, contrast, saturation, hue and grey follow in this order (in the
    paper the order is random), by the formulas of torchvision; the last three do not
    change an image of one channel. Raises the errors of :func:`random_views`.

    In the notes: augmentation.
    """
    B, c, H, W = images.shape
    is_bytes = images.dtype == torch.uint8
    require(is_bytes, "images", "be bytes (so none is NaN)", images.dtype)
    require(c in (1, 3), "images", "have 1 or 3 channels", c)
    rule = f"be at least as large as a view ({size} by {size})"
    require(min(H, W) >= size, "images", rule, f"{H} by {W}")
    views = views.to(images.device)
    out = torch.empty(B, c, size, size, device=images.device)
    step = runtime.views_at_once(images.device)
    for start in range(0, B, step):
        rows = slice(start, start + step)
        chunk = views[rows]
        sampled = F.grid_sample(
            images[rows].float(), _grid(chunk, H, W, size), "bilinear", "border", False
        )
        out[rows] = _recoloured(sampled.flatten(2), chunk).view_as(sampled)
    return out


def _grid(views: Views, H: int, W: int, size: int) -> Float[Tensor, "B s s 2"]:
    """Return the place in the image that each pixel of a view shows.

    Coordinates are those of ``grid_sample``: an image spans -1 to 1. A pixel (x, y) of
    the view, from -1 to 1 too, is flipped, stretched to the crop, turned about the
    centre of the crop and moved there.
    """
    cos, sin = views.angle.cos(), views.angle.sin()
    w = torch.where(views.flip, -views.width, views.width)
    h = views.height
    centre_x = (2 * views.left + views.width) / W - 1
    centre_y = (2 * views.top + h) / H - 1
    # A counterclockwise turn, on a y axis that points down
    rows = (w * cos / W, -h * sin / W, centre_x, w * sin / H, h * cos / H, centre_y)
    to_image = torch.stack(rows, dim=1).view(-1, 3)  # (2B, 3)
    along = (torch.arange(size, device=w.device) * 2 + 1) / size - 1
    x, y = along.repeat(size), along.repeat_interleave(size)
    # One product for the batch; the many small ones of affine_grid take 7 times as long
    grid = to_image @ torch.stack([x, y, torch.ones_like(x)])  # (2B, s s)
    return grid.view(-1, 2, size, size).permute(0, 2, 3, 1)


def _recoloured(x: Float[Tensor, "B c p"], views: Views) -> Float[Tensor, "B c p"]:
    """Change the colours of p pixels in place: from 0 to 255 in, from 0 to 1 out."""
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
    """Shift the hue by a share of the colour circle, in place, and return `x`.

    It equals the way through HSV and back, but without the comparisons of HSV, which
    take four times as long as arithmetic. Let k be the hue in sixths of the circle
    from cyan. Then red is the largest channel minus the chroma times 2 - abs(k),
    clamped to 0 to 1; green and blue are the smallest channel plus the same for k + 1
    and k - 1.
    """
    r, g, b = x.unbind(dim=1)
    largest, smallest = torch.maximum(r, g), torch.minimum(r, g)
    torch.maximum(largest, b, out=largest)
    torch.minimum(smallest, b, out=smallest)
    chroma = largest - smallest
    # |k| = 2 + (r - g - b + smallest) / chroma, and k is above 0 if blue is above green
    k = (r - g).sub_(b).add_(smallest).div_(chroma.clamp_min(1e-20)).add_(2)
    k.copysign_(b - g).add_(6 * turns[:, None])
    k.sub_((k / 6).round_(), alpha=6)  # from -3 to 3
    ends = k.new_tensor([0, -1, 1]).view(3, 1)
    t = (k[:, None] - ends).abs_().clamp_(1, 2)  # (B, 3, p)
    torch.addcmul(smallest - chroma, t[:, 0], chroma, out=r)
    torch.addcmul(largest + chroma, t[:, 1], chroma, value=-1, out=g)
    torch.addcmul(largest + chroma, t[:, 2], chroma, value=-1, out=b)
    return x


def mask_patches(
    x: Float[Tensor, "B c H W"],
    *,
    patch: int,
    share: float,
    generator: torch.Generator,
) -> Float[Tensor, "B c H W"]:
    """Set each square of `patch` by `patch` pixels to 0 with probability `share`.

    Squares are drawn independently of each other, and anew for each image. Raises
    ``ValueError`` if `patch` does not divide both sides of the image, and if `share`
    is not from 0 to 1. Source: masked autoencoders, He et al. 2022 (which hide an
    exact share).
    """
    B, _, H, W = x.shape
    divides = patch >= 1 and H % patch == 0 and W % patch == 0
    require(divides, "patch", f"divide the sides of the image ({H} and {W})", patch)
    require(0 <= share <= 1, "share", "be from 0 to 1", share)
    draws = torch.rand(
        B, 1, H // patch, W // patch, generator=generator, device=generator.device
    )
    visible = (draws >= share).to(x)
    return x * visible.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)


def mask_tokens(
    x: Int[Tensor, "B T"], *, share: float, mask: int, generator: torch.Generator
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Replace tokens by the id `mask` with probability `share`; also return which.

    At least one token of the batch is replaced. Raises ``ValueError`` if `share` is
    not above 0 and at most 1. Source: Devlin et al. 2019, who leave a fifth of the
    chosen tokens in the text and exchange half of these for random ones.

    In the notes: masked language model.
    """
    require(0 < share <= 1, "share", "be above 0 and at most 1", share)
    draws = torch.rand(x.shape, generator=generator, device=generator.device)
    masked = ((draws < share) | (draws == draws.min())).to(x.device)
    return x.masked_fill(masked, mask), masked
