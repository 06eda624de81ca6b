"""A file is written completely or not at all, and is named if that is not possible."""

import pytest
from support.processes import no_file_above

from fmkit._check import Refused
from fmkit._writing import whole, write_whole, writing


def test_a_file_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old", encoding="utf-8")
    with whole(path) as staging:
        staging.write_text("new", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
    assert path.read_text(encoding="utf-8") == "new"
    write_whole(path, "ü")
    assert path.read_bytes() == "ü".encode()
    assert [*tmp_path.iterdir()] == [path]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "a.txt"
    write_whole(path, "old")
    with (
        no_file_above(1000),
        pytest.raises(Refused, match=r"a\.txt cannot be written \(File too large\)\.$"),
    ):
        write_whole(path, "x" * 5000)
    assert path.read_text(encoding="utf-8") == "old"
    assert [*tmp_path.iterdir()] == [path]


def interrupted(path):
    with whole(path) as staging:
        staging.write_text("ne", encoding="utf-8")
        raise KeyboardInterrupt


def test_an_interrupt_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "a.txt"
    write_whole(path, "old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    assert path.read_text(encoding="utf-8") == "old"
    assert [*tmp_path.iterdir()] == [path]


def test_an_error_without_words(tmp_path):
    with (
        pytest.raises(Refused, match=r"b cannot be written \(OSError\)\."),
        writing(tmp_path / "b"),
    ):
        raise OSError
