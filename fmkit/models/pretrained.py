"""Load pretrained weights into :class:`~fmkit.models.transformer.Transformer`.

:func:`load_pretrained` takes the name of an asset, a path or the id of a model. The
families are Llama, Mistral, Qwen2, Qwen3 and SmolLM3. The loaders check the names and
shapes of all tensors before they read the first one, so that no model is ever half
loaded. Inside they use the names of Llama's own files.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from gguf import TokenType
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)
from torch import Tensor

from fmkit._check import Refused, one_line, require
from fmkit._reading import (
    Stored,
    check_tensors,
    open_tensors,
    read_object,
    read_text,
)
from fmkit.assets import ASSETS, fetch, hub
from fmkit.data._files import is_litter
from fmkit.data.tokens import open_tokenizer
from fmkit.models._families import needed, of_folder, of_gguf
from fmkit.models._gguf import read_gguf
from fmkit.models.language_model import LanguageModel
from fmkit.models.transformer import Transformer, TransformerConfig, with_weights
from fmkit.progress import progress

# SmolLM2 was pretrained on documents that begin after the first of these. The chat
# models made of it name the other one in their files: the start of a turn.
DOCUMENT, TURN = "<|endoftext|>", "<|im_start|>"
FREQUENCIES = "rotary_emb.inv_freq"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
GENERATION = "generation_config.json"
TOKENIZER_CONFIG, CHAT = "tokenizer_config.json", "chat_template.jinja"
CHAT_OF_GGUF = "tokenizer.chat_template"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LONG_LOADING = 2.0  # seconds after which a bar shows how many weights are read


def load_pretrained(
    name: str | Path, *, dtype: torch.dtype = torch.float32
) -> LanguageModel:
    """Load a language model by its name: an asset, a folder, a GGUF file or a hub's id.

    An asset is what :func:`fmkit.assets.fetch` obtains. A folder is read by
    :func:`load_llama`, or if it has only a GGUF file, by :func:`load_gguf`; both say
    what is supported. The id of a model on the Hugging Face hub has the form
    ``owner/name`` or, at a branch, a tag or a commit, ``owner/name@revision``. Where a
    repository has several GGUF files, ``owner/name/file.gguf`` names one. The package
    ``huggingface_hub`` keeps its files in its cache. What config.json and
    tokenizer.json say is checked before weights are fetched. Raises ``ValueError`` if
    `name` is none of these, if files cannot be obtained, and as the loaders do.
    """
    name = str(name)
    _check_dtype(dtype)
    models = [asset for asset, about in ASSETS.items() if _ggufs(about.members)]
    known = f"be an asset ({', '.join(models)}), a folder, a GGUF file or an id on the "
    known += "hub (owner/name)"
    path, parts = Path(os.path.expanduser(name)), hub.parsed(name)
    if name in ASSETS:
        require(name in models, "name", known, name)
        files = fetch(name)
        path = files[_ggufs(files)[0]]
    elif not name or not os.path.exists(path):  # Path.exists may raise OSError
        require(parts is not None, "name", known, name)
        path = _from_hub(*parts)
    elif path.is_dir() and (file := _only_gguf(os.listdir(path), path, path)):
        path /= file
    elif path.suffix in (".json", ".safetensors"):
        rule = f"be {path.parent}, the folder of a model"
        require(path.is_dir(), "name", rule, name)
    return (load_llama if path.is_dir() else load_gguf)(path, dtype=dtype)


def _from_hub(id: str, revision: str | None, file: str | None) -> Path:
    """Return the folder or the GGUF file of a model, in the cache of the hub."""
    repository = hub.look_up(id, revision)
    file = file or _only_gguf(repository.files, repository.where, repository.name)
    if file:
        return hub.obtain(repository, [file]) / file
    small = ["config.json", "tokenizer.json"]
    more = [GENERATION, TOKENIZER_CONFIG, CHAT]
    more += [] if WHOLE in repository.files else [INDEX]
    small += [file for file in more if file in repository.files]
    folder = hub.obtain(repository, small)
    _described(folder)  # so that what is not supported is refused before gigabytes come
    weights = [path.relative_to(folder).as_posix() for path in _weight_files(folder)]
    return hub.obtain(repository, small + weights)


def _only_gguf(files: Iterable[str], where: object, name: object) -> str | None:
    """Return the only GGUF file of a folder or a repository without other weights."""
    files = sorted(files)
    if not {WHOLE, INDEX}.isdisjoint(files):
        return None
    found = _ggufs(files)
    if not found:
        few = ", ".join(files[:8]) + f" and {len(files) - 8} more" * (len(files) > 8)
        rule = f"have {WHOLE} or a GGUF file"
        raise Refused(f"{where} must {rule}, got {few or 'no file'}.")
    if found[1:]:
        rule = f"have one GGUF file, or be named with one ({name}/{found[0]})"
        raise Refused(f"{where} must {rule}, got {', '.join(found)}.")
    return found[0]


def _ggufs(files: Iterable[str]) -> list[str]:
    """Return the names of GGUF files among `files`, without hidden ones of a Mac."""
    names = [file for file in files if not is_litter(file.split("/")[-1])]
    return [name for name in names if name.lower().endswith(".gguf")]


def load_gguf(path: str | Path, *, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Load a GGUF file: model, tokenizer, start and end symbols.

    Its architecture is llama (Mistral's too), qwen2, qwen3 or smollm3. Quantized blocks
    are unpacked to `dtype`, which does not bring back the precision that packing lost;
    weights become `dtype` one by one, so bfloat16 needs half the memory. The start
    symbol is the ``bos_token_id`` of the file, or ``<|endoftext|>`` if that one begins
    the turn of a chat; a file without it has none. The model is in eval mode. Raises
    ``ValueError`` if the file is truncated or not GGUF; if its architecture, an entry
    of it, its tokenizer or its quantization is not supported; and if a tensor is
    missing, unknown or of the wrong shape.
    """
    about, stored = read_gguf(path)
    if (parts := about.get("split.count", 0)) not in (0, 1):
        raise Refused(f"{path}: split.count must be at most 1, got {parts}.")

    def frequencies() -> list[float]:
        return stored["rope_freqs.weight"].read().flatten().tolist()

    config, family = of_gguf(about, {*stored}, frequencies, path)
    stored.pop("rope_freqs.weight", None)
    renamed = {}
    for name, tensor in stored.items():
        heads = {"attn_q": config.heads, "attn_k": config.kv_heads}
        turned = next((n for part, n in heads.items() if f".{part}." in name), None)
        whole = turned is None or not family.interleaved
        renamed[_llama_name(name)] = tensor if whole else _halves(tensor, turned)
    tokenizer = _gguf_tokenizer(path, about)
    symbols = _symbols(path, tokenizer, "tokenizer.ggml.", about)
    model = _build(config, renamed, path, dtype, source="its header")
    template = about.get(CHAT_OF_GGUF)
    template = template if isinstance(template, str) else None
    return LanguageModel(model, tokenizer, *symbols, template)


def load_llama(
    folder: str | Path, *, dtype: torch.dtype = torch.float32
) -> LanguageModel:
    """Load a folder of a Llama or a relative: model, tokenizer, start and end symbols.

    It is the layout in which transformers saves a model: config.json, tokenizer.json,
    and model.safetensors, or several files that model.safetensors.index.json lists. Its
    ``model_type`` is llama, mistral, qwen2, qwen3 or smollm3. Weights become `dtype`
    one by one; in bfloat16 a model needs half the memory. A window of attention that is
    shorter than the context becomes the context.

    The start symbol is the ``bos_token_id`` of config.json, or ``<|endoftext|>`` if
    that one begins the turn of a chat. If there is none, it is the token that the
    tokenizer itself puts before a text, if any. The tokenizer of the result adds no
    tokens, cuts no text and pads none, whatever tokenizer.json says. The end symbols
    are those of generation_config.json, or else of config.json. The model is in eval
    mode. Raises ``ValueError``, with the file and its entry, if a file is missing or
    damaged, if files contradict each other, or if one says what is not supported.
    """
    folder = Path(folder)
    config, tokenizer, start, ends = _described(folder)
    stored: dict[str, Stored] = {}
    for file in _weight_files(folder):
        stored |= open_tensors(file)
    # Older versions of transformers saved the frequencies, which config.json states
    stored = {name: t for name, t in stored.items() if not name.endswith(FREQUENCIES)}
    if config.tied and "lm_head.weight" in stored:  # some write the matrix twice
        names = ("lm_head.weight", "model.embed_tokens.weight")
        pair = [stored[name] for name in names if name in stored]
        if len({tensor.shape for tensor in pair}) > 1 or not all(
            torch.equal(pair[0].read(), tensor.read()) for tensor in pair[1:]
        ):
            rule = "tie_word_embeddings must be false where lm_head.weight is not equal"
            where = folder / "config.json"
            raise Refused(f"{where}: {rule} to {names[1]}, got true.")
        del stored["lm_head.weight"]
    model = _build(config, stored, folder, dtype, source="config.json")
    template = _chat_template(folder)
    return LanguageModel(model, tokenizer, start, ends, template)


def _chat_template(folder: Path) -> str | None:
    """Return the chat template of a folder, from where transformers may write it."""
    alone, about = folder / CHAT, folder / TOKENIZER_CONFIG
    if alone.is_file():
        return read_text(alone)
    found = read_object(about).get("chat_template") if about.is_file() else None
    if isinstance(found, list):  # several by name
        named = [t for t in found if isinstance(t, dict) and t.get("name") == "default"]
        found = named[0].get("template") if named else None
    return found if isinstance(found, str) else None


def _described(
    folder: Path,
) -> tuple[TransformerConfig, Tokenizer, int | None, tuple[int, ...]]:
    """Return config, tokenizer, start and end symbols: all of a folder but weights."""
    where = folder / "config.json"
    about = read_object(where)
    config = of_folder(about, where)
    tokenizer, added = _folder_tokenizer(folder / "tokenizer.json")
    rows, tokens = (
        config.vocabulary,
        1 + max(tokenizer.get_vocab().values(), default=-1),
    )
    if tokens > rows:
        rule = f"have at most vocab_size ({rows}) tokens, as {where} says"
        raise Refused(f"{folder / 'tokenizer.json'} must {rule}, got {tokens}.")
    bos, eos, ending = "bos_token_id", "eos_token_id", folder / GENERATION
    said = read_object(ending) if ending.is_file() else {}
    if said.get(eos) in (None, []):
        ending, said = where, about
    start, _ = _symbols(where, tokenizer, "", {bos: about.get(bos)})
    _, ends = _symbols(ending, tokenizer, "", {eos: said.get(eos)})
    if start is None:
        start = added
    elif added not in (None, start, about.get("bos_token_id")):
        rule = f"bos_token_id must be what tokenizer.json puts before a text ({added})"
        raise Refused(f"{where}: {rule}, got {about['bos_token_id']}.")
    return config, tokenizer, start, ends


def _weight_files(folder: Path) -> list[Path]:
    """Return the whole file, if it is there, or else the parts that an index lists."""
    whole, index = folder / WHOLE, folder / INDEX
    if whole.is_file() or not index.is_file():
        return [whole]
    parts = read_object(index).get("weight_map")
    named = isinstance(parts, dict) and all(isinstance(p, str) for p in parts.values())
    if not parts or not named:
        raise Refused(f"{index}: weight_map must name files by tensor, got {parts}.")
    return sorted({folder / file for file in parts.values()})


def _symbols(
    where: str | Path, tokenizer: Tokenizer, prefix: str, about: Mapping[str, object]
) -> tuple[int | None, tuple[int, ...]]:
    """Return the start symbol, if the entries `about` name one, and all end symbols."""

    def ids(name: str) -> list[int]:
        named = about.get(f"{prefix}{name}")
        several = named if isinstance(named, list) else [named]
        several = [] if named is None else several
        for i in several:
            if type(i) is not int or i < 0 or tokenizer.id_to_token(i) is None:
                rule = f"{prefix}{name} must be the id of a token"
                raise Refused(f"{where}: {rule}, got {named}.")
        return several

    starts = ids("bos_token_id")
    if len(starts) > 1:
        rule = f"{prefix}bos_token_id must be the id of one token"
        raise Refused(f"{where}: {rule}, got {starts}.")
    start = starts[0] if starts else None
    document = tokenizer.token_to_id(DOCUMENT)
    turn = start is not None and tokenizer.id_to_token(start) == TURN
    if turn and document is not None:
        start = document
    kinds = ("eos", "eot", "eom")  # of a text, of a turn, of a message
    ends = [i for kind in kinds for i in ids(f"{kind}_token_id")]
    return start, tuple(dict.fromkeys(ends))


def _folder_tokenizer(path: Path) -> tuple[Tokenizer, int | None]:
    """Read a tokenizer, and the token that it puts before each text, if it does.

    What a file of training left in it is not obeyed: where to cut and pad, merges that
    are dropped at random, and tokens around a text.
    """
    tokenizer = open_tokenizer(path)
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None
    bare, whole = (
        tokenizer.encode("a", add_special_tokens=s).ids for s in (False, True)
    )
    starts = range(len(whole) - len(bare) + 1)
    before = next((i for i in starts if whole[i : i + len(bare)] == bare), 0)
    if before > 1:
        rule = "put at most one token before a text"
        raise Refused(f"{path} must {rule}, got {whole[:before]}.")
    tokenizer.post_processor = None
    return tokenizer, whole[0] if before else None


def _build(
    config: TransformerConfig,
    stored: Mapping[str, Stored],
    path: str | Path,
    dtype: torch.dtype,
    *,
    source: str,
) -> Transformer:
    """Build a model from `stored`, once all names and shapes are known to fit.

    Weights are read one by one, so memory never holds a second copy of the model.
    """
    _check_dtype(dtype)
    if config.layers > len(stored):  # before so many layers are built
        got = f"{config.layers} with {len(stored)} tensors"
        raise Refused(f"{path}: layers must be fewer than its tensors, got {got}.")
    with torch.device("meta"):  # shapes without values: none is drawn at random
        state = Transformer(config).state_dict()
    parts = {name: llama_parts(name, config) for name in state}
    if config.tied:
        del parts["unembedding.weight"]
    expected = {
        name: shape for tensors in parts.values() for name, shape in tensors.items()
    }
    check_tensors(path, stored, expected, source=source)
    bar = f"loading {Path(path).name}"
    values = {}
    for name, tensors in progress(parts.items(), bar=bar, after=LONG_LOADING):
        rows = [shape[0] for shape in tensors.values()]
        values[name] = torch.empty(state[name].shape, dtype=dtype)
        for part, place in zip(tensors, values[name].split(rows), strict=True):
            place.copy_(stored[part].read())  # into `dtype`
    return with_weights(config, values)


def _check_dtype(dtype: torch.dtype) -> None:
    """Raise Refused unless a model can compute in `dtype`."""
    names = [str(known) for known in DTYPES]
    require(dtype in DTYPES, "dtype", f"be one of {', '.join(names)}", dtype)


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
    module, kind = rest.rsplit(".", 1)  # a weight or a bias
    heads = {"q": config.heads, "k": config.kv_heads, "v": config.kv_heads}
    tensors = {
        "norm_1": {"input_layernorm": (d,)},
        "attention.qkv": {
            f"self_attn.{part}_proj": (n * w, d) for part, n in heads.items()
        },
        "attention.norm_q": {"self_attn.q_norm": (w,)},
        "attention.norm_k": {"self_attn.k_norm": (w,)},
        "attention.out": {"self_attn.o_proj": (d, config.heads * w)},
        "norm_2": {"post_attention_layernorm": (d,)},
        "mlp.gate_up": {
            "mlp.gate_proj": (config.hidden, d),
            "mlp.up_proj": (config.hidden, d),
        },
        "mlp.down": {"mlp.down_proj": (d, config.hidden)},
    }[module]
    return {
        f"model.layers.{layer}.{part}.{kind}": shape[:1] if kind == "bias" else shape
        for part, shape in tensors.items()
    }


def _halves(tensor: Stored, heads: int) -> Stored:
    """Undo GGUF's order of query and key rows, which interleaves a head's halves."""

    def read() -> Tensor:
        rows, *rest = tensor.shape
        pairs = tensor.read().view(heads, rows // heads // 2, 2, *rest)
        return pairs.transpose(1, 2).reshape(rows, *rest)

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
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    first, *rest = name.split(".")
    if first == "blk" and len(rest) == 3 and rest[1] in inside:
        return f"model.layers.{rest[0]}.{inside[rest[1]]}.{rest[2]}"
    return top.get(name, name)


# How GGUF's tokenizers part a text before they merge, by tokenizer.ggml.pre: what their
# authors' tokenizer.json has, or llama.cpp where there is none (its llama-vocab.cpp).
# Each pattern parts what the one before it left.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {
    "smollm": [r"\p{N}", GPT2],
    "gpt-2": [GPT2],
    "llama-bpe": [LLAMA3],
    "smaug-bpe": [LLAMA3],  # what llama.cpp's converter takes SmolLM3's for
    "qwen2": [LLAMA3.replace("{1,3}", "")],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
}
WHOLE_WORDS = {"llama-bpe", "smaug-bpe"}  # a word of the vocabulary needs no merges
COMPOSED = {"qwen2"}  # Unicode's composed form


def _gguf_tokenizer(path: str | Path, about: Mapping[str, object]) -> Tokenizer:
    """Build a byte-level BPE from a GGUF file's pieces and merges.

    Control tokens and tokens that its author defined are found in a text only if they
    are written out in full, as the turns of a chat are.
    """
    names = ("tokens", "model", "pre", "merges", "token_type")
    vocabulary, kind, pre, merges, kinds = (
        needed(about, f"tokenizer.ggml.{name}", path) for name in names
    )
    if kind != "gpt2":
        raise Refused(f"{path}: tokenizer.ggml.model must be gpt2, got {kind}.")
    if pre not in PATTERNS:
        rule = f"tokenizer.ggml.pre must be {' or '.join(PATTERNS)}"
        raise Refused(f"{path}: {rule}, got {pre}.")
    ids = {piece: i for i, piece in enumerate(vocabulary)}
    try:
        pairs = [tuple(merge.split(" ")) for merge in merges]
        model = models.BPE(ids, pairs, ignore_merges=pre in WHOLE_WORDS)
        tokenizer = Tokenizer(model)
        named = {
            wanted: [p for p, k in zip(vocabulary, kinds, strict=True) if k == wanted]
            for wanted in (TokenType.CONTROL, TokenType.USER_DEFINED)
        }
    except Exception as error:  # the library raises bare Exceptions
        raise Refused(f"{path} has no whole tokenizer ({one_line(error)}).") from error
    parts = [
        pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PATTERNS[pre]
    ]
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*parts, whole])
    if pre in COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    control, defined = (
        [AddedToken(piece, normalized=False) for piece in pieces]
        for pieces in named.values()
    )
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(defined)
    return tokenizer
