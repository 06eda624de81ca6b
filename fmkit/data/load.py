"""Load the images that a chapter's parameter `data` names: a known set, or a path."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from fmkit._check import require
from fmkit.data.animals import load_animals
from fmkit.data.cifar import load_cifar10, load_cifar10_jpeg
from fmkit.data.folders import read_folder
from fmkit.data.images import ImageSet

SETS: dict[str, Callable[[], tuple[ImageSet, ImageSet]]] = {
    "animals": load_animals,
    "cifar10": load_cifar10,
    "cifar10-jpeg": load_cifar10_jpeg,
}
TEST_EVERY = 10  # of unlabelled images without a split test, one in ten is for the test


def load_images(
    data: str | Path,
    *,
    size: int | None = None,
    device: torch.device | str = "cpu",
    skip_unreadable: bool = False,
) -> tuple[ImageSet, ImageSet]:
    """Load a train set and a test set: one of ``SETS`` by its name, or from a path.

    A path leads to a folder or a zip as :func:`~fmkit.data.folders.read_folder` takes
    it; its splits train and test are used. If images have no labels and there is no
    split test, every tenth image in the order of names, from the first on, is for the
    test. With `size`, images are scaled (antialiased) to `size` by `size` pixels. With
    `skip_unreadable`, images at a path that cannot be read are left out and named in a
    warning.

    Raises ValueError if `data` is neither a name nor a path, if a split is missing, and
    if `read_folder` refuses the path; ``AssetError`` if a named set cannot be obtained.
    """
    require(size is None or size >= 1, "size", "be at least 1 pixel", size)
    if data in SETS:
        train, test = (_scaled(part, size) for part in SETS[data]())
    else:
        path = Path(os.path.expanduser(data))
        rule = f"be one of {', '.join(SETS)}, or a folder or a zip that exists"
        there = bool(str(data)) and os.path.exists(path)  # "" is the current folder
        require(there, "data", rule, str(data))
        splits = read_folder(path, size=size, skip_unreadable=skip_unreadable)
        if [*splits] == ["train"] and splits["train"].labels is None:
            splits = _split_unlabelled(splits["train"])
        rule = "have the splits train and test"
        require({"train", "test"} <= set(splits), "data", rule, tuple(splits))
        train, test = splits["train"], splits["test"]
    return train.to(device), test.to(device)


def _split_unlabelled(data: ImageSet) -> dict[str, ImageSet]:
    """Split images without labels: every tenth, from the first on, is for the test."""
    require(len(data) >= 2, "data", "have at least 2 images", len(data))
    is_test = torch.arange(len(data)) % TEST_EVERY == 0
    return {"train": data.subset(~is_test), "test": data.subset(is_test)}


def _scaled(data: ImageSet, size: int | None) -> ImageSet:
    """Scale images to `size` by `size`; the set itself if they have that size."""
    if size is None or tuple(data.images.shape[-2:]) == (size, size):
        return data
    images = F.interpolate(
        data.images, size=(size, size), mode="bicubic", antialias=True
    )
    return dataclasses.replace(data, images=images)
