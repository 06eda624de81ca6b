"""Pack the weights of a model as a script for a page: ``widgets/packed.js`` reads it.

A page opened as a file may load scripts and nothing else, so the model is a script: one
string, in units of 16 bits. It holds a stream that ``DecompressionStream`` of browsers
unpacks: the length of a header in four bytes, the header in JSON, the weights in the
order of the header, and other bytes. Matrices are integers of eight bits, with a scale
for each row.
"""

import json
import struct
import zlib

import numpy as np
import torch
from torch import Tensor

MOST = 1_200_000  # bytes of a script
STEPS = 19  # integers in one standard deviation of a row; more do not fit
BITS = 15  # of the stream in one unit of 16 bits
FIRST = 0x3000  # added to each unit: no quote, no line break, no half of a character


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return integers (rows, columns) and scales (rows,) for a weight (rows, columns).

    The scale of a row is a nineteenth of its standard deviation, or more if the row
    has values that 127 scales do not reach. It has seven binary places, as in bfloat16,
    so products are exact in float32. Rounding moves no weight by more than half a
    scale.
    """
    spread = weight.std(dim=1, correction=0) / STEPS
    scale = torch.maximum(spread, weight.abs().amax(dim=1) / 126).clamp(min=1e-30)
    scale = scale.bfloat16().float()
    return (weight / scale[:, None]).round().to(torch.int8), scale


def rounded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights as a page reads them: only matrices are quantized."""
    values = dict(weights)
    for name, weight in weights.items():
        if weight.dim() == 2:
            integers, scale = quantize(weight)
            values[name] = integers.float() * scale[:, None]
    return values


def script(
    name: str,
    about: dict[str, object],
    weights: dict[str, Tensor],
    *,
    rest: bytes = b"",
) -> bytes:
    """Return a script that sets the global `name`.

    `about` becomes the header, `weights` are matrices and vectors in float32, and
    `rest` are bytes that follow them.
    """
    shapes, parts = [], []
    for key, weight in weights.items():
        shapes.append([key, *weight.shape])
        if weight.dim() == 2:
            integers, scale = quantize(weight)
            parts += [_upper_halves(scale), integers.numpy().tobytes()]
        else:
            parts.append(weight.numpy().astype("<f4").tobytes())
    header = json.dumps({**about, "weights": shapes}).encode("ascii")
    stream = b"".join([struct.pack("<I", len(header)), header, *parts, rest])
    # Neighbouring weights do not repeat each other; shorter codes for small ones help
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_FILTERED)
    packed = packer.compress(stream) + packer.flush()
    what = f'{{ bytes: {len(packed)}, text: "{_units(packed)}" }}'
    # The mark of UTF-16 at the beginning wins over what a server says of the file
    return b"\xff\xfe" + f"globalThis.{name} = {what};\n".encode("utf-16-le")


def _upper_halves(numbers: Tensor) -> bytes:
    """Return float32 numbers without the lower half of their bits, which is 0."""
    return (numbers.numpy().view("<u4") >> 16).astype("<u2").tobytes()


def _units(stream: bytes) -> str:
    """Return a text with 15 bits of the stream in each character, the last filled."""
    bits = np.unpackbits(np.frombuffer(stream, np.uint8))
    bits = np.pad(bits, (0, -len(bits) % BITS)).reshape(-1, BITS)
    values = bits @ (1 << np.arange(BITS)[::-1]) + FIRST
    return values.astype("<u2").tobytes().decode("utf-16-le")
