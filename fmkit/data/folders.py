"""Pictures of one's own: a folder or a zip of split/class/picture.

Axes: n pictures, c channels, H by W pixels.
"""

import io
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from fmkit._check import Refused, require
from fmkit.data.images import ImageSet
from fmkit.progress import progress

LITTER = ("__MACOSX", "Thumbs.db", "desktop.ini")  # left by file managers
UNREADABLE = (
    OSError,  # PIL: no picture, or one that breaks off
    SyntaxError,  # PIL: a broken PNG
    ValueError,
    Image.DecompressionBombError,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,  # zipfile: encrypted, or packed in a way unknown here
)
Tree = dict[str, dict[str, list[str]]]  # split -> class -> names of pictures


def read_folder(path: str | Path, *, size: int | None = None) -> dict[str, ImageSet]:
    """The splits under `path`, each a set of pictures, by name.

    `path` is a folder or a zip (which is not unpacked) of ``split/class/picture``; one
    folder around the whole is allowed. Classes are numbered in the order of their
    names. One channel if every picture is grey, else three; what is transparent
    becomes white. With `size`, pictures are scaled (antialiased) and the middle is cut
    out, so that both sides are `size` pixels.

    Raises ``ValueError`` where there is no such path, no zip, no class or only one, a
    class without a picture, splits of different classes, a file that is no picture,
    or pictures of several sizes and no `size`.
    """
    path = Path(path)
    require(size is None or size >= 1, "size", "be at least 1 pixel", size)
    if path.is_dir():
        inside = path.rglob("*")
        names = [p.relative_to(path).as_posix() + "/" * p.is_dir() for p in inside]
        return _read(names, lambda name: (path / name).read_bytes(), size=size)
    rule = "be a folder or a zip that exists"
    require(path.is_file() and zipfile.is_zipfile(path), "path", rule, str(path))
    with zipfile.ZipFile(path) as archive:
        return _read(archive.namelist(), archive.read, size=size)


def _read(
    names: Iterable[str], read: Callable[[str], bytes], *, size: int | None
) -> dict[str, ImageSet]:
    tree = _tree(names)
    classes = _classes(tree)
    order = [
        (split, label, name)
        for split in tree
        for label, kind in enumerate(classes)
        for name in tree[split][kind]
    ]
    pictures: dict[str, list[np.ndarray]] = {split: [] for split in tree}
    labels: dict[str, list[int]] = {split: [] for split in tree}
    first: np.ndarray | None = None
    for split, label, name in progress(order, label="read pictures"):
        picture = _picture(read, name, size=size)
        first = picture if first is None else first
        rule = f"be given, since {name} and others differ in size"
        require(picture.shape[:2] == first.shape[:2], "size", rule, size)
        pictures[split].append(picture)
        labels[split].append(label)
    grey = all(p.ndim == 2 for split in tree for p in pictures[split])
    return {
        split: ImageSet(
            _stack(pictures[split], channels=1 if grey else 3),
            torch.tensor(labels[split]),
            classes,
        )
        for split in tree
    }


def _tree(names: Iterable[str]) -> Tree:
    """Sort `names` (a folder's ends in a slash) by split and class, litter left out."""
    parts = {name: PurePosixPath(name).parts for name in sorted(names)}
    parts = {
        name: part
        for name, part in parts.items()
        if not any(p in LITTER or p.startswith(".") for p in part)
    }
    deepest = max((len(p) for name, p in parts.items() if name[-1] != "/"), default=0)
    if deepest == 4 and len({part[0] for part in parts.values()}) == 1:
        parts = {name: part[1:] for name, part in parts.items()}  # one folder around
    tree: Tree = {}
    for name, part in parts.items():
        folder = name.endswith("/")
        require(folder or len(part) <= 3, "path", "hold split/class/picture", name)
        if len(part) == 3 or (folder and len(part) == 2):
            kind = tree.setdefault(part[0], {}).setdefault(part[1], [])
            kind.extend([] if folder else [name])
    return tree


def _classes(tree: Tree) -> tuple[str, ...]:
    """The classes that all splits share, each with a picture in every split."""
    require(len(tree) > 0, "path", "hold split/class/picture", "no such file")
    first, *others = tree
    classes = tuple(sorted(tree[first]))
    for split in others:
        rule = f"have the same classes in {split} as in {first} {classes}"
        require(set(tree[split]) == set(classes), "path", rule, tuple(tree[split]))
    require(len(classes) >= 2, "path", "hold at least 2 classes", classes)
    for split, kinds in tree.items():
        empty = [f"{split}/{kind}" for kind in classes if not kinds[kind]]
        require(not empty, "path", "hold a picture of each class", f"none in {empty}")
    return classes


def _picture(
    read: Callable[[str], bytes], name: str, *, size: int | None
) -> np.ndarray:
    """The picture called `name`: (H, W) of a grey one, (H, W, 3) otherwise."""
    try:
        with Image.open(io.BytesIO(read(name))) as opened:
            image = _eight_bits(ImageOps.exif_transpose(opened))
        if size is not None:
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    except UNREADABLE as error:
        rule = "hold only pictures that can be read, of 8 bits a channel"
        raise Refused(f"path must {rule}, got {name!r}.") from error
    return np.asarray(image)


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"its pixels are of kind {image.mode}")
    grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("L" if grey else "RGB")


def _stack(pictures: list[np.ndarray], *, channels: int) -> UInt8[Tensor, "n c H W"]:
    H, W = pictures[0].shape[:2]
    images = np.empty((len(pictures), channels, H, W), dtype=np.uint8)
    for i, picture in enumerate(pictures):  # a grey one is repeated where c is 3
        images[i] = picture if picture.ndim == 2 else picture.transpose(2, 0, 1)
    return torch.from_numpy(images)
