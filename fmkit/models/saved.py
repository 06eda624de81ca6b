"""Models of this book's own runs: weights, shape and tokenizer in one small file."""

import json
from dataclasses import asdict
from pathlib import Path

import tokenizers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fmkit._check import Refused
from fmkit.models.transformer import Transformer, TransformerConfig, with_weights


def save_trained(
    path: Path, model: Transformer, tokenizer: tokenizers.Tokenizer | None = None
) -> None:
    """Write the model in float16, its config and its tokenizer as safetensors.

    Models whose vocabulary fmkit fixes have no tokenizer of their own.
    """
    about = {"config": json.dumps(asdict(model.config))}
    if tokenizer is not None:
        about["tokenizer"] = tokenizer.to_str()
    weights = {
        name: weight.detach().half().contiguous()
        for name, weight in model.named_parameters()  # a tied matrix once
    }
    save_file(weights, path, metadata=about)


def load_trained(path: Path) -> tuple[Transformer, tokenizers.Tokenizer | None]:
    """What :func:`save_trained` wrote, in float32 and eval mode.

    Raises ``ValueError`` for a file that is damaged or was not written by it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            config = TransformerConfig(**json.loads(about["config"]))
            tokenizer = None
            if "tokenizer" in about:
                tokenizer = tokenizers.Tokenizer.from_str(about["tokenizer"])
            names = file.keys()
            values = {name: file.get_tensor(name).float() for name in names}
        return with_weights(config, values), tokenizer
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        what = f"{path} holds no model of this book's"
        raise Refused(f"{what} ({' '.join(str(error).split())}).") from error
