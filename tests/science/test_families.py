"""Families of language models: as transformers computes them, from folders and GGUF."""

import contextlib
import io
import json
import os
import shutil
import unicodedata
import weakref
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file
from support.bounds import additions_of, rounding
from support.llamas import peer_of
from support.refusals import refused
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    processors,
    trainers,
)
from tokenizers import pre_tokenizers as pre

from fmkit import _reading
from fmkit._reading import Stored
from fmkit.data.tokens import pieces
from fmkit.generate import generate
from fmkit.models import pretrained
from fmkit.models._families import of_folder
from fmkit.models.packed import packed
from fmkit.models.pretrained import load_gguf, load_llama
from fmkit.models.saved import load_trained, save_trained
from fmkit.models.transformer import with_weights
from fmkit.prompt import score_answers

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

V, CONTEXT = 300, 64
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,  # in a head of width 8, of each kind of frequency one
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
# By name: transformers' class, and the entries of config.json that differ
FAMILIES = {
    "llama-3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-linear": ("Llama", {"rope_parameters": LINEAR}),
    "llama-biased": ("Llama", {"attention_bias": True, "head_dim": 16}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 6}),
    "mistral-windowed": ("Mistral", {"sliding_window": 40}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-windowed": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3-biased": ("Qwen3", {"head_dim": 6, "attention_bias": True}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5, "pad_token_id": 0}),
    "wide": (  # rows of whole blocks of 256
        "Llama",
        {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1},
    ),
    "smollm3-windowed": (
        "SmolLM3",
        {
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 40,
            "pad_token_id": 0,
        },
    ),
    "smollm3-chosen": ("SmolLM3", {"no_rope_layers": [0, 1], "pad_token_id": 0}),
}
NASTY = [
    "",
    " ",
    "The quick brown fox's friends DIDN'T jump; THEY'LL rest.",
    "x =  12\ny = x ** 345  # 67,890.12\n\n\tif x:\n        return f'{x!r}'\n",
    "   three before,   three between,\t\ttabs, three after   ",
    "naïve café, nai\N{COMBINING DIAERESIS}ve, ½ of x² is ٣ or Ⅳ, ﬁ",
    "emoji 🙂👩‍👩‍👧 and 🏳️‍🌈, a null \x00 and a bell \x07",
    "注意力机制是二〇一七年提出的\N{FULLWIDTH COMMA}共有12个头。",
    "<|bos|>user\nHi<|end|>\n< |end| > is text, <tool> is none",
    "http://example.org/a?b=c&d=e $5^2 + [x] ~ `y` | {z} <= 1000000",
    "\r\n\r\n \n  \n",
]


# As the authors' tokenizer.json has them
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace("{1,3}", "")
GPT2_PATTERN = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)


@pytest.fixture(scope="module")
def tokenizer():
    """A small tokenizer in the form of Llama 3's."""
    made = Tokenizer(models.BPE(ignore_merges=True))
    made.pre_tokenizer = pre.Sequence(
        [
            pre.Split(Regex(LLAMA3_PATTERN), "isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=V - 3,
        initial_alphabet=sorted(pre.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(["the capital of France is Paris, 1000 in 100"], trainer)
    made.add_special_tokens(["<|bos|>", "<|end|>"])
    made.add_tokens([AddedToken("<tool>", normalized=False)])
    start = made.token_to_id("<|bos|>")
    made.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", start)]
    )
    return made


@pytest.fixture(scope="module")
def families(tmp_path_factory, tokenizer):
    """Random models of transformers by name, and the folders where it saved them."""
    made = {}

    def family(name):
        if name in made:
            return made[name]
        kind, changes = FAMILIES[name]
        start, end = (tokenizer.token_to_id(t) for t in ("<|bos|>", "<|end|>"))
        symbols = {"bos_token_id": start, "eos_token_id": [end, start]}
        shape = {"vocab_size": V, "max_position_embeddings": CONTEXT} | symbols
        model = peer_of(kind, **(shape | changes))
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        tokenizer.save(str(folder / "tokenizer.json"))
        made[name] = model, folder
        return made[name]

    return family


def close(ours, theirs, model):
    error = rounding(additions_of(model), size=theirs.abs().max().item())
    assert error < 1e-5 * theirs.abs().max()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=error)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_family_is_that_of_transformers(families, tokenizer, name):
    peer, folder = families(name)
    lm = load_llama(folder)
    assert lm.model.config.context == (40 if "windowed" in name else CONTEXT)
    start, end = (tokenizer.token_to_id(t) for t in ("<|bos|>", "<|end|>"))
    assert (lm.start, lm.ends) == (start, (end, start))
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(
        1, V, (2, 40), generator=generator
    )  # transformers hides padding
    expected = peer(ids).logits
    assert expected.std() > 0.3
    close(lm.model(ids), expected, lm.model)
    # In pieces through the cache, packed, and as greedy text
    cache = lm.model.cache(padding=[0, 0], room=40)
    parts = [lm.model(part, cache) for part in ids.split([7, 1, 32], dim=1)]
    close(torch.cat(parts, dim=1), expected, lm.model)
    close(packed(lm.model)(ids), expected, lm.model)
    prompt = ids[:1, :12]
    greedy = {"do_sample": False, "max_new_tokens": 16, "eos_token_id": None}
    theirs = peer.generate(prompt, pad_token_id=0, **greedy)[0, 12:].tolist()
    assert generate(lm.model, prompt.tolist(), new_tokens=16) == [theirs]


@torch.no_grad()
def test_a_scaling_matters(families):
    """A model of the same weights with positions as they are is far away."""
    for name in ("llama-3", "llama-linear", "smollm3"):
        lm, ids = load_llama(families(name)[1]), torch.arange(40)[None]
        plain = replace(lm.model.config, rope_divisors=(), unrotated=())
        other = with_weights(plain, dict(lm.model.named_parameters()))
        assert (other(ids) - lm.model(ids)).abs().max() > 0.1


def test_rope_scaling_is_obeyed_beside_rope_parameters(families, tmp_path):
    """As guides to longer contexts add it to what transformers wrote."""
    import transformers

    _, linear = families("llama-linear")
    folder = shutil.copytree(linear, tmp_path / "x")
    path = folder / "config.json"
    said = json.loads(path.read_text("utf-8"))
    said["rope_parameters"] = {"rope_type": "default", "rope_theta": 10_000.0}
    said["rope_scaling"] = {"type": "linear", "factor": 4.0}
    path.write_text(json.dumps(said), "utf-8")
    peer = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    model, ids = load_llama(folder).model, torch.arange(40)[None]
    assert model.config.rope_divisors == (4.0,) * 4
    with torch.no_grad():
        close(model(ids), peer(ids).logits, model)


def test_a_family_is_saved_and_loaded(families, tmp_path):
    for name in ("llama-3", "qwen2", "qwen3", "smollm3"):
        model = load_llama(families(name)[1]).model
        save_trained(tmp_path / "x.safetensors", model)
        again = load_trained(tmp_path / "x.safetensors").model
        assert again.config == model.config
        for part, weight in model.named_parameters():
            assert torch.equal(again.get_parameter(part), weight.half().float())


def test_bfloat16_halves_memory_and_is_near(families):
    """Judged on given texts: the error of a logit against float32."""
    for name in ("llama-3", "qwen2", "qwen3", "smollm3"):
        folder = families(name)[1]
        whole, half = load_llama(folder), load_llama(folder, dtype=torch.bfloat16)
        sizes = [
            sum(p.numel() * p.element_size() for p in lm.model.parameters())
            for lm in (whole, half)
        ]
        assert sizes[1] * 2 == sizes[0]
        ids = torch.arange(40)[None]
        with torch.no_grad():
            expected, found = whole.model(ids), half.model(ids).float()
        error = (found - expected).square().mean().sqrt() / expected.std()
        # 2^-8 a rounding, and some tens of roundings of vectors of about one size
        assert 0 < error < 10 * 2**-8


def test_tokenizers_are_those_of_transformers(families):
    from transformers import PreTrainedTokenizerFast

    _, folder = families("llama-3")
    peer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    lm = load_llama(folder)
    for text in NASTY:
        # transformers puts a start before one that is written out; a model saw no two
        expected = peer(text).input_ids[text.startswith("<|bos|>") :]
        assert lm.encode(text) == expected, text


# Start symbols that are absent, and pieces that keep their spaces


def test_a_model_without_a_start_symbol(families, tmp_path):
    _, source = families("qwen2")
    folder = shutil.copytree(source, tmp_path / "x")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    path = folder / "config.json"
    said = json.loads(path.read_text("utf-8")) | {"bos_token_id": None}
    path.write_text(json.dumps(said), "utf-8")
    lm = load_llama(folder)
    text = tokenizer.encode("the capital").ids
    assert lm.start is None
    assert lm.encode("the capital") == text
    answer = [" of"]
    scored = score_answers(lm, ["the capital", ""], [answer, answer])
    [tail] = [tokenizer.encode(" of").ids]
    for head, log_p in zip((text, [lm.ends[0]]), scored.log_p[:, 0], strict=True):
        with torch.no_grad():
            u = lm.model(torch.tensor([head + tail]))[0].log_softmax(dim=-1)
        places = range(len(head), len(head) + len(tail))
        by_hand = sum(u[t - 1, (head + tail)[t]].double() for t in places)
        torch.testing.assert_close(log_p, by_hand, rtol=1e-5, atol=1e-5)
    said["eos_token_id"] = None
    path.write_text(json.dumps(said), "utf-8")
    (folder / "generation_config.json").unlink()
    message = refused(score_answers, load_llama(folder), [""], [answer])
    assert "neither a start nor an end symbol" in message


SHAPE = {  # what no family has a value for that fits a small model
    "vocab_size": V,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
}


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3"])
@torch.no_grad()
def test_what_config_json_leaves_out_is_what_transformers_takes(
    kind, tokenizer, tmp_path
):
    import transformers

    def stored(entries):
        none = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
        about = {"model_type": kind.lower()} | SHAPE | none | entries
        (tmp_path / "config.json").write_text(json.dumps(about), "utf-8")
        return transformers.AutoConfig.from_pretrained(tmp_path), about

    def as_theirs(config, about):
        ours, window = of_folder(about, "x"), getattr(config, "sliding_window", None)
        context = config.max_position_embeddings
        width = getattr(config, "head_dim", None) or 2
        assert (ours.heads, ours.kv_heads) == (32, config.num_key_value_heads)
        assert (ours.head_width, ours.context) == (width, min(context, window or 1e9))
        assert ours.rope_base == config.rope_parameters["rope_theta"]
        assert (ours.norm_epsilon, ours.tied) == (
            config.rms_norm_eps,
            config.tie_word_embeddings,
        )

    whole = {"rms_norm_eps": 0.5, "tie_word_embeddings": kind != "SmolLM3"}
    whole |= {"num_key_value_heads": 2, "head_dim": 16, "rope_theta": 50.0}
    whole |= {"max_position_embeddings": 64}
    as_theirs(*stored(whole))
    for absent in whole:
        as_theirs(*stored({k: v for k, v in whole.items() if k != absent}))
    nulls = {"Mistral": ["head_dim"], "Llama": ["head_dim", "num_key_value_heads"]}
    for null in nulls.get(kind, ["num_key_value_heads"]):  # which their code takes
        as_theirs(*stored(whole | {null: None}))
    config, about = stored({"initializer_range": 0.15})
    as_theirs(config, about)
    torch.manual_seed(0)
    peer = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    peer.save_pretrained(tmp_path)
    stored({})
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    model, ids = load_llama(tmp_path).model, torch.arange(40)[None]
    expected = peer(ids).logits
    error = rounding(additions_of(model), size=expected.abs().max().item())
    assert error < 1e-4  # some families have many heads
    torch.testing.assert_close(model(ids), expected, rtol=0, atol=error)


def test_pieces_of_sentencepiece_keep_their_space():
    vocabulary = {"<unk>": 0, "▁Paris": 1, "Par": 2, "▁": 3, "▁▁": 4, "<0xC3>": 5}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    expected = [" Paris", "Par", " ", "  ", "�"]
    assert pieces(made, [1, 2, 3, 4, 5]) == expected
    made.decoder = decoders.Metaspace()
    assert pieces(made, [1, 2, 3, 4]) == expected[:4]


# GGUF


def written(path, source, tokenizer, *, pre="llama-bpe", pack=None, **changes):
    """A GGUF file of a folder, as llama.cpp's converter writes it; `pack` packs."""
    about = json.loads((source / "config.json").read_text("utf-8"))
    kind = about["model_type"].replace("mistral", "llama")
    writer = gguf.GGUFWriter(path, kind)
    heads, kv = about["num_attention_heads"], about["num_key_value_heads"]
    width = about.get("head_dim") or about["hidden_size"] // heads
    writer.add_context_length(about["max_position_embeddings"])
    writer.add_embedding_length(about["hidden_size"])
    writer.add_block_count(about["num_hidden_layers"])
    writer.add_feed_forward_length(about["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(about["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(about["rms_norm_eps"])
    writer.add_vocab_size(V)
    for name, value in changes.items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        add(f"{kind}.{name.replace('__', '.')}", value)
    said = json.loads(tokenizer.to_str())
    ids = tokenizer.get_vocab()
    kinds = dict.fromkeys(ids, 1)
    for token in said["added_tokens"]:
        kinds[token["content"]] = 3 if token["special"] else 4
    tokens = sorted(ids, key=ids.get)
    kinds = [kinds[t] for t in tokens]
    while len(tokens) < V:  # as the converter fills rows without a token
        tokens.append(f"[PAD{len(tokens)}]")
        kinds.append(5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(merge) for merge in said["model"]["merges"]])
    writer.add_bos_token_id(about["bos_token_id"])
    writer.add_eos_token_id(about["eos_token_id"][0])
    inside = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    top = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    for name, weight in load_file(source / "model.safetensors").items():
        values, theirs = weight.numpy(), top.get(name)
        if theirs is None:
            _, _, layer, part = name.split(".", 3)
            part, end = part.rsplit(".", 1)
            theirs = f"blk.{layer}.{inside[part]}.{end}"
            rows = {"self_attn.q_proj": heads, "self_attn.k_proj": kv}.get(part)
            if rows and kind in ("llama", "smollm3"):
                parted = values.reshape(rows, 2, len(values) // rows // 2, -1)
                values = parted.swapaxes(1, 2).reshape(values.shape)
        values, raw = np.ascontiguousarray(values), Kind.F32
        if pack and values.ndim == 2:
            values, raw = pack(theirs, values)
        writer.add_tensor(theirs, values, raw_dtype=raw)
    rope = about["rope_parameters"]
    if rope["rope_type"] == "llama3":  # as the converter computes it
        factors = []
        for i in range(width // 2):
            wave = 2 * np.pi * rope["rope_theta"] ** (2 * i / width)
            old = rope["original_max_position_embeddings"]
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            if wave < old / high:
                factors.append(1.0)
            elif wave > old / low:
                factors.append(rope["factor"])
            else:
                smooth = (old / wave - low) / (high - low)
                factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
        assert len({*factors}) == 3  # kept, mixed and scaled
        writer.add_tensor("rope_freqs.weight", np.array(factors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


IN_GGUF = ("llama-3", "llama-biased", "mistral", "qwen2", "qwen3", "smollm3")


@pytest.mark.parametrize("name", IN_GGUF)
@torch.no_grad()
def test_gguf_of_a_family_is_the_folder(families, tokenizer, tmp_path, name):
    _, folder = families(name)
    ours = load_llama(folder)
    lm = load_gguf(written(tmp_path / "x.gguf", folder, tokenizer))
    assert (lm.start, lm.ends) == (ours.start, ours.ends[:1])
    config = {**vars(ours.model.config), "norm_epsilon": pytest.approx(1e-6)}
    divisors = pytest.approx(config.pop("rope_divisors"))
    assert lm.model.config.rope_divisors == divisors
    found = {k: v for k, v in vars(lm.model.config).items() if k != "rope_divisors"}
    assert found == config
    for part, weight in ours.model.named_parameters():
        assert torch.equal(lm.model.get_parameter(part), weight), part
    for text in NASTY:
        assert lm.encode(text) == ours.encode(text), text
    half = load_gguf(tmp_path / "x.gguf", dtype=torch.bfloat16).model
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "changes",
    [
        {"rope__scale_linear": 4.0},
        {"rope__scaling__factor": 4.0},
        {"rope__scaling__factor": 4.0, "rope__scaling__type": "linear"},
    ],
    ids=str,
)
@torch.no_grad()
def test_gguf_s_linear_scaling(families, tokenizer, tmp_path, changes):
    peer, folder = families("llama-linear")
    path = written(tmp_path / "x.gguf", folder, tokenizer, **changes)
    model, ids = load_gguf(path).model, torch.arange(40)[None]
    close(model(ids), peer(ids).logits, model)
    path = written(
        path, folder, tokenizer, **(changes | {"rope__scaling__type": "none"})
    )
    assert load_gguf(path).model.config.rope_divisors == ()


# Pre-tokenizers: of Qwen2's tokenizer.json, and of llama.cpp's source
SPLITS = {
    "llama-bpe": [LLAMA3_PATTERN],
    "qwen2": [QWEN2_PATTERN],
    "smollm": [r"\p{N}", GPT2_PATTERN],
    "default": [
        r"[\p{P}\$\+<=>\^~\|]+",
        GPT2_PATTERN,
        r"\p{N}+",
        r"[0-9][0-9][0-9]",
    ],
}


def parts_of(text, patterns):
    """As llama.cpp's unicode_regex_split: matches and what lies between them."""
    import regex

    parts = [text]
    for pattern in patterns:
        found = []
        for part in parts:
            end = 0
            for match in regex.finditer(pattern, part):
                found += [part[end : match.start()], match[0]]
                end = match.end()
            found.append(part[end:])
        parts = [part for part in found if part]
    return parts


@pytest.mark.parametrize("name", SPLITS)
def test_gguf_s_pre_tokenizers(families, tokenizer, tmp_path, name):
    """A text is parted as the loops part it, and each part is merged by itself."""
    _, folder = families("llama-3")
    lm = load_gguf(written(tmp_path / "x.gguf", folder, tokenizer, pre=name))
    merges = Tokenizer(
        models.BPE(*merges_of(tokenizer), ignore_merges=name == "llama-bpe")
    )
    merges.pre_tokenizer = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in NASTY:
        if "<|" in text:  # has tokens that are written out
            continue
        read = unicodedata.normalize("NFC", text) if name == "qwen2" else text
        expected = [
            i for p in parts_of(read, SPLITS[name]) for i in merges.encode(p).ids
        ]
        assert lm.tokenizer.encode(text).ids == expected, text
    tokens = lm.tokenizer.encode("a<|bos|>b<tool>").tokens
    assert tokens == ["a", "<|bos|>", "b", "<tool>"]


def merges_of(tokenizer):
    said = json.loads(tokenizer.to_str())["model"]
    return said["vocab"], [tuple(merge) for merge in said["merges"]]


# Blocks, as ggml's dequantize_row_* unpacks them (ggml-quants.c)


def half(block, at):
    return float(np.frombuffer(bytes(block[at : at + 2]), "<f2")[0])


def signed(byte):
    return byte - 256 if byte > 127 else byte


def q8_0(block):
    return [half(block, 0) * signed(byte) for byte in block[2:]]


def q4_0(block):
    nibbles = [b & 15 for b in block[2:]] + [b >> 4 for b in block[2:]]
    return [half(block, 0) * (n - 8) for n in nibbles]


def q4_1(block):
    nibbles = [b & 15 for b in block[4:]] + [b >> 4 for b in block[4:]]
    return [half(block, 0) * n + half(block, 2) for n in nibbles]


def q4_k(block):
    d, least, packed = half(block, 0), half(block, 2), block[4:16]
    found = []
    for j in range(8):  # parts of 32 values, each with a scale and a least value
        if j < 4:
            scale, low = packed[j] & 63, packed[j + 4] & 63
        else:
            scale = (packed[j + 4] & 15) | (packed[j - 4] >> 6 << 4)
            low = (packed[j + 4] >> 4) | (packed[j] >> 6 << 4)
        for byte in block[16 + 32 * (j // 2) :][:32]:
            nibble = byte >> 4 if j % 2 else byte & 15
            found.append(d * scale * nibble - least * low)
    return found


def q6_k(block):
    d, found = half(block, 208), [0.0] * 256
    for n in range(2):  # halves of 128 values
        low, high = block[64 * n :], block[128 + 32 * n :]
        scales = [signed(b) for b in block[192 + 8 * n : 200 + 8 * n]]
        for i in range(32):
            four = low[i] & 15, low[i + 32] & 15, low[i] >> 4, low[i + 32] >> 4
            for k, bits in enumerate(four):
                q = (bits | (high[i] >> 2 * k & 3) << 4) - 32
                found[128 * n + 32 * k + i] = d * scales[i // 16 + 2 * k] * q
    return found


BLOCKS = {
    Kind.Q8_0: (q8_0, [0]),
    Kind.Q4_0: (q4_0, [0]),
    Kind.Q4_1: (q4_1, [0, 2]),
    Kind.Q4_K: (q4_k, [0, 2]),
    Kind.Q6_K: (q6_k, [208]),
}


@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.name)
def test_gguf_s_blocks_are_unpacked_as_the_loops_do(
    families, tmp_path, kind, tokenizer
):
    """Of every matrix; the file's rows are drawn at random, with scales near 1/1000."""
    unpack, halves = BLOCKS[kind]
    length, size = gguf.GGML_QUANT_SIZES[kind]
    generator, packed = np.random.default_rng(0), {}

    def pack(name, values):
        blocks = generator.integers(0, 256, (values.size // length, size), np.uint8)
        for at in halves:
            scales = generator.uniform(-1e-3, 1e-3, len(blocks)).astype("<f2")
            blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
        packed[name] = blocks.reshape(len(values), -1)
        return packed[name], kind

    _, folder = families("wide")
    path = written(tmp_path / "x.gguf", folder, tokenizer, pack=pack)
    model = load_gguf(path).model
    attention, mlp = model.blocks[0].attention, model.blocks[0].mlp
    queries = attention.qkv.weight[:256].view(4, 2, 32, 256).transpose(1, 2)
    for theirs, ours in {
        "token_embd": model.embedding.weight,
        "blk.0.attn_q": queries.reshape(256, 256),  # the file has pairs of rows
        "blk.0.attn_v": attention.qkv.weight[-128:],
        "blk.0.ffn_gate": mlp.gate_up.weight[:256],
        "blk.0.ffn_down": mlp.down.weight,
    }.items():
        rows = packed[f"{theirs}.weight"]
        for i in (0, 1, 77, len(rows) - 1):
            row = rows[i].tolist()
            blocks = [row[at : at + size] for at in range(0, len(row), size)]
            expected = torch.tensor([x for block in blocks for x in unpack(block)])
            torch.testing.assert_close(ours[i], expected, rtol=1e-6, atol=1e-7)


# Memory and time


def test_weights_are_read_one_by_one(families, monkeypatch):
    """No tensor of a file is kept while the next one is read."""
    read_before = []

    def watched(shape, read):
        def values():
            assert all(tensor() is None for tensor in read_before)
            tensor = read()
            read_before.append(weakref.ref(tensor))
            return tensor

        return Stored(shape, values)

    monkeypatch.setattr(_reading, "Stored", watched)
    for dtype in (torch.float32, torch.bfloat16):
        load_llama(families("llama-3")[1], dtype=dtype)
    assert len(read_before) == 2 * (2 * 9 + 3)


@pytest.mark.parametrize(("seconds", "shown"), [(0.0, True), (2.0, False)])
def test_a_long_loading_shows_a_bar(families, monkeypatch, seconds, shown):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    folder = families("llama-3")[1]
    assert pretrained.LONG_LOADING == 2
    monkeypatch.setattr(pretrained, "LONG_LOADING", seconds)
    with contextlib.redirect_stderr(Terminal()) as terminal:
        load_llama(folder)
    assert (f"loading {folder.name}" in terminal.getvalue()) is shown
