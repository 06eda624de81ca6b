"""Pictures by name: what a chapter's parameter `data` may be.

Axes: n pictures, c channels, H by W pixels.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from fmkit._check import require
from fmkit.data.animals import animals
from fmkit.data.cifar import cifar10, cifar10_jpeg
from fmkit.data.folders import read_folder
from fmkit.data.images import ImageSet

SETS: dict[str, Callable[[], tuple[ImageSet, ImageSet]]] = {
    "animals": animals,
    "cifar10": cifar10,
    "cifar10-jpeg": cifar10_jpeg,
}


def load(
    name: str, *, size: int | None = None, device: torch.device | str = "cpu"
) -> tuple[ImageSet, ImageSet]:
    """The train and the test set called `name`: of ``SETS``, or at a path.

    A path leads to a folder or a zip of ``split/class/picture``, whose splits train and
    test are taken (:func:`~fmkit.data.folders.read_folder`). With `size`, pictures are
    scaled (antialiased) so that both sides are `size` pixels.

    Raises ``ValueError`` for what is neither a name nor a path, for a path that lacks
    one of the two splits, and for what `read_folder` refuses; ``AssetError`` where a
    named set cannot be had.
    """
    require(size is None or size >= 1, "size", "be at least 1 pixel", size)
    if name in SETS:
        train, test = (_scaled(part, size) for part in SETS[name]())
    else:
        path = Path(name).expanduser()
        rule = f"be one of {', '.join(SETS)}, or a folder or a zip that exists"
        require(path.exists(), "name", rule, name)
        splits = read_folder(path, size=size)
        rule = "hold the splits train and test"
        require({"train", "test"} <= set(splits), "name", rule, tuple(splits))
        train, test = splits["train"], splits["test"]
    return train.to(device), test.to(device)


def _scaled(data: ImageSet, size: int | None) -> ImageSet:
    if size is None or tuple(data.images.shape[-2:]) == (size, size):
        return data
    images = F.interpolate(
        data.images, size=(size, size), mode="bicubic", antialias=True
    )
    return dataclasses.replace(data, images=images)
