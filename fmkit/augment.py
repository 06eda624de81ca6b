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
DRAWS = 12  # random numbers of a view


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


def random_views(
    images: UInt8[Tensor, "B c H W"],
    config: ViewConfig,
    *,
    generator: torch.Generator,
    rows: slice = slice(None),
) -> Float[Tensor, "_ c s s"]:
    """Return a random view of each image, x_hat or x_tilde of 14.2, from 0 to 1.

    Crop, flip, rotation and changes of colour are drawn independently for each image.
    They are drawn for all images, even if only the views of `rows` are wanted. Raises
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
    wanted, those of all images are drawn. Raises the errors of :func:`random_views`.

    In the notes: positive pair.
    """
    B, _, H, W = images.shape
    options = {"height": H, "width": W, "generator": generator}
    pair = [draw_views(config, B, **options)[rows] for _ in range(2)]
    both = Views(
        *(torch.cat([getattr(v, field.name) for v in pair]) for field in fields(Views))
    )
    return render_views(images[rows].repeat(2, 1, 1, 1), both, size=config.size)


def draw_views(
    config: ViewConfig, B: int, *, height: int, width: int, generator: torch.Generator
) -> Views:
    """Draw the parameters of B views of images of one height and width.

    Unlike torchvision, which draws a crop again until it fits, a side that is longer
    than that of the image is cut to it.
    """
    on = generator.device
    draws = iter(torch.rand(DRAWS, B, generator=generator, device=on))

    def uniform(low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * next(draws)

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
    # Computed where the views are drawn, and then in one copy to the images
    numbers = runtime.sent(_numbers(views, H, W), images.device)
    step = runtime.views_at_once(images.device)
    parts = []
    for start in range(0, max(B, 1), step):
        rows = slice(start, start + step)
        crop, colour = numbers[rows].split([6, 5], dim=1)
        grid = _grid(crop, size)
        x = F.grid_sample(images[rows].float(), grid, "bilinear", "border", False)
        parts.append(_recoloured(x.flatten(2), colour).view_as(x))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _numbers(views: Views, H: int, W: int) -> Float[Tensor, "B 11"]:
    """Return the numbers that the pixels of a view need: 6 of its crop, 5 of colour.

    Those of the crop are three places, x and y of each, in an image from -1 to 1: where
    the right edge of the view is, seen from its centre, its lower edge, and its centre.
    """
    cos, sin = views.angle.cos(), views.angle.sin()
    w = torch.where(views.flip, -views.width, views.width)
    h = views.height
    centre_x = (2 * views.left + views.width) / W - 1
    centre_y = (2 * views.top + h) / H - 1
    # A counterclockwise turn, on a y axis that points down
    crop = (w * cos / W, w * sin / H, -h * sin / W, h * cos / H, centre_x, centre_y)
    contrast, saturation = 1 - views.contrast, 1 - views.saturation
    colour = (views.brightness / 255, contrast, saturation, 6 * views.hue, views.grey)
    return torch.stack([*crop, *(value.float() for value in colour)], dim=1)


# Arithmetic of channels and no matrix products, which autocast would lower to bfloat16:
# a crop of 224 pixels would be off by half a pixel. No constant tensors, masks or
# `out=` either, so that all of it compiles into one graph.


def _grid(crop: Float[Tensor, "B 6"], size: int) -> Float[Tensor, "B s s 2"]:
    """Return the place in the image that each pixel of a view shows.

    Coordinates are those of ``grid_sample``: an image spans -1 to 1. A pixel (x, y) of
    the view, from -1 to 1 too, is flipped, stretched to the crop, turned about the
    centre of the crop and moved there.
    """
    along_x, along_y, centre = crop.view(-1, 3, 2, 1).unbind(dim=1)
    pixels = (torch.arange(size, device=crop.device) * 2 + 1) / size - 1
    of_x, of_y = along_x * pixels + centre, along_y * pixels  # (B, 2, s)
    return (of_x[:, :, None] + of_y[:, :, :, None]).permute(0, 2, 3, 1)


def _luma(x: Float[Tensor, "B c *p"]) -> Float[Tensor, "B 1 *p"]:
    """Return the brightness of colours that the eye sees; of one channel, itself."""
    if x.shape[1] == 1:
        return x
    r, g, b = x.split(1, dim=1)
    return (r * LUMA[0]).add_(g, alpha=LUMA[1]).add_(b, alpha=LUMA[2])


def _recoloured(
    x: Float[Tensor, "B c p"], colour: Float[Tensor, "B 5"]
) -> Float[Tensor, "B c p"]:
    """Change the colours of p pixels in place: from 0 to 255 in, from 0 to 1 out."""
    brightness, contrast, saturation, sixths, grey = colour[:, :, None, None].unbind(1)
    x.mul_(brightness).clamp_(max=1)
    x.lerp_(_luma(x.mean(dim=2, keepdim=True)), contrast).clamp_(0, 1)
    if x.shape[1] == 1:
        return x
    x.lerp_(_luma(x), saturation).clamp_(0, 1)
    x = _hue_shifted(x, sixths)
    return x.lerp_(_luma(x), grey)  # of a weight of 0 or 1, exact


def _hue_shifted(
    x: Float[Tensor, "B 3 p"], sixths: Float[Tensor, "B 1 1"]
) -> Float[Tensor, "B 3 p"]:
    """Shift the hue by a number of sixths of the colour circle.

    It equals the way through HSV and back, but without the comparisons of HSV, which
    take four times as long as arithmetic. Let k be the hue in sixths of the circle
    from cyan. Then red is the largest channel minus the chroma times 2 - abs(k),
    clamped to 0 to 1; green and blue are the smallest channel plus the same for k + 1
    and k - 1.
    """
    r, g, b = x.split(1, dim=1)
    largest = torch.maximum(torch.maximum(r, g), b)
    smallest = torch.minimum(torch.minimum(r, g), b)
    chroma = largest - smallest
    # |k| = 2 + (r - g - b + smallest) / chroma, and k is above 0 if blue is above green
    k = (r - g).sub_(b).add_(smallest).div_(chroma.clamp_min(1e-20)).add_(2)
    k.copysign_(b - g).add_(sixths)
    k.sub_((k / 6).round_(), alpha=6)  # from -3 to 3
    # 1 more than the share of the chroma that each channel has above the smallest
    above = torch.cat([k.abs(), 3 - (k + 1).abs_(), 3 - (k - 1).abs_()], dim=1)
    return torch.addcmul(smallest - chroma, above.clamp_(1, 2), chroma)


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
    visible = runtime.sent(draws >= share, x.device).to(x.dtype)
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
    masked = (draws < share) | (draws == draws.min())
    masked = runtime.sent(masked, x.device)
    return x.masked_fill(masked, mask), masked
