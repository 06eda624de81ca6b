"""Translate config.json or the entries of a GGUF file into a ``TransformerConfig``.

A family (Llama, Mistral, Qwen2, Qwen3, SmolLM3) is a row of ``FAMILIES``: the parts and
values that its own code fixes, so that its files may omit them. An entry that would
change the model in the code of its family is followed or refused, never ignored.
`where` names the file in messages.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from fmkit._check import Refused
from fmkit.models.transformer import TransformerConfig


@dataclass(frozen=True, kw_only=True)
class Family:
    """Describe a family: parts beside Llama's, and values for missing entries."""

    qkv_bias: bool | None = (
        None  # None: as attention_bias says; in GGUF, if it is there
    )
    out_bias: bool | None = None
    head_norm: bool = False
    head_width: int | None = None  # head_dim; None: hidden_size / num_attention_heads
    kv_heads: int | None = None  # num_key_value_heads; None: num_attention_heads
    rope_base: float = 10_000.0  # rope_theta
    tied: bool = False  # tie_word_embeddings
    context: int = 32_768  # max_position_embeddings
    window: bool = False  # use_sliding_window
    unrotated_every: int = 0  # no_rope_layer_interval; 0: every layer sees positions
    interleaved: bool = False  # in GGUF, the rows of a head's query and key


FAMILIES = {  # by model_type, which is also GGUF's name of the architecture
    "llama": Family(context=2048, interleaved=True),
    "mistral": Family(
        qkv_bias=False, out_bias=False, kv_heads=8, context=131_072, window=True
    ),
    "qwen2": Family(qkv_bias=True, out_bias=False, kv_heads=32),
    "qwen3": Family(head_norm=True, head_width=128, kv_heads=32),
    "smollm3": Family(
        kv_heads=4, rope_base=2e6, tied=True, unrotated_every=4, interleaved=True
    ),
}
ARCHITECTURES = [name for name in FAMILIES if name != "mistral"]  # there a llama

# What a GGUF file says of the model's past, and what is read apart from FIELDS
ELSEWHERE = {
    "attention.sliding_window",
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "tensor_data_layout",
}

# The names of config.json and of a GGUF file for those of TransformerConfig
FIELDS = {
    "vocabulary": ("vocab_size", "tokenizer.ggml.tokens"),
    "context": ("max_position_embeddings", "context_length"),
    "width": ("hidden_size", "embedding_length"),
    "layers": ("num_hidden_layers", "block_count"),
    "heads": ("num_attention_heads", "attention.head_count"),
    "kv_heads": ("num_key_value_heads", "attention.head_count_kv"),
    "hidden": ("intermediate_size", "feed_forward_length"),
    "rope_base": ("rope_theta", "rope.freq_base"),
    "norm_epsilon": ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    "own_head_width": ("head_dim", "attention.key_length"),
    "tied": ("tie_word_embeddings", "output.weight"),
    "qkv_bias": ("attention_bias", "attn_q.bias"),
    "out_bias": ("attention_bias", "attn_output.bias"),
    "rope_divisors": ("rope_parameters", "rope_freqs.weight"),
    "unrotated": ("no_rope_layers", "no_rope_layers"),
}


def of_folder(about: Mapping[str, object], where: object) -> TransformerConfig:
    """Return the config that the entries `about` of config.json describe.

    A window of attention shorter than the context becomes the context, because within
    it the model is the same. Raises ``ValueError`` if the model is of no known family,
    or if an entry says something that this package does not compute.
    """
    kind = about.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise Refused(f"{where}: model_type must be one of {known}, got {kind}.")
    family = FAMILIES[kind]
    _only(
        about,
        {
            "hidden_act": ("silu", "swish"),
            "is_causal": (True,),
            "mlp_bias": (False, None),
            "partial_rotary_factor": (1.0, None),
            "quantization_config": (None,),
            "rope_interleaved": (False, None),
        },
        where,
    )
    heads = _entry(about, "num_attention_heads", where)
    layers = _entry(about, "num_hidden_layers", where)
    context = about.get("max_position_embeddings", family.context)
    rope, base = _rope(about, family, where)
    # null means hidden_size / heads, and as many as heads, in every family
    own = about.get("head_dim", family.head_width)
    kv_heads = about.get("num_key_value_heads", family.kv_heads)
    bias = about.get("attention_bias") or False
    values = {
        "vocabulary": _entry(about, "vocab_size", where),
        "context": context,
        "width": _entry(about, "hidden_size", where),
        "layers": layers,
        "heads": heads,
        "kv_heads": heads if kv_heads is None else kv_heads,
        "hidden": _entry(about, "intermediate_size", where),
        "rope_base": base,
        "norm_epsilon": about.get("rms_norm_eps", 1e-6),
        "tied": about.get("tie_word_embeddings", family.tied),
        "own_head_width": own,
        "qkv_bias": bias if family.qkv_bias is None else family.qkv_bias,
        "out_bias": bias if family.out_bias is None else family.out_bias,
        "head_norm": family.head_norm,
    }
    _check_kinds(values, where, _in_folder)
    values["context"] = min(context, _window(about, family, where) or context)
    values["unrotated"] = _unrotated(about, family, layers, where)
    config = _made(values, where, _in_folder)
    name = "original_max_position_embeddings"  # at the top it is the one that counts
    rope = {name: context, **rope, **{k: v for k, v in about.items() if k == name}}
    return replace(config, rope_divisors=_divisors(rope, config, where))


def _in_folder(name: str) -> str:
    return FIELDS[name][0]


def _entry(about: Mapping[str, object], name: str, where: object) -> object:
    """Return an entry; raises Refused if it is missing or null."""
    if about.get(name) is None:
        raise Refused(f"{where} must have {name}.")
    return about[name]


def _only(
    about: Mapping[str, object], allowed: Mapping[str, tuple], where: object
) -> None:
    """Raise one sentence about an entry with a value that is not computed here."""
    for name, values in allowed.items():
        if name in about and about[name] not in values:
            rule = f"{name} must be {' or '.join(map(str, values))}"
            raise Refused(f"{where}: {rule}, got {about[name]}.")


def _check_kinds(
    values: Mapping[str, object], where: object, named: Callable[[str], str]
) -> None:
    """Raise Refused unless each value has its type; `named` is its name in the file."""
    flags, real = {"tied", "qkv_bias", "out_bias"}, {"rope_base", "norm_epsilon"}
    for name, value in values.items():
        if name == "head_norm" or (name == "own_head_width" and value is None):
            continue
        kind = bool if name in flags else int
        right = isinstance(value, kind) and isinstance(value, bool) is (kind is bool)
        if not right and not (name in real and isinstance(value, float)):
            words = "one number" if name in real else f"one {kind.__name__}"
            raise Refused(f"{where}: {named(name)} must be {words}, got {value!r}.")
        if name in real and not math.isfinite(value):
            raise Refused(f"{where}: {named(name)} must be finite, got {value!r}.")


def _made(
    values: Mapping[str, object], where: object, named: Callable[[str], str]
) -> TransformerConfig:
    """Make the config; its refusals name the file and the entry there."""
    own = values["own_head_width"]
    if own is not None and own * values["heads"] == values["width"]:
        values = {**values, "own_head_width": None}
    real = {name: float(values[name]) for name in ("rope_base", "norm_epsilon")}
    try:
        return TransformerConfig(**{**values, **real})
    except Refused as error:  # its sentence begins with our name of the field
        ours, rest = str(error).split(" ", 1)
        raise Refused(f"{where}: {named(ours)} {rest}") from error


def _number(about: Mapping[str, object], name: str, where: object) -> float:
    """Return an entry that must be a positive and finite number."""
    value = about.get(name)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise Refused(f"{where}: {name} must be a number above 0, got {value!r}.")
    return float(value)


def _rope(
    about: Mapping[str, object], family: Family, where: object
) -> tuple[Mapping[str, object], object]:
    """Return how positions are scaled, and rope_theta, from the places of both.

    rope_scaling is the older name, and obeyed by transformers where a file has both.
    """
    new, old = (about.get(f"rope_{name}") or {} for name in ("parameters", "scaling"))
    for name, part in {"rope_parameters": new, "rope_scaling": old}.items():
        if not isinstance(part, dict) or any(
            isinstance(v, dict) for v in part.values()
        ):
            rule = f"{name} must be one for all layers"
            raise Refused(f"{where}: {rule}, got {part}.")
        _only(part, {"partial_rotary_factor": (1.0, None)}, f"{where}: {name}")
    places = [old, about] if old else [new, about]
    bases = [p["rope_theta"] for p in places if p.get("rope_theta") is not None]
    base = bases[0] if bases else family.rope_base
    if new and old and new != old:
        kind = new.get("rope_type", new.get("type", "default"))
        if kind != "default" or new.get("rope_theta", base) != base:
            rule = f"rope_scaling must not contradict rope_parameters ({new})"
            raise Refused(f"{where}: {rule}, got {old}.")
    return old or new, base


def _divisors(
    rope: Mapping[str, object], config: TransformerConfig, where: object
) -> tuple[float, ...]:
    """Return what each frequency is divided by: linear scaling, or that of Llama 3."""
    kind = rope.get("rope_type", rope.get("type", "default"))  # its older name
    if kind == "default":
        _only(rope, {"factor": (1.0, None)}, f"{where}, without another rope_type")
        return ()
    if kind not in ("linear", "llama3"):
        rule = "rope_type must be default, linear or llama3"
        raise Refused(f"{where}: {rule}, got {kind}.")
    width, base = config.head_width, config.rope_base
    factor = _number(rope, "factor", where)
    if kind == "linear":
        return (factor,) * (width // 2)
    low, high = (_number(rope, f"{end}_freq_factor", where) for end in ("low", "high"))
    if not low < high:
        rule = f"high_freq_factor must be above low_freq_factor ({low})"
        raise Refused(f"{where}: {rule}, got {high}.")
    before = _number(rope, "original_max_position_embeddings", where)

    def divisor(i: int) -> float:
        # Pairs that turn seldom in the old context are slowed down, fast ones are not
        turns = before * base ** (-2 * i / width) / (2 * math.pi)
        fast = min(max((turns - low) / (high - low), 0.0), 1.0)
        return 1 / ((1 - fast) / factor + fast)

    return tuple(divisor(i) for i in range(width // 2))


def _window(about: Mapping[str, object], family: Family, where: object) -> int | None:
    """Return how many tokens a token sees, itself counted; None: all before it."""
    kinds = {"full_attention", "sliding_attention"}
    named = about.get("layer_types") or []
    if not isinstance(named, list) or not kinds.issuperset(map(str, named)):
        rule = f"layer_types must be {' or '.join(sorted(kinds))}"
        raise Refused(f"{where}: {rule}, got {named}.")
    always = about.get("use_sliding_window", family.window)
    if not always and "sliding_attention" not in named:
        return None
    # Mistral's code has a window of 4096 where its file has none
    window = about.get("sliding_window", 4096)
    if window is not None and (not isinstance(window, int) or window < 1):
        rule = "sliding_window must be at least 1"
        raise Refused(f"{where}: {rule}, got {window}.")
    return window


def _unrotated(
    about: Mapping[str, object], family: Family, layers: int, where: object
) -> tuple[int, ...]:
    """Return the layers that do not see positions."""
    if not family.unrotated_every:
        return ()
    rotated = about.get("no_rope_layers")  # 1 where a layer sees them
    if rotated is None:
        name = "no_rope_layer_interval"
        every = _number({name: family.unrotated_every} | about, name, where)
        rotated = [(i + 1) % every for i in range(layers)]
    if not isinstance(rotated, list) or len(rotated) < layers:
        rule = f"no_rope_layers must have a number for each of {layers} layers"
        raise Refused(f"{where}: {rule}, got {rotated}.")
    return tuple(i for i in range(layers) if not rotated[i])


def of_gguf(
    about: Mapping[str, object],
    tensors: set[str],
    divisors: Callable[[], list[float]],
    where: object,
) -> tuple[TransformerConfig, Family]:
    """Return the config of a GGUF file with entries `about`, and the model's family.

    `divisors` reads the tensor rope_freqs.weight. Raises ``ValueError`` as
    :func:`of_folder` does, and for an entry of the architecture that is unknown.
    """
    kind = needed(about, "general.architecture", where)
    if kind not in ARCHITECTURES:
        known = " or ".join(ARCHITECTURES)
        raise Refused(f"{where}: general.architecture must be {known}, got {kind}.")
    family = FAMILIES[kind]
    said = {
        name.removeprefix(f"{kind}."): value
        for name, value in about.items()
        if name.startswith(f"{kind}.")
    }
    read = ("context", "width", "layers", "heads", "hidden", "norm_epsilon")
    values = {name: needed(about, f"{kind}.{FIELDS[name][1]}", where) for name in read}
    # As llama.cpp takes them where they are absent, in every family
    optional = {"kv_heads": values["heads"], "rope_base": 10_000.0}
    values |= {n: said.get(FIELDS[n][1], value) for n, value in optional.items()}
    read += (*optional,)
    values |= {
        "vocabulary": len(needed(about, "tokenizer.ggml.tokens", where)),
        "own_head_width": said.get("attention.key_length"),
        "tied": "output.weight" not in tensors,
        "head_norm": family.head_norm,
    }
    for name in ("qkv_bias", "out_bias"):
        always = getattr(family, name)
        found = f"blk.0.{FIELDS[name][1]}" in tensors
        values[name] = found if always is None else always

    def named(name: str) -> str:
        inside = name in read or name == "own_head_width"
        return f"{kind}.{FIELDS[name][1]}" if inside else FIELDS[name][1]

    _check_kinds(values, where, named)
    if every := family.unrotated_every:
        values["unrotated"] = tuple(range(every - 1, values["layers"], every))
    config = _made(values, where, named)
    neutral = {
        "vocab_size": (config.vocabulary,),
        "rope.dimension_count": (config.head_width,),
        "attention.key_length": (config.head_width,),
        "attention.value_length": (config.head_width,),
        "attention.causal": (True,),
        "expert_count": (0,),
        "expert_used_count": (0,),
        "logit_scale": (1.0,),
        "residual_scale": (1.0,),
        "embedding_scale": (1.0,),
        "rope.scaling.attn_factor": (1.0,),
        "rope.scaling.type": ("none", "linear"),
    }
    _only(about, {f"{kind}.{name}": only for name, only in neutral.items()}, where)
    known = {FIELDS[name][1] for name in read} | neutral.keys() | ELSEWHERE
    if unknown := sorted(said.keys() - known):
        entry = f"{kind}.{unknown[0]}"
        raise Refused(f"{where}: {entry} must be an entry that fmkit knows.")
    window = said.get("attention.sliding_window", config.context)
    if not isinstance(window, int) or window < 1:
        rule = f"{kind}.attention.sliding_window must be at least 1"
        raise Refused(f"{where}: {rule}, got {window}.")
    divided = _divided(said, tensors, divisors, config, kind, where)
    values |= {"context": min(config.context, window), "rope_divisors": divided}
    return _made(values, where, named), family


def _divided(
    said: Mapping[str, object],
    tensors: set[str],
    divisors: Callable[[], list[float]],
    config: TransformerConfig,
    kind: str,
    where: object,
) -> tuple[float, ...]:
    """Return what each frequency is divided by: a factor, a tensor of GGUF, or both."""
    factor = 1.0
    # Without a type a factor is linear, as llama.cpp reads it
    if said.get("rope.scaling.type") != "none":
        names = ("rope.scaling.factor", "rope.scale_linear")  # the older name last
        name = next((name for name in names if name in said), None)
        if name and said[name]:  # llama.cpp takes 0 for no factor
            entry = f"{kind}.{name}"
            factor = _number({entry: said[name]}, entry, where)
    if "rope_freqs.weight" in tensors:
        return tuple(factor * divisor for divisor in divisors())
    return () if factor == 1 else (factor,) * (config.head_width // 2)


def needed(about: Mapping[str, object], name: str, where: object) -> object:
    """Return an entry of a GGUF file, or raise one sentence if it is not there."""
    if name not in about:
        raise Refused(f"{where} must have an entry {name}.")
    return about[name]
