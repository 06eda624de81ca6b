"""Save and load models of this book's own runs: weights, shape, tokenizer, one file."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor

from fmkit._check import Refused, one_line, require
from fmkit._reading import refuse_pointer
from fmkit._writing import write_tensors
from fmkit.data.tokens import START, START_PIECE, read_tokenizer
from fmkit.models.language_model import LanguageModel
from fmkit.models.resnet import ResNet, ResNetConfig
from fmkit.models.transformer import Transformer, TransformerConfig, with_weights


def save_trained(
    path: str | Path, model: Transformer, tokenizer: Tokenizer | None = None
) -> None:
    """Write the model in float16, its config and its tokenizer as safetensors.

    Models whose tokens are not text have no tokenizer. The start and the end symbol of
    others are those of :mod:`fmkit.data.tokens`. Raises ``ValueError`` if the tokenizer
    has others, as that of a pretrained model does; if the model has other weights than
    its config describes, as with low-rank updates; or if the file cannot be written.
    """
    first = START_PIECE if tokenizer is None else tokenizer.id_to_token(START)
    rule = f"be one of fmkit.data.tokens, of which token {START} is the start symbol"
    require(START_PIECE in (first or ""), "tokenizer", rule, first)
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
    about, weights = _read(path)
    try:
        config, tokenizer = TransformerConfig(**_values(about)), None
        if "tokenizer" in about:
            tokenizer = read_tokenizer(about["tokenizer"])
        model = with_weights(config, weights)
    except (OSError, KeyError, TypeError, RuntimeError) as error:
        raise _no_model(path, error) from error
    if tokenizer is None:
        return LanguageModel(model, None, None)
    return LanguageModel(model, tokenizer, START, (START,))


def save_resnet(path: str | Path, phi: ResNet) -> None:
    """Write the network in float16 and its config as safetensors.

    Raises ``ValueError`` if the file cannot be written.
    """
    weights = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in phi.state_dict().items()  # batch norm counts its batches
    }
    write_tensors(Path(path), weights, about={"config": json.dumps(asdict(phi.config))})


def load_resnet(path: str | Path) -> ResNet:
    """Load what :func:`fmkit.models.saved.save_resnet` wrote.

    The network is in float32 and in eval mode. Raises ``ValueError`` if the file is
    damaged or was not written by that function.
    """
    about, weights = _read(path)
    try:
        with torch.device("meta"):
            phi = ResNet(ResNetConfig(**_values(about)))
        phi.load_state_dict(weights, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _no_model(path, error) from error
    return phi.eval().to(memory_format=torch.channels_last)


def _read(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the texts and the tensors of a file, those of float16 in float32."""
    refuse_pointer(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            weights = {name: file.get_tensor(name) for name in names}
            about = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise _no_model(path, error) from error
    half = {name for name, value in weights.items() if value.is_floating_point()}
    return about, weights | {name: weights[name].float() for name in half}


def _values(about: dict[str, str]) -> dict[str, object]:
    """Return the values of a config: JSON knows no tuples."""
    values = json.loads(about["config"]).items()
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values}


def _no_model(path: str | Path, error: Exception) -> Refused:
    return Refused(f"{path} holds no model of this book's ({one_line(error)}).")
