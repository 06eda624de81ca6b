"""Sets of images, with labels or without; shifted images; sets split by class.

Axes: n images, c channels, H by W pixels, k chosen images.
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
    """Images of 8 bits a channel, their labels, and the names of the classes.

    Label i means ``classes[i]``. Without labels, `labels` is None and `classes` is
    empty: ``ImageSet(images)``.
    """

    images: UInt8[Tensor, "n c H W"]
    labels: Int64[Tensor, " n"] | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, index: Int64[Tensor, " k"] | Bool[Tensor, " n"]) -> "ImageSet":
        """Return the images that `index` numbers or marks, in the order of `index`."""
        labels = None if self.labels is None else self.labels[index]
        return ImageSet(self.images[index], labels, self.classes)

    def to(self, device: torch.device | str) -> "ImageSet":
        """Return the set with images and labels on `device`."""
        labels = None if self.labels is None else self.labels.to(device)
        return ImageSet(self.images.to(device), labels, self.classes)


def thicken(images: UInt8[Tensor, "n c H W"]) -> UInt8[Tensor, "n c H W"]:
    """Grow the bright figure by one pixel in every direction: the maximum of 3 by 3."""
    return F.max_pool2d(images.float(), 3, stride=1, padding=1).byte()


def rotate(images: UInt8[Tensor, "n c H W"]) -> UInt8[Tensor, "n c H W"]:
    """Rotate images by 30 degrees counterclockwise; corners become black."""
    angle = torch.deg2rad(torch.tensor(float(ROTATION)))
    cos, sin = float(angle.cos()), float(angle.sin())
    H, W = images.shape[-2:]
    # affine_grid's axes run from -1 to 1 whatever H and W are: H/W keeps angles true.
    turn = [[cos, -sin * H / W, 0.0], [sin * W / H, cos, 0.0]]
    theta = torch.tensor([turn], device=images.device).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    turned = F.grid_sample(images.float(), grid, align_corners=False)
    return turned.round().byte()


def invert(images: UInt8[Tensor, "n c H W"]) -> UInt8[Tensor, "n c H W"]:
    """Exchange dark and bright."""
    return 255 - images


SHIFTS: dict[str, Callable[[Tensor], Tensor]] = {
    "thicken": thicken,
    "rotate": rotate,
    "invert": invert,
}


def shifted(images: UInt8[Tensor, "n c H W"], kind: str) -> UInt8[Tensor, "n c H W"]:
    """Apply the shift called `kind`. Raises ValueError if the name is unknown."""
    require(kind in SHIFTS, "kind", f"be one of {', '.join(SHIFTS)}", kind)
    return SHIFTS[kind](images)


def split_classes(
    data: ImageSet, task_classes: Sequence[str]
) -> tuple[ImageSet, ImageSet]:
    """Split a set by class: all other classes, for pretraining, and `task_classes`.

    Each part numbers its own classes from 0, in the order in which `data` has them.
    Raises ValueError if `data` has no labels, if a class is unknown or named twice, and
    if a part would have fewer than 2 classes.
    """
    require(data.labels is not None, "data", "have labels", data.labels)
    for name in task_classes:
        rule = f"name classes of the data ({', '.join(data.classes)})"
        require(name in data.classes, "task_classes", rule, name)
    once = len(set(task_classes)) == len(task_classes)
    require(once, "task_classes", "name each class once", list(task_classes))
    others = [name for name in data.classes if name not in task_classes]
    rule = f"leave at least 2 of the {len(data.classes)} classes in each part"
    enough = min(len(task_classes), len(others)) >= 2
    require(enough, "task_classes", rule, list(task_classes))
    chosen = [name for name in data.classes if name in task_classes]
    return _of_classes(data, others), _of_classes(data, chosen)


def _of_classes(data: ImageSet, names: list[str]) -> ImageSet:
    """Return the images of the classes `names`, numbered from 0 in that order."""
    numbers = [data.classes.index(name) for name in names]
    renumbered = torch.full((len(data.classes),), -1, device=data.labels.device)
    renumbered[numbers] = torch.arange(len(names), device=data.labels.device)
    labels = renumbered[data.labels]
    inside = labels >= 0
    return ImageSet(data.images[inside], labels[inside], tuple(names))
