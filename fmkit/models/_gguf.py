"""Read a GGUF file from its beginning to its end: its entries and its tensors.

The format is the one of ggml's docs/gguf.md, version 3 (and version 2, which differs in
nothing that is read here). The library ``gguf`` unpacks the blocks. Its own reader
takes seconds for the header, because it looks at every text of a vocabulary through a
memory map.
"""

import mmap
import struct
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from jaxtyping import Float
from torch import Tensor

from fmkit._check import Refused, one_line
from fmkit._reading import Stored, refuse_pointer

NUMBERS = dict(enumerate("BbHhIif?", 0)) | {10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9
PLAIN = {GGMLQuantizationType.F32: "<f4", GGMLQuantizationType.F16: "<f2"}


def read_gguf(path: str | Path) -> tuple[dict[str, object], dict[str, Stored]]:
    """Return the entries that describe the model, and its tensors, both by name.

    Raises ``ValueError`` if the file is missing, cut off, of another format, or holds a
    tensor that is packed in an unknown way.
    """
    refuse_pointer(path)
    try:
        with open(path, "rb") as file:
            whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise Refused(f"{path} cannot be read ({one_line(error)}).") from error
    try:
        entries, packed = _Reader(whole).read()
    except (struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
        raise Refused(f"{path} is no whole GGUF file ({one_line(error)}).") from error
    stored = {}
    for name, (kind, shape, raw) in packed.items():
        if not _is_known(kind):
            what = f"{name} is packed as {kind.name}, which is unknown"
            raise Refused(f"{path}: {what}.")
        stored[name] = Stored(shape, partial(_unpack, kind, shape, raw))
    return entries, stored


def _is_known(kind: GGMLQuantizationType) -> bool:
    """Return whether the library can unpack blocks of this kind."""
    if kind in PLAIN:
        return True
    _, size = GGML_QUANT_SIZES[kind]
    try:
        quants.dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _unpack(
    kind: GGMLQuantizationType, shape: tuple[int, ...], raw: memoryview
) -> Float[Tensor, "..."]:
    """Unpack the bytes of a tensor to float32."""
    if kind in PLAIN:
        values = np.frombuffer(raw, PLAIN[kind]).astype(np.float32)
    else:
        rows = np.frombuffer(raw, np.uint8).reshape(prod(shape[:-1]), -1)
        values = quants.dequantize(rows, kind)
    return torch.from_numpy(values).view(shape)


class _Reader:
    """A cursor over the mapped file: each call reads the next value and moves on."""

    def __init__(self, whole: memoryview):
        self.whole, self.at = whole, 0

    def number(self, kind: str) -> int | float | bool:
        [value] = struct.unpack_from(f"<{kind}", self.whole, self.at)
        self.at += struct.calcsize(f"<{kind}")
        return value

    def text(self) -> str:
        length = self.number("Q")
        self.at += length
        return str(self._bytes(self.at - length, length), "utf-8")

    def value(self, kind: int) -> object:
        if kind == TEXT:
            return self.text()
        if kind == LIST:
            inner, length = self.number("I"), self.number("Q")
            return [self.value(inner) for _ in range(length)]
        return self.number(NUMBERS[kind])

    def read(self) -> tuple[dict[str, object], dict[str, tuple]]:
        """Return the entries, and kind, shape and bytes of each tensor."""
        if self._bytes(0, 4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self.at = 4
        version = self.number("I")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}")
        tensors = self.number("Q")
        entries = self.number("Q")
        about = {self.text(): self.value(self.number("I")) for _ in range(entries)}
        infos = []
        for _ in range(tensors):
            name, axes = self.text(), self.number("I")
            shape = tuple(self.number("Q") for _ in range(axes))[::-1]
            kind = GGMLQuantizationType(self.number("I"))
            infos.append((name, shape, kind, self.number("Q")))
        alignment = about.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"its general.alignment is {alignment}")
        start = -(-self.at // alignment) * alignment
        packed = {}
        for name, shape, kind, offset in infos:
            block, size = GGML_QUANT_SIZES[kind]  # values in a block, and its bytes
            if shape and shape[-1] % block:
                raise ValueError(f"{name} has no whole blocks of {block} in a row")
            raw = self._bytes(start + offset, prod(shape) // block * size)
            packed[name] = kind, shape, raw
        return about, packed

    def _bytes(self, start: int, length: int) -> memoryview:
        part = self.whole[start : start + length]
        if len(part) < length:
            raise ValueError(f"it ends at byte {len(self.whole):,}, inside a value")
        return part
