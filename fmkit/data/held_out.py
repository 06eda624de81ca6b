"""A set of pictures parted by classes: some to pretrain on, others for the task."""

from collections.abc import Sequence

import torch

from fmkit._check import require
from fmkit.data.images import ImageSet


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
