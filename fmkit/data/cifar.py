"""CIFAR-10 as its authors published it, and re-encoded as JPEG.

Axes: n pictures, c channels, H by W pixels.
"""

import tarfile
import zlib
from pathlib import Path

import numpy as np
import torch

from fmkit.assets import AssetError, fetch, unpickle
from fmkit.data.folders import read_folder
from fmkit.data.images import ImageSet
from fmkit.progress import progress

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer")
CIFAR10 += ("dog", "frog", "horse", "ship", "truck")
FOLDER = "cifar-10-batches-py"
TRAIN = tuple(f"{FOLDER}/data_batch_{i}" for i in range(1, 6))
TEST = (f"{FOLDER}/test_batch",)
BATCH = 10_000  # pictures in each of these files
NUMBERS = set(range(len(CIFAR10)))  # what a label may be


def cifar10(*, device: torch.device | str = "cpu") -> tuple[ImageSet, ImageSet]:
    """The train and the test set of CIFAR-10: 50,000 and 10,000 photographs.

    32 by 32 in colour; 5,000 and 1,000 of each class, in the order of the files. Read
    out of the archive of 170 MB, which is not unpacked. Raises ``AssetError`` where it
    cannot be had. Krizhevsky 2009, Learning Multiple Layers of Features from Tiny
    Images.

    Unlike in :func:`~fmkit.data.images.animals`, near duplicates straddle the split,
    which is kept as it was published so that numbers are comparable: 3.3 % of the test
    pictures by the count of Barz & Denzler 2020, Do We Train on Test Data? (ciFAIR).
    None is exact. Measured on :func:`cifar10_jpeg`, by the cosine of the pixels less
    their mean to the nearest picture for training or its mirror, 149 of the test
    pictures are above .93, nearly all of them the same photograph by eye, and 328 above
    .90, where many no longer are.
    """
    train, test = read_batches(fetch("cifar10")["cifar-10-python.tar.gz"])
    return train.to(device), test.to(device)


def cifar10_jpeg(*, device: torch.device | str = "cpu") -> tuple[ImageSet, ImageSet]:
    """CIFAR-10 re-encoded as JPEG: the sets of :func:`cifar10` with some detail lost.

    Unlike those they are in the order of the classes. Near duplicates straddle their
    split just as much. Raises ``AssetError`` where the file cannot be had.
    """
    splits = read_folder(fetch("cifar10-jpeg")["cifar10-jpeg.zip"])
    return splits["train"].to(device), splits["test"].to(device)


def read_batches(path: Path) -> tuple[ImageSet, ImageSet]:
    """The train and the test set in an archive of the form of CIFAR-10 for Python.

    Raises ``AssetError`` where the archive is damaged, lacks a file, or holds a pickle
    of something else; a pickle may name nothing but what an array is made of.
    """
    rows = {name: i * BATCH for i, name in enumerate(TRAIN + TEST)}
    images = np.empty((len(rows) * BATCH, 3, 32, 32), dtype=np.uint8)
    labels = np.empty(len(images), dtype=np.int64)
    missing = set(rows)
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in progress(archive, label="read cifar10"):
                if member.name in missing and member.isfile():
                    part = slice(rows[member.name], rows[member.name] + BATCH)
                    raw = archive.extractfile(member).read()
                    images[part], labels[part] = _batch(raw, member.name)
                    missing.remove(member.name)
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise AssetError(f"{path.name} is damaged ({error}).") from error
    if missing:
        raise AssetError(f"{path.name} has no member {min(missing)}.")
    end = len(TRAIN) * BATCH
    pictures, classes = torch.from_numpy(images), torch.from_numpy(labels)
    return (
        ImageSet(pictures[:end], classes[:end], CIFAR10),
        ImageSet(pictures[end:], classes[end:], CIFAR10),
    )


def _batch(raw: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and labels in one pickle, which Python 2 wrote: its texts are bytes."""
    batch = unpickle(raw, name=name, encoding="bytes")
    batch = batch if isinstance(batch, dict) else {}
    images, labels = (np.asarray(batch.get(key)) for key in (b"data", b"labels"))
    right = images.dtype == np.uint8 and images.shape == (BATCH, 3 * 32 * 32)
    right &= labels.dtype == np.int64 and labels.shape == (BATCH,)
    if not right or not NUMBERS.issuperset(labels.tolist()):
        raise AssetError(f"{name} must hold {BATCH} pictures and their labels.")
    return images.reshape(BATCH, 3, 32, 32), labels
