"""Save and load models of this book's own runs: weights, shape, tokenizer, one file."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from fmkit._check import Refused, one_line
from fmkit._reading import refuse_pointer
from fmkit._writing import write_tensors
from fmkit.data.tokens import START, read_tokenizer
from fmkit.models.language_model import LanguageModel
from fmkit.models.transformer import Transformer, TransformerConfig, with_weights


def save_trained(
    path: str | Path, model: Transformer, tokenizer: Tokenizer | None = None
) -> None:
    """Write the model in float16, its config and its tokenizer as safetensors.

    Models whose tokens are not text have no tokenizer. Raises ``ValueError`` if the
    model has other weights than its config describes, as with low-rank updates, or if
    the file cannot be written.
    """
    with torch.device("meta"):
        expected = {name for name, _ in Transformer(model.config).named_parameters()}
    weights = {
        name: weight.detach().half().contiguous()
        for name, weight in model.named_parameters()  # a tied matrix once
    }
    if weights.keys() != expected:
        other = min(weights.keys() ^ expected)
        raise Refused(
            f"model has weights that its config does not describe ({other}): merge "
            "low-rank updates first, with merge_low_rank."
        )
    about = {"config": json.dumps(asdict(model.config))}
    if tokenizer is not None:
        about["tokenizer"] = tokenizer.to_str()
    write_tensors(Path(path), weights, about=about)


def load_trained(path: str | Path) -> LanguageModel:
    """Load what :func:`fmkit.models.saved.save_trained` wrote.

    The model is in float32 and in eval mode. Raises ``ValueError`` if the file is
    damaged or was not written by that function.
    """
    refuse_pointer(path)
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            values = json.loads(about["config"]).items()
            config = TransformerConfig(  # JSON knows no tuples
                **{k: tuple(v) if isinstance(v, list) else v for k, v in values}
            )
            tokenizer = None
            if "tokenizer" in about:
                tokenizer = read_tokenizer(about["tokenizer"])
            names = file.keys()
            values = {name: file.get_tensor(name).float() for name in names}
        model = with_weights(config, values)
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        what = f"{path} holds no model of this book's"
        raise Refused(f"{what} ({one_line(error)}).") from error
    if tokenizer is None:
        return LanguageModel(model, None, None)
    return LanguageModel(model, tokenizer, START, (START,))
