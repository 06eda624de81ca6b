"""Pictures with labels: the animals, their split, few labels, shifted pictures.

Axes: n pictures, c channels, H by W pixels, p pairs, k chosen pictures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from fmkit._check import require

ROTATION = 30  # degrees, counterclockwise


@dataclass(frozen=True)
class ImageSet:
    """Pictures of 8 bits, their labels, and the classes that the labels number."""

    images: UInt8[Tensor, "n c H W"]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Int64[Tensor, " k"] | Bool[Tensor, " n"]) -> "ImageSet":
        """The pictures that `index` numbers or marks, in its order."""
        return ImageSet(self.images[index], self.labels[index], self.classes)

    def to(self, device: torch.device | str) -> "ImageSet":
        return ImageSet(self.images.to(device), self.labels.to(device), self.classes)


def few_labels(
    labels: Int64[Tensor, " n"], *, per_class: int, generator: torch.Generator
) -> Int64[Tensor, " k"]:
    """Positions of `per_class` pictures of each class, drawn at random.

    One of each class, then the second of each, and so on. Nested: under the same seed
    the positions for fewer a class are the beginning of those for more. Raises
    ``ValueError`` below one a class and above what the smallest class has.

    In the notes: few-shot learning.
    """
    names, counts = labels.unique(return_counts=True)
    rule = f"be at least 1, so n_task at least {len(names)}"
    require(per_class >= 1, "per_class", rule, per_class)
    fewest = int(counts.min())
    rule = f"be at most {fewest}, the pictures of the smallest class"
    require(per_class <= fewest, "per_class", rule, per_class)
    # The whole order is drawn, so that its beginning does not depend on per_class.
    order = torch.randperm(len(labels), generator=generator, device=generator.device)
    order = order.to(labels.device)
    drawn = [order[labels[order] == name][:per_class] for name in names]
    return torch.stack(drawn, dim=1).flatten()


def thicken(images: UInt8[Tensor, "n c H W"]) -> UInt8[Tensor, "n c H W"]:
    """The bright figure grown by a pixel on every side: the maximum of 3 by 3."""
    return F.max_pool2d(images.float(), 3, stride=1, padding=1).byte()


def rotate(images: UInt8[Tensor, "n c H W"]) -> UInt8[Tensor, "n c H W"]:
    """Turned by 30 degrees counterclockwise about the centre; black comes in."""
    angle = torch.deg2rad(torch.tensor(float(ROTATION)))
    cos, sin = float(angle.cos()), float(angle.sin())
    H, W = images.shape[-2:]
    # affine_grid's axes run from -1 to 1 whatever the sides: H/W keeps angles right.
    turn = [[cos, -sin * H / W, 0.0], [sin * W / H, cos, 0.0]]
    theta = torch.tensor([turn], device=images.device).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    turned = F.grid_sample(images.float(), grid, align_corners=False)
    return turned.round().byte()


def invert(images: UInt8[Tensor, "n c H W"]) -> UInt8[Tensor, "n c H W"]:
    """Dark for bright."""
    return 255 - images


SHIFTS: dict[str, Callable[[Tensor], Tensor]] = {
    "thicken": thicken,
    "rotate": rotate,
    "invert": invert,
}


def shifted(images: UInt8[Tensor, "n c H W"], kind: str) -> UInt8[Tensor, "n c H W"]:
    """The shift called `kind`. Raises ``ValueError`` for an unknown name."""
    require(kind in SHIFTS, "kind", f"be one of {', '.join(SHIFTS)}", kind)
    return SHIFTS[kind](images)


def split_classes(data: ImageSet, held_out: Sequence[str]) -> tuple[ImageSet, ImageSet]:
    """The pictures of all other classes, and those of the classes `held_out`.

    Each part numbers its own classes from 0, in the order in which `data` has them.
    Raises ``ValueError`` for a class that is not there, for one named twice, and where
    a part would have fewer than 2 classes.
    """
    for name in held_out:
        rule = f"name classes of the data ({', '.join(data.classes)})"
        require(name in data.classes, "held_out", rule, name)
    once = len(set(held_out)) == len(held_out)
    require(once, "held_out", "name each class once", list(held_out))
    others = [name for name in data.classes if name not in held_out]
    rule = f"leave 2 of the {len(data.classes)} classes or more on either side"
    require(min(len(held_out), len(others)) >= 2, "held_out", rule, list(held_out))
    chosen = [name for name in data.classes if name in held_out]
    return _of_classes(data, others), _of_classes(data, chosen)


def _of_classes(data: ImageSet, names: list[str]) -> ImageSet:
    numbers = [data.classes.index(name) for name in names]
    renumbered = torch.full((len(data.classes),), -1, device=data.labels.device)
    renumbered[numbers] = torch.arange(len(names), device=data.labels.device)
    labels = renumbered[data.labels]
    inside = labels >= 0
    return ImageSet(data.images[inside], labels[inside], tuple(names))
