"""Compute ``fmkit/data/animals_split.txt`` from the images of Animal-MNIST alone.

Axes: n images, H by W pixels, p pairs.
"""

import hashlib
from collections import Counter

import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from torch import Tensor

from fmkit.data.animals import DROPPED, TEST, TRAIN

SAME_DRAWING = 0.98  # cosine above which two images show, by eye, the same drawing
SAME_POSE = 0.95  # and above which they may show the same animal in the same pose


def split_animals(images: UInt8[Tensor, "n 1 H W"], labels: Int64[Tensor, " n"]) -> str:
    """Assign each image to train, test or dropped; return one character for each.

    Two images are linked if their cosine exceeds a bound, and linked images form a
    group. Of each group at the bound of one drawing, the first image is kept. The kept
    images are then grouped at the bound of one pose. These groups are taken in the
    order of the SHA-256 of their first image, which is as good as random and the same
    everywhere. A group goes to test if no class then exceeds a fifth of its images, and
    to train otherwise.
    """
    pairs, cosine = similar_pairs(images, above=SAME_POSE)
    drawings = _groups(len(images), pairs[cosine > SAME_DRAWING])
    kept = torch.zeros(len(images), dtype=torch.bool)
    kept[[group[0] for group in drawings]] = True
    poses = [
        group
        for group in _groups(len(images), pairs[kept[pairs].all(dim=1)])
        if kept[group[0]]  # a dropped image is linked to nothing at this point
    ]
    poses.sort(key=lambda group: hashlib.sha256(images[group[0]].numpy()).digest())

    classes = labels.tolist()
    room = {name: round(n / 5) for name, n in Counter(labels[kept].tolist()).items()}
    marks = [TRAIN if keep else DROPPED for keep in kept.tolist()]
    for group in poses:
        members = Counter(classes[i] for i in group)
        if all(n <= room[name] for name, n in members.items()):
            for i in group:
                marks[i] = TEST
                room[classes[i]] -= 1
    return "".join(marks)


def similar_pairs(
    images: UInt8[Tensor, "n 1 H W"], *, above: float
) -> tuple[Int64[Tensor, "p 2"], Tensor]:
    """Return the pairs i < j whose cosine exceeds `above`, and that cosine.

    It is the larger of the cosines with image j and with the mirror image of j. float32
    proposes the pairs, and float64 decides, because there the products are integers
    below 2^53 and therefore exact in any order of addition.
    """
    flat, mirrored = (x.flatten(1).double() for x in (images, images.flip(-1)))
    unit, turned = (F.normalize(x.float()) for x in (flat, mirrored))
    rows = 1000  # at a time, to hold 40 MB of cosines and not 400
    proposed = []
    for start in range(0, len(unit), rows):
        block, rest = unit[start : start + rows], slice(start, None)
        cosine = torch.maximum(block @ unit[rest].T, block @ turned[rest].T)
        # The error of float32 is less than H W 2^-24, which is 5e-5 at 28 by 28.
        proposed.append((cosine.triu(diagonal=1) > above - 1e-3).nonzero() + start)
    i, j = torch.cat(proposed).T
    dot = torch.maximum((flat[i] * flat[j]).sum(1), (flat[i] * mirrored[j]).sum(1))
    norm = flat.norm(dim=1)
    cosine = dot / (norm[i] * norm[j])
    exceeds = cosine > above
    return torch.stack([i, j], dim=1)[exceeds], cosine[exceeds]


def _groups(n: int, pairs: Int64[Tensor, "p 2"]) -> list[list[int]]:
    """Group 0 … n-1 by the links `pairs`; groups ascend, and so do their members."""
    root = list(range(n))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for i, j in pairs.tolist():
        low, high = sorted((find(i), find(j)))
        root[high] = low
    groups: dict[int, list[int]] = {}
    for i in range(n):
        groups.setdefault(find(i), []).append(i)
    return list(groups.values())
