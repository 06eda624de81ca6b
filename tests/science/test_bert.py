"""BERT and MiniLM: equal to the loops, and to another library on the same weights."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from reference import bert as reference_bert
from safetensors.torch import load_file, save_file
from support.bounds import rounding
from support.models import redrawn
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from fmkit.adapt import frozen_outputs
from fmkit.assets import fetch
from fmkit.data.tokens import PADDING
from fmkit.models.bert import Bert, BertConfig, load_minilm
from fmkit.models.language_model import LanguageModel
from fmkit.models.pooling import Pooled, mean_of_tokens

TEXTS = [
    "A man is playing a guitar on the stage.",
    "Someone performs music with a string instrument.",
    "Interest rates rose again.",
    "GPUs",
    "Numbers that look the same are not the same number, " * 30,
]
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "red", "green", "blue"]
SMALL = BertConfig(
    vocabulary=len(WORDS), context=9, types=2, width=8, layers=2, heads=2, hidden=6
)


@pytest.fixture
def small(rng):
    """An epsilon that shows: BERT's own is lost among these numbers."""
    config = BertConfig(**{**vars(SMALL), "norm_epsilon": 0.1})
    return redrawn(Bert(config).double(), rng).eval()


@pytest.fixture
def small_tokenizer():
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return tokenizer


def rows_of(lengths, rng, config=SMALL):
    """Rows of tokens of these lengths, with their mask."""
    shape, columns = (len(lengths), max(lengths)), torch.arange(max(lengths))
    tokens = torch.randint(config.vocabulary, shape, generator=rng)
    mask = columns < torch.tensor(lengths)[:, None]
    return tokens.masked_fill(~mask, PADDING), mask


def sentence_embeddings(lm, texts):
    """As in sentence-transformers: the mean of the tokens, brought to length 1."""
    phi = Pooled(lm.model, mean_of_tokens)
    ids = lm.ids(texts, limit=lm.model.config.context)
    return F.normalize(frozen_outputs(phi, ids, bar="x"), dim=1)


def test_bert_is_the_loops(small, rng):
    tokens, mask = rows_of([7, 3], rng)
    weights = {name: weight.tolist() for name, weight in small.named_parameters()}
    with torch.no_grad():
        found = small.token_vectors(tokens)
    for row in range(2):
        expected = reference_bert.bert(
            tokens[row].tolist(), mask[row].tolist(), weights, 2, 2, 0.1
        )
        real = mask[row]
        expected = torch.tensor(expected, dtype=torch.float64)[real]
        torch.testing.assert_close(found[row, real], expected, rtol=1e-12, atol=1e-12)


def test_sentence_embeddings_are_the_loops(small, small_tokenizer):
    """Six texts of four lengths in one batch; the last is in no vocabulary."""
    texts = ["red green blue", "blue", "red red", "green", "blue red red red", "grey"]
    weights = {name: weight.tolist() for name, weight in small.named_parameters()}
    found = sentence_embeddings(LanguageModel(small, small_tokenizer, 1), texts)
    for text, phi_x in zip(texts, found, strict=True):
        words = [WORDS.index(word) for word in text.replace("grey", "[UNK]").split()]
        tokens = [1, *words, 2]
        mask = [True] * len(tokens)
        hidden = reference_bert.bert(tokens, mask, weights, 2, 2, 0.1)
        expected = reference_bert.sentence_embedding(hidden, mask)
        assert phi_x.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)  # float32
    assert found.dtype == torch.float32
    assert not found.requires_grad


def test_padding_changes_nothing(small, rng):
    tokens, _ = rows_of([4, 4], rng)
    alone = small.token_vectors(tokens)
    beside = torch.full((2, 3), PADDING)
    padded = small.token_vectors(torch.cat([tokens, beside], 1))
    torch.testing.assert_close(padded[:, :4], alone, rtol=1e-12, atol=1e-12)


def test_both_sides_are_seen(small, rng):
    tokens, _ = rows_of([6], rng)
    before = small.token_vectors(tokens)
    for changed in (0, 5):
        other = tokens.clone()
        other[0, changed] = (other[0, changed] + 1) % SMALL.vocabulary
        assert (small.token_vectors(other) != before).any(dim=-1).all()


def test_texts_do_not_see_each_other(small, rng):
    tokens, mask = rows_of([6, 2, 5], rng)
    alone = [small.token_vectors(tokens[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(
        small.token_vectors(tokens)[mask],
        torch.cat(alone)[mask],
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(small, rng, dtype):
    tokens, mask = rows_of([7, 3], rng)
    half = copy.deepcopy(small).to(dtype)
    with torch.no_grad():
        found = half.token_vectors(tokens)
        assert found.dtype == dtype
        torch.testing.assert_close(
            found.double()[mask],
            small.token_vectors(tokens)[mask],
            rtol=0,
            atol=0.15,
        )


def test_every_parameter_learns_but_the_types_of_a_pair(rng):
    """And but a key's bias: it adds the same to all scores of a query."""
    model = redrawn(Bert(SMALL), rng)
    tokens = torch.arange(len(WORDS))[None]
    phi = model.token_vectors(tokens).square() * torch.rand(8)
    phi.mean().backward()
    still = {n for n, p in model.named_parameters() if p.grad.abs().max() < 1e-7}
    assert still == {f"layers.{i}.attention.key.bias" for i in range(2)}
    assert (model.types.weight.grad.abs().amax(dim=1) > 0).tolist() == [True, False]


def test_wrong_shapes_and_tokens(small, small_tokenizer):
    with pytest.raises(ValueError, match=r"^width .*heads \(3\), got 8\.$"):
        BertConfig(**{**vars(SMALL), "heads": 3})
    with pytest.raises(ValueError, match=r"^layers .* 1, got 0\.$"):
        BertConfig(**{**vars(SMALL), "layers": 0})
    with pytest.raises(ValueError, match=r"tokens .*context \(9\), got 10\.$"):
        small.token_vectors(torch.zeros(1, 10, dtype=torch.long))
    with pytest.raises(IndexError):
        small.token_vectors(torch.tensor([[7]]))
    small_tokenizer.add_tokens(["grey"])  # its id is 7, which has no vector
    lm = LanguageModel(small, small_tokenizer, 1)
    with pytest.raises(ValueError, match=r"^an id .*V - 1 \(6\), got 7\.$"):
        lm.ids(["red grey"], limit=9)


# MiniLM


@pytest.fixture(scope="module")
def files(asset_cache):
    return fetch("minilm-l6")


@pytest.fixture(scope="module")
def minilm(files):
    return load_minilm(files)


@pytest.fixture(scope="module")
def peer(files):
    """The encoder of transformers with the same weights."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        **json.loads(files["config.json"].read_text(encoding="utf-8"))
    )
    model = transformers.BertModel(config)
    state = load_file(files["model.safetensors"])
    del state["embeddings.position_ids"]  # of older versions of that library
    model.load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="module")
def batch(minilm):
    """Five texts, the last of more than 256 tokens."""
    tokens = minilm.ids(TEXTS, limit=512)
    return tokens, tokens != PADDING


def test_hidden_states_are_those_of_another_implementation(minilm, peer, batch):
    tokens, mask = batch
    ids = tokens.clamp(min=0)
    with torch.no_grad():
        theirs = peer(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        ours = minilm.model.token_vectors(tokens)
    torch.testing.assert_close(ours[mask], theirs[mask], rtol=0, atol=1e-4)


def test_sentence_embeddings_are_those_of_another_implementation(minilm, peer, batch):
    """Mean over the mask, then length 1: 1_Pooling and 2_Normalize of the model."""
    tokens, mask = batch
    with torch.no_grad():
        ids = tokens.clamp(min=0)
        hidden = peer(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    mean = (hidden * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    theirs = mean / mean.norm(dim=1, keepdim=True)
    ours = sentence_embeddings(minilm, TEXTS)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_tokens_are_those_of_another_implementation(minilm, files):
    transformers = pytest.importorskip("transformers")
    words = json.loads(files["tokenizer.json"].read_text(encoding="utf-8"))["model"][
        "vocab"
    ]
    peer = transformers.BertTokenizer(vocab=words, do_lower_case=True)
    odd = ["Naïve cafés; 中文 and snake_case()", "½\tx\0y"]
    for text in [*TEXTS, *odd]:
        theirs = peer(text, truncation=True, max_length=256)["input_ids"]
        assert minilm.encode(text) == theirs


def test_a_long_text_is_cut(minilm):
    long = sentence_embeddings(minilm, ["a b " * 127, "a b " * 900])
    # 254 words are left, between the two special tokens
    torch.testing.assert_close(long[0], long[1], rtol=0, atol=1e-6)
    [shorter] = sentence_embeddings(minilm, ["a b " * 126])
    assert not torch.allclose(shorter, long[0], rtol=0, atol=1e-5)


def test_order_of_texts_and_batches(minilm):
    """Forty texts are two batches; each row belongs to its text wherever it stands."""
    texts = [f"{'very ' * (7 * i % 11)}good number {i}" for i in range(40)]
    rows = sentence_embeddings(minilm, texts)
    for i in (0, 1, 17, 39):
        [alone] = sentence_embeddings(minilm, [texts[i]])
        torch.testing.assert_close(rows[i], alone, rtol=0, atol=1e-5)
    error = rounding(rows.shape[1], size=1)  # of a sum of squares
    assert rows.norm(dim=1).tolist() == pytest.approx([1] * 40, abs=error)


def test_sentences_that_say_the_same_are_neighbours(minilm):
    pairs = [
        ("The cat sleeps on the sofa.", "A kitten is lying on the couch."),
        ("The stock market fell sharply.", "Share prices dropped a lot."),
        ("How do I sort an array?", "Return a list in ascending order."),
        ("It will rain tomorrow.", "Showers are expected the next day."),
    ]
    first, second = (
        sentence_embeddings(minilm, side)
        for side in map(list, zip(*pairs, strict=True))
    )
    similarity = first @ second.T
    own, others = similarity.diag(), similarity[~torch.eye(4, dtype=torch.bool)]
    assert own.min() > others.max() + 0.1
    assert similarity.argmax(dim=1).tolist() == [0, 1, 2, 3]


def test_the_model_that_is_loaded(minilm, files):
    torch.manual_seed(5)
    lm = load_minilm(files)
    model = lm.model
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))  # loading drew nothing
    assert not model.training
    # The file has 22,713,216: the rest is the pooler, d * d + d
    assert sum(p.numel() for p in model.parameters()) == 22_713_216 - 384 * 385
    assert (model.config.width, model.config.layers, model.config.heads) == (384, 6, 12)
    assert model.norm.eps == 1e-12
    assert lm.tokenizer.get_vocab_size() == model.config.vocabulary
    assert lm.encode("")[0] == lm.start == 101


# Files that are something else


@pytest.fixture
def small_files(tmp_path, small, small_tokenizer, rng):
    """A model as MiniLM's files hold one, so small that a test can break it."""
    paths = {
        name: tmp_path / name
        for name in ("model.safetensors", "config.json", "tokenizer.json")
    }
    state = {
        "embeddings.word_embeddings.weight": (7, 8),
        "embeddings.position_embeddings.weight": (9, 8),
        "embeddings.token_type_embeddings.weight": (2, 8),
        "embeddings.LayerNorm.weight": (8,),
        "embeddings.LayerNorm.bias": (8,),
        "pooler.dense.weight": (8, 8),
        "pooler.dense.bias": (8,),
    }
    shapes = {
        "attention.self.query": (8, 8),
        "attention.self.key": (8, 8),
        "attention.self.value": (8, 8),
        "attention.output.dense": (8, 8),
        "attention.output.LayerNorm": (8,),
        "intermediate.dense": (6, 8),
        "output.dense": (8, 6),
        "output.LayerNorm": (8,),
    }
    for name, shape in shapes.items():
        for layer in range(2):
            state[f"encoder.layer.{layer}.{name}.weight"] = shape
            state[f"encoder.layer.{layer}.{name}.bias"] = shape[:1]
    drawn = {name: torch.randn(shape, generator=rng) for name, shape in state.items()}
    save_file(drawn, paths["model.safetensors"])
    config = {
        "vocab_size": 7,
        "max_position_embeddings": 9,
        "type_vocab_size": 2,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 6,
        "layer_norm_eps": 0.01,
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
    }
    paths["config.json"].write_text(json.dumps(config), encoding="utf-8")
    small_tokenizer.save(str(paths["tokenizer.json"]))
    return paths


def test_a_small_model_of_that_form(small_files):
    lm = load_minilm({name: str(path) for name, path in small_files.items()})
    model = lm.model
    state = load_file(small_files["model.safetensors"])
    assert model.norm.eps == model.layers[1].norm_2.eps == 0.01
    name = "encoder.layer.1.output.dense.weight"
    assert torch.equal(model.layers[1].down.weight, state[name])
    assert lm.encode("red") == [1, 4, 2]  # its tokenizer adds both special tokens
    phi = sentence_embeddings(lm, ["red", "blue"])
    assert phi.isfinite().all()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "encoder.layer.1.output.dense.bias",
            None,
            r"config\.json, but lacks encoder\.layer\.1\.output\.dense\.bias\.",
        ),
        (
            "encoder.layer.2.output.dense.bias",
            torch.zeros(8),
            r"but also has encoder\.layer\.2\.output\.dense\.bias\.",
        ),
        (
            "encoder.layer.0.attention.self.key.bias",
            torch.zeros(1),
            r": .*key\.bias must have shape \(8,\), .* got \(1,\)\.",
        ),
        (
            "embeddings.LayerNorm.bias",
            torch.zeros(8, dtype=torch.int8),
            r"LayerNorm\.bias must be of floating point, .* got I8",
        ),
        (
            "embeddings.LayerNorm.bias",
            torch.zeros(8).to(torch.float8_e4m3fn),
            r"LayerNorm\.bias must be of floating point, .* got F8",
        ),
    ],
)
def test_a_wrong_tensor_is_named(small_files, name, value, message):
    path = small_files["model.safetensors"]
    state = load_file(path)
    state.pop(name, None)
    save_file(state if value is None else {**state, name: value}, path)
    with pytest.raises(ValueError, match=message) as error:
        load_minilm(small_files)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden_act": "gelu_new"}, "hidden_act in .* must be 'gelu', got 'gelu_new'"),
        ({"position_embedding_type": "relative_key"}, "must be 'absolute', got 'relat"),
        # The same tensors, but positions begin at pad_token_id + 1
        ({"model_type": "roberta"}, r"model_type in .* must be 'bert', got 'roberta'"),
        ({"is_decoder": True}, r"is_decoder in .*config\.json must be False, got True"),
        ({"hidden_size": 9}, r"does not describe a BERT \(width must be a multiple of"),
        ({"hidden_size": "8"}, r"config\.json does not describe a BERT \("),
        ({"hidden_size": None}, r"config\.json does not describe a BERT \("),
        (
            {"vocab_size": 8},
            r"word_embeddings\.weight must have shape \(8, 8\)",
        ),
        (
            {"num_hidden_layers": 3},
            r"lacks encoder\.layer\.2\.attention\.self\.query",
        ),
        (
            {"num_hidden_layers": 1},
            r"but also has encoder\.layer\.1\.attention\.\S+ and",
        ),
    ],
)
def test_a_config_of_another_model(small_files, changed, message):
    path = small_files["config.json"]
    path.write_text(
        json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changed}),
        encoding="utf-8",
    )
    with pytest.raises(ValueError, match=message):
        load_minilm(small_files)


def test_a_config_as_transformers_5_writes_it(small_files):
    path = small_files["config.json"]
    said = json.loads(path.read_text(encoding="utf-8"))
    del said["position_embedding_type"]
    path.write_text(json.dumps(said | {"model_type": "bert"}), encoding="utf-8")
    assert load_minilm(small_files).model.config.layers == 2


def test_damaged_files(small_files):
    for name, message in [
        ("tokenizer.json", r"cannot be read \("),
        ("model.safetensors", r"cannot be read \("),
        ("config.json", r"cannot be read \("),
    ]:
        path = small_files[name]
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(ValueError, match=f"{name} {message}"):
            load_minilm(small_files)


def test_a_tokenizer_of_another_model(small_files):
    path = small_files["tokenizer.json"]
    found = json.loads(path.read_text(encoding="utf-8"))
    del found["model"]["vocab"]["blue"]
    path.write_text(json.dumps(found), encoding="utf-8")
    message = r"the vocabulary in .* must be the model's, 7, got 6"
    with pytest.raises(ValueError, match=message):
        load_minilm(small_files)
