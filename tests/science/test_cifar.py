"""CIFAR-10 in both forms, and sets of images by name or path."""

import gzip
import io
import os
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from fmkit.assets import ASSETS, AssetError
from fmkit.data import cifar
from fmkit.data.cifar import CIFAR10, load_cifar10_jpeg, read_batches
from fmkit.data.folders import read_folder
from fmkit.data.load import SETS, load_images

# The published form: pickles as Python 2 and numpy 1 wrote them, opcode by opcode


def text2(content):
    """SHORT_BINSTRING or BINSTRING: a `str` of Python 2, which is bytes."""
    if len(content) < 256:
        return b"U" + struct.pack("<B", len(content)) + content
    return b"T" + struct.pack("<i", len(content)) + content


def integer2(n):
    if 0 <= n < 256:
        return b"K" + struct.pack("<B", n)  # BININT1
    return b"J" + struct.pack("<i", n)  # BININT


def list2(items):
    return b"](" + b"".join(items) + b"e"  # EMPTY_LIST MARK … APPENDS


def array2(array):
    shape = b"".join(map(integer2, array.shape))
    kind = text2(array.dtype.str[1:].encode())
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n"
        b"cnumpy\nndarray\n" + integer2(0) + b"\x85" + text2(b"b") + b"\x87R"
        b"(" + integer2(1) + b"(" + shape + b"t"
        b"cnumpy\ndtype\n" + kind + integer2(0) + integer2(1) + b"\x87R"
        b"(" + integer2(3) + text2(b"|") + b"NNN" + integer2(-1) * 2 + integer2(0)
        + b"tb" + b"\x89" + text2(array.tobytes()) + b"tb"
    )  # fmt: skip


def dict2(items):
    pairs = (text2(key) + value for key, value in items.items())
    return b"\x80\x02}(" + b"".join(pairs) + b"u."  # PROTO 2, EMPTY_DICT, … SETITEMS


BATCH = 4  # pictures in each file here


def batch2(images, labels):
    return dict2(
        {
            b"batch_label": text2(b"training batch 1 of 5"),
            b"labels": list2(map(integer2, labels)),
            b"data": array2(images),
            b"filenames": list2([text2(b"leptodactylus_s_000004.png")] * len(labels)),
        }
    )


@pytest.fixture
def arrays(monkeypatch):
    """Six batches of random pictures; the archive's is the order of the real one."""
    monkeypatch.setattr(cifar, "BATCH", BATCH)
    generator = np.random.default_rng(0)
    names = [f"data_batch_{i}" for i in (4, 3, 2, 5, 1)]
    names.insert(1, "test_batch")
    return {
        name: (
            generator.integers(0, 256, (BATCH, 3072)).astype(np.uint8),
            generator.integers(0, 10, BATCH).tolist(),
        )
        for name in names
    }


def as_tar(path, members):
    members = {"readme.html": b"<html>", "batches.meta": dict2({})} | members
    with tarfile.open(path, "w:gz") as archive:
        folder = tarfile.TarInfo("cifar-10-batches-py")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in members.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def batches(arrays):
    return {name: batch2(*batch) for name, batch in arrays.items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cifar-10-python.tar.gz"


def test_pickles_of_python_2_are_read(arrays, batches, path):
    train, test = read_batches(as_tar(path, batches))
    assert (train.images.shape, test.images.shape) == ((20, 3, 32, 32), (4, 3, 32, 32))
    assert train.classes == test.classes == CIFAR10
    for i in range(1, 6):
        images, labels = arrays[f"data_batch_{i}"]
        part = train.subset(torch.arange((i - 1) * BATCH, i * BATCH))
        assert part.labels.tolist() == labels
        # A row is 1,024 red, then green, then blue pixels, line after line.
        for n, c, h, w in ((0, 0, 0, 0), (1, 0, 0, 31), (2, 1, 5, 7), (3, 2, 31, 30)):
            assert part.images[n, c, h, w] == images[n, 1024 * c + 32 * h + w]
    images, labels = arrays["test_batch"]
    assert test.labels.tolist() == labels
    np.testing.assert_array_equal(test.images.flatten(1), images)


def reads(path, *said):
    with pytest.raises(AssetError) as raised:
        read_batches(path)
    message = str(raised.value)
    assert "\n" not in message
    assert message.endswith(".")
    for part in said:
        assert part in message, message


def test_a_malicious_pickle_is_refused(batches, path, tmp_path):
    made = tmp_path / "made"
    command = f"(S'{made}'\nt".encode()
    bomb = b"\x80\x02c" + os.name.encode() + b"\nmkdir\n" + command + b"R."
    batches["data_batch_2"] = bomb
    reads(as_tar(path, batches), f"names {os.name}.mkdir, which is refused")
    assert not made.exists()
    batches["data_batch_2"] = b"\x80\x02c__builtin__\neval\n(S'1'\ntR."
    reads(as_tar(path, batches), "names __builtin__.eval, which is refused")


def test_a_missing_member_is_named(batches, path):
    del batches["data_batch_5"]
    reads(as_tar(path, batches), f"{path.name} has no member", "/data_batch_5.")


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.999])
def test_a_truncated_archive(batches, path, kept):
    raw = as_tar(path, batches).read_bytes()
    path.write_bytes(raw[: int(kept * len(raw))])
    reads(path, f"{path.name} is damaged")


def test_an_archive_damaged_inside_a_member(path):
    plain = gzip.decompress(
        as_tar(path, {"data_batch_4": bytes(1_000_000)}).read_bytes()
    )
    packer = zlib.compressobj(wbits=31)  # gzip's form
    half = packer.compress(plain[:500_000]) + packer.flush(zlib.Z_FULL_FLUSH)
    path.write_bytes(half + b"\x07" * 100)  # a kind of block that does not exist
    reads(path, f"{path.name} is damaged", "invalid block type")


def test_no_archive(path):
    path.write_bytes(b"<html>Please sign in.</html>")
    reads(path, f"{path.name} is damaged", "not a gzip file")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02](K\x01K\x02e.",
        dict2({b"labels": list2(map(integer2, range(BATCH)))}),
        batch2(np.zeros((BATCH, 3071), np.uint8), range(BATCH)),
        batch2(np.zeros((BATCH + 1, 3072), np.uint8), range(BATCH)),
        batch2(np.zeros((BATCH, 3072), np.uint8), range(BATCH + 1)),
        batch2(np.zeros((BATCH, 3072), np.float32), range(BATCH)),
        batch2(np.zeros((BATCH, 3072), np.uint8), [0, 1, 2, 10]),
    ],
)
def test_a_pickle_of_something_else(batches, path, content):
    batches["data_batch_3"] = content
    reads(as_tar(path, batches), "/data_batch_3 must hold 4 images and their labels")


def test_a_pickle_that_breaks_off(batches, path):
    batches["data_batch_3"] = batches["data_batch_3"][:-100]
    reads(as_tar(path, batches), "/data_batch_3 is no whole pickle")


# The whole of CIFAR-10, as JPEG


def test_cifar10_as_jpeg_is_whole(mirror, asset_cache):
    train, test = load_cifar10_jpeg()
    assert train.classes == test.classes == CIFAR10
    assert (train.images.shape, test.images.shape) == (
        (50_000, 3, 32, 32),
        (10_000, 3, 32, 32),
    )
    assert train.labels.bincount().tolist() == [5000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    # The mean of the published training set, known to three digits; JPEG keeps it.
    mean = train.images.numpy().mean(axis=(0, 2, 3)) / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], rtol=0, atol=1e-3)
    assert not list(asset_cache.glob("*cifar*"))  # used where it lies, without a copy
    published = mirror / "cifar10-jpeg.zip"
    assert published.stat().st_size == ASSETS["cifar10-jpeg"].size


# Sets by name


def write_images(path, splits=("train", "test"), *, side=12):
    generator = np.random.default_rng(0)
    for split in splits:
        for i, kind in enumerate(("cat", "dog", "cat", "dog")):
            (path / split / kind).mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 256, (side, side, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(path / split / kind / f"{i}.png")
    return path


def test_a_set_is_loaded_by_name(asset_cache):
    train, test = load_images("animals")
    assert (len(train), len(test)) == (7711, 1926)
    assert train.images.shape[1:] == (1, 28, 28)


def test_each_name_leads_to_its_own_set(monkeypatch, arrays, batches, path):
    assert SETS["cifar10-jpeg"] is load_cifar10_jpeg
    files = {"cifar-10-python.tar.gz": as_tar(path, batches)}
    monkeypatch.setattr(cifar, "fetch", {"cifar10": files}.get)
    train, test = load_images("cifar10", device="cpu")
    assert (len(train), len(test)) == (20, 4)
    assert test.labels.tolist() == arrays["test_batch"][1]


@pytest.mark.parametrize("form", ["folder", "zip", "home"])
def test_a_path_is_loaded(tmp_path, monkeypatch, form):
    folder = write_images(tmp_path / "own", ("test", "train", "validation"))
    name = str(folder)
    if form == "zip":
        name = str(tmp_path / "own.zip")
        with zipfile.ZipFile(name, "w") as archive:
            for file in folder.rglob("*.png"):
                archive.write(file, file.relative_to(folder))
    if form == "home":
        monkeypatch.setenv("HOME", str(tmp_path))
        name = "~/own"
    splits = read_folder(folder, size=8)
    for part, split in zip(load_images(name, size=8), ("train", "test"), strict=True):
        assert torch.equal(part.images, splits[split].images)
        assert part.images.shape == (4, 3, 8, 8)
        assert part.labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("size", [9, 40])
def test_a_named_set_is_scaled_as_a_path_is(tmp_path, monkeypatch, size):
    splits = read_folder(write_images(tmp_path / "own", side=16))
    named = lambda: (splits["train"], splits["test"])  # noqa: E731
    monkeypatch.setitem(SETS, "animals", named)
    expected = read_folder(tmp_path / "own", size=size)["test"].images
    scaled = load_images("animals", size=size)[1].images
    assert scaled.dtype == torch.uint8
    assert (scaled.int() - expected.int()).abs().max() <= 1  # rounded elsewhere
    assert load_images("animals", size=16)[1].images is splits["test"].images  # no copy


def test_what_is_loaded_goes_to_the_device(tmp_path):
    path = str(write_images(tmp_path / "own"))
    for part in load_images(path, device="meta"):
        assert (part.images.device.type, part.labels.device.type) == ("meta", "meta")


def test_what_is_no_set_is_one_sentence(tmp_path):
    rule = "data must be one of animals, cifar10, cifar10-jpeg, or a folder or a zip"
    with pytest.raises(ValueError, match=rf"{rule} that exists, got 'animal'\.$"):
        load_images("animal")
    path = write_images(tmp_path / "own", ("train", "val"))
    with pytest.raises(ValueError, match=r"splits train and test, got \('train', 'va"):
        load_images(str(path))
    with pytest.raises(ValueError, match="size must be at least 1 pixel, got 0"):
        load_images("animals", size=0)
