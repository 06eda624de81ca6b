"""Read your own images: a folder or a zip, with classes or without.

Axes: n images, c channels, H by W pixels.
"""

import io
import os
import re
import unicodedata
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

from fmkit._check import Refused, one_line, require
from fmkit._reading import POINTER, PULL, refuse_pointer
from fmkit.data._files import is_litter, name_of, walk
from fmkit.data.images import ImageSet
from fmkit.progress import progress

# Other files are left out. Pillow need not know a kind: then it is refused, not skipped
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".webp")
SUFFIXES += (".tif", ".tiff", ".pbm", ".pgm", ".ppm", ".pnm", ".tga", ".ico", ".jp2")
SUFFIXES += (".avif", ".heic", ".heif", ".jxl")
SPLITS = ("train", "test")  # names by which the folders around them are found
NO_CLASS = ""  # the class of images without labels, in a tree
LAYOUTS = "hold images as split/class/image, as train/image or side by side"
ORIENTATION = 0x0112  # the EXIF tag: how the camera was held
UPRIGHT = {  # its values -> what turns the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# A profile of colours, which nothing here uses, may take more than Pillow's 1 MB
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
WINDOWS = 0  # the system that made a member of a zip, or DOS
UTF8 = 0x800  # the flag of a name in a zip that promises UTF-8
MOST_NAMED = 20  # images that are left out, in the warning
Parts = dict[str, tuple[str, ...]]  # the name of a file or folder -> its parts
Tree = dict[str, dict[str, list[str]]]  # split -> class -> names of images


def read_folder(
    path: str | Path, *, size: int | None = None, skip_unreadable: bool = False
) -> dict[str, ImageSet]:
    """Read the splits under `path`: a set of images for each, by its name.

    `path` is a folder or a zip, which is not unpacked. It holds ``split/class/image``;
    or, without labels, ``split/image`` with a split called train; or images side by
    side, which are the split train. Folders around the whole are allowed. Links are
    followed. Hidden files and files without the name of an image (``SUFFIXES``) are
    left out; if no file has such a name, those without a suffix are read. Classes are
    numbered in the order of their names. The result has one channel if every image is
    grey, else three; transparent pixels become white. Of an image's metadata only the
    orientation is used. With `size`, images are scaled (antialiased) and cropped to the
    centre, `size` by `size` pixels.

    With `skip_unreadable`, images that cannot be read are left out and named in a
    warning. Raises ValueError if there is no such path or no zip, if images lie in no
    such way, if there is a single class, if a class has no image or a name that is not
    UTF-8, if splits have different classes, if an image cannot be read, and if images
    differ in size and `size` is None.
    """
    with _opened(path, size) as (names, read):
        tree = _tree(_parts(names))
        return _read(tree, read, size=size, skip_unreadable=skip_unreadable)


def read_unlabelled(
    path: str | Path, *, size: int | None = None, skip_unreadable: bool = False
) -> UInt8[Tensor, "n c H W"]:
    """Read all images under `path`, at any depth, in the order of their names.

    `path` is a folder or a zip. Names of folders mean nothing here, so the images of a
    labelled tree are read without their labels: ``read_unlabelled(path / "train")``.
    Channels, `size` and `skip_unreadable` are as in :func:`read_folder`. Raises
    ValueError if there is no such path or no image, if an image cannot be read, and if
    images differ in size and `size` is None.
    """
    with _opened(path, size) as (names, read):
        images = _images(_parts(names), rule="hold images")
        tree = {"": {NO_CLASS: [*images]}}
        return _read(tree, read, size=size, skip_unreadable=skip_unreadable)[""].images


@contextmanager
def _opened(
    path: str | Path, size: int | None
) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """Open a folder or a zip; yield the names inside and a function that reads one."""
    require(str(path) != "", "path", "be a folder or a zip that exists", path)
    path = Path(os.path.expanduser(path))
    require(size is None or size >= 1, "size", "be at least 1 pixel", size)
    if os.path.isdir(path):
        inside = {
            name_of(p.relative_to(path)) + "/" * p.is_dir(): p for p in walk(path)
        }
        yield [*inside], lambda name: inside[name].read_bytes()
        return
    known = os.path.isfile(path)
    require(known, "path", "be a folder or a zip that exists", str(path))
    refuse_pointer(path)
    require(zipfile.is_zipfile(path), "path", "be a whole zip or a folder", str(path))
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise Refused(f"{path} cannot be read ({one_line(error)}).") from error
    with archive:
        members = {_name_in_zip(member): member for member in archive.infolist()}
        yield [*members], lambda name: archive.read(members[name])


def _name_in_zip(member: zipfile.ZipInfo) -> str:
    """Return the name of a member as text with slashes, like that of a file.

    Windows' PowerShell 5 writes backslashes. macOS writes UTF-8 without the flag. Names
    of Windows without it are in a code that depends on its language: their letters
    outside of ASCII become surrogates.
    """
    name = member.filename
    if not member.flag_bits & UTF8 and name == member.orig_filename:
        code = "ascii" if member.create_system == WINDOWS else "utf-8"
        name = name.encode("cp437").decode(code, "surrogateescape")
    return name.replace("\\", "/").lstrip("/")


def _read(
    tree: Tree,
    read: Callable[[str], bytes],
    *,
    size: int | None,
    skip_unreadable: bool,
) -> dict[str, ImageSet]:
    """Read the images of `tree`, split by split, class by class."""
    classes = _classes(tree)
    kinds = classes or (NO_CLASS,)
    order = [
        (split, label, name)
        for split in tree
        for label, kind in enumerate(kinds)
        for name in tree[split][kind]
    ]
    images: dict[str, list[np.ndarray]] = {split: [] for split in tree}
    labels: dict[str, list[int]] = {split: [] for split in tree}
    first: np.ndarray | None = None
    unread: list[str] = []
    for split, label, name in progress(order, bar="read images"):
        try:
            image = _image(read, name, size=size)
        except Exception as error:  # whatever Pillow or zipfile raises
            reason = f"{name!r} ({_reason(error)})"
            if not skip_unreadable:
                rule = "path must hold only images that can be read, got"
                raise Refused(f"{rule} {reason}.") from error
            unread.append(reason)
            continue
        first = image if first is None else first
        rule = f"be given, since {name} and others differ in size"
        require(image.shape[:2] == first.shape[:2], "size", rule, size)
        images[split].append(image)
        labels[split].append(label)
    _say_unread(unread, count=len(order))
    for split, numbers in labels.items():
        empty = [f"{split}/{kind}" for i, kind in enumerate(kinds) if i not in numbers]
        rule = "hold an image of each class that can be read"
        require(not empty, "path", rule, f"none in {empty}")
    grey = all(image.ndim == 2 for split in tree for image in images[split])
    return {
        split: ImageSet(
            _stack(images[split], channels=1 if grey else 3),
            torch.tensor(labels[split]) if classes else None,
            classes,
        )
        for split in tree
    }


def _say_unread(unread: list[str], *, count: int) -> None:
    """Warn of the images that are left out, of `count`; name each, up to a number."""
    if unread:
        named = "; ".join(unread[:MOST_NAMED])
        more = len(unread) - MOST_NAMED
        named += f"; and {more:,} more" if more > 0 else ""
        left_out = (
            f"{len(unread):,} of {count:,} images cannot be read and are left out"
        )
        warnings.warn(f"{left_out}: {named}.", stacklevel=4)


def _reason(error: Exception) -> str:
    """Return what a library said, without the addresses of its objects."""
    said = re.sub(r" <[^<>]* at 0x\w+>", "", one_line(error)).rstrip(".")
    return said or type(error).__name__


def _parts(names: Iterable[str]) -> Parts:
    """Split sorted `names` (a folder's ends in a slash) at slashes; omit litter."""
    parts = {name: PurePosixPath(name).parts for name in sorted(names)}
    return {
        name: part
        for name, part in parts.items()
        if part and not any(map(is_litter, part))
    }


def _images(parts: Parts, *, rule: str) -> Parts:
    """Return the files that are images by their names; refuse if there are none."""
    files = {name: part for name, part in parts.items() if name[-1] != "/"}
    kinds = {name: PurePosixPath(name).suffix.lower() for name in files}
    images = {name: part for name, part in files.items() if kinds[name] in SUFFIXES}
    images = images or {name: part for name, part in files.items() if not kinds[name]}
    found = "".join(f", such as {name}" for name in [*files][:1])
    found = f"no image among {len(files):,} files{found}"
    require(len(images) > 0, "path", rule, found)
    return images


def _tree(parts: Parts) -> Tree:
    """Sort images by split and class, below the folders around the whole."""
    images = _images(parts, rule=LAYOUTS)
    around = _around(images.values())
    inside = {}
    for name, part in images.items():
        if part[: len(around)] == around:
            inside[name] = part[len(around) :]
        else:  # a cover beside the folders is skipped
            require(part[:-1] == around[: len(part) - 1], "path", LAYOUTS, name)
    if max(map(len, inside.values())) < 3:
        return _unlabelled(inside)
    folders = [
        part[len(around) :]
        for name, part in parts.items()
        if name.endswith("/") and part[: len(around)] == around
    ]
    return _labelled(inside, folders)


def _around(images: Collection[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the folders around the splits, or around all images without splits."""
    places = [part[:-1] for part in images]
    deepest = max(map(len, places))
    deep = [place for place in places if len(place) == deepest]  # without covers
    shared = _shared(deep)
    for i in range(len(shared), -1, -1):  # one of these may be called train, too
        below = {place[i] for place in deep if len(place) > i}
        if below and below <= {*SPLITS}:
            return shared[:i]
    above = [
        part[: part.index(split)]
        for part in places
        for split in SPLITS
        if split in part
    ]
    if above:
        return min(above, key=len)
    return _shared(places)


def _shared(places: list[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the first parts that all places have in common."""
    ends = zip(min(places), max(places), strict=False)  # all others lie between these
    return tuple(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], ends))


def _labelled(images: Parts, folders: Iterable[tuple[str, ...]]) -> Tree:
    """Sort names of the form ``split/class/image``; images above are skipped."""
    tree: Tree = {}
    for name, part in images.items():
        require(len(part) <= 3, "path", "hold split/class/image", name)
        if len(part) == 3:
            split, kind, _ = part
            tree.setdefault(split, {}).setdefault(_composed(kind), []).append(name)
    for part in folders:  # a class without an image is refused later
        if len(part) == 2 and part[0] in tree:
            tree[part[0]].setdefault(_composed(part[1]), [])
    return tree


def _composed(name: str) -> str:
    """Return a name with composed letters: macOS stores é as two characters."""
    return unicodedata.normalize("NFC", name)


def _unlabelled(images: Parts) -> Tree:
    """Sort images of the form ``split/image``, or ``image``, which is of train."""
    deepest = max(map(len, images.values()))
    tree: Tree = {}
    for name, part in images.items():
        if len(part) == deepest:  # a cover beside the splits is skipped
            split = part[0] if deepest == 2 else "train"
            tree.setdefault(split, {NO_CLASS: []})[NO_CLASS].append(name)
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
    for kind in sorted({kind for split in tree for kind in tree[split]}):
        raw = kind.encode("utf-8", "surrogateescape")
        utf8 = raw.decode("utf-8", "replace") == kind
        require(utf8, "path", "have names of classes in UTF-8", raw)
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, and of large images
        content = read(name)
        if content.startswith(POINTER):
            raise ValueError(PULL)
        with Image.open(io.BytesIO(content)) as opened:
            opened.load()
            image = _eight_bits(_upright(opened))
        if size is not None:
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says; nothing else of EXIF matters.

    ``ImageOps.exif_transpose`` also writes all other tags anew, which fails for some.
    """
    turn = None
    with suppress(Exception):  # broken metadata does not make a good image unreadable
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION))
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert an image to grey or RGB, on white; refuse more than 8 bits a channel."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"mode {image.mode} has more than 8 bits a channel")
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
