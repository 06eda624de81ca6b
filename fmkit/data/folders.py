"""Read your own images: a folder or a zip, with classes or without.

Axes: n images, c channels, H by W pixels.
"""

import io
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
SUFFIXES += (".pgm", ".ppm")  # of images; without classes, other files are skipped
UNREADABLE = (
    OSError,  # PIL: not an image, or one that breaks off
    SyntaxError,  # PIL: a broken PNG
    ValueError,
    Image.DecompressionBombError,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,  # zipfile: encrypted, or packed in an unknown way
)
Parts = dict[str, tuple[str, ...]]  # the name of a file or folder -> its parts
Tree = dict[str, dict[str, list[str]]]  # split -> class -> names of images
NO_CLASS = ""  # the class of images without labels, in such a tree
LAYOUTS = "hold images as split/class/image, as train/image or side by side"


def read_folder(path: str | Path, *, size: int | None = None) -> dict[str, ImageSet]:
    """Read the splits under `path`: a set of images for each, by its name.

    `path` is a folder or a zip, which is not unpacked. It holds ``split/class/image``;
    or, without labels, ``split/image`` with a split called train; or images side by
    side, which are the split train. One folder around the whole is allowed. Classes are
    numbered in the order of their names. The result has one channel if every image is
    grey, else three; transparent pixels become white. With `size`, images are scaled
    (antialiased) and cropped to the centre, `size` by `size` pixels.

    Raises ValueError if there is no such path or no zip, if images lie in no such way,
    if there is a single class, if a class has no image, if splits have different
    classes, if a file is not an image, and if images differ in size and `size` is
    None.
    """
    with _opened(path, size) as (names, read):
        return _read(_tree(_parts(names)), read, size=size)


def read_unlabelled(
    path: str | Path, *, size: int | None = None
) -> UInt8[Tensor, "n c H W"]:
    """Read all images under `path`, at any depth, in the order of their names.

    `path` is a folder or a zip. Names of folders mean nothing here, so the images of a
    labelled tree are read without their labels: ``read_unlabelled(path / "train")``.
    Channels and `size` are as in :func:`read_folder`. Raises ValueError if there is no
    such path or no image, if a file with the name of an image is not one, and if images
    differ in size and `size` is None.
    """
    with _opened(path, size) as (names, read):
        images = [name for name in _parts(names) if _is_image(name)]
        require(len(images) > 0, "path", "hold images", "none")
        return _read({"": {NO_CLASS: images}}, read, size=size)[""].images


@contextmanager
def _opened(
    path: str | Path, size: int | None
) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """Open a folder or a zip; yield the names inside and a function that reads one."""
    path = Path(path).expanduser()
    require(size is None or size >= 1, "size", "be at least 1 pixel", size)
    if path.is_dir():
        inside = path.rglob("*")
        names = [p.relative_to(path).as_posix() + "/" * p.is_dir() for p in inside]
        yield names, lambda name: (path / name).read_bytes()
        return
    rule = "be a folder or a zip that exists"
    require(path.is_file() and zipfile.is_zipfile(path), "path", rule, str(path))
    with zipfile.ZipFile(path) as archive:
        yield archive.namelist(), archive.read


def _read(
    tree: Tree, read: Callable[[str], bytes], *, size: int | None
) -> dict[str, ImageSet]:
    """Read the images of `tree`, split by split, class by class."""
    classes = _classes(tree)
    order = [
        (split, label, name)
        for split in tree
        for label, kind in enumerate(classes or (NO_CLASS,))
        for name in tree[split][kind]
    ]
    images: dict[str, list[np.ndarray]] = {split: [] for split in tree}
    labels: dict[str, list[int]] = {split: [] for split in tree}
    first: np.ndarray | None = None
    for split, label, name in progress(order, bar="read images"):
        image = _image(read, name, size=size)
        first = image if first is None else first
        rule = f"be given, since {name} and others differ in size"
        require(image.shape[:2] == first.shape[:2], "size", rule, size)
        images[split].append(image)
        labels[split].append(label)
    grey = all(image.ndim == 2 for split in tree for image in images[split])
    return {
        split: ImageSet(
            _stack(images[split], channels=1 if grey else 3),
            torch.tensor(labels[split]) if classes else None,
            classes,
        )
        for split in tree
    }


def _parts(names: Iterable[str]) -> Parts:
    """Split sorted `names` (a folder's ends in a slash) at slashes; omit litter."""
    parts = {name: PurePosixPath(name).parts for name in sorted(names)}
    return {
        name: part
        for name, part in parts.items()
        if not any(p in LITTER or p.startswith(".") for p in part)
    }


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _tree(parts: Parts) -> Tree:
    """Sort names by split and class, with or without one folder around the whole."""
    files = [part for name, part in parts.items() if name[-1] != "/"]
    deepest = max(map(len, files), default=0)
    if len({part[0] for part in parts.values()}) == 1:  # perhaps a folder around
        splits = {part[1] for part in files if len(part) > 2}
        if deepest in (2, 4) or (deepest == 3 and "train" in splits):
            parts = {name: part[1:] for name, part in parts.items() if part[1:]}
            deepest -= 1
    return _labelled(parts) if deepest >= 3 else _unlabelled(parts)


def _labelled(parts: Parts) -> Tree:
    """Sort names of the form ``split/class/image``; files above are skipped."""
    tree: Tree = {}
    for name, part in parts.items():
        folder = name.endswith("/")
        require(folder or len(part) <= 3, "path", "hold split/class/image", name)
        if len(part) == 3 or (folder and len(part) == 2):
            kind = tree.setdefault(part[0], {}).setdefault(part[1], [])
            kind.extend([] if folder else [name])
    return tree


def _unlabelled(parts: Parts) -> Tree:
    """Sort images of the form ``split/image``, or ``image``, which is of train."""
    images = {name: part for name, part in parts.items() if _is_image(name)}
    deepest = max(map(len, images.values()), default=0)
    tree: Tree = {}
    for name, part in images.items():
        if len(part) == deepest:  # a cover beside the splits is skipped
            split = part[0] if deepest == 2 else "train"
            tree.setdefault(split, {NO_CLASS: []})[NO_CLASS].append(name)
    require(len(tree) > 0, "path", LAYOUTS, "no image")
    first = next(iter(tree.values()))[NO_CLASS][0]
    require("train" in tree, "path", LAYOUTS, first)
    return tree


def _classes(tree: Tree) -> tuple[str, ...]:
    """Return the classes of all splits, each with an image in every split.

    Without labels there are none.
    """
    first, *others = tree
    classes = tuple(sorted(tree[first]))
    if classes == (NO_CLASS,):
        return ()
    for split in others:
        rule = f"have the same classes in {split} as in {first} {classes}"
        require(set(tree[split]) == set(classes), "path", rule, tuple(tree[split]))
    require(len(classes) >= 2, "path", "hold at least 2 classes", classes)
    for split, kinds in tree.items():
        empty = [f"{split}/{kind}" for kind in classes if not kinds[kind]]
        require(not empty, "path", "hold an image of each class", f"none in {empty}")
    return classes


def _image(read: Callable[[str], bytes], name: str, *, size: int | None) -> np.ndarray:
    """Read the image called `name`: (H, W) if it is grey, (H, W, 3) otherwise."""
    try:
        with Image.open(io.BytesIO(read(name))) as opened:
            image = _eight_bits(ImageOps.exif_transpose(opened))
        if size is not None:
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    except UNREADABLE as error:
        rule = "hold only images that can be read, of 8 bits a channel"
        raise Refused(f"path must {rule}, got {name!r}.") from error
    return np.asarray(image)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert an image to grey or RGB, on white; refuse more than 8 bits a channel."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"its pixels are of kind {image.mode}")
    grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("L" if grey else "RGB")


def _stack(images: list[np.ndarray], *, channels: int) -> UInt8[Tensor, "n c H W"]:
    """Stack images into one tensor, repeating a grey image if there are 3 channels."""
    H, W = images[0].shape[:2]
    stacked = np.empty((len(images), channels, H, W), dtype=np.uint8)
    for i, image in enumerate(images):
        stacked[i] = image if image.ndim == 2 else image.transpose(2, 0, 1)
    return torch.from_numpy(stacked)
