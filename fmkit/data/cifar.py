"""CIFAR-10 as its authors published it, and re-encoded as JPEG."""

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
BATCH = 10_000  # images in each of these files
LABELS = set(range(len(CIFAR10)))


def load_cifar10() -> tuple[ImageSet, ImageSet]:
    """Load the train set and the test set of CIFAR-10: 50,000 and 10,000 photographs.

    32 by 32 in colour; 5,000 and 1,000 of each class, in the order of the files. They
    are read from the archive of 170 MB, which is not unpacked. Raises ``AssetError`` if
    the archive cannot be obtained. Krizhevsky 2009, Learning Multiple Layers of
    Features from Tiny Images.

    Unlike in :func:`fmkit.data.animals.load_animals`, near duplicates straddle the
    split, which is kept as published so that numbers are comparable: 3.3 % of the test
    images by the count of Barz & Denzler 2020, Do We Train on Test Data? (ciFAIR).
    No duplicate is exact. In the JPEG version (:func:`load_cifar10_jpeg`), measured by
    the cosine of the mean-subtracted pixels to the nearest train image or its mirror
    image, 149 test images are above .93, nearly all of them the same photograph by eye.
    328 are above .90, where many are different photographs.
    """
    return read_batches(fetch("cifar10")["cifar-10-python.tar.gz"])


def load_cifar10_jpeg() -> tuple[ImageSet, ImageSet]:
    """Load CIFAR-10 re-encoded as JPEG, which loses some detail.

    Unlike the sets of :func:`load_cifar10`, these are in the order of the classes. Near
    duplicates straddle their split just as much. Raises ``AssetError`` if the file
    cannot be obtained.
    """
    splits = read_folder(fetch("cifar10-jpeg")["cifar10-jpeg.zip"])
    return splits["train"], splits["test"]


def read_batches(path: Path) -> tuple[ImageSet, ImageSet]:
    """Read the train set and the test set from an archive laid out like CIFAR-10.

    Raises ``AssetError`` if the archive is damaged, lacks a file, or holds a pickle of
    something else. A pickle may name only the parts of an array.
    """
    rows = {name: i * BATCH for i, name in enumerate(TRAIN + TEST)}
    images = np.empty((len(rows) * BATCH, 3, 32, 32), dtype=np.uint8)
    labels = np.empty(len(images), dtype=np.int64)
    missing = set(rows)
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in progress(archive, bar="read cifar10"):
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
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    train = ImageSet(x[:end], y[:end], CIFAR10)
    return train, ImageSet(x[end:], y[end:], CIFAR10)


def _batch(raw: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels of one pickle of Python 2, whose texts are bytes."""
    batch = unpickle(raw, name=name, encoding="bytes")
    batch = batch if isinstance(batch, dict) else {}
    images, labels = (np.asarray(batch.get(key)) for key in (b"data", b"labels"))
    fits = images.dtype == np.uint8 and images.shape == (BATCH, 3 * 32 * 32)
    fits &= labels.dtype == np.int64 and labels.shape == (BATCH,)
    if not fits or not LABELS.issuperset(labels.tolist()):
        raise AssetError(f"{name} must hold {BATCH} images and their labels.")
    return images.reshape(BATCH, 3, 32, 32), labels
