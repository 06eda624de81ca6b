"""Pretrained weights for :class:`~fmkit.models.transformer.Transformer`.

Both loaders check names and shapes of all tensors before the first is read, so that
nothing is ever half loaded. Inside they use the names of Llama's own files.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from gguf import TokenType
from safetensors import SafetensorError, safe_open
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from fmkit._check import Refused
from fmkit.models._gguf import GGUFError, read_gguf
from fmkit.models.transformer import Transformer, TransformerConfig, with_weights


class WeightsError(Refused):
    """A file of weights cannot be used: one sentence that says why."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its shape, and how to get its values in float32."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def load_gguf(path: Path) -> tuple[Transformer, Tokenizer]:
    """The model in a GGUF file of the Llama architecture, and its tokenizer.

    Quantized blocks are unpacked to float32: what was lost when they were packed stays
    lost. Raises ``WeightsError`` for a file that is truncated or no GGUF, for another
    architecture, tokenizer or quantization, and for tensors that are missing, too many
    or of the wrong shape. The model is in eval mode.
    """
    try:
        about, packed = read_gguf(path)
    except GGUFError as error:
        raise WeightsError(str(error)) from error

    def say(name: str) -> object:
        if name not in about:
            raise WeightsError(f"{path} must say what its {name} is.")
        return about[name]

    architecture = say("general.architecture")
    if architecture != "llama":
        raise WeightsError(f"{path} must be of architecture llama, got {architecture}.")
    vocabulary = say("tokenizer.ggml.tokens")
    for name, tensor in packed.items():
        if not tensor.can_be_read:
            kind = tensor.kind.name
            raise WeightsError(f"{path}: {name} is packed as {kind}, which is unknown.")
    stored = {name: Stored(t.shape, t.read) for name, t in packed.items()}
    config = _config(
        path,
        vocabulary=len(vocabulary),
        context=say("llama.context_length"),
        width=say("llama.embedding_length"),
        layers=say("llama.block_count"),
        heads=say("llama.attention.head_count"),
        kv_heads=say("llama.attention.head_count_kv"),
        hidden=say("llama.feed_forward_length"),
        rope_base=say("llama.rope.freq_base"),
        norm_epsilon=say("llama.attention.layer_norm_rms_epsilon"),
        tied="output.weight" not in stored,
    )
    rotation = {"scaling.type": "none", "dimension_count": config.head_width}
    for name, only in rotation.items():
        got = about.get(f"llama.rope.{name}", only)
        if got != only:
            what = f"{path}: llama.rope.{name} must be {only}"
            raise WeightsError(f"{what}, got {got}.")
    renamed = {}
    for name, tensor in stored.items():
        heads = {"attn_q": config.heads, "attn_k": config.kv_heads}
        turned = next((n for part, n in heads.items() if f".{part}." in name), None)
        renamed[_llama_name(name)] = _halves(tensor, turned) if turned else tensor
    return _build(config, renamed, path), _gguf_tokenizer(path, say, vocabulary)


def load_llama(folder: Path) -> tuple[Transformer, Tokenizer]:
    """The model in a folder of the Llama layout, as transformers saves it.

    That is config.json, tokenizer.json, and model.safetensors or several of which
    model.safetensors.index.json tells. Weights become float32. Raises ``WeightsError``
    for what is missing, damaged or not that of a Llama; the model is in eval mode.
    """
    said = _json(folder / "config.json")
    for name, only in {"model_type": "llama", "hidden_act": "silu"}.items():
        if said.get(name) != only:
            got = said.get(name)
            raise WeightsError(f"{folder}: {name} must be {only}, got {got}.")
    rope = said.get("rope_parameters") or said.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))  # its older name
    if kind != "default":
        raise WeightsError(f"{folder}: rope_type must be default, got {kind}.")
    try:
        heads = said["num_attention_heads"]
        config = _config(
            folder,
            vocabulary=said["vocab_size"],
            context=said["max_position_embeddings"],
            width=said["hidden_size"],
            layers=said["num_hidden_layers"],
            heads=heads,
            kv_heads=said.get("num_key_value_heads") or heads,
            hidden=said["intermediate_size"],
            rope_base=rope.get("rope_theta", said.get("rope_theta", 10_000.0)),
            norm_epsilon=said["rms_norm_eps"],
            tied=said.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise WeightsError(f"{folder}/config.json must have {error}.") from error
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exceptions
        what = f"{folder}/tokenizer.json cannot be read"
        raise WeightsError(f"{what} ({error}).") from error
    index = folder / "model.safetensors.index.json"
    files = {"model.safetensors"}
    if index.is_file():
        files = set(_json(index).get("weight_map", {}).values())
    stored: dict[str, Stored] = {}
    for file in sorted(files):
        stored |= _of_safetensors(folder / file)
    if config.tied:  # some write the matrix twice
        stored.pop("lm_head.weight", None)
    return _build(config, stored, folder), tokenizer


def _config(path: Path, **said: object) -> TransformerConfig:
    for name, value in said.items():
        kind = float if name in ("rope_base", "norm_epsilon") else int
        if not isinstance(value, (kind, int)):
            rule = f"{name} must be one {kind.__name__}"
            raise WeightsError(f"{path}: {rule}, got {value}.")
    try:
        return TransformerConfig(**said)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error


def _build(
    config: TransformerConfig, stored: Mapping[str, Stored], path: Path
) -> Transformer:
    """A model whose every weight is read from `stored`, once all are known to fit."""
    if config.layers > len(stored):  # before as many are made
        got = f"{config.layers} with {len(stored)} tensors"
        raise WeightsError(f"{path}: layers must be fewer than its tensors, got {got}.")
    with torch.device("meta"):  # shapes without values: none is drawn at random
        model = Transformer(config)
    parts = {name: llama_parts(name, config) for name in model.state_dict()}
    if config.tied:
        del parts["unembedding.weight"]
    expected = {name: shape for of in parts.values() for name, shape in of.items()}
    _compare(expected, stored, path)
    values = {
        name: torch.cat([stored[part].read() for part in of])
        for name, of in parts.items()
    }
    return with_weights(config, values)


def llama_parts(name: str, config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Which tensors of a Llama, by name and shape, make one weight of ours."""
    d, w = config.width, config.head_width
    top = {
        "embedding.weight": {"model.embed_tokens.weight": (config.vocabulary, d)},
        "unembedding.weight": {"lm_head.weight": (config.vocabulary, d)},
        "norm.weight": {"model.norm.weight": (d,)},
    }
    if name in top:
        return top[name]
    _, layer, rest = name.split(".", 2)
    of = {
        "norm_1.weight": {"input_layernorm": (d,)},
        "attention.qkv.weight": {
            "self_attn.q_proj": (config.heads * w, d),
            "self_attn.k_proj": (config.kv_heads * w, d),
            "self_attn.v_proj": (config.kv_heads * w, d),
        },
        "attention.out.weight": {"self_attn.o_proj": (d, d)},
        "norm_2.weight": {"post_attention_layernorm": (d,)},
        "mlp.gate_up.weight": {
            "mlp.gate_proj": (config.hidden, d),
            "mlp.up_proj": (config.hidden, d),
        },
        "mlp.down.weight": {"mlp.down_proj": (d, config.hidden)},
    }[rest]
    return {f"model.layers.{layer}.{part}.weight": shape for part, shape in of.items()}


def _compare(
    expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, Stored], path: Path
) -> None:
    missing = [name for name in expected if name not in stored]
    unknown = [name for name in stored if name not in expected]
    for what, names in {"lacks": missing, "has unknown tensors": unknown}.items():
        if names:
            more = f" and {len(names) - 1} more" if names[1:] else ""
            raise WeightsError(f"{path} {what}: {names[0]}{more}.")
    for name, shape in expected.items():
        got = stored[name].shape
        if got != shape:
            raise WeightsError(f"{path}: {name} must have shape {shape}, got {got}.")


def _halves(tensor: Stored, heads: int) -> Stored:
    """Queries or keys with the halves of a head apart, which GGUF interleaves."""

    def read() -> Tensor:
        rows, d = tensor.shape
        pairs = tensor.read().view(heads, rows // heads // 2, 2, d)
        return pairs.transpose(1, 2).reshape(rows, d)

    return Stored(tensor.shape, read)


def _llama_name(name: str) -> str:
    """The name that Llama's files give what GGUF calls `name`."""
    top = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    inside = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    first, *rest = name.split(".")
    if first == "blk" and len(rest) == 3 and rest[1] in inside:
        return f"model.layers.{rest[0]}.{inside[rest[1]]}.{rest[2]}"
    return top.get(name, name)


def _gguf_tokenizer(
    path: Path, say: Callable[[str], object], vocabulary: list[str]
) -> Tokenizer:
    """Byte-level BPE from a GGUF file's pieces and merges.

    With ``pre = smollm`` digits are taken one by one before anything is merged.
    Control tokens are never found inside of text unless written out in full.
    """
    before = {"smollm": [pre_tokenizers.Digits(individual_digits=True)], "gpt-2": []}
    kind, pre = say("tokenizer.ggml.model"), say("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in before:
        raise WeightsError(
            f"{path}: its tokenizer must be gpt2 with pre = {' or '.join(before)}, "
            f"got {kind} with {pre}."
        )
    merges = [tuple(merge.split(" ")) for merge in say("tokenizer.ggml.merges")]
    kinds = say("tokenizer.ggml.token_type")
    ids = {piece: i for i, piece in enumerate(vocabulary)}
    try:
        tokenizer = Tokenizer(models.BPE(ids, merges))
        control = [
            p for p, k in zip(vocabulary, kinds, strict=True) if k == TokenType.CONTROL
        ]
    except Exception as error:  # the library raises bare Exceptions
        raise WeightsError(f"{path} has no whole tokenizer ({error}).") from error
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before[pre], whole])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(p, normalized=False) for p in control])
    return tokenizer


def _json(path: Path) -> dict:
    try:
        said = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read ({error}).") from error
    if not isinstance(said, dict):
        raise WeightsError(f"{path} must hold one object, got {said}.")
    return said


def _of_safetensors(path: Path) -> dict[str, Stored]:
    def read(name: str) -> Callable[[], Tensor]:
        def values() -> Tensor:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name).float()

        return values

    try:
        with safe_open(path, framework="pt") as file:
            return {
                name: Stored(tuple(file.get_slice(name).get_shape()), read(name))
                for name in file.keys()  # noqa: SIM118 - it is no dictionary
            }
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read ({error}).") from error
