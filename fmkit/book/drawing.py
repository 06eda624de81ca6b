"""Pack the contrastive encoder for a page; ``widgets/encoder.js`` runs it.

With it goes a *gallery*: training silhouettes and their codes, among which the page
finds those nearest to a drawing. A code is a vector minus the mean of the gallery, with
length 1, so that products are cosines, as for kNN in the chapter. There are two vectors
to compare by: the representation, and raw pixels.

Images are bytes (n, 1, 28, 28), or (28, 28) where there is one. Codes are (n, m).
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_weights

from fmkit import runtime
from fmkit._check import require
from fmkit.adapt import frozen_outputs
from fmkit.book import packing
from fmkit.data.animals import ANIMALS
from fmkit.data.images import ImageSet, rotate, thicken
from fmkit.data.labels import few_labels
from fmkit.models.resnet import ResNet
from fmkit.models.saved import load_resnet
from fmkit.runs.record import results

FILE = "encoder-weights.js"  # in the folder that Sphinx copies to the top of the site
SHEET = "silhouettes.png"  # a column for each class; the first row is of the test set
EACH = 200  # silhouettes of each class in the gallery
GREY = 17  # between two of the 16 levels of grey that the sheet has
NEAREST = 6  # silhouettes that the page shows, and that vote
SIDE = 28  # pixels of an image
LONGER = 26  # pixels of the longer side of a drawing once it is fitted
ERRORS = ("images", "least cosine", "mean cosine", "same nearest")


@dataclass(frozen=True)
class Gallery:
    """Silhouettes and what drawings are compared with.

    Silhouette i is of class ``ANIMALS[i % 10]``. Its code is a row of `unrounded`; in
    `codes` it is quantized, as in the page. `mean` (m,) is the mean representation; the
    rows of `axes` (2, m) span the plane of the map.
    """

    phi: ResNet
    images: Tensor
    unrounded: Tensor
    codes: Tensor
    mean: Tensor
    axes: Tensor

    @property
    def labels(self) -> Tensor:
        return torch.arange(len(self.images)) % len(ANIMALS)

    def coded(self, images: Tensor) -> dict[str, Tensor]:
        """Return the codes of images, by the encoder and by raw pixels."""
        z = frozen_outputs(self.phi, images)
        return {
            "encoder": F.normalize(z - self.mean, dim=1),
            "pixels": _pixels(images, self.images),
        }

    def cosines(self, images: Tensor) -> dict[str, Tensor]:
        """Return the cosines of images with the k silhouettes, in both ways."""
        known = {"encoder": self.codes, "pixels": _pixels(self.images, self.images)}
        return {way: z @ known[way].T for way, z in self.coded(images).items()}


def _pixels(images: Tensor, known: Tensor) -> Tensor:
    mean = known.flatten(1).float().mean(dim=0)
    return F.normalize(images.flatten(1).float() - mean, dim=1)


def trained() -> ResNet:
    """Load the encoder that ``tools/widget_records.py`` trained as the chapter does."""
    return load_resnet(results("widgets") / "encoder.safetensors")


def write_sheet(
    train_set: ImageSet, test_set: ImageSet, path: Path, *, seed: int
) -> None:
    """Write the first test image of each class, and a gallery drawn at random."""
    rng = torch.Generator().manual_seed(seed)
    some = few_labels(train_set.labels, per_class=EACH, generator=rng)
    first = [(test_set.labels == i).nonzero()[0, 0] for i in range(len(ANIMALS))]
    images = torch.cat([test_set.images[torch.stack(first)], train_set.images[some]])
    levels = (images.float() / GREY).round() * GREY
    rows = levels.view(-1, len(ANIMALS), SIDE, SIDE).transpose(1, 2)
    page = rows.flatten(2).flatten(0, 1).byte()
    Image.fromarray(page.numpy()).quantize(16).save(path, optimize=True)


def read_sheet(path: Path | None = None) -> tuple[Tensor, Tensor]:
    """Return the ten test images and the gallery, by default of the committed sheet."""
    with Image.open(path or results("widgets") / SHEET) as sheet:
        page = torch.from_numpy(np.array(sheet.convert("L")))
    tall = page.view(-1, SIDE, len(ANIMALS), SIDE).transpose(1, 2)
    images = tall.reshape(-1, 1, SIDE, SIDE)
    return images[: len(ANIMALS)], images[len(ANIMALS) :]


def gallery(phi: ResNet, images: Tensor) -> Gallery:
    """Compute the codes of a gallery."""
    z = frozen_outputs(phi, images)
    mean = z.mean(dim=0)
    unrounded = F.normalize(z - mean, dim=1)
    codes = F.normalize(packing.rounded({"": unrounded})[""], dim=1)
    axes = torch.linalg.svd(codes - codes.mean(dim=0), full_matrices=False)[2][:2]
    return Gallery(phi, images, unrounded, codes, mean, axes)


@cache
def of_page() -> Gallery:
    """Return what the page has: the rounded network and its gallery."""
    return gallery(rounded(trained()), read_sheet()[1])


@runtime.exact()
def errors(phi: ResNet, known: Tensor, images: Tensor) -> dict[str, float]:
    """Compare the codes of `images` in the page with those of `phi`.

    Both have the gallery `known`. Returned are the number of images, the smallest and
    the mean cosine of an image's two codes, and the share of images whose nearest
    silhouette is the same.
    """
    galleries = gallery(phi, known), gallery(rounded(phi), known)
    exact, page = (some.coded(images)["encoder"] for some in galleries)
    cosine = (exact * page).sum(dim=1)
    bare, packed = galleries[0].unrounded, galleries[1].codes
    same = (exact @ bare.T).argmax(dim=1) == (page @ packed.T).argmax(dim=1)
    values = (len(images), cosine.min(), cosine.mean(), same.double().mean())
    return dict(zip(ERRORS, map(float, values), strict=True))


def shift(images: Tensor, pixels: int) -> Tensor:
    """Move images to the right; what leaves the frame is lost."""
    return F.pad(images, (pixels, -pixels))


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {  # before the nearest are looked for
    "unchanged": lambda images: images,
    "fitted": lambda images: fitted(images),
    "mirror": lambda images: images.flip(3),
    "shift 2": lambda images: shift(images, 2),
    "shift 4": lambda images: shift(images, 4),
    "thicken": thicken,
    "rotate": rotate,
    "hard edges": lambda images: (images > 127).byte() * 255,
}


def vote(labels: Tensor) -> Tensor:
    """Return the most frequent label of each row; of equal ones, the first."""
    counts = (labels[:, :, None] == labels[:, None, :]).sum(dim=2)
    return labels.gather(1, counts.argmax(dim=1, keepdim=True))[:, 0]


@cache
def script() -> bytes:
    """Return the script that hands encoder and gallery to ``widgets/encoder.js``."""
    known, phi = of_page(), trained()
    images = torch.cat([read_sheet()[0], known.images]).flatten() // GREY
    pairs = (16 * images[::2] + images[1::2]).byte()
    weights = _folded(phi) | {"codes": known.unrounded, "mean": known.mean}
    weights |= {"across": known.axes[0], "up": known.axes[1]}
    about = {"config": asdict(phi.config), "grey": GREY, "longer": LONGER}
    rest = pairs.numpy().tobytes()
    return packing.script("fmkitEncoder", about, weights, rest=rest)


@torch.no_grad()
def rounded(phi: ResNet) -> ResNet:
    """Return the network that the page runs.

    Batch norm is folded into the convolutions, whose weights are quantized; all that is
    left of it adds a bias.
    """
    page, weights = copy.deepcopy(phi).eval(), packing.rounded(_folded(phi))
    for name, conv, norm in _convolutions(page):
        out, c, height, width = conv.weight.shape
        rows = weights[name].view(out, height, width, c)
        conv.weight.copy_(rows.permute(0, 3, 1, 2))
        norm.bias.copy_(weights[f"{name}.bias"])
        norm.weight.fill_(1)
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
    return page


@torch.no_grad()
def _folded(phi: ResNet) -> dict[str, Tensor]:
    """Return each convolution as a matrix (out, height width in), and its bias (out,).

    Raises ``ValueError`` if the page cannot run the network.
    """
    config = phi.config
    fours = config.channels == 1 and all(width % 4 == 0 for width in config.widths)
    require(fours, "config", "have 1 channel and widths divisible by 4", config)
    weights = {}
    for name, conv, norm in _convolutions(phi):
        statistics = (norm.running_mean, norm.running_var, norm.eps)
        parts = (conv.weight, None, *statistics, norm.weight, norm.bias)
        weight, bias = fuse_conv_bn_weights(*parts)
        weights[name] = weight.detach().permute(0, 2, 3, 1).flatten(1).contiguous()
        weights[f"{name}.bias"] = bias.detach()
    return weights


def _convolutions(phi: ResNet) -> Iterator[tuple[str, nn.Conv2d, nn.BatchNorm2d]]:
    """Yield each convolution with its name in the page and the batch norm after it."""
    yield "stem", phi.stem[0], phi.stem[1]
    for i, block in enumerate(phi.stages):
        yield f"{i}.1", block.conv1, block.bn1
        yield f"{i}.2", block.conv2, block.bn2
        if len(block.shortcut):
            yield f"{i}.0", *block.shortcut


def fitted(images: Tensor) -> Tensor:
    """Move and scale what is bright into the frame, as the data set does.

    Its longer side gets 26 pixels, and its middle comes to the middle, less than a
    pixel off. An output pixel is the mean of what it covers. An empty image stays as it
    is.
    """
    return torch.stack([_fit(image[0])[None] for image in images])


def _fit(image: Tensor) -> Tensor:
    bright = image > 127
    if not bright.any():
        return image
    sides = []
    for axis in (1, 0):  # rows, then columns
        at = bright.any(dim=axis).nonzero()
        sides.append((at.min().item(), at.max().item() + 1))
    scale = LONGER / max(end - start for start, end in sides)
    down, across = (_resample(start, end, scale) for start, end in sides)
    return (down @ image.double() @ across.T + 0.5).floor().byte()


def _resample(start: int, end: int, scale: float) -> Tensor:
    """Return how much of each pixel from start to end is in each one of the output."""
    first = (SIDE - math.floor(scale * (end - start) + 0.5)) // 2 - scale * start
    pixels = torch.arange(SIDE + 1, dtype=torch.float64)
    edges = first + scale * pixels.clamp(start, end)  # of the input, in the output
    low = torch.maximum(edges[None, :-1], pixels[:-1, None])
    high = torch.minimum(edges[None, 1:], pixels[1:, None])
    return (high - low).clamp(min=0)
