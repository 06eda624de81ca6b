"""Load pretrained weights into :class:`~fmkit.models.transformer.Transformer`.

Both loaders check the names and shapes of all tensors before they read the first one,
so that no model is ever half loaded. Inside they use the names of Llama's own files.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from gguf import TokenType
from safetensors import SafetensorError, safe_open
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from fmkit._check import Refused, one_line
from fmkit.models._gguf import Stored, read_gguf
from fmkit.models.language_model import LanguageModel
from fmkit.models.transformer import Transformer, TransformerConfig, with_weights

# GPT-2 and SmolLM2 were pretrained on documents that begin after this token. The chat
# models made of them name another one in their files: the start of a turn.
DOCUMENT = "<|endoftext|>"


def load_gguf(path: str | Path) -> LanguageModel:
    """Load a GGUF file of the Llama architecture: model, tokenizer, start symbol.

    Quantized blocks are unpacked to float32, which does not bring back the precision
    that packing lost. The start symbol is ``<|endoftext|>`` or, if the vocabulary has
    no such token, the file's own. The model is in eval mode. Raises ``ValueError`` if
    the file is truncated or not GGUF; if its architecture, tokenizer or quantization is
    another; and if a tensor is missing, unknown or of the wrong shape.
    """
    about, stored = read_gguf(path)

    def entry(name: str) -> object:
        if name not in about:
            raise Refused(f"{path} must have an entry {name}.")
        return about[name]

    architecture = entry("general.architecture")
    if architecture != "llama":
        raise Refused(f"{path} must be of architecture llama, got {architecture}.")
    vocabulary = entry("tokenizer.ggml.tokens")
    config = _config(
        path,
        vocabulary=len(vocabulary),
        context=entry("llama.context_length"),
        width=entry("llama.embedding_length"),
        layers=entry("llama.block_count"),
        heads=entry("llama.attention.head_count"),
        kv_heads=entry("llama.attention.head_count_kv"),
        hidden=entry("llama.feed_forward_length"),
        rope_base=entry("llama.rope.freq_base"),
        norm_epsilon=entry("llama.attention.layer_norm_rms_epsilon"),
        tied="output.weight" not in stored,
    )
    rotation = {"scaling.type": "none", "dimension_count": config.head_width}
    for name, only in rotation.items():
        got = about.get(f"llama.rope.{name}", only)
        if got != only:
            what = f"{path}: llama.rope.{name} must be {only}"
            raise Refused(f"{what}, got {got}.")
    renamed = {}
    for name, tensor in stored.items():
        heads = {"attn_q": config.heads, "attn_k": config.kv_heads}
        turned = next((n for part, n in heads.items() if f".{part}." in name), None)
        renamed[_llama_name(name)] = _halves(tensor, turned) if turned else tensor
    model, tokenizer = _build(config, renamed, path), _gguf_tokenizer(path, entry)
    start = _start(path, tokenizer, about.get("tokenizer.ggml.bos_token_id"))
    return LanguageModel(model, tokenizer, start)


def load_llama(
    folder: str | Path, *, dtype: torch.dtype = torch.float32
) -> LanguageModel:
    """Load a folder of the Llama layout: model, tokenizer, start symbol.

    It is the layout in which transformers saves a model: config.json, tokenizer.json,
    and model.safetensors, or several files that model.safetensors.index.json lists.
    Weights become `dtype` one by one; in bfloat16 a model needs half the memory. The
    start symbol is ``<|endoftext|>`` or, if the vocabulary has no such token, the
    ``bos_token_id`` of config.json. The model is in eval mode.
    Raises ``ValueError`` if a file is missing, damaged or not of a Llama.
    """
    folder = Path(folder)
    about = _json(folder / "config.json")
    for name, only in {"model_type": "llama", "hidden_act": "silu"}.items():
        if about.get(name) != only:
            got = about.get(name)
            raise Refused(f"{folder}: {name} must be {only}, got {got}.")
    rope = about.get("rope_parameters") or about.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))  # its older name
    if kind != "default":
        raise Refused(f"{folder}: rope_type must be default, got {kind}.")
    try:
        heads = about["num_attention_heads"]
        config = _config(
            folder,
            vocabulary=about["vocab_size"],
            context=about["max_position_embeddings"],
            width=about["hidden_size"],
            layers=about["num_hidden_layers"],
            heads=heads,
            kv_heads=about.get("num_key_value_heads") or heads,
            hidden=about["intermediate_size"],
            rope_base=rope.get("rope_theta", about.get("rope_theta", 10_000.0)),
            norm_epsilon=about["rms_norm_eps"],
            tied=about.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise Refused(f"{folder}/config.json must have {error}.") from error
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exceptions
        what = f"{folder}/tokenizer.json cannot be read"
        raise Refused(f"{what} ({one_line(error)}).") from error
    # A file of tokens for training says where to cut and to pad; nothing is cut here
    tokenizer.no_truncation()
    tokenizer.no_padding()
    index = folder / "model.safetensors.index.json"
    files = {"model.safetensors"}
    if index.is_file():
        files = set(_json(index).get("weight_map", {}).values())
    stored: dict[str, Stored] = {}
    for file in sorted(files):
        stored |= _of_safetensors(folder / file, dtype)
    if config.tied:  # some write the matrix twice
        stored.pop("lm_head.weight", None)
    model = _build(config, stored, folder)
    start = _start(folder, tokenizer, about.get("bos_token_id"))
    return LanguageModel(model, tokenizer, start)


def _start(path: str | Path, tokenizer: Tokenizer, named: object) -> int:
    """Return the start symbol of documents; `named` is the one that the file names."""
    start = tokenizer.token_to_id(DOCUMENT)
    if start is not None:
        return start
    if not isinstance(named, int):
        raise Refused(f"{path} must name one bos_token_id, got {named}.")
    return named


def _config(path: str | Path, **values: object) -> TransformerConfig:
    for name, value in values.items():
        kind = float if name in ("rope_base", "norm_epsilon") else int
        if not isinstance(value, (kind, int)):
            rule = f"{name} must be one {kind.__name__}"
            raise Refused(f"{path}: {rule}, got {value}.")
    try:
        return TransformerConfig(**values)
    except Refused as error:
        raise Refused(f"{path}: {error}") from error


def _build(
    config: TransformerConfig, stored: Mapping[str, Stored], path: str | Path
) -> Transformer:
    """Build a model from `stored`, once all names and shapes are known to fit."""
    if config.layers > len(stored):  # before so many layers are built
        got = f"{config.layers} with {len(stored)} tensors"
        raise Refused(f"{path}: layers must be fewer than its tensors, got {got}.")
    with torch.device("meta"):  # shapes without values: none is drawn at random
        model = Transformer(config)
    parts = {name: llama_parts(name, config) for name in model.state_dict()}
    if config.tied:
        del parts["unembedding.weight"]
    expected = {
        name: shape for tensors in parts.values() for name, shape in tensors.items()
    }
    _compare(expected, stored, path)
    values = {
        name: torch.cat([stored[part].read() for part in tensors])
        for name, tensors in parts.items()
    }
    return with_weights(config, values)


def llama_parts(name: str, config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of the Llama tensors that make one weight of ours."""
    d, w = config.width, config.head_width
    top = {
        "embedding.weight": {"model.embed_tokens.weight": (config.vocabulary, d)},
        "unembedding.weight": {"lm_head.weight": (config.vocabulary, d)},
        "norm.weight": {"model.norm.weight": (d,)},
    }
    if name in top:
        return top[name]
    _, layer, rest = name.split(".", 2)
    tensors = {
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
    return {f"model.layers.{layer}.{part}.weight": s for part, s in tensors.items()}


def _compare(
    expected: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, Stored],
    path: str | Path,
) -> None:
    """Raise one sentence about the first tensor that is missing, unknown or wrong."""
    missing = [name for name in expected if name not in stored]
    unknown = [name for name in stored if name not in expected]
    for what, names in {"lacks": missing, "has unknown tensors": unknown}.items():
        if names:
            more = f" and {len(names) - 1} more" if names[1:] else ""
            raise Refused(f"{path} {what}: {names[0]}{more}.")
    for name, shape in expected.items():
        got = stored[name].shape
        if got != shape:
            raise Refused(f"{path}: {name} must have shape {shape}, got {got}.")


def _halves(tensor: Stored, heads: int) -> Stored:
    """Undo GGUF's order of query and key rows, which interleaves a head's halves."""

    def read() -> Tensor:
        rows, d = tensor.shape
        pairs = tensor.read().view(heads, rows // heads // 2, 2, d)
        return pairs.transpose(1, 2).reshape(rows, d)

    return Stored(tensor.shape, read)


def _llama_name(name: str) -> str:
    """Translate GGUF's name of a tensor to the one in Llama's own files."""
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


def _gguf_tokenizer(path: str | Path, entry: Callable[[str], object]) -> Tokenizer:
    """Build a byte-level BPE from a GGUF file's pieces and merges.

    With ``pre = smollm`` each digit is a token of its own. Control tokens are found in
    a text only if they are written out in full, as the turns of a chat are.
    """
    vocabulary = entry("tokenizer.ggml.tokens")
    before = {"smollm": [pre_tokenizers.Digits(individual_digits=True)], "gpt-2": []}
    kind, pre = entry("tokenizer.ggml.model"), entry("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in before:
        raise Refused(
            f"{path}: its tokenizer must be gpt2 with pre = {' or '.join(before)}, "
            f"got {kind} with {pre}."
        )
    merges = [tuple(merge.split(" ")) for merge in entry("tokenizer.ggml.merges")]
    kinds = entry("tokenizer.ggml.token_type")
    ids = {piece: i for i, piece in enumerate(vocabulary)}
    try:
        tokenizer = Tokenizer(models.BPE(ids, merges))
        control = [
            p for p, k in zip(vocabulary, kinds, strict=True) if k == TokenType.CONTROL
        ]
    except Exception as error:  # the library raises bare Exceptions
        raise Refused(f"{path} has no whole tokenizer ({one_line(error)}).") from error
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before[pre], whole])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(p, normalized=False) for p in control])
    return tokenizer


def _json(path: Path) -> dict:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"{path} cannot be read ({one_line(error)}).") from error
    if not isinstance(about, dict):
        raise Refused(f"{path} must hold one object, got {about}.")
    return about


def _of_safetensors(path: Path, dtype: torch.dtype) -> dict[str, Stored]:
    def read(name: str) -> Callable[[], Tensor]:
        def values() -> Tensor:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name).to(dtype)

        return values

    try:
        with safe_open(path, framework="pt") as file:
            return {
                name: Stored(tuple(file.get_slice(name).get_shape()), read(name))
                for name in file.keys()  # noqa: SIM118 - it is no dictionary
            }
    except (OSError, SafetensorError) as error:
        raise Refused(f"{path} cannot be read ({one_line(error)}).") from error
