"""Read files of models, tasks and texts, or refuse them in one sentence."""

import json
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fmkit._check import Refused, one_line

FLOATS = {"F64", "F32", "F16", "BF16"}  # numbers that are weights without a scale
# How a file begins that git left in place of a large one (git-lfs's docs/spec.md)
POINTER = b"version https://git-lfs.github.com/spec/"
PULL = "it is a pointer of Git LFS: run git lfs pull in its folder to get the file"


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its shape, and a function that reads its values."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def refuse_pointer(path: str | Path) -> None:
    """Raise ``Refused`` if a file is only the pointer that Git LFS has in its place.

    A repository that is cloned without Git LFS, or downloaded as a zip, has pointers.
    """
    with suppress(OSError), open(path, "rb") as file:  # its reader says what is wrong
        if file.read(len(POINTER)) == POINTER:
            raise Refused(f"{path} cannot be read ({PULL}).")


def read_text(path: Path) -> str:
    """Read a text file, with or without a byte order mark.

    Raises ``Refused`` if it is not UTF-8, or has a null character: UTF-16 without a
    mark would look like UTF-8 with every other character null.
    """
    refuse_pointer(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")  # with its line breaks
    except OSError as error:
        raise Refused(f"{path} cannot be read ({one_line(error)}).") from error
    except UnicodeDecodeError as error:
        got = f"byte {error.object[error.start]:#x} at {error.start}"
        raise Refused(f"{path} must be UTF-8 text, got {got}.") from error
    if "\0" in text:
        got = f"a null character at {text.index(chr(0))}"
        raise Refused(f"{path} must be UTF-8 text, got {got}.")
    return text


def read_object(path: Path) -> dict[str, object]:
    """Read a file of JSON, with or without a byte order mark.

    Raises ``Refused`` if it does not hold one object.
    """
    refuse_pointer(path)
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(f"{path} cannot be read ({one_line(error)}).") from error
    if not isinstance(content, dict):
        raise Refused(f"{path} must hold one object, got {type(content).__name__}.")
    return content


def open_tensors(path: Path, *, unused: Collection[str] = ()) -> dict[str, Stored]:
    """Return the tensors of a safetensors file by name, except those that are `unused`.

    No values are read yet. Raises ``Refused`` if the file is missing or damaged, and if
    a tensor has numbers that mean nothing without scales: integers, or 8 bits.
    """

    def reader(name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name)

        return read

    refuse_pointer(path)
    stored = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in sorted({*file.keys()}.difference(unused)):
                part = file.get_slice(name)
                if (kind := part.get_dtype()) not in FLOATS:
                    rule = f"{name} must be of floating point, without scales"
                    raise Refused(f"{path}: {rule}, got {kind}.")
                stored[name] = Stored(tuple(part.get_shape()), reader(name))
    except (OSError, SafetensorError) as error:
        raise Refused(f"{path} cannot be read ({one_line(error)}).") from error
    return stored


def check_tensors(
    path: str | Path,
    stored: Mapping[str, Stored],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    source: str,
) -> None:
    """Raise ``Refused`` if the tensors stored at `path` are not those of `shapes`.

    `source` is the name of what describes the shapes. The sentence names the first
    tensor that is missing, unknown or of the wrong shape.
    """
    missing = [name for name in shapes if name not in stored]
    unknown = sorted(stored.keys() - shapes.keys())
    for what, names in {"lacks": missing, "also has": unknown}.items():
        if names:
            more = f" and {len(names) - 1} more" if names[1:] else ""
            rule = f"must have the tensors described by {source}"
            raise Refused(f"{path} {rule}, but {what} {names[0]}{more}.")
    for name, shape in shapes.items():
        got = stored[name].shape
        if got != shape:
            rule = f"must have shape {shape}, by {source}"
            raise Refused(f"{path}: {name} {rule}, got {got}.")
