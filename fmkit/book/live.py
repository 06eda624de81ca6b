"""Pack the book's own decoder for a page, whose script runs it: ``widgets/decoder.js``.

A page opened as a file may load scripts and nothing else, so the model is a script: one
string, in units of 16 bits. It holds a stream that ``DecompressionStream`` of browsers
unpacks: the length of a header in four bytes, the header in JSON, and the weights in
the order of the header. Matrices are integers of eight bits, with a scale for each row.
"""

import json
import struct
import zlib
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fmkit import runtime
from fmkit._check import require
from fmkit.data.tokens import utf8_bytes
from fmkit.generate import generate, greedy
from fmkit.models.language_model import LanguageModel
from fmkit.models.saved import load_trained
from fmkit.models.transformer import with_weights
from fmkit.runs.record import results

FILE = "decoder-weights.js"  # in the folder that Sphinx copies to the top of the site
MOST = 1_200_000  # bytes of that file
STEPS = 19  # integers in one standard deviation of a row; more do not fit
BITS = 15  # of the stream in one unit of 16 bits
FIRST = 0x3000  # added to each unit: no quote, no line break, no half of a character
STARTS = (  # of texts; the first one is there when the page opens
    "Compute the mean along an axis.\n\nParameters\n----------\n",
    "Return the",
    "import numpy as np\n>>> x = np.",
    "Raises\n------\nValueError\n    If",
    "Once upon a time",
)


def trained() -> LanguageModel:
    """Load the decoder of the chapter on language models."""
    return load_trained(results("language_models") / "causal.safetensors")


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


def rounded(lm: LanguageModel) -> LanguageModel:
    """Return the model that the page runs: the same with quantized matrices."""
    values = {}
    for name, weight in _weights(lm).items():
        values[name] = weight
        if weight.dim() == 2:
            integers, scale = quantize(weight)
            values[name] = integers.float() * scale[:, None]
    return replace(lm, model=with_weights(lm.model.config, values))


def script(lm: LanguageModel) -> bytes:
    """Return the script that hands model and tokenizer to ``widgets/decoder.js``.

    Raises ``ValueError`` if the model has parts that the script in the page lacks.
    """
    config = lm.model.config
    plain = config.causal and config.tied and not config.rope_divisors
    plain = plain and not (config.qkv_bias or config.out_bias or config.head_norm)
    require(plain and not config.unrotated, "config", "be that of Llama, tied", config)
    shapes, parts = [], []
    for name, weight in _weights(lm).items():
        shapes.append([name, *weight.shape])
        if weight.dim() == 2:
            integers, scale = quantize(weight)
            parts += [_upper_halves(scale), integers.numpy().tobytes()]
        else:
            parts.append(weight.numpy().astype("<f4").tobytes())
    about = {"config": asdict(config), "start": lm.start, **_tokens(lm)}
    header = json.dumps({**about, "weights": shapes}).encode("ascii")
    stream = b"".join([struct.pack("<I", len(header)), header, *parts])
    # Neighbouring weights do not repeat each other; shorter codes for small ones help
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    packed = packer.compress(stream) + packer.flush()
    what = f'{{ bytes: {len(packed)}, text: "{_units(packed)}" }}'
    # The mark of UTF-16 at the beginning wins over what a server says of the file
    return b"\xff\xfe" + f"globalThis.fmkitDecoder = {what};\n".encode("utf-16-le")


def _weights(lm: LanguageModel) -> dict[str, Tensor]:
    """Return the weights of the model, a tied matrix once."""
    return {name: weight.detach() for name, weight in lm.model.named_parameters()}


def _upper_halves(numbers: Tensor) -> bytes:
    """Return float32 numbers without the lower half of their bits, which is 0."""
    return (numbers.numpy().view("<u4") >> 16).astype("<u2").tobytes()


def _units(stream: bytes) -> str:
    """Return a text with 15 bits of the stream in each character, the last filled."""
    bits = np.unpackbits(np.frombuffer(stream, np.uint8))
    bits = np.pad(bits, (0, -len(bits) % BITS)).reshape(-1, BITS)
    values = bits @ (1 << np.arange(BITS)[::-1]) + FIRST
    return values.astype("<u2").tobytes().decode("utf-16-le")


def _tokens(lm: LanguageModel) -> dict[str, list]:
    """Return the ids of the 256 bytes, and each merge as two ids and the id of both."""
    told = json.loads(lm.tokenizer.to_str())["model"]
    ids, alphabet = told["vocab"], utf8_bytes()
    named = [alphabet.id_to_token(byte + 1) for byte in range(256)]
    merges = [[ids[a], ids[b], ids[a + b]] for a, b in told["merges"]]
    return {"bytes": [ids[name] for name in named], "merges": merges}


@runtime.exact()
def errors(lm: LanguageModel) -> dict[str, float | int]:
    """Compare the probabilities of the page's model with those of `lm`.

    Both read the beginnings in ``STARTS`` with what `lm` writes after them. Returned
    are the number of places, the largest difference of a probability, the mean over
    places of the largest one there, and the share of places where the most probable
    token is the same.
    """
    of_page, apart, same = rounded(lm), [], []
    for text in STARTS:
        ids = lm.encode(text)
        room = lm.model.config.context - len(ids)
        [new] = generate(lm.model, [ids], new_tokens=room, choose=greedy, eos=lm.ends)
        tokens = torch.tensor([[*ids, *new]])
        with torch.no_grad():
            p, q = (model(tokens)[0].softmax(1) for model in (lm.model, of_page.model))
        apart.append((p - q).abs().amax(dim=1))
        same.append(p.argmax(dim=1) == q.argmax(dim=1))
    largest = torch.cat(apart)
    return {
        "places": len(largest),
        "largest": round(largest.max().item(), 4),
        "mean": round(largest.mean().item(), 4),
        "same": round(torch.cat(same).double().mean().item(), 4),
    }


@cache
def packed() -> bytes:
    """Return the script of the book's own decoder."""
    return script(trained())


def write(folder: Path) -> None:
    """Write the script of the book's decoder into `folder`, made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_bytes(packed())
