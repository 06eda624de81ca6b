"""A model of this book's own comes back from its file with its tokenizer."""

import pytest
import torch
from safetensors.torch import save_file

from fmkit.data.tokens import BytePairs
from fmkit.models.saved import load_trained, save_trained
from fmkit.models.transformer import Transformer, TransformerConfig

SHAPE = {"context": 8, "width": 8, "layers": 2, "heads": 2, "kv_heads": 1}


@pytest.fixture(scope="module")
def tokenizer():
    return BytePairs.of(["a text to learn from, a text"], vocabulary=270)


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_saved_is_loaded(tmp_path, tokenizer, tied):
    V = tokenizer.vocabulary
    config = TransformerConfig(vocabulary=V, hidden=16, tied=tied, causal=tied, **SHAPE)
    model, path = Transformer(config), tmp_path / "model.safetensors"
    save_trained(path, model, tokenizer.model)
    drawn = torch.random.get_rng_state()
    loaded, read = load_trained(path)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert (loaded.config, loaded.training) == (config, False)
    assert read.encode("a text").ids == tokenizer.model.encode("a text").ids
    x = torch.randint(V, (2, 8), generator=torch.Generator().manual_seed(0))
    # Half precision: a weight is off by a 2,000th at most
    torch.testing.assert_close(loaded(x), model.eval()(x), rtol=0.01, atol=1e-4)
    assert (loaded.unembedding.weight is loaded.embedding.weight) is tied
    assert path.stat().st_size < 2 * sum(p.numel() for p in model.parameters()) + 50_000


def test_a_model_without_a_tokenizer_is_saved_too(tmp_path):
    path = tmp_path / "model.safetensors"
    model = Transformer(TransformerConfig(vocabulary=5, hidden=16, **SHAPE))
    save_trained(path, model)
    loaded, tokenizer = load_trained(path)
    assert (loaded.config, tokenizer) == (model.config, None)


def test_other_files_are_refused(tmp_path, tokenizer):
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="holds no model of this book's"):
        load_trained(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"holds no model of this book's \('config'\)"):
        load_trained(path)
    V = tokenizer.vocabulary
    model = Transformer(TransformerConfig(vocabulary=V, hidden=16, **SHAPE))
    save_trained(path, model, tokenizer.model)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="holds no model of this book's"):
        load_trained(path)
