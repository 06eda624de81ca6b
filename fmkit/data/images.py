"""Pictures with labels: the animals, their split, few labels, shifted pictures.

Axes: n pictures, c channels, H by W pixels, p pairs, k chosen pictures.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from fmkit._check import require
from fmkit.assets import fetch, load_array

ANIMALS = ("bear", "bird", "cat", "cow", "dog")
ANIMALS += ("elephant", "giraffe", "horse", "sheep", "zebra")
SPLIT_FILE = Path(__file__).with_name("animals_split.txt")
TRAIN, TEST, DROPPED = ".", "T", "x"  # a picture's character in that file
SAME_DRAWING = 0.98  # cosine above which, by eye, two pictures are one drawing
SAME_POSE = 0.95  # and above which they may be: one animal in one pose
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


def animals(*, device: torch.device | str = "cpu") -> tuple[ImageSet, ImageSet]:
    """The train and the test set of Animal-MNIST without its duplicates.

    10,000 silhouettes, 28 by 28, one channel, bright on black; zebras have stripes.
    Of pictures that are one drawing the first is kept: 9,637 remain and 363 are
    dropped. What remains falls into 7,054 groups of one pose, none of which straddles
    the split: 7,711 train, 1,926 test, of every class a fifth. The largest groups (787
    cows and sheep, 417 bears) are too large for the test set, which thus holds fewer
    of the commonest poses and is harder than one drawn at random.
    :func:`split_animals` gives the rule. Raises ``AssetError`` where the pictures
    cannot be had.
    """
    files = fetch("animals")
    images = torch.from_numpy(load_array(files["images.gz"])).unsqueeze(1)
    labels = torch.from_numpy(load_array(files["labels.gz"]))
    everything = ImageSet(images, labels, ANIMALS)
    split = SPLIT_FILE.read_text().replace("\n", "")
    train, test = (
        everything.subset(torch.tensor([mark == part for mark in split])).to(device)
        for part in (TRAIN, TEST)
    )
    return train, test


def split_animals(images: UInt8[Tensor, "n 1 H W"], labels: Int64[Tensor, " n"]) -> str:
    """Each picture's place in the split: one character of train, test or dropped.

    Pictures are linked where their cosine exceeds a bound; a group is what links
    connect. Of a group at the bound of one drawing the first picture is kept. Groups
    of what is kept, at the bound of one pose, go to test in the order of the SHA-256
    of their first picture (as good as random, and the same everywhere) where no class
    then exceeds a fifth of its pictures, and to train otherwise.
    """
    pairs, cosine = similar_pairs(images, above=SAME_POSE)
    drawings = _groups(len(images), pairs[cosine > SAME_DRAWING])
    kept = torch.zeros(len(images), dtype=torch.bool)
    kept[[group[0] for group in drawings]] = True
    poses = [
        group
        for group in _groups(len(images), pairs[kept[pairs].all(dim=1)])
        if kept[group[0]]  # a dropped picture is linked to nothing here
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
    """Pairs i < j whose cosine exceeds `above`, and it: the larger with j and mirrored.

    float32 proposes the pairs; float64 decides. There the products are integers below
    2^53, hence exact in whatever order a machine adds them up.
    """
    flat, mirrored = (x.flatten(1).double() for x in (images, images.flip(-1)))
    unit, turned = (F.normalize(x.float()) for x in (flat, mirrored))
    rows = 1000  # at a time, to hold 40 MB of cosines and not 400
    proposed = []
    for start in range(0, len(unit), rows):
        block, rest = unit[start : start + rows], slice(start, None)
        cosine = torch.maximum(block @ unit[rest].T, block @ turned[rest].T)
        # float32 is off by less than H W 2^-24, which is 5e-5 at 28 by 28.
        proposed.append((cosine.triu(diagonal=1) > above - 1e-3).nonzero() + start)
    i, j = torch.cat(proposed).T
    dot = torch.maximum((flat[i] * flat[j]).sum(1), (flat[i] * mirrored[j]).sum(1))
    norm = flat.norm(dim=1)
    cosine = dot / (norm[i] * norm[j])
    exceeds = cosine > above
    return torch.stack([i, j], dim=1)[exceeds], cosine[exceeds]


def _groups(n: int, pairs: Int64[Tensor, "p 2"]) -> list[list[int]]:
    """What `pairs` connect among 0 … n-1; each group ascends, its first is its root."""
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
