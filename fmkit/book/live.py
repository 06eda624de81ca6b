"""Pack the book's own decoder for a page; ``widgets/decoder.js`` runs it."""

import json
from dataclasses import asdict, replace
from functools import cache

import torch
from torch import Tensor

from fmkit import runtime
from fmkit._check import require
from fmkit.book import packing
from fmkit.data.tokens import utf8_bytes
from fmkit.generate import generate, greedy
from fmkit.models.language_model import LanguageModel
from fmkit.models.saved import load_trained
from fmkit.models.transformer import with_weights
from fmkit.runs.record import results

FILE = "decoder-weights.js"  # in the folder that Sphinx copies to the top of the site
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


def rounded(lm: LanguageModel) -> LanguageModel:
    """Return the model that the page runs: the same with quantized matrices."""
    weights = packing.rounded(_weights(lm))
    return replace(lm, model=with_weights(lm.model.config, weights))


def script(lm: LanguageModel) -> bytes:
    """Return the script that hands model and tokenizer to ``widgets/decoder.js``.

    Raises ``ValueError`` if the model has parts that the script in the page lacks.
    """
    config = lm.model.config
    plain = config.causal and config.tied and not config.rope_divisors
    plain = plain and not (config.qkv_bias or config.out_bias or config.head_norm)
    require(plain and not config.unrotated, "config", "be that of Llama, tied", config)
    about = {"config": asdict(config), "start": lm.start, **_tokens(lm)}
    return packing.script("fmkitDecoder", about, _weights(lm))


def _weights(lm: LanguageModel) -> dict[str, Tensor]:
    """Return the weights of the model, a tied matrix once."""
    return {name: weight.detach() for name, weight in lm.model.named_parameters()}


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
