"""Images: no duplicate straddles the split; folders are read or refused."""

import io
import itertools
import math
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fmkit.assets import fetch, load_array
from fmkit.data.animals import (
    ANIMALS,
    DROPPED,
    SPLIT_FILE,
    TEST,
    TRAIN,
    load_animals,
)
from fmkit.data.folders import read_folder, read_unlabelled
from fmkit.data.images import ImageSet, shifted
from fmkit.data.labels import few_labels
from fmkit.data.load import load_images
from fmkit.runs.rerun import rerun
from tools import split_animals

CHAPTER = Path(__file__).parents[2] / "chapters" / "contrastive_learning.ipynb"


def random_images(*shape, rng):
    return torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)


# Sets


def test_a_subset_keeps_pictures_and_labels_together(rng):
    data = ImageSet(random_images(5, 1, 4, 4, rng=rng), torch.arange(5) % 2, ("a", "b"))
    chosen = data.subset(torch.tensor([3, 0]))
    assert len(chosen) == 2
    assert chosen.labels.tolist() == [1, 0]
    assert torch.equal(chosen.images[0], data.images[3])
    marked = data.subset(data.labels == 1)
    assert torch.equal(marked.images, data.images[[1, 3]])
    moved = data.to("meta")
    assert (moved.images.device.type, moved.labels.device.type) == ("meta", "meta")


def test_a_set_may_have_no_labels(rng):
    data = ImageSet(random_images(5, 1, 4, 4, rng=rng))
    assert (len(data), data.labels, data.classes) == (5, None, ())
    chosen = data.subset(torch.tensor([3, 0])).to("meta")
    assert (len(chosen), chosen.labels) == (2, None)
    assert chosen.images.device.type == "meta"


# Animals


@pytest.fixture(scope="module")
def published(asset_cache):
    files = fetch("animals")
    images = torch.from_numpy(load_array(files["images.gz"])).unsqueeze(1)
    return images, torch.from_numpy(load_array(files["labels.gz"]))


@pytest.fixture(scope="module")
def recomputed(published):
    return split_animals.split_animals(*published)


def test_the_split_on_disk_is_what_the_pictures_give(recomputed):
    assert SPLIT_FILE.read_text(encoding="utf-8").replace("\n", "") == recomputed
    assert Counter(recomputed) == {TRAIN: 7711, TEST: 1926, DROPPED: 363}


def test_no_duplicate_is_left_and_none_straddles(published):
    marks = np.array(list(SPLIT_FILE.read_text(encoding="utf-8").replace("\n", "")))
    flat = torch.nn.functional.normalize(published[0].flatten(1).float())
    mirrored = flat.unflatten(1, (28, 28)).flip(-1).flatten(1)
    train, test = (np.flatnonzero(marks == part) for part in (TRAIN, TEST))

    def most_alike(these, those):
        a, b, c = flat[these], flat[those], mirrored[those]
        cosine = torch.maximum(a @ b.T, a @ c.T)
        cosine[torch.tensor(these)[:, None] == torch.tensor(those)] = 0
        return cosine.max()

    assert 0.949 < most_alike(test, train) <= 0.95  # the bound is used
    assert 0.97 < most_alike(test, test) <= 0.98
    assert 0.97 < most_alike(train[::8], train) <= 0.98


def test_the_split_is_balanced_by_class(published, asset_cache):
    train, test = load_animals()
    kept = train.labels.bincount() + test.labels.bincount()
    assert test.labels.bincount().tolist() == [round(n / 5) for n in kept.tolist()]
    assert train.classes == test.classes == ANIMALS
    assert train.images.shape == (7711, 1, 28, 28)
    # Each picture of the sets is the published one of that label.
    of = {x.numpy().tobytes(): y for x, y in zip(*published, strict=True)}
    for part in (train, test):
        for i in range(0, len(part), 97):
            assert of[part.images[i].numpy().tobytes()] == part.labels[i]


def test_what_links_and_what_is_dropped(rng):
    base = random_images(4, 1, 12, 12, rng=rng)
    base[:, :, :, :6] //= 8  # so that no picture is like its mirror
    near = base[0].clone()
    near[0, 0, 9:] = 0  # cosine to base[0] between the two bounds
    images = torch.stack([base[0], base[1], base[0].flip(-1), near, base[2], base[3]])
    pairs, cosine = split_animals.similar_pairs(images, above=0.93)
    assert pairs.tolist() == [[0, 2], [0, 3], [2, 3]]
    a, b = images[0].flatten().tolist(), near.flatten().tolist()
    dot = sum(p * q for p, q in zip(a, b, strict=True))
    by_hand = dot / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))
    torch.testing.assert_close(cosine.tolist(), [1.0, by_hand, by_hand])
    assert 0.95 < by_hand < 0.98

    marks = split_animals.split_animals(images, torch.zeros(6, dtype=torch.int64))
    assert marks[2] == DROPPED  # the mirror of an earlier picture
    assert marks.count(DROPPED) == 1
    assert marks[0] == marks[3]  # one group, one side
    assert marks.count(TEST) == 1  # a fifth of the five that are kept


def test_groups_are_what_pairs_connect():
    pairs = torch.tensor([[4, 5], [1, 3], [0, 5], [3, 4]])
    assert split_animals._groups(7, pairs) == [[0, 1, 3, 4, 5], [2], [6]]


# Few labels


def test_few_labels_are_nested_and_even(rng):
    """In the notes: few-shot learning."""
    labels = torch.randint(0, 3, (60,), generator=rng)
    draws = {}
    for k in (1, 2, 5, 10):
        generator = torch.Generator().manual_seed(7)
        draws[k] = few_labels(labels, per_class=k, generator=generator)
        assert labels[draws[k]].bincount().tolist() == [k, k, k]
        assert len(draws[k].unique()) == 3 * k
    for fewer, more in itertools.pairwise(draws.values()):
        assert torch.equal(more[: len(fewer)], fewer)


def test_every_picture_is_drawn_as_often(rng):
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    draws = [few_labels(labels, per_class=1, generator=rng) for _ in range(600)]
    counts = torch.cat(draws).bincount()
    # Each has probability 1/3; four standard deviations of 600 draws are 46.
    assert ((counts - 200).abs() < 46).all()


def test_few_labels_refuses_none_and_too_many(rng):
    labels = torch.tensor([0, 0, 0, 1, 1])
    with pytest.raises(ValueError, match="at least 1, so n_task at least 2, got 0"):
        few_labels(labels, per_class=0, generator=rng)
    with pytest.raises(ValueError, match="at most 2, the examples of the smallest"):
        few_labels(labels, per_class=3, generator=rng)


# Shifts


def test_thicken_is_the_maximum_of_the_neighbours(rng):
    images = random_images(2, 1, 5, 6, rng=rng)
    thick = shifted(images, "thicken")
    for n, i, j in itertools.product(range(2), range(5), range(6)):
        around = images[n, 0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
        assert thick[n, 0, i, j] == around.max()


def test_rotate_turns_counterclockwise_by_30_degrees():
    images = torch.zeros(1, 1, 41, 61, dtype=torch.uint8)  # not square: angles hold
    images[0, 0, 19:22, 44:47] = 255  # 15 to the right of the centre (20, 30)
    turned = shifted(images, "rotate")[0, 0].double()
    rows, columns = torch.meshgrid(torch.arange(41), torch.arange(61), indexing="ij")
    row, column = (float((turned * x).sum() / turned.sum()) for x in (rows, columns))
    assert row == pytest.approx(20 - 15 * math.sin(math.radians(30)), abs=0.05)
    assert column == pytest.approx(30 + 15 * math.cos(math.radians(30)), abs=0.05)


def test_rotate_leaves_even_ground_as_it_is():
    images = torch.arange(256, dtype=torch.uint8)[:, None, None, None]
    turned = shifted(images.expand(-1, 1, 9, 9), "rotate")
    assert torch.equal(turned[:, :, 3:6, 3:6], images.expand(-1, 1, 3, 3))


def test_invert_is_its_own_inverse(rng):
    images = random_images(2, 3, 4, 4, rng=rng)
    assert torch.equal(shifted(images, "invert").int(), 255 - images.int())
    assert torch.equal(shifted(shifted(images, "invert"), "invert"), images)


def test_an_unknown_shift_lists_the_known():
    images = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="be one of thicken, rotate, invert, got 'up'"):
        shifted(images, "up")


# Folders


def encoded(color=(10, 200, 30), mode="RGB", sides=(8, 6), kind="PNG"):
    file = io.BytesIO()
    Image.new(mode, sides, color).save(file, kind)
    return file.getvalue()


GOOD = {
    f"{split}/{kind}/{i}.png": encoded(color=(10 * i, label, 0))
    for split in ("train", "test")
    for label, kind in enumerate(("cat", "dog"))
    for i in range(3)
}


def as_folder(path, files):
    for name, content in files.items():
        target = path / name
        if name.endswith("/"):
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    return path


def as_zip(path, files):
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path.with_suffix(".zip")


@pytest.fixture(params=[as_folder, as_zip])
def make(request, tmp_path):
    return lambda files: request.param(tmp_path / "pictures", files)


@pytest.mark.parametrize("around", ["", "my pictures/"])
def test_a_folder_or_zip_is_read(make, around):
    names = (".DS_Store", "train/.git/x", "test/cat/._0.png", "train/cat/Thumbs.db")
    litter = dict.fromkeys(names, b"")
    files = {around + name: content for name, content in (GOOD | litter).items()}
    files |= {"__MACOSX/train/cat/._0.png": b"", around + "README.txt": b"Hello"}
    read = read_folder(make(files))
    assert set(read) == {"train", "test"}
    for part in read.values():
        assert part.classes == ("cat", "dog")
        assert part.images.shape == (6, 3, 6, 8)
        assert part.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert part.images[:, 0, 0, 0].tolist() == [0, 10, 20, 0, 10, 20]
        assert torch.equal(part.images[:, 1, 5, 7].long(), part.labels)


def test_grey_stays_one_channel_only_where_all_are(make):
    grey = {name: encoded(color=77, mode="L") for name in GOOD}
    assert read_folder(make(grey))["test"].images.unique().tolist() == [77]
    assert read_folder(make(grey))["test"].images.shape[1] == 1
    mixed = grey | {"train/dog/1.png": encoded()}
    read = read_folder(make(mixed))
    assert (read["train"].images[0] == 77).all()
    assert read["test"].images.shape[1] == 3


def test_transparent_pixels_become_white(make):
    clear = encoded(color=(0, 0, 0, 0), mode="RGBA")
    assert (read_folder(make({n: clear for n in GOOD}))["test"].images == 255).all()


def test_a_camera_held_upright_is_honoured(make):
    file, turned = io.BytesIO(), Image.Exif()
    turned[0x0112] = 6  # orientation: turn by 90 degrees clockwise to show
    Image.new("RGB", (8, 6)).save(file, "JPEG", exif=turned)
    read = read_folder(make({name: file.getvalue() for name in GOOD}))
    assert read["train"].images.shape == (6, 3, 8, 6)


def test_size_scales_and_cuts_out_the_middle(make):
    stripes = np.zeros((40, 80), np.uint8)
    stripes[:, 20:60] = np.arange(40) % 2 * 255  # the middle, finer than the result
    file = io.BytesIO()
    Image.fromarray(stripes).save(file, "PNG")
    read = read_folder(make({name: file.getvalue() for name in GOOD}), size=10)
    assert read["test"].images.shape == (6, 1, 10, 10)
    inner = read["test"].images[:, :, :, 1:-1].float()
    assert (inner - 127.5).abs().max() < 15  # antialiased: grey, not black or white


FLAT = {f"{i:02}.png": encoded(color=(i, 0, 0)) for i in range(12)}
SPLIT = {f"train/{name}": content for name, content in FLAT.items()}


def reds(images):
    return images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("around", ["", "photos/"])
@pytest.mark.parametrize("files", [FLAT, SPLIT])
def test_images_need_no_classes(make, around, files):
    other = {"README.txt": b"Hello", ".DS_Store": b"", "__MACOSX/._00.png": b""}
    files = {around + name: content for name, content in (files | other).items()}
    path = make(files)
    [(split, data)] = read_folder(path).items()
    assert (split, data.labels, data.classes) == ("train", None, ())
    assert data.images.shape == (12, 3, 6, 8)
    assert reds(data.images) == [*range(12)]
    train, test = load_images(path, size=4)  # every tenth is for the test
    assert (len(train), len(test)) == (10, 2)
    assert (reds(train.images), reds(test.images)) == ([*range(1, 10), 11], [0, 10])
    assert (train.labels, test.labels, train.classes) == (None, None, ())
    assert train.images.shape[1:] == (3, 4, 4)


def test_a_split_without_classes_is_kept(make):
    path = make(SPLIT | {"test/a.png": encoded((90, 0, 0)), "cover.png": b"no image"})
    train, test = load_images(path)
    assert (reds(train.images), reds(test.images)) == ([*range(12)], [90])


def test_a_chapter_pretrains_without_labels(tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(40):
        pixels = generator.integers(0, 256, (20, 24, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i:02}.png")
    given = {"data": str(tmp_path / "photos"), "steps": 2, "batch_size": 8}
    record = rerun(CHAPTER, tmp_path / "out", given=given | {"picture_size": 16})
    assert record["status"] == "finished"
    measured = {name.split("/")[1] for name in record["metrics"]}
    assert {"loss", "uniformity"} <= measured
    assert not {"probe", "knn", "finetune"} & measured  # these need labels
    text = (tmp_path / "out" / CHAPTER.name).read_text(encoding="utf-8")
    assert text.count("No labels: each image is its own class; probes and") == 2
    # one line in the code, and one in its output


def test_a_single_image_cannot_be_split(make):
    with pytest.raises(ValueError, match="data must have at least 2 images, got 1"):
        load_images(make({"a.png": encoded()}))


def test_labels_can_be_left_aside(make, tmp_path):
    path = make(GOOD | {"notes.txt": b"text", "train/cat/Thumbs.db": b""})
    images = read_unlabelled(path)
    assert reds(images) == [0, 10, 20] * 4  # test and train, in the order of names
    assert read_unlabelled(path, size=3).shape == (12, 3, 3, 3)
    if path.is_dir():
        assert torch.equal(read_unlabelled(path / "train"), images[6:])
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"path .*hold images, got .* 0 files"):
        read_unlabelled(tmp_path / "none")


CAT, DOG = ({n: c for n, c in GOOD.items() if kind in n} for kind in ("cat", "dog"))
BAD = [
    ({}, "hold images as split/class/image.*, got 'no image among 0 files'"),
    ({"train/": b"", "readme.txt": b""}, "hold images as .* 1 files.*readme.txt"),
    ({"cat/0.png": encoded(), "dog/0.png": encoded()}, "train/image.*'cat/0.png'"),
    ({"0.png": b"text"}, r"can be read.*'0.png' \(cannot identify image file\)\."),
    ({"0.png": encoded(), "1.png": encoded(sides=(8, 7))}, "size must be given, since"),
    (GOOD | {"train/cat/deep/er.png": b""}, "image, got 'train/cat/deep/er.png'"),
    (CAT, r"at least 2 classes, got \('cat',\)"),
    (CAT | {"train/dog/": b"", "test/dog/": b""}, r"none in \['\w+/dog'"),
    (CAT | {"train/dog/": b""}, "must have the same classes in"),
    (GOOD | {"test/dog/9.png": b"text"}, "'test/dog/9.png' .*cannot identify"),
    (GOOD | {"test/dog/9.jpg": encoded(kind="JPEG")[:-60]}, "9.jpg' .*[Tt]runcated"),
    (GOOD | {"test/dog/9.heic": b"unknown"}, "'test/dog/9.heic' .*cannot identify"),
    (
        GOOD | {"a/cat/0.png": encoded(), "a/dog/0.png": encoded(9, "I;16")},
        "'a/dog/0.png' .*I;16 has more than 8 bits",
    ),
    (GOOD | {"docs/a/b/c/0.png": encoded()}, "image, got 'docs/a/b/c/0.png'"),
    ({f"x/{n}": c for n, c in GOOD.items()} | {"y/a/0.png": b""}, "got 'y/a/0.png'"),
    (GOOD | {"test/dog/9.png": encoded(sides=(8, 7))}, "size must be given, since"),
]


@pytest.mark.parametrize(("files", "message"), BAD)
def test_what_is_wrong_in_a_folder_is_named(make, tmp_path, files, message):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(ValueError, match=message):
        read_folder(make(files))


def test_a_damaged_zip_member_is_named(tmp_path):
    path = as_zip(tmp_path / "pictures", GOOD)
    raw = bytearray(path.read_bytes())
    raw[raw.index(GOOD["train/dog/1.png"]) + 40] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"that can be read.*'train/dog/1.png'"):
        read_folder(path)


def test_a_path_must_be_a_folder_or_zip(tmp_path):
    with pytest.raises(ValueError, match=r"a zip that exists, got '.*gone'"):
        read_folder(tmp_path / "gone")
    (tmp_path / "text.zip").write_text("no zip", encoding="utf-8")
    with pytest.raises(ValueError, match="a whole zip or a folder, got"):
        read_folder(tmp_path / "text.zip")
    with pytest.raises(ValueError, match="size must be at least 1 pixel, got 0"):
        read_folder(tmp_path, size=0)


def test_cifar10_is_read_as_it_lies(mirror, tmp_path):
    with zipfile.ZipFile(mirror / "cifar10-jpeg.zip") as archive:
        few = [n for n in archive.namelist() if n.endswith("00.jpg")]  # a hundredth
        path = as_zip(tmp_path / "few", {name: archive.read(name) for name in few})
    read = read_folder(path)
    assert read["train"].images.shape == (500, 3, 32, 32)
    assert read["test"].labels.bincount().tolist() == [10] * 10
    assert read["test"].classes[::9] == ("airplane", "truck")
