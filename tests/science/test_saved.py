"""A model of this book's own comes back from its file with its tokenizer."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from support.processes import no_file_above
from support.refusals import refused
from tokenizers import Tokenizer, models

from fmkit.data.tokens import byte_pairs, characters, consecutive
from fmkit.evaluate import token_nats
from fmkit.lora import merge_low_rank, with_low_rank
from fmkit.models.resnet import ResNet, ResNetConfig
from fmkit.models.saved import load_resnet, load_trained, save_resnet, save_trained
from fmkit.models.transformer import Transformer, TransformerConfig
from fmkit.runs.record import results

SHAPE = {"context": 8, "width": 8, "layers": 2, "heads": 2, "kv_heads": 1}


@pytest.fixture(scope="module")
def tokenizer():
    return byte_pairs(["a text to learn from, a text"], vocabulary=270)


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_saved_is_loaded(tmp_path, tokenizer, tied):
    V = tokenizer.get_vocab_size()
    config = TransformerConfig(vocabulary=V, hidden=16, tied=tied, causal=tied, **SHAPE)
    model, path = Transformer(config), tmp_path / "model.safetensors"
    save_trained(path, model, tokenizer)
    drawn = torch.random.get_rng_state()
    lm = load_trained(str(path))
    loaded = lm.model
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert (loaded.config, loaded.training) == (config, False)
    assert lm.encode("a text⊥") == [0, *tokenizer.encode("a text⊥").ids]
    assert lm.tokenizer.decode(lm.encode("a text⊥")) == "a text⊥"
    x = torch.randint(V, (2, 8), generator=torch.Generator().manual_seed(0))
    rounded = copy.deepcopy(model).half().float().eval()  # as the file has it
    rounded.cos, rounded.sin = model.cos, model.sin
    torch.testing.assert_close(loaded(x), rounded(x), rtol=0, atol=0)
    assert (loaded.unembedding.weight is loaded.embedding.weight) is tied
    assert path.stat().st_size < 2 * sum(p.numel() for p in model.parameters()) + 50_000


def test_a_resnet_is_saved_with_its_statistics(tmp_path, rng):
    phi, path = ResNet(ResNetConfig(3, (4, 8), (1, 2), 1)), tmp_path / "phi.safetensors"
    x = torch.rand(6, 3, 16, 16, generator=rng)
    phi(x)  # batch norm takes statistics
    save_resnet(path, phi)
    drawn = torch.random.get_rng_state()
    loaded = load_resnet(str(path))
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert (loaded.config, loaded.training) == (phi.config, False)
    assert loaded.stem[1].num_batches_tracked == 1
    rounded = copy.deepcopy(phi).half().float().eval()  # as the file has it
    torch.testing.assert_close(loaded(x), rounded(x), rtol=0, atol=0)


def test_each_loader_refuses_the_file_of_the_other(tmp_path):
    path = tmp_path / "phi.safetensors"
    save_resnet(path, ResNet(ResNetConfig(1, (4,), (1,), 1)))
    with pytest.raises(ValueError, match="holds no model of this book's"):
        load_trained(path)
    save_trained(path, Transformer(TransformerConfig(vocabulary=5, hidden=16, **SHAPE)))
    with pytest.raises(ValueError, match="holds no model of this book's"):
        load_resnet(path)


def test_a_model_without_a_tokenizer_is_saved_too(tmp_path):
    path = tmp_path / "model.safetensors"
    model = Transformer(TransformerConfig(vocabulary=5, hidden=16, **SHAPE))
    save_trained(path, model)
    lm = load_trained(path)
    assert (lm.model.config, lm.tokenizer, lm.start) == (model.config, None, None)


def test_a_tokenizer_with_other_symbols(tmp_path):
    """Its start symbol would be lost, and token 0 would begin each text."""
    other = Tokenizer(models.WordLevel({"!": 0, "<s>": 1}, unk_token="!"))
    model = Transformer(TransformerConfig(vocabulary=2, hidden=16, **SHAPE))
    message = refused(save_trained, tmp_path / "x.safetensors", model, other)
    assert message.startswith("tokenizer must be one of fmkit.data.tokens, of which ")
    save_trained(tmp_path / "x.safetensors", model, characters(["!"]))


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "model.safetensors"
    model = Transformer(TransformerConfig(vocabulary=5, hidden=16, **SHAPE))
    save_trained(path, model)
    before = path.read_bytes()
    with no_file_above(1000), pytest.raises(ValueError, match=r"model\.s.*too large"):
        save_trained(path, model)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


def test_low_rank_updates_are_merged_before_saving(tmp_path):
    path = tmp_path / "model.safetensors"
    model = Transformer(TransformerConfig(vocabulary=5, hidden=16, **SHAPE))
    updated = with_low_rank(model, ["qkv"], rank=2, alpha=4.0)
    with pytest.raises(ValueError, match=r"model .*qkv.*merge"):
        save_trained(path, updated)
    assert not path.exists()
    save_trained(path, merge_low_rank(updated))
    load_trained(path)


@torch.no_grad()
def test_the_recorded_model_reads_with_its_own_tokenizer():
    """2.26 nats a token; 10.72 where ids were one apart. Knowing nothing costs 7.6."""
    lm = load_trained(results("language_models") / "causal.safetensors")
    assert lm.tokenizer.get_vocab_size() == lm.model.config.vocabulary
    text = "Return the sum of the array elements over the given axis."
    ids = torch.tensor(lm.encode(text))
    windows = consecutive(ids, context=len(ids) - 1, batch_size=1)
    assert token_nats(lm.model, windows).mean() < 3


def test_other_files_are_refused(tmp_path, tokenizer):
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="holds no model of this book's"):
        load_trained(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"holds no model of this book's \('config'\)"):
        load_trained(path)
    V = tokenizer.get_vocab_size()
    model = Transformer(TransformerConfig(vocabulary=V, hidden=16, **SHAPE))
    save_trained(path, model, tokenizer)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="holds no model of this book's"):
        load_trained(path)
