"""Folders and zips as people's tools make them are read, or refused with the reason."""

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from fmkit.data.folders import UPRIGHT, read_folder
from fmkit.data.load import load_images
from fmkit.data.text import load_corpus
from fmkit.runs.rerun import rerun

CHAPTERS = Path(__file__).parents[2] / "chapters"


def png(*colour, sides=(8, 6)):
    file = io.BytesIO()
    Image.new("RGB", sides, colour).save(file, "PNG")
    return file.getvalue()


FILES = {
    f"{split}/{kind}/{i}.png": png(10 * i, label, 0)
    for split in ("train", "test")
    for label, kind in enumerate(("cat", "dog"))
    for i in range(3)
}


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def zipped(path, files, system=3):
    """A zip whose names are exactly these, as made on a system: 3 Unix, 0 Windows."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo("x")
            info.filename, info.create_system = name, system
            archive.writestr(info, content)
    return path


def reds(data):
    return data.images[:, 0, 0, 0].tolist()


def is_whole(read):
    assert set(read) == {"train", "test"}
    for part in read.values():
        assert part.classes == ("cat", "dog")
        assert reds(part) == [0, 10, 20, 0, 10, 20]
        assert torch.equal(part.images[:, 1, 5, 7].long(), part.labels)
    return True


# Links


@pytest.mark.parametrize("level", ["data", "split", "class", "image"])
def test_links_are_followed(tmp_path, level):
    store, data = write(tmp_path / "store", FILES), tmp_path / "data"
    if level == "data":
        data.symlink_to(store)
    depth = {"data": 0, "split": 1, "class": 2, "image": 3}[level]
    for name in FILES if depth else ():
        part = name.split("/")[:depth]
        place = data.joinpath(*part)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.is_symlink():
            place.symlink_to(store.joinpath(*part))
    assert is_whole(read_folder(data))


def test_a_link_to_a_folder_around_is_not_entered(tmp_path):
    data = write(tmp_path / "data", FILES)
    (data / "train" / "cat" / "up").symlink_to(data)
    (data / "self").symlink_to(data)
    assert is_whole(read_folder(data))


def test_one_folder_may_be_linked_twice(tmp_path):
    store = write(tmp_path / "store", {"cat/0.png": png(1), "dog/0.png": png(2)})
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        (data / split).symlink_to(store)
    read = read_folder(data)
    assert reds(read["train"]) == reds(read["test"]) == [1, 2]


def test_a_link_to_nothing_is_named(tmp_path):
    data = write(tmp_path / "data", FILES)
    (data / "train" / ".#lock").symlink_to("nobody@nowhere")  # of an editor
    assert is_whole(read_folder(data))
    (data / "train" / "cow").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"link .*train/cow must .*, got '.*gone'"):
        read_folder(data)
    (data / "train" / "cow").unlink()
    (data / "train" / "cow").symlink_to("cow")
    with pytest.raises(ValueError, match=r"link .*train/cow must .*, got 'cow'"):
        read_folder(data)


def test_a_link_to_no_file_is_a_file_that_cannot_be_read(tmp_path):
    data = write(tmp_path / "data", FILES)
    (data / "train" / "cat" / "notes.txt").symlink_to("gone")
    assert is_whole(read_folder(data))
    (data / "train" / "cat" / "9.png").symlink_to("gone")
    with pytest.raises(ValueError, match=r"9.png.*No such file"):
        read_folder(data)
    with pytest.warns(UserWarning, match=r"9.png"):
        assert is_whole(read_folder(data, skip_unreadable=True))


def test_linked_texts_are_read(tmp_path):
    texts = {f"{i}.txt": f"text {i} and no other".encode() for i in range(4)}
    store = write(tmp_path / "store", texts)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "books").symlink_to(store)
    (tmp_path / "data" / "books" / "all").symlink_to(tmp_path / "data")
    train, test = load_corpus(tmp_path / "data")
    assert {d.group for d in train + test} == {f"books/{name}" for name in texts}


# Hidden files, foreign files


LITTER = (".DS_Store", "a/._0.png", ".git/x.png", "a/.ipynb_checkpoints/0.png")
LITTER += ("__MACOSX/a/0.png", "a/Thumbs.db", "@eaDir/0.png/THUMB.jpg")
LITTER += ("#recycle/a.png", "System Volume Information/a.png", "lost+found/a.png")


def test_one_rule_for_images_and_texts(tmp_path):
    """What is left out among images is left out among texts."""
    foreign = {"train/cat/labels.csv": b"a", "train/notes.md": b"b", "LICENSE": b"c"}
    litter = {f"train/cat/{name}": b"\xff no image" for name in LITTER}
    assert is_whole(read_folder(write(tmp_path / "images", FILES | foreign | litter)))

    texts = {f"{i}.TXT": f"text {i} and no other".encode() for i in range(4)}
    litter = {f"{name}.txt": b"\xff no text" for name in LITTER if "Thumbs" not in name}
    table = {"table.csv": b"\xff", "image.png": png(0)}
    train, test = load_corpus(write(tmp_path / "texts", texts | litter | table))
    assert {d.group for d in train + test} == set(texts)


def test_images_may_lack_suffixes_if_all_do(tmp_path):
    bare = {name.removesuffix(".png"): content for name, content in FILES.items()}
    assert is_whole(read_folder(write(tmp_path / "bare", bare)))
    with_readme = write(tmp_path / "named", FILES | {"train/cat/README": b"text"})
    assert is_whole(read_folder(with_readme))


# Zips and folders around


AROUND = ["", "pics/", "download/pics/", "a/b/c/"]


@pytest.mark.parametrize("around", [*AROUND, "test/", "a/train/"])
@pytest.mark.parametrize("slash", ["/", "\\"])
def test_zips_of_any_tool(tmp_path, around, slash):
    files = {(around + name).replace("/", slash): raw for name, raw in FILES.items()}
    folders = {(around + "train/").replace("/", slash): b""}
    beside = {"README.md": b"x", "cover.png": b"no image", "__MACOSX/._x.png": b""}
    assert is_whole(read_folder(zipped(tmp_path / "x.zip", files | folders | beside)))


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("split", ["", "train/"])
def test_folders_around_unlabelled_images(tmp_path, around, split):
    files = {f"{around}{split}{i}.png": png(i) for i in range(5)}
    train, test = load_images(write(tmp_path / "x", files | {"README.md": b"x"}))
    assert (reds(train), reds(test)) == ([1, 2, 3, 4], [0])


def test_a_class_may_have_the_name_of_a_split(tmp_path):
    names = {name.replace("/dog/", "/train/"): raw for name, raw in FILES.items()}
    for around in ("", "pics/"):
        files = {around + name: raw for name, raw in names.items()}
        read = read_folder(write(tmp_path / f"x{around}", files))
        assert read["test"].classes == ("cat", "train")
        assert reds(read["test"]) == [0, 10, 20, 0, 10, 20]


def test_names_from_the_root_of_a_zip(tmp_path):
    files = {f"/data/{name}": raw for name, raw in FILES.items()}
    assert is_whole(read_folder(zipped(tmp_path / "x.zip", files)))


def test_a_broken_zip_is_refused(tmp_path):
    path = zipped(tmp_path / "x.zip", FILES)
    raw = bytearray(path.read_bytes())
    raw[raw.rindex(b"PK\x01\x02")] ^= 1  # the list of members
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"x.zip cannot be read \(Bad magic number"):
        read_folder(path)


# Metadata


def exif(*entries, blob=b""):
    """An EXIF block: entries (tag, kind, count, four bytes), then `blob`."""
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0" + head + body + struct.pack("<I", 0) + blob


TURNED = (0x0112, 3, 1, struct.pack("<HH", 6, 0))
NEGATIVE = (0x011A, 10, 1, struct.pack("<I", 38))  # an XResolution of -1/0
ODD = {
    "negative": exif(TURNED, NEGATIVE, blob=struct.pack("<ii", -1, 0)),
    "beyond the end": exif(TURNED, (0x010E, 2, 999, struct.pack("<I", 9999))),
    "unknown kind": exif(TURNED, (0x9999, 77, 1, b"abcd")),
    "offset of a block": exif(TURNED, (0x8769, 4, 1, struct.pack("<I", 99999))),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_metadata_do_not_stop_an_image(tmp_path, name):
    file = io.BytesIO()
    Image.new("RGB", (8, 6)).save(file, "JPEG", exif=ODD[name])
    data = write(tmp_path / "x", {f"{i}.jpg": file.getvalue() for i in range(2)})
    assert read_folder(data)["train"].images.shape == (2, 3, 8, 6)  # it is turned


@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0rubbish", exif(TURNED)[:20]])
def test_metadata_without_an_orientation(tmp_path, block):
    file = io.BytesIO()
    Image.new("RGB", (8, 6)).save(file, "JPEG", exif=block)
    data = write(tmp_path / "x", {f"{i}.jpg": file.getvalue() for i in range(2)})
    assert read_folder(data)["train"].images.shape == (2, 3, 6, 8)


def test_a_large_profile_does_not_stop_an_image(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (8, 6)).save(file, "PNG", icc_profile=bytes(3_000_000))
    data = write(tmp_path / "x", {f"{i}.png": file.getvalue() for i in range(2)})
    assert len(read_folder(data)["train"]) == 2


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_orientations(tmp_path, orientation, kind):
    """Each is turned as the standard says; 0 and 9 mean nothing."""
    shown = torch.arange(6, dtype=torch.uint8).view(2, 3) * 40
    stored = {  # how a camera in that position stores it
        2: shown.flip(1),
        3: shown.flip(0, 1),
        4: shown.flip(0),
        5: shown.T,
        6: shown.T.flip(0),
        7: shown.T.flip(0, 1),
        8: shown.T.flip(1),
    }.get(orientation, shown)
    assert (orientation in UPRIGHT) == (2 <= orientation <= 8)
    file, tags = io.BytesIO(), Image.Exif()
    tags[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(stored.numpy()).save(file, kind, exif=tags, **options)
    data = write(tmp_path / "x", {f"{i}.{kind}": file.getvalue() for i in range(2)})
    assert torch.equal(read_folder(data)["train"].images[0, 0], shown)


# Images that cannot be read


def huge():
    """A file whose head promises 196 million pixels."""
    head = struct.pack(">IIBBBBB", 14000, 14000, 1, 0, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(raw))
        + kind
        + raw
        + struct.pack(">I", zlib.crc32(kind + raw))
        for kind, raw in parts
    )


BROKEN = {
    "text": (b"a,b", "cannot identify image file"),
    "nothing": (b"", "cannot identify image file"),
    "cut off": (png(1, sides=(300, 300))[:90], "[Tt]runcated|broken"),
    "huge": (huge(), "196000000 pixels.* exceeds limit"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_reason_is_given_or_the_image_left_out(tmp_path, name):
    content, reason = BROKEN[name]
    data = write(tmp_path / "x", FILES | {"train/cat/9.png": content})
    with pytest.raises(ValueError, match=rf"got 'train/cat/9.png' \(.*({reason})") as e:
        read_folder(data)
    assert " at 0x" not in str(e.value)  # no address of an object
    named = rf"1 of 13 images .*left out: 'train/cat/9.png' \(.*({reason})"
    with pytest.warns(UserWarning, match=named):
        read = read_folder(data, skip_unreadable=True)
    assert is_whole(read)
    with pytest.warns(UserWarning, match=named):
        train, _ = load_images(data, skip_unreadable=True)
    assert len(train) == 6


def test_a_class_must_keep_an_image(tmp_path):
    broken = {name: b"" for name in FILES if name.startswith("test/dog")}
    data = write(tmp_path / "x", FILES | broken)
    with (
        pytest.warns(UserWarning, match="3 of 12 images"),
        pytest.raises(ValueError, match=r"path must hold an image .* \['test/dog'\]"),
    ):
        read_folder(data, skip_unreadable=True)


def test_the_warning_names_no_more_than_can_be_read(tmp_path):
    files = {f"{i:02}.png": b"" if i < 30 else png(i) for i in range(40)}
    with pytest.warns(UserWarning, match="30 of 40 .*'19.png' .*; and 10 more") as said:
        load_images(write(tmp_path / "x", files), skip_unreadable=True)
    assert "20.png" not in str(said[0].message)


# Names of classes


def test_names_are_utf8_or_refused(tmp_path):
    data = write(tmp_path / "x", FILES)
    for split in ("train", "test"):
        place = os.fsencode(data / split)
        os.rename(place + b"/cat", place + b"/caf\xe9")
    with pytest.raises(ValueError, match=r"path must .* UTF-8, got b'caf\\xe9'"):
        read_folder(data)
    for split in ("train", "test"):
        place = os.fsencode(data / split)
        os.rename(place + b"/caf\xe9", place + "/猫".encode())
    assert read_folder(data)["test"].classes == ("dog", "猫")


def test_names_of_files_need_not_be_utf8(tmp_path):
    data = write(tmp_path / "x", FILES)
    place = os.fsencode(data / "train" / "cat")
    os.rename(place + b"/0.png", place + b"/0\xe9.png")
    assert len(read_folder(data)["train"]) == 6
    os.rename(place + b"/1.png", place + b"/1\xe9.png")
    (data / "train" / "cat" / "2.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"got 'train/cat/2.png'"):
        read_folder(data)
    texts = write(tmp_path / "t", {f"{i}.txt": f"text {i}".encode() for i in range(3)})
    os.rename(os.fsencode(texts) + b"/0.txt", os.fsencode(texts) + b"/\xe9.txt")
    assert len([d for part in load_corpus(texts) for d in part]) == 3


def test_a_zip_of_a_mac_has_utf8_without_the_flag(tmp_path):
    raw = {name.replace("/cat/", "/猫/"): x for name, x in FILES.items()}
    path = zipped(tmp_path / "x.zip", raw)
    assert read_folder(path)["test"].classes == ("dog", "猫")
    content = bytearray(path.read_bytes())
    for sign, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # flags of a member
        at = content.find(sign)
        while at >= 0:
            content[at + place + 1] &= ~0x08
            at = content.find(sign, at + 1)
    path.write_bytes(content)
    assert read_folder(path)["test"].classes == ("dog", "猫")


def test_a_zip_in_another_code_is_refused(tmp_path):
    """Windows in Chinese writes GBK, and no flag says so."""
    path = zipped(tmp_path / "x.zip", FILES, system=0)
    raw = path.read_bytes().replace(b"/dog/", b"/" + "猫".encode("gbk") + b"g/")
    path.write_bytes(raw)  # these two bytes are a letter of UTF-8 as well
    with pytest.raises(ValueError, match=r"UTF-8, got b'\\xc3\\xa8g'"):
        read_folder(path)
    raw = (
        path.read_bytes()
        .replace(b"\xc3\xa8g/0", b"dog/\xe9")
        .replace(b"\xc3\xa8", b"do")
    )
    path.write_bytes(raw)  # in names of files they do no harm
    assert len(read_folder(path)["train"]) == 6


def test_letters_of_two_characters_are_one_class(tmp_path):
    names = {"train": "caf\u00e9", "test": "cafe\u0301"}
    files = {n.replace("cat", names[n.split("/")[0]]): x for n, x in FILES.items()}
    assert read_folder(write(tmp_path / "x", files))["test"].classes[0] == "caf\u00e9"


def test_a_chapter_says_how_many_classes_it_needs(tmp_path):
    given = {"data": str(write(tmp_path / "x", FILES))}
    rule = r"data must have at least 4 classes.* got \('cat', 'dog'\)"
    with pytest.raises(ValueError, match=rule):
        rerun(CHAPTERS / "supervised_pretraining.ipynb", tmp_path / "out", given=given)
