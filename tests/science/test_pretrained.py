"""Pretrained weights: read as others read them, or refused whole in one sentence."""

import json
import math
import os
import re
import shutil
import unicodedata
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file
from support.bounds import additions_of, rounding
from support.llamas import (
    MERGES,
    PIECES,
    SAID,
    as_llama_cpp_names_it,
    random_model,
    write,
)
from support.refusals import refused
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from fmkit._check import Refused
from fmkit.assets import fetch
from fmkit.models._gguf import read_gguf
from fmkit.models.pretrained import load_gguf, load_llama, load_pretrained

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

ENGLISH = (Path(__file__).resolve().parents[2] / "LICENSE").read_text("utf-8")
TEXTS = [
    "",
    "The quick brown fox's friends didn't jump; they'll rest.",
    "x =  12\ny = x ** 345  # 67,890.12\n\n\tif x:\n        return f'{x!r}'\n",
    "   three before,   three between,\t\ttabs, three after   ",
    "naïve café \N{EN DASH} “quotes” … ½ of x² is ٣ or Ⅳ",
    "emoji 🙂👩‍👩‍👧 and 🏳️‍🌈, a null \x00 and a bell \x07",
    "注意力机制是二〇一七年提出的\N{FULLWIDTH COMMA}共有12个头。",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "< |im_end| > is text, <|im_end|> is not, <|endoftext|><|endoftext|>",
    "WORDS camelCase snake_case http://example.org/a?b=c&d=e",
    "\r\n\r\n \n  \n",
]


BY_HEADER = " must have the tensors described by its header, but"
BY_CONFIG = " must have the tensors described by config.json, but"
BIASES = "model.layers.0.self_attn.q_proj.bias and "

# SmolLM2, against transformers and against a byte-pair encoding in loops


@pytest.fixture(scope="module")
def peer(asset_cache):
    """transformers' model, and all that transformers reads in the file.

    Its `from_pretrained` would want another package; what that calls does not. The
    shape is that of HuggingFaceTB's own config.json.
    """
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    path = fetch("smollm2-135m-instruct-q4")["smollm2.gguf"]
    said = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)
    wrong = model.load_state_dict(said["tensors"], assign=True, strict=False)
    assert wrong.missing_keys == ["lm_head.weight"]
    assert wrong.unexpected_keys == []
    model.tie_weights()
    model.model.rotary_emb = LlamaRotaryEmbedding(config)  # was left without values
    return model.eval(), said


@torch.no_grad()
def test_smollm2_s_logits_are_those_of_transformers(smollm2, peer):
    model, tokenizer = smollm2.model, smollm2.tokenizer
    ids = torch.tensor([tokenizer.encode(ENGLISH).ids[:500]])
    assert ids.shape == (1, 500)
    ours, theirs = model(ids), peer[0](ids, use_cache=False).logits
    # The two best logits are nowhere closer than 0.005
    error = rounding(additions_of(model), size=theirs.abs().max().item())
    assert error < 0.005 / 2
    torch.testing.assert_close(ours, theirs, rtol=0, atol=error)
    assert torch.equal(ours.argmax(dim=-1), theirs.argmax(dim=-1))


def test_smollm2_s_shape_is_what_transformers_reads(smollm2, peer):
    config, theirs = smollm2.model.config, peer[1]["config"]
    assert (config.vocabulary, config.context) == (49_152, 8192)
    pairs = {
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.hidden,
        "rope_theta": config.rope_base,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied,
        "head_dim": config.head_width,
    }
    assert {name: theirs[name] for name in pairs} == pairs
    assert config.causal
    assert sum(p.numel() for p in smollm2.model.parameters()) == 134_515_008
    assert {p.dtype for p in smollm2.model.parameters()} == {torch.float32}
    assert not smollm2.model.training


@torch.no_grad()
def test_smollm2_knows_something(smollm2):
    model, tokenizer = smollm2.model, smollm2.tokenizer
    ids = tokenizer.encode("The capital of France is").ids
    best = model(torch.tensor([ids]))[0, -1].argmax().item()
    assert tokenizer.decode([best]) == " Paris"


@pytest.fixture(scope="module")
def library(peer):
    """The tokenizer that SmolLM2's authors published, of what transformers reads."""
    said = peer[1]["tokenizer"]
    merges = [tuple(merge.split(" ")) for merge in said["merges"]]
    vocabulary = {piece: i for i, piece in enumerate(said["tokens"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(said["tokens"], said["token_type"], strict=True)
    tokenizer.add_special_tokens([p for p, k in kinds if k == gguf.TokenType.CONTROL])
    return tokenizer


def byte_pairs(text, said):
    """Ids of a text without control tokens, by the rules (Sennrich et al. 2016)."""
    import regex
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()
    ranks = {tuple(m.split(" ")): rank for rank, m in enumerate(said["merges"])}
    ids = {piece: i for i, piece in enumerate(said["tokens"])}
    parts, run = [], ""  # every number of Unicode alone, and what lies between
    for character in text:
        if unicodedata.category(character).startswith("N"):
            parts += [run, character]
            run = ""
        else:
            run += character
    gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    found = []
    for word in (w for part in [*parts, run] for w in regex.findall(gpt2, part)):
        pieces = [letters[byte] for byte in word.encode()]
        while True:
            pairs = [*pairwise(pieces)]
            best = min(pairs, key=lambda pair: ranks.get(pair, 1e9), default=None)
            if best not in ranks:
                break
            at = pairs.index(best)
            pieces[at : at + 2] = ["".join(best)]
        found += [ids[piece] for piece in pieces]
    return found


def test_the_tokenizer_is_the_library_s_and_the_loops(smollm2, library, peer):
    tokenizer = smollm2.tokenizer
    for text in [*TEXTS, ENGLISH]:
        assert tokenizer.encode(text).ids == library.encode(text).ids, text
        if "<|" not in text:
            assert tokenizer.encode(text).ids == byte_pairs(text, peer[1]["tokenizer"])


def test_tokens_become_the_text_again(smollm2):
    tokenizer = smollm2.tokenizer
    for text in [*TEXTS, ENGLISH]:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_control_tokens_are_one_token_each_and_left_out(smollm2):
    tokenizer = smollm2.tokenizer
    ids = tokenizer.encode("<|im_start|>user\nHi<|im_end|>").ids
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.decode(ids) == "user\nHi"
    assert len(tokenizer.encode("<|im_end|").ids) > 1
    assert tokenizer.get_vocab_size() == 49_152
    assert tokenizer.encode("x =  12").tokens == ["x", "Ġ=", "ĠĠ", "1", "2"]


# Small GGUF files


@pytest.fixture
def tensors():
    return as_llama_cpp_names_it(random_model())


@pytest.fixture
def file(tmp_path, tensors):
    return write(tmp_path / "small.gguf", tensors)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@torch.no_grad()
def test_gguf_in_float32_is_the_model(tmp_path, kv_heads, tied):
    model = random_model(kv_heads=kv_heads, tied=tied)
    named = {"llama.attention.head_count_kv": kv_heads}
    path = write(tmp_path / "x.gguf", as_llama_cpp_names_it(model), **named)
    lm = load_gguf(str(path))
    found = lm.model
    same = {"norm_epsilon": pytest.approx(1e-3)}  # the file has it in float32
    assert vars(found.config) == vars(model.config) | same
    assert found.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight), name
    assert (found.unembedding.weight is found.embedding.weight) is tied
    assert (lm.start, lm.ends) == (0, (0, 1))
    ids = torch.tensor([lm.encode("hello  12")])
    torch.testing.assert_close(found(ids), model(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1]
)
def test_gguf_in_fewer_bits_is_the_rounded_model(tmp_path, kind):
    """Rounding and packing first, then turning: blocks of 32 lie inside a row."""
    model = random_model()
    path = write(tmp_path / "x.gguf", as_llama_cpp_names_it(model), kind=kind)
    found = load_gguf(path).model.state_dict()
    # Half a step: of 2^11 a number, or of so many levels in a block's whole range
    steps = {Kind.F16: 2048, Kind.BF16: 256, Kind.Q8_0: 254, Kind.Q4_0: 16}
    steps |= {Kind.Q4_1: 15, Kind.Q5_0: 32, Kind.Q5_1: 31}
    for name, weight in model.state_dict().items():
        if weight.dim() == 1:
            assert torch.equal(found[name], weight)
            continue
        packed = gguf.quants.quantize(weight.numpy(), kind)
        expected = gguf.quants.dequantize(packed, kind)
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], torch.from_numpy(expected)), name
        gap = (found[name] - weight).abs().max() / weight.abs().max()
        # Q4_0 and Q5_0 have no level at one of the ends
        assert gap < 2.1 / steps[kind]


@pytest.mark.parametrize("pre", ["smollm", "gpt-2"])
def test_gguf_s_tokenizers(tmp_path, tensors, pre):
    path = write(tmp_path / "x.gguf", tensors, tokenizer__ggml__pre=pre)
    encoding = load_gguf(path).tokenizer.encode("hell  12<|im_start|>")
    run = {"smollm": ["ĠĠ", "1", "2"], "gpt-2": ["Ġ", "Ġ", "12"]}[pre]
    assert encoding.tokens == ["he", "ll", *run, "<|im_start|>"]
    assert encoding.ids[-1] == 1


def test_gguf_with_another_alignment_and_all_types_of_numbers(tmp_path, tensors):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_custom_alignment(256)
    numbers = {}
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64"):
        numbers[kind] = 100 if kind.startswith("u") else -100
        getattr(writer, f"add_{kind}")(kind, numbers[kind])
    writer.add_int64("int64", -(2**40))
    writer.add_float32("float32", 0.5)
    writer.add_float64("float64", 0.1)
    writer.add_bool("yes", True)
    writer.add_bool("no", False)
    writer.add_string("text", "naïve 🙂")
    writer.add_array("list", [1, 2, 3])
    writer.add_array("texts", ["a", "", "bc"])
    numbers |= {"int64": -(2**40), "float32": 0.5, "float64": 0.1}
    numbers |= {"yes": True, "no": False, "text": "naïve 🙂"}
    numbers |= {"list": [1, 2, 3], "texts": ["a", "", "bc"]}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    said, packed = read_gguf(tmp_path / "x.gguf")
    own = {"general.architecture": "llama", "general.alignment": 256}
    assert said == own | numbers
    assert packed.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert np.array_equal(packed[name].read().numpy(), tensor)


def test_gguf_of_version_2_is_read_alike(file):
    model = load_gguf(file).model
    whole = file.read_bytes()
    assert whole[4:8] == (3).to_bytes(4, "little")
    file.write_bytes(whole[:4] + (2).to_bytes(4, "little") + whole[8:])
    found = load_gguf(file).model
    for name, weight in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight)


# GGUF files that cannot be used


def test_gguf_cut_off_anywhere(file, tmp_path):
    """Inside the header, what it says, the tensors' places and their values."""
    whole = file.read_bytes()
    infos = whole.index(b"token_embd.weight")
    assert infos < 10_000 < len(whole)
    ends = [*range(1, 40), *range(40, 10_000, 197), *range(infos - 8, infos + 60)]
    ends += [*range(10_000, len(whole), 4999), len(whole) - 1]
    cut = tmp_path / "cut.gguf"
    for end in ends:
        cut.write_bytes(whole[:end])
        assert refused(load_gguf, cut).startswith(f"{cut} is no whole GGUF file (")
    cut.write_bytes(b"")
    assert refused(load_gguf, cut).startswith(f"{cut} cannot be read (")
    cut.write_bytes(whole)
    load_gguf(cut)


def test_gguf_that_is_none(tmp_path):
    path = tmp_path / "x.gguf"
    assert refused(load_gguf, path).startswith(f"{path} cannot be read (")
    assert refused(load_gguf, tmp_path).startswith(f"{tmp_path} cannot be read (")
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    message = f"{path} is no whole GGUF file (it does not begin with GGUF)."
    assert refused(load_gguf, path) == message
    with pytest.raises(Refused, match="it does not begin with GGUF"):
        read_gguf(path)
    path.write_bytes(b"GGUF" + (1).to_bytes(4, "little") + bytes(100))
    assert refused(load_gguf, path).endswith("(its version is 1).")
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "big") + bytes(100))
    assert refused(load_gguf, path).endswith("(its version is 50331648).")


def test_gguf_with_damage_is_refused_or_read_but_never_a_traceback(file, tmp_path):
    """A byte of the tokenizer or of the tensors' places is changed, 150 times."""
    whole = bytearray(file.read_bytes())
    ends = whole.index(b"tokenizer.ggml.model"), whole.index(b"output.weight") + 30
    generator, damaged = np.random.default_rng(0), tmp_path / "damaged.gguf"
    refusals = 0
    for at in generator.integers(*ends, 150):
        before = whole[at]
        whole[at] = generator.integers(256)
        damaged.write_bytes(whole)
        whole[at] = before
        try:
            load_gguf(damaged)
        except Refused:
            refusals += 1
    assert refusals > 50


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": "gemma"},
            ": general.architecture must be llama or qwen2 or qwen3 or smollm3, "
            "got gemma.",
        ),
        (
            {"tokenizer__ggml__pre": "tekken"},
            ": tokenizer.ggml.pre must be smollm or gpt-2 or llama-bpe or smaug-bpe or "
            "qwen2 or default, got tekken.",
        ),
        (
            {"tokenizer__ggml__model": "llama"},
            ": tokenizer.ggml.model must be gpt2, got llama.",
        ),
        (
            {"tokenizer__ggml__eos_token_id": 262},
            ": tokenizer.ggml.eos_token_id must be the id of a token, got 262.",
        ),
        (
            {"llama__attention__head_count_kv": 3},
            ": llama.attention.head_count_kv must divide the heads (4), got 3.",
        ),
        (
            {"llama__attention__head_count": [4, 4]},
            ": llama.attention.head_count must be one int, got [4, 4].",
        ),
        (
            {"llama__attention__key_length": 3},
            ": llama.attention.key_length must be even and at least 2, got 3.",
        ),
        (
            {"llama__attention__value_length": 16},
            ": llama.attention.value_length must be 8, got 16.",
        ),
        (
            {"llama__attention__causal": False},
            ": llama.attention.causal must be True, got False.",
        ),
        (
            {"llama__logit_scale": 0.5},
            ": llama.logit_scale must be 1.0, got 0.5.",
        ),
        (
            {"llama__attention__scale": 0.25},
            ": llama.attention.scale must be an entry that fmkit knows.",
        ),
        (
            {"llama__expert_count": 8},
            ": llama.expert_count must be 0, got 8.",
        ),
        (
            {"llama__attention__sliding_window": 0},
            ": llama.attention.sliding_window must be at least 1, got 0.",
        ),
        (
            {"llama__rope__scaling__factor": -1.0},
            ": llama.rope.scaling.factor must be a number above 0, got -1.0.",
        ),
        (
            {"llama__embedding_length": 64},
            ": model.embed_tokens.weight must have shape (262, 64), by its header, "
            "got (262, 32).",
        ),
        (
            {
                "tokenizer__ggml__tokens": [*PIECES, "more"],
                "tokenizer__ggml__token_type": [3, 3] + [1] * 261,
            },
            ": model.embed_tokens.weight must have shape (263, 32), by its header, "
            "got (262, 32).",
        ),
        (
            {"llama__block_count": 3},
            f"{BY_HEADER} lacks model.layers.2.input_layernorm.weight and 8 more.",
        ),
        (
            {"llama__block_count": 10**9},
            ": layers must be fewer than its tensors, got 1000000000 with 21 tensors.",
        ),
        (
            {"llama__block_count": 1},
            f"{BY_HEADER} also has model.layers.1.input_layernorm.weight and 8 more.",
        ),
    ],
    ids=str,
)
def test_gguf_of_something_else(tmp_path, tensors, changes, message):
    path = write(tmp_path / "x.gguf", tensors, **changes)
    assert refused(load_gguf, path) == f"{path}{message}"


NEEDED = {*SAID, "general.architecture"} - {
    "llama.attention.head_count_kv",
    "llama.rope.freq_base",
}


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_gguf_that_does_not_say(tmp_path, tensors, name):
    path = write(tmp_path / "x.gguf", tensors, **{name: None})
    if name == "general.architecture":  # which the writer always writes
        other = name[:-1] + "f"
        path.write_bytes(path.read_bytes().replace(name.encode(), other.encode()))
    assert refused(load_gguf, path) == f"{path} must have an entry {name}."


def test_gguf_with_wrong_tensors(tmp_path, tensors):
    path = tmp_path / "x.gguf"

    def said(changed):
        return refused(load_gguf, write(path, changed)).removeprefix(str(path))

    part = "blk.1.attn_k.weight"
    fewer = {name: tensor for name, tensor in tensors.items() if name != part}
    assert said(fewer) == f"{BY_HEADER} lacks model.layers.1.self_attn.k_proj.weight."
    more = tensors | {"blk.0.ffn_gate.bias": tensors["output_norm.weight"]}
    name = "model.layers.0.mlp.gate_proj.bias"
    assert said(more) == f"{BY_HEADER} also has {name}."
    freqs = {"rope_freqs.weight": np.ones(3, np.float32)}
    assert said(tensors | freqs).startswith(": rope_freqs.weight must be 4 numbers")
    misshapen = tensors | {part: np.ones((16, 64), np.float32)}
    assert said(misshapen) == (
        ": model.layers.1.self_attn.k_proj.weight must have shape (16, 32), by its "
        "header, got (16, 64)."
    )
    flat = tensors | {"output_norm.weight": np.ones((1, 32), np.float32)}
    message = ": model.norm.weight must have shape (32,), by its header, got (1, 32)."
    assert said(flat) == message


def test_gguf_packed_in_an_unknown_way(file):
    """By a number of no kind, as what no weight is, in blocks longer than a row."""
    whole = file.read_bytes()
    at = whole.index(b"blk.0.attn_q.weight") + len("blk.0.attn_q.weight") + 4 + 16
    assert whole[at : at + 4] == bytes(4)  # F32
    file.write_bytes(whole[:at] + (999).to_bytes(4, "little") + whole[at + 4 :])
    assert "999 is not a valid" in refused(load_gguf, file)
    file.write_bytes(whole[:at] + Kind.I8.to_bytes(4, "little") + whole[at + 4 :])
    message = f"{file}: blk.0.attn_q.weight is packed as I8, which is unknown."
    assert refused(load_gguf, file) == message
    file.write_bytes(whole[:at] + Kind.Q4_K.to_bytes(4, "little") + whole[at + 4 :])
    message = "(blk.0.attn_q.weight has no whole blocks of 256 in a row)."
    assert refused(load_gguf, file).endswith(message)


@pytest.mark.parametrize(
    "changes",
    [
        {"llama__rope__scaling__type": "yarn"},
        {"llama__rope__dimension_count": 4},
    ],
    ids=str,
)
def test_gguf_with_other_rotations(tmp_path, tensors, changes):
    path = write(tmp_path / "x.gguf", tensors, **changes)
    [name] = changes
    assert refused(load_gguf, path).startswith(f"{path}: {name.replace('__', '.')}")


# Folders, as transformers saves them


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """transformers' models by name, and the folders where it saved them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    made = {}
    for name, tied, kv_heads, shard in (
        ("tied", True, 2, "5GB"),
        ("untied", False, 4, "5GB"),
        ("sharded", False, 1, "40KB"),
    ):
        config = LlamaConfig(
            vocab_size=262,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            max_position_embeddings=64,
            rms_norm_eps=1e-2,
            initializer_range=0.15,
            tie_word_embeddings=tied,
            rope_parameters={"rope_type": "default", "rope_theta": 300.0},
        )
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for part, weight in model.named_parameters():
                if "norm" in part:
                    weight.add_(torch.randn_like(weight) / 4)
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder, max_shard_size=shard)
        ids = {piece: i for i, piece in enumerate(PIECES)}
        merges = [tuple(merge.split(" ")) for merge in MERGES]
        tokenizer = Tokenizer(models.BPE(ids, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.save(str(folder / "tokenizer.json"))
        made[name] = model, folder
    return made


@pytest.mark.parametrize("name", ["tied", "untied", "sharded"])
@torch.no_grad()
def test_folders_of_transformers(saved, name):
    peer, folder = saved[name]
    files = [*folder.glob("*.safetensors")]
    assert len(files) == 1 if name != "sharded" else len(files) > 2
    lm = load_llama(str(folder))
    model = lm.model
    assert lm.start == 0
    assert not model.training
    assert model.config.tied is (name == "tied")
    assert (model.unembedding.weight is model.embedding.weight) is model.config.tied
    ids = torch.tensor([lm.encode("hello, hell and heaven  in 64 tokens")])
    expected = peer(ids).logits
    assert expected.std() > 0.3
    torch.testing.assert_close(model(ids), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_folder_is_loaded_in_half_precision(saved):
    _, folder = saved["untied"]
    half, whole = load_llama(folder, dtype=torch.bfloat16), load_llama(folder)
    assert {weight.dtype for weight in half.model.parameters()} == {torch.bfloat16}
    ids = torch.tensor([whole.encode("hello")])
    assert torch.equal(half.model(ids), whole.model.bfloat16()(ids))


def test_a_gguf_file_may_leave_out_what_llama_cpp_knows(tmp_path):
    """As many heads of keys as of queries, and 10,000 for the base of positions."""
    model = random_model(kv_heads=4, rope_base=10_000.0)
    names = ("attention.head_count_kv", "rope.freq_base")
    absent = dict.fromkeys(f"llama.{name}" for name in names)
    lm = load_gguf(write(tmp_path / "x", as_llama_cpp_names_it(model), **absent))
    expected = {**vars(model.config), "norm_epsilon": pytest.approx(1e-3)}
    assert vars(lm.model.config) == expected
    for name, weight in model.state_dict().items():
        assert torch.equal(lm.model.state_dict()[name], weight)


def test_a_part_of_a_gguf_file_is_refused(tmp_path, tensors):
    for parts in (0, 1):
        load_gguf(write(tmp_path / "x", tensors, split__count=parts))
    message = refused(load_gguf, write(tmp_path / "x", tensors, split__count=3))
    assert message == f"{tmp_path}/x: split.count must be at most 1, got 3."


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the tied one to damage."""
    return shutil.copytree(saved["tied"][1], tmp_path / "llama")


def edit(folder, **changes):
    """Other values in config.json; None takes an entry away."""
    path = folder / "config.json"
    said = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(
        json.dumps({k: v for k, v in said.items() if v is not None}), encoding="utf-8"
    )


@torch.no_grad()
def test_folders_as_older_versions_saved_them(saved, folder):
    """rope_theta at the top, the tied matrix twice, frequencies, half precision."""
    edit(folder, rope_parameters=None, rope_theta=300.0, rope_scaling=None)
    weights = load_file(folder / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    weights |= {"lm_head.weight": embedding.clone()}
    for layer in range(2):
        weights[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    half = {name: weight.bfloat16() for name, weight in weights.items()}
    save_file(half, folder / "model.safetensors")
    model = load_llama(folder).model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.embedding.weight, embedding.bfloat16().float())
    save_file(weights, folder / "model.safetensors")
    model, expected = load_llama(folder).model, load_llama(saved["tied"][1]).model
    assert model.config == expected.config
    for name, weight in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)


def test_folders_without_a_count_of_keys_heads(saved, tmp_path):
    folder = shutil.copytree(saved["untied"][1], tmp_path / "llama")
    edit(folder, num_key_value_heads=None)
    assert load_llama(folder).model.config.kv_heads == 4


def test_a_start_symbol_of_another_name(folder, tmp_path, tensors):
    """It is the one that the file names: only the start of a turn begins no text."""
    for named, start in ((5, 5), (None, None), (1, 0), (0, 0)):
        edit(folder, bos_token_id=named)
        assert load_llama(folder).start == start
        path = write(tmp_path / "x.gguf", tensors, tokenizer__ggml__bos_token_id=named)
        assert load_gguf(path).start == start
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    other = text.replace("<|endoftext|>", "<s>")
    (folder / "tokenizer.json").write_text(other, encoding="utf-8")
    edit(folder, bos_token_id=1)
    assert load_llama(folder).start == 1
    pieces = ["<s>", *PIECES[1:]]
    path = write(tmp_path / "x.gguf", tensors, tokenizer__ggml__tokens=pieces)
    assert load_gguf(path).start == 1


def test_nothing_is_cut_or_padded_by_a_tokenizer(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(folder / "tokenizer.json"))
    read = load_llama(folder).tokenizer
    assert [len(read.encode("x" * n).ids) for n in (2, 12)] == [2, 12]


def test_merges_are_not_dropped_at_random(folder):
    path = folder / "tokenizer.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    said["model"]["dropout"] = 0.9
    path.write_text(json.dumps(said), encoding="utf-8")
    read = load_llama(folder).tokenizer
    assert all(read.encode("hell").tokens == ["he", "ll"] for _ in range(9))


@pytest.mark.parametrize("named", [5, None])
def test_a_tokenizer_s_own_start_stands_once(folder, named):
    """Llama's tokenizers add a start symbol to a text, and some an end symbol."""
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    around = {"single": "& $A <|endoftext|>", "special_tokens": [("&", 5)]}
    around["special_tokens"] += [("<|endoftext|>", 0)]
    assert tokenizer.id_to_token(7) == "&"
    around["special_tokens"][0] = ("&", 7)
    tokenizer.post_processor = processors.TemplateProcessing(**around)
    tokenizer.save(str(path))
    edit(folder, bos_token_id=7 if named else None)
    lm = load_llama(folder)
    assert lm.start == 7
    text = tokenizer.encode("hell", add_special_tokens=False).ids
    assert lm.encode("hell") == [7, *text]
    assert lm.tokenizer.encode("hell").ids == text
    assert lm.encode("&hell") == [7, *text]  # one that the text begins with is it
    edit(folder, bos_token_id=5)
    message = f"{folder}/config.json: bos_token_id must be what tokenizer.json puts"
    assert refused(load_llama, folder).startswith(message)
    around["single"] = "& & $A"
    tokenizer.post_processor = processors.TemplateProcessing(**around)
    tokenizer.save(str(path))
    assert refused(load_llama, folder).endswith("got [7, 7].")


def test_end_symbols_may_be_several(folder):
    edit(folder, eos_token_id=[3, 1])
    assert load_llama(folder).ends == (2,)  # as generation_config.json says
    generation = folder / "generation_config.json"
    generation.write_text('{"eos_token_id": [2, 1, 2]}', encoding="utf-8")
    assert load_llama(folder).ends == (2, 1)
    for wrong in ("400", "true", "[true]", '"</s>"', "2.0", "[[2]]", "-1"):
        generation.write_text(f'{{"eos_token_id": {wrong}}}', encoding="utf-8")
        message = refused(load_llama, folder)
        assert message.startswith(f"{generation}: eos_token_id must be the id of a to")
    generation.unlink()
    assert load_llama(folder).ends == (3, 1)
    edit(folder, eos_token_id=[0, 400])
    message = f"{folder}/config.json: eos_token_id must be the id of a token, got "
    assert refused(load_llama, folder) == f"{message}[0, 400]."
    edit(folder, eos_token_id=None, bos_token_id=True)
    assert refused(load_llama, folder).endswith(
        "bos_token_id must be the id of a token, got True."
    )
    edit(folder, bos_token_id=None)
    assert load_llama(folder).ends == ()
    generation.write_text("{", encoding="utf-8")
    assert refused(load_llama, folder).startswith(f"{generation} cannot be read (")


def test_more_tokens_than_rows(folder):
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens(["<|one more|>"])
    tokenizer.save(str(path))
    said = f"at most vocab_size (262) tokens, as {folder}/config.json says, got 263."
    assert refused(load_llama, folder) == f"{path} must have {said}"


def test_a_tied_flag_with_two_matrices(folder):
    file = folder / "model.safetensors"
    weights = load_file(file)
    other = {"lm_head.weight": weights["model.embed_tokens.weight"] + 1}
    save_file(weights | other, file)
    message = f"{folder}/config.json: tie_word_embeddings must be false where"
    assert refused(load_llama, folder).startswith(message)
    edit(folder, tie_word_embeddings=False)
    assert not load_llama(folder).model.config.tied


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_matrices_without_their_scales(folder, dtype):
    file = folder / "model.safetensors"
    weights = load_file(file)
    part = "model.layers.1.mlp.up_proj.weight"
    save_file(weights | {part: weights[part].to(dtype)}, file)
    message = f"{file}: {part} must be of floating point, without scales, got "
    assert refused(load_llama, folder).startswith(message)


def test_a_byte_order_mark_before_a_config(folder):
    """Windows' editors write one."""
    expected = load_llama(folder).model.config
    for name in ("config.json", "generation_config.json"):
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text, encoding="utf-8-sig")
    assert load_llama(folder).model.config == expected


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_precisions_in_which_no_model_computes(folder, dtype):
    message = "dtype must be one of torch.float32, torch.bfloat16, torch.float16, "
    for load in (load_llama, load_pretrained):
        assert refused(lambda load=load: load(folder, dtype=dtype)).startswith(message)


def test_hidden_files_beside_a_gguf_file(tmp_path, tensors):
    """A Mac leaves one for each file on a disk of another kind."""
    write(tmp_path / "x.gguf", tensors)
    (tmp_path / "._x.gguf").write_bytes(b"\0")
    assert load_pretrained(tmp_path).start == 0


def test_folders_that_lack_a_file(folder):
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        (folder / name).unlink()
        message = refused(load_llama, folder)
        assert message.startswith(f"{folder / name} cannot be read (")
    assert refused(load_llama, folder / "x").startswith(f"{folder}/x/config.json")


def test_folders_with_damaged_files(folder):
    whole = (folder / "model.safetensors").read_bytes()
    for end in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:end])
        message = refused(load_llama, folder)
        assert message.startswith(f"{folder}/model.safetensors cannot be read (")
    for name in ("tokenizer.json", "config.json"):
        for text in ('{"a": ', "[]", ""):
            (folder / name).write_text(text, encoding="utf-8")
            message = refused(load_llama, folder)
            assert message.startswith(f"{folder / name} "), text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma"}, "/config.json: model_type must be one of llama, "),
        ({"model_type": "qwen2"}, f"{BY_CONFIG} lacks {BIASES}"),
        ({"hidden_act": "gelu"}, "/config.json: hidden_act must be silu or swish, got"),
        ({"is_causal": False}, "/config.json: is_causal must be True, got False."),
        ({"mlp_bias": True}, "/config.json: mlp_bias must be False or None, got True."),
        ({"attention_bias": True}, f"{BY_CONFIG} lacks {BIASES}"),
        (
            {"quantization_config": {"bits": 4}},
            "/config.json: quantization_config must be None, got {'bits': 4}.",
        ),
        (
            {"partial_rotary_factor": 0.5},
            "/config.json: partial_rotary_factor must be 1.0 or None, got 0.5.",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
            "/config.json: rope_type must be default, linear or llama3, got yarn.",
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
            "/config.json: low_freq_factor must be a number above 0, got None.",
        ),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "linear"}},
            "/config.json: factor must be a number above 0, got None.",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "/config.json: rope_parameters must be one for all layers, got ",
        ),
        (
            {"rope_parameters": None, "rope_scaling": {"factor": 4.0}},
            "/config.json, without another rope_type: factor must be 1.0 or None, got",
        ),
        (
            # Which of the two values of rope_theta is meant?
            {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
            "/config.json: rope_scaling must not contradict rope_parameters ({",
        ),
        (
            {"layer_types": ["chunked_attention"] * 2},
            "/config.json: layer_types must be full_attention or sliding_attention, ",
        ),
        (
            {"use_sliding_window": True, "sliding_window": 0},
            "/config.json: sliding_window must be at least 1, got 0.",
        ),
        (
            {"rope_parameters": None, "rope_theta": 0},
            "/config.json: rope_theta must be",
        ),
        ({"rms_norm_eps": -1.0}, "/config.json: rms_norm_eps must be at least 0, got"),
        ({"rms_norm_eps": math.inf}, "/config.json: rms_norm_eps must be finite, got"),
        ({"hidden_size": None}, "/config.json must have hidden_size."),
        (
            {"num_key_value_heads": 3},
            "/config.json: num_key_value_heads must divide the heads (4), got 3.",
        ),
        ({"vocab_size": "many"}, "/config.json: vocab_size must be one int, got 'many"),
        (
            {"rms_norm_eps": "1e-5"},
            "/config.json: rms_norm_eps must be one number, got '1e-5'.",
        ),
        (
            {"intermediate_size": [48, 48]},
            "/config.json: intermediate_size must be one int, got [48, 48].",
        ),
        (
            {"bos_token_id": [0, 1]},
            "/config.json: bos_token_id must be the id of one token, got [0, 1].",
        ),
        (
            {"num_hidden_layers": 3},
            f"{BY_CONFIG} lacks model.layers.2.input_layernorm.weight and 8 more.",
        ),
    ],
    ids=str,
)
def test_configs_of_something_else(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(Refused, match=f"^{re.escape(f'{folder}{message}')}"):
        load_llama(folder)


def test_folders_with_wrong_tensors(folder):
    file = folder / "model.safetensors"
    weights = load_file(file)
    part = "model.layers.1.mlp.up_proj.weight"

    def said(changed):
        save_file(changed, file)
        return refused(load_llama, folder).removeprefix(str(folder))

    fewer = {name: weight for name, weight in weights.items() if name != part}
    assert said(fewer) == f"{BY_CONFIG} lacks {part}."
    more = weights | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}
    assert said(more) == f"{BY_CONFIG} also has model.layers.0.self_attn.q_proj.bias."
    turned = weights | {part: weights[part].T.contiguous()}
    message = f": {part} must have shape (48, 32), by config.json, got (32, 48)."
    assert said(turned) == message
    edit(folder, tie_word_embeddings=False)
    assert said(weights) == f"{BY_CONFIG} lacks lm_head.weight."


def test_a_shard_that_is_missing(saved, tmp_path):
    folder = shutil.copytree(saved["sharded"][1], tmp_path / "llama")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    assert refused(load_llama, folder).startswith(f"{shard} cannot be read (")
    index = folder / "model.safetensors.index.json"
    for text in (
        "{}",
        '{"weight_map": ["model.safetensors"]}',
        '{"weight_map": {"model.norm.weight": null}}',
    ):
        index.write_text(text, encoding="utf-8")
        assert refused(load_llama, folder).startswith(f"{index}: weight_map must name")


def test_a_whole_file_beside_parts_is_read(saved, tmp_path):
    """As transformers does: the parts may be left of an older save."""
    folder = shutil.copytree(saved["sharded"][1], tmp_path / "llama")
    shutil.copy(saved["untied"][1] / "config.json", folder)
    shutil.copy(saved["untied"][1] / "model.safetensors", folder)
    found, expected = load_llama(folder), load_llama(saved["untied"][1])
    weight = expected.model.embedding.weight
    assert torch.equal(found.model.embedding.weight, weight)


# Chat templates

TEMPLATE = "{{ bos_token }}[{{ messages[0]['content'] }}]{{ eos_token }}"


def test_smollm2_s_chat_is_that_of_transformers(smollm2):
    from transformers import PreTrainedTokenizerFast

    peer = PreTrainedTokenizerFast(tokenizer_object=smollm2.tokenizer)
    for text in ("Is it?", "{{ a }} {% raw %}\n<|im_end|>"):
        turn = [{"role": "user", "content": text}]
        how = {"tokenize": False, "add_generation_prompt": True}
        how["chat_template"] = smollm2.template
        assert smollm2.chat(text) == peer.apply_chat_template(turn, **how)
        before = [{"role": "user", "content": "2"}]
        before += [{"role": "assistant", "content": "4"}]
        expected = peer.apply_chat_template([*before, *turn], **how)
        assert smollm2.chat(text, [("2", "4")]) == expected
    prompt = smollm2.chat("Is it?")
    assert prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant")
    assert prompt.endswith("user\nIs it?<|im_end|>\n<|im_start|>assistant\n")
    ids = replace(smollm2, start=None).encode(prompt)
    names = [smollm2.tokenizer.id_to_token(i) for i in ids]
    assert names.count("<|im_start|>") == 3
    assert names[0] == "<|im_start|>"
    assert smollm2.packed().template == smollm2.template


@pytest.mark.parametrize(
    "template",
    [
        # What SmolLM3's, Llama 3.1's, Mistral's and Qwen3's templates use
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% break %}{% endfor %}",
        "{% if tools is none and documents is none %}none{% endif %}",
        "{{ messages | tojson(indent=2) }}",
        "{{ strftime_now('%Y') }}",
        "{% set a = 1 %}{% generation %}{% set a = 2 %}{% endgeneration %}{{ a }}",
    ],
)
def test_templates_have_what_transformers_gives_them(folder, template):
    from transformers import PreTrainedTokenizerFast

    lm = replace(load_llama(folder), template=template)
    peer = PreTrainedTokenizerFast(tokenizer_object=lm.tokenizer)
    turn = [{"role": "user", "content": "é <b> & 'c'"}]
    expected = peer.apply_chat_template(turn, tokenize=False, chat_template=template)
    assert lm.chat("é <b> & 'c'") == expected
    stops = "{{ raise_exception('Roles must alternate.') }}"
    message = refused(replace(lm, template=stops).chat, "hi")
    assert "TemplateError: Roles must alternate." in message


def test_a_gguf_file_may_have_a_chat_template(tmp_path, tensors, file):
    lm = load_gguf(
        write(tmp_path / "x.gguf", tensors, tokenizer__chat_template="a{{1}}")
    )
    assert lm.chat("b") == "a1"
    lm = load_gguf(file)
    assert lm.template is None
    assert "lm.template" in refused(lm.chat, "b")


def test_where_a_folder_has_its_chat_template(folder):
    assert load_llama(folder).template is None
    about = folder / "tokenizer_config.json"
    several = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    for said, template in ((TEMPLATE, TEMPLATE), (several, "d"), ([], None)):
        about.write_text(json.dumps({"chat_template": said}), encoding="utf-8")
        assert load_llama(folder).template == template
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    lm = load_llama(folder)
    start, end = map(lm.tokenizer.id_to_token, (lm.start, lm.ends[0]))
    assert lm.chat("hi") == f"{start}[hi]{end}"
    assert replace(lm, start=None, ends=()).chat("hi") == "[hi]"


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    ],
)
def test_a_chat_template_that_fails_or_reaches_out(folder, template, error):
    lm = replace(load_llama(folder), template=template)
    assert error in refused(lm.chat, "hi")


def test_a_file_of_a_folder_is_no_model_by_itself(folder):
    for name in ("config.json", "model.safetensors"):
        message = f"name must be {folder}, the folder of a model, got "
        assert refused(load_pretrained, folder / name).startswith(message)


@pytest.mark.parametrize("kind", ["WordLevel", "Unigram"])
def test_a_tokenizer_that_cannot_encode_every_text(folder, kind):
    """The library raises a bare Exception, at the first text with such a character."""
    path = folder / "tokenizer.json"
    vocabulary = {"a": 0, "b": 1}
    model = {"type": kind, "vocab": vocabulary, "unk_token": "<unk>"}
    if kind == "Unigram":
        model = {"type": kind, "vocab": [["a", -1.0], ["b", -2.0]], "unk_id": None}
    edited = json.loads(path.read_text(encoding="utf-8"))
    edited |= {"model": model, "added_tokens": [], "pre_tokenizer": None}
    path.write_text(json.dumps(edited), encoding="utf-8")
    message = f"{path} must have a token for unknown characters ("
    assert refused(load_llama, folder).startswith(message)


def test_an_empty_list_of_end_symbols_says_nothing(folder):
    edit(folder, eos_token_id=1)
    text = '{"eos_token_id": []}'
    (folder / "generation_config.json").write_text(text, encoding="utf-8")
    assert load_llama(folder).ends == (1,)


@pytest.mark.parametrize("alignment", [0, "32"])
def test_gguf_with_an_alignment_that_is_none(tmp_path, tensors, alignment):
    path = write(tmp_path / "x.gguf", tensors, my__general__alignment=alignment)
    raw = path.read_bytes().replace(b"my.general.alignment", b"general.alignment")
    raw = raw.replace(
        len("my.general.alignment").to_bytes(8, "little") + b"general.alignment",
        len("general.alignment").to_bytes(8, "little") + b"general.alignment",
    )
    path.write_bytes(raw)
    message = f"{path} is no whole GGUF file (its general.alignment is {alignment})."
    assert refused(load_gguf, path) == message
