"""Low-rank updates in files: peft's are read, peft reads ours, others are refused."""

import json
import os
import re
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.bounds import additions_of, rounding
from support.llamas import peer_of
from support.models import redrawn, snapshot, unchanged
from support.refusals import refused
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from torch import nn

from fmkit.lora import (
    LowRank,
    load_low_rank,
    merge_low_rank,
    save_low_rank,
    with_low_rank,
)
from fmkit.models.bert import Bert, BertConfig, bert_name
from fmkit.models.packed import packed
from fmkit.models.pooling import Pooled, last_token
from fmkit.models.pretrained import load_llama
from fmkit.models.saved import load_trained, save_trained

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

# Of peft, which asks transformers for something under its old name
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_ch.*:FutureWarning")

V, LAYERS, R = 50, 3, 4
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# By name: the class of transformers, and its entries that differ
FAMILIES = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),  # biases of q, k and v
    "qwen3": ("Qwen3", {"tie_word_embeddings": True, "head_dim": 16}),
}


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Folders of random models of transformers, and the same models of ours."""
    made = {}

    def family(name):
        if name not in made:
            kind, changes = FAMILIES[name]
            shape = {"vocab_size": V, "num_hidden_layers": LAYERS, **changes}
            symbols = {"bos_token_id": None, "eos_token_id": None}
            model = peer_of(kind, max_position_embeddings=32, **shape, **symbols)
            folder = tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            only = Tokenizer(tokenizer_models.WordLevel({"a": 0}, unk_token="a"))
            only.save(str(folder / "tokenizer.json"))
            made[name] = folder, load_llama(folder).model
        return made[name]

    return family


def of_transformers(folder):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def theirs(folder, path, targets=("q_proj", "v_proj"), model=None, **options):
    """Save an adapter that peft made and that is no longer 0; return peft's model."""
    options = {"r": R, "lora_alpha": 10, "task_type": "CAUSAL_LM"} | options
    config = peft.LoraConfig(target_modules=targets, **options)
    model = peft.get_peft_model(model or of_transformers(folder), config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.2, generator=generator)
    model.save_pretrained(path)
    return model.eval()


@pytest.fixture
def tokens(rng):
    return torch.randint(1, V, (2, 12), generator=rng)


def close(ours, expected, model):
    """Equal but for rounding, of as many additions as the merged model has, or more."""
    error = rounding(2 * additions_of(model), size=expected.abs().max().item())
    assert error < 1e-5 * expected.abs().max()
    torch.testing.assert_close(ours, expected, rtol=0, atol=error)


def moved(model, rng):
    """The same model with updates that are no longer 0."""
    for layer in model.modules():
        if isinstance(layer, LowRank):
            layer.B.data.normal_(std=0.2, generator=rng)
    return model


def updates_in(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, LowRank)}


# What people set in peft, and the matrices of a layer that then have an update
KINDS = {
    "two": ({}, 2),
    "list": ({"targets": ALL, "lora_dropout": 0.1}, 7),
    "all-linear": ({"targets": "all-linear"}, 7),
    "paths": ({"targets": ["self_attn.o_proj", "mlp.up_proj"]}, 2),
    "pattern": ({"targets": r".*\.(self_attn\.k|mlp\.down)_proj"}, 2),
    "excluded": ({"targets": ALL, "exclude_modules": ["mlp.up_proj", "q_proj"]}, 5),
    "excluded by pattern": ({"targets": ALL, "exclude_modules": r".*mlp.*"}, 4),
    "rslora": ({"use_rslora": True}, 2),
    "begun elsewhere": ({"init_lora_weights": "gaussian"}, 2),
    "wide": ({"targets": ["k_proj", "o_proj"], "r": 24}, 2),  # k has 16 rows
}


PAIRS = [("llama", kind) for kind in KINDS] + [("qwen2", "two"), ("qwen3", "list")]


@pytest.mark.parametrize(("family", "kind"), PAIRS)
@torch.no_grad()
def test_an_adapter_of_peft_is_read(families, tmp_path, tokens, family, kind):
    folder, model = families(family)
    options, matrices = KINDS[kind]
    peer = theirs(folder, tmp_path / "theirs", **options)
    before, drawn = snapshot(model), torch.random.get_rng_state()
    ours = load_low_rank(tmp_path / "theirs", model)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert unchanged(model, before)
    assert not ours.training
    expected = peer(tokens).logits
    assert (model(tokens) - expected).abs().max() > 0.1 * expected.std()
    close(ours(tokens), expected, model)
    close(packed(ours)(tokens), expected, model)
    close(merge_low_rank(ours)(tokens), expected, model)
    assert len(updates_in(ours)) == LAYERS * matrices
    trained = [n for n, p in ours.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * LAYERS * matrices
    assert all(name.endswith((".A", ".B")) for name in trained)
    # And back again
    save_low_rank(tmp_path / "ours", ours)
    again = peft.PeftModel.from_pretrained(of_transformers(folder), tmp_path / "ours")
    close(again.eval()(tokens).logits, expected, model)
    one, two = (load_file(tmp_path / x / WEIGHTS) for x in ("theirs", "ours"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


SOME = {  # options; the layers with updates; r and scale of a layer's q and v
    "layers": ({"layers_to_transform": [0, 2]}, [0, 2], lambda layer: [(4, 2.5)] * 2),
    "one layer": (
        {"layers_to_transform": 1, "layers_pattern": "layers"},
        [1],
        lambda layer: [(4, 2.5)] * 2,
    ),
    "ranks": (
        {"rank_pattern": {"layers.1.self_attn.v_proj": 2, "q_proj": 8}},
        [0, 1, 2],
        lambda layer: [(8, 1.25), (2, 5.0) if layer == 1 else (4, 2.5)],
    ),
    "alphas": (
        {"alpha_pattern": {"^model.layers.[02].*": 3}, "use_rslora": True},
        [0, 1, 2],
        lambda layer: [(4, 5.0 if layer == 1 else 1.5)] * 2,
    ),
}


@pytest.mark.parametrize("kind", SOME)
@torch.no_grad()
def test_layers_ranks_and_alphas_of_their_own(families, tmp_path, tokens, kind):
    folder, model = families("llama")
    options, layers, sizes = SOME[kind]
    expected = theirs(folder, tmp_path / "theirs", **options)(tokens).logits
    ours = load_low_rank(tmp_path / "theirs", model)
    close(ours(tokens), expected, model)
    found = {}
    for path, layer in updates_in(ours).items():
        found.setdefault(int(path.split(".")[1]), []).append(
            (len(layer.A), layer.scale)
        )
    assert found == {layer: sizes(layer) for layer in layers}
    save_low_rank(tmp_path / "ours", ours)
    again = peft.PeftModel.from_pretrained(of_transformers(folder), tmp_path / "ours")
    close(again.eval()(tokens).logits, expected, model)


@pytest.mark.parametrize(
    "names",
    [
        ["qkv", "out", "gate_up", "down"],
        ["qkv", "up_proj"],
        ["blocks.1.attention.qkv", "blocks.0.mlp.down"],
        ALL,
        "all-linear",
        "k_proj",
        ["layers.1.self_attn.v_proj", "unembedding"],
    ],
    ids=str,
)
@torch.no_grad()
def test_peft_reads_what_is_saved_here(families, tmp_path, tokens, names, rng):
    folder, model = families("llama")
    ours = moved(with_low_rank(model, names, rank=3, alpha=4.0), rng)
    path = tmp_path / "new" / "updates"
    save_low_rank(path, ours, base=folder)
    assert {p.name for p in path.iterdir()} == {CONFIG, WEIGHTS}
    peer = peft.AutoPeftModelForCausalLM.from_pretrained(path).eval()
    expected = peer(tokens).logits
    assert (model(tokens) - expected).abs().max() > 0.1 * expected.std()
    close(ours(tokens), expected, model)
    # As it was, one update of a whole matrix included, bit for bit
    loaded = load_low_rank(path, model)
    before, after = ours.state_dict(), loaded.state_dict()
    assert [*before] == [*after]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(ours(tokens), loaded(tokens))


def test_updates_begin_as_peft_s(families, tokens):
    """The same seed draws the same A for q, k and v; k and v have fewer rows than q."""
    folder, model = families("qwen2")
    config = peft.LoraConfig(target_modules=ALL, r=R, lora_alpha=8)
    peer = peft.get_peft_model(of_transformers(folder), config)
    layers = [m for m in peer.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    torch.manual_seed(3)
    for layer in layers:
        layer.reset_lora_parameters("default", init_lora_weights=True)
    torch.manual_seed(3)
    ours = with_low_rank(model, "all-linear", rank=R, alpha=8.0)
    updates = [*updates_in(ours).values()]
    assert len(updates) == len(layers) == 7 * LAYERS
    for update, layer in zip(updates, layers, strict=True):
        assert torch.equal(update.A, layer.lora_A["default"].weight)
        assert update.B.shape == layer.lora_B["default"].weight.shape
    with torch.no_grad():
        close(ours(tokens), model(tokens), model)
    # One step of gradients, with biases: the parts are side by side in the right order
    for network in (ours, peer):
        u = network(tokens)
        u = u if torch.is_tensor(u) else u.logits
        u.logsumexp(dim=-1).mean().backward()
    for update, layer in zip(updates, layers, strict=True):
        expected = layer.lora_B["default"].weight.grad
        size = expected.abs().max().item()
        assert size > 0
        error = rounding(4 * additions_of(model), size=size)
        torch.testing.assert_close(update.B.grad, expected, rtol=0, atol=error)


@torch.no_grad()
def test_an_adapter_of_a_model_without_logits(families, tmp_path, tokens):
    import transformers

    folder, model = families("llama")
    inner = transformers.AutoModel.from_pretrained(folder).eval()
    options = {"task_type": "FEATURE_EXTRACTION", "rank_pattern": {"^layers.0.*": 2}}
    peer = theirs(folder, tmp_path, ALL, model=inner, **options)
    expected = peer(tokens).last_hidden_state
    ours = load_low_rank(tmp_path, model)
    close(ours.contextualize(ours.embed(tokens)), expected, model)


@torch.no_grad()
def test_an_adapter_of_bert(tmp_path, rng):
    import transformers

    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"intermediate_size": 24, "vocab_size": V, "max_position_embeddings": 20}
    inner = transformers.BertModel(
        transformers.BertConfig(**shape), add_pooling_layer=False
    ).eval()
    model = Bert(
        BertConfig(
            vocabulary=V, context=20, types=2, width=16, layers=2, heads=2, hidden=24
        )
    ).eval()
    saved = redrawn(inner, rng).state_dict()
    model.load_state_dict({name: saved[bert_name(name)] for name in model.state_dict()})
    tokens = torch.randint(V, (3, 9), generator=rng)
    options = {"task_type": "FEATURE_EXTRACTION"}
    peer = theirs(None, tmp_path / "theirs", ["query", "dense"], inner, **options)
    expected = peer(tokens).last_hidden_state
    ours = load_low_rank(tmp_path / "theirs", Pooled(model, last_token)).encoder
    assert len(updates_in(ours)) == 2 * 4
    close(ours.token_vectors(tokens), expected, model)
    assert (model.token_vectors(tokens) - expected).abs().max() > 0.1
    save_low_rank(tmp_path / "ours", ours)
    # The updates of every "dense" here are not of the one that only theirs may have
    inner = transformers.BertModel(transformers.BertConfig(**shape))
    inner.load_state_dict(peer.unload().state_dict(), strict=False)
    again = peft.PeftModel.from_pretrained(inner, tmp_path / "ours").eval()
    close(again(tokens).last_hidden_state, expected, model)
    named = with_low_rank(model, ["attention.output.dense", "value"], rank=2, alpha=1.0)
    same = with_low_rank(model, ["attention.out", "value"], rank=2, alpha=1.0)
    assert [*updates_in(named)] == [*updates_in(same)]


@torch.no_grad()
def test_any_other_module_has_its_own_names(tmp_path, rng):
    def network():
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))

    ours = moved(with_low_rank(network(), ["2"], rank=2, alpha=3.0), rng)
    save_low_rank(tmp_path, ours)
    x = torch.randn(3, 6, generator=rng)
    assert torch.equal(load_low_rank(tmp_path, network())(x), ours(x))
    peer = peft.PeftModel.from_pretrained(network(), tmp_path)
    torch.testing.assert_close(peer(x), ours(x), rtol=0, atol=1e-6)


def test_the_precision_is_the_model_s(families, tmp_path):
    folder, model = families("llama")
    theirs(folder, tmp_path)
    low = load_low_rank(tmp_path, model.bfloat16())
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}


def test_parts_are_merged_before_a_model_is_saved(families, tmp_path, tokens, rng):
    _, model = families("qwen2")  # with biases
    ours = moved(with_low_rank(model, ["k_proj", "gate_proj"], rank=2, alpha=1.0), rng)
    path = tmp_path / "model.safetensors"
    assert "merge" in refused(save_trained, path, ours)
    merged = merge_low_rank(ours)
    assert [*merged.state_dict()] == [*model.state_dict()]
    qkv, old = (m.blocks[1].attention.qkv for m in (merged, model))
    changed = (qkv.weight != old.weight).all(dim=1)
    assert changed.tolist() == [False] * 32 + [True] * 16 + [False] * 16
    assert torch.equal(qkv.bias, old.bias)
    save_trained(path, merged)
    load_trained(path)


def test_the_recipe_runs(families, tmp_path, monkeypatch):
    page = Path(__file__).resolve().parents[2] / "chapters" / "howto.md"
    text = page.read_text(encoding="utf-8").split("## LoRA from peft")[1]
    code = re.findall(r"```python\n(.*?)```", text.split("\n## ")[0], re.DOTALL)
    folder, _ = families("llama")
    shutil.copytree(folder, tmp_path / "MODEL")
    theirs(folder, tmp_path / "ADAPTER")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec("\n".join(code), names)  # of this repository's own page
    assert len(updates_in(names["updated"])) == 2 * LAYERS
    peft.PeftModel.from_pretrained(of_transformers("MODEL"), "UPDATES")


# What is refused


def edited(path, **entries):
    about = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    about = {k: v for k, v in (about | entries).items() if v != "nothing"}
    (path / CONFIG).write_text(json.dumps(about), encoding="utf-8")


@pytest.fixture(scope="module")
def adapter(families, tmp_path_factory):
    """An adapter of peft, which no test changes, and the model that it belongs to."""
    path = tmp_path_factory.mktemp("adapter")
    folder, model = families("llama")
    theirs(folder, path)
    return path, model


@pytest.fixture
def copied(adapter, tmp_path):
    path, model = adapter
    return shutil.copytree(path, tmp_path / "copy"), model


WRONG = [
    ("peft_type", "LOHA"),
    ("peft_type", "nothing"),
    ("peft_type", ["LORA"]),
    ("use_dora", True),
    ("bias", "lora_only"),
    ("bias", "all"),
    ("modules_to_save", ["score"]),
    ("fan_in_fan_out", True),
    ("lora_bias", True),
    ("target_parameters", ["weight"]),
    ("trainable_token_indices", [1]),
    ("layer_replication", [[0, 2], [1, 3]]),
    ("alora_invocation_tokens", [3]),
    ("use_qalora", True),
    ("an_entry_of_the_future", {"a": 1}),
    ("init_lora_weights", "pissa_niter_4"),
    ("r", 3),
    ("r", 0),
    ("r", 4.0),
    ("r", True),
    ("r", "nothing"),
    ("lora_alpha", 0),
    ("lora_alpha", -2),
    ("lora_alpha", float("inf")),
    ("lora_alpha", float("nan")),
    ("lora_alpha", "16"),
    ("use_rslora", "yes"),
    ("rank_pattern", ["q_proj"]),
    ("rank_pattern", {"q_proj": 0}),
    ("rank_pattern", {"(": 2}),
    ("alpha_pattern", {"q_proj": None}),
    ("target_modules", None),
    ("target_modules", 3),
    ("target_modules", [3]),
    ("target_modules", []),
    ("target_modules", ["query"]),
    ("target_modules", "(q_proj"),
    ("exclude_modules", "*"),
    ("layers_to_transform", ["0"]),
    ("layers_to_transform", [7]),
]


@pytest.mark.parametrize(("entry", "value"), WRONG, ids=str)
def test_an_entry_that_is_not_supported(copied, entry, value):
    path, model = copied
    edited(path, **{entry: value})
    before = snapshot(model)
    message = refused(load_low_rank, path, model)
    file, word = CONFIG, entry
    if (entry, value) == ("r", 3):  # another than that of the tensors
        file, word = (
            WEIGHTS,
            f"lora_A.weight must have shape (3, 32), by {CONFIG}",
        )
    if value == [7]:  # a layer that is not there: nothing is left
        word = "target_modules"
    assert str(path / file) in message
    assert word in message
    assert unchanged(model, before)


def test_layers_of_a_pattern_are_refused(copied):
    path, model = copied
    edited(path, target_modules=r".*\.q_proj", layers_to_transform=[0])
    assert "layers_to_transform" in refused(load_low_rank, path, model)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
SECOND = "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight"


def changed_tensors(change):
    def damage(path):
        tensors = load_file(path / WEIGHTS)
        change(tensors)
        save_file(tensors, path / WEIGHTS)

    return damage


DAMAGES = {
    "no config": (lambda path: (path / CONFIG).unlink(), CONFIG, "read"),
    "no tensors": (lambda path: (path / WEIGHTS).unlink(), WEIGHTS, "read"),
    "no folder": (shutil.rmtree, CONFIG, "read"),
    "no JSON": (lambda path: (path / CONFIG).write_bytes(b"{\xff"), CONFIG, "read"),
    "a list": (lambda path: (path / CONFIG).write_bytes(b"[1]"), CONFIG, "object"),
    "no safetensors": (
        lambda path: (path / WEIGHTS).write_bytes(b"PK\x03\x04" * 9),
        WEIGHTS,
        "read",
    ),
    "truncated": (
        lambda path: (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:-9]),
        WEIGHTS,
        "read",
    ),
    "missing": (changed_tensors(lambda t: t.pop(FIRST)), WEIGHTS, f"lacks {FIRST}"),
    "extra": (
        changed_tensors(lambda t: t.update({SECOND: torch.zeros(R, 32)})),
        WEIGHTS,
        SECOND,
    ),
    "shape": (
        changed_tensors(lambda t: t.update({FIRST: torch.zeros(R, 31)})),
        WEIGHTS,
        f"{FIRST} must have shape (4, 32)",
    ),
    "integers": (
        changed_tensors(lambda t: t.update({FIRST: t[FIRST].to(torch.int8)})),
        WEIGHTS,
        FIRST,
    ),
    "eight bits": (
        changed_tensors(lambda t: t.update({FIRST: t[FIRST].to(torch.float8_e4m3fn)})),
        WEIGHTS,
        FIRST,
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_files(copied, kind):
    path, model = copied
    damage, file, words = DAMAGES[kind]
    damage(path)
    message = refused(load_low_rank, path, model)
    assert str(path / file) in message
    assert words in message


def test_an_adapter_of_another_model(copied, families):
    path, _ = copied
    _, other = families("qwen3")
    message = refused(load_low_rank, path, other)
    assert str(path / WEIGHTS) in message
    assert "lora_B.weight must have shape (64, 4)" in message
    assert "got (32, 4)" in message


@torch.no_grad()
def test_an_adapter_with_an_update_of_the_logits(families, tmp_path, tokens):
    """Beside such an update peft writes the pretrained matrix."""
    folder = families("llama")[0]
    model = load_llama(folder).model
    path, copy = tmp_path / "theirs", "base_model.model.lm_head.base_layer.weight"
    with pytest.warns(UserWarning, match="embedding layers"):
        peer = theirs(folder, path, targets=["q_proj", "lm_head"])
    stored = load_file(path / WEIGHTS)
    assert copy in stored
    close(load_low_rank(path, model)(tokens), peer(tokens).logits, model)
    stored[copy] = stored[copy].bfloat16()  # as the model may be that is on a hub
    save_file(stored, path / WEIGHTS)
    close(load_low_rank(path, model)(tokens), peer(tokens).logits, model)
    stored[copy][0] += 1
    save_file(stored, path / WEIGHTS)
    message = f"{path / WEIGHTS}: {copy} must be the matrix of the model, got 'another'"
    assert refused(load_low_rank, path, model).startswith(message)


def test_models_that_cannot_be_loaded_into_or_saved(copied, tmp_path):
    path, model = copied
    twice = load_low_rank(path, model)
    assert "model must have no low-rank updates" in refused(load_low_rank, path, twice)
    new = tmp_path / "new"
    assert "model must have low-rank updates" in refused(save_low_rank, new, model)
    pair = nn.ModuleList([twice, load_low_rank(path, model)])
    assert "model must have one" in refused(save_low_rank, new, pair)
    pair = nn.ModuleList([model, merge_low_rank(twice)])
    assert "model must have one" in refused(load_low_rank, path, pair)
    assert not new.exists()
    new.write_text("a file", encoding="utf-8")
    assert "folder must be no file" in refused(save_low_rank, new, twice)
