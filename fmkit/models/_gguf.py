"""What a GGUF file says and holds, read from its beginning to its end.

The format is that of ggml's docs/gguf.md, version 3 (and 2, which differs in nothing
read here). Blocks are unpacked by the library ``gguf``; its own reader takes seconds
for the header, as it looks at every text of a vocabulary through a memory map.
"""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from jaxtyping import Float
from torch import Tensor

from fmkit._check import Refused

NUMBERS = dict(enumerate("BbHhIif?", 0)) | {10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9
PLAIN = {GGMLQuantizationType.F32: "<f4", GGMLQuantizationType.F16: "<f2"}


class GGUFError(Refused):
    """The file is no whole GGUF file: one sentence."""


@dataclass(frozen=True)
class Packed:
    """A tensor in the file: how it is packed, its shape, its bytes."""

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    raw: memoryview

    @property
    def can_be_read(self) -> bool:
        return self.kind in PLAIN or self.kind in quants._type_traits

    def read(self) -> Float[Tensor, "..."]:
        """Its values in float32."""
        if self.kind in PLAIN:
            values = np.frombuffer(self.raw, PLAIN[self.kind]).astype(np.float32)
        else:
            rows = np.frombuffer(self.raw, np.uint8).reshape(prod(self.shape[:-1]), -1)
            values = quants.dequantize(rows, self.kind)
        return torch.from_numpy(values).view(self.shape)


def read_gguf(path: Path) -> tuple[dict[str, object], dict[str, Packed]]:
    """What the file says of its model, by name, and its tensors, by name.

    Raises ``GGUFError`` for a file that is missing, cut off, or not of this format.
    """
    try:
        with open(path, "rb") as file:
            whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise GGUFError(f"{path} cannot be read ({error}).") from error
    try:
        return _Reader(whole).read()
    except (struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
        raise GGUFError(f"{path} is no whole GGUF file ({error}).") from error


class _Reader:
    """Takes one thing after another from the beginning of the file."""

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

    def read(self) -> tuple[dict[str, object], dict[str, Packed]]:
        if self._bytes(0, 4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self.at = 4
        version = self.number("I")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}")
        tensors, entries = self.number("Q"), self.number("Q")
        said = {self.text(): self.value(self.number("I")) for _ in range(entries)}
        infos = []
        for _ in range(tensors):
            name, axes = self.text(), self.number("I")
            shape = tuple(self.number("Q") for _ in range(axes))[::-1]
            kind = GGMLQuantizationType(self.number("I"))
            infos.append((name, shape, kind, self.number("Q")))
        to = said.get("general.alignment", 32)
        start = -(-self.at // to) * to
        held = {}
        for name, shape, kind, offset in infos:
            block, size = GGML_QUANT_SIZES[kind]  # values in a block, and its bytes
            if shape and shape[-1] % block:
                raise ValueError(f"{name} has no whole blocks of {block} in a row")
            raw = self._bytes(start + offset, prod(shape) // block * size)
            held[name] = Packed(kind, shape, raw)
        return said, held

    def _bytes(self, start: int, length: int) -> memoryview:
        part = self.whole[start : start + length]
        if len(part) < length:
            raise ValueError(
                f"it ends at byte {len(self.whole):,}, inside of something"
            )
        return part
