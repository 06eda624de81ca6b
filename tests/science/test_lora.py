"""Low-rank updates: equal to peft's, and to a matrix that is written out."""

import copy
import math

import peft
import pytest
import torch
import torch.nn.functional as F
from support.models import SMALL, drawn, snapshot
from torch import nn

from fmkit.adapt import finetune, random_head
from fmkit.lora import (
    LowRank,
    merge_low_rank,
    with_low_rank,
    without_low_rank,
)
from fmkit.models.bert import Bert, BertConfig
from fmkit.models.pooling import Pooled, mean_of_tokens
from fmkit.models.transformer import Transformer, TransformerConfig

NAMES = ("query", "value", "down")
SHAPE = {"vocabulary": 11, "context": 9, "types": 2, "width": 8, "layers": 2}


@pytest.fixture
def phi():
    torch.manual_seed(1)
    encoder = Bert(BertConfig(**SHAPE, heads=2, hidden=12))
    with torch.no_grad():  # weights of a usual size: drawn for real models, they vanish
        for weight in encoder.parameters():
            weight += torch.randn_like(weight) / 3
    return Pooled(encoder, mean_of_tokens)


@pytest.fixture
def tokens(rng):
    return torch.randint(11, (6, 7), generator=rng)


def moved(model, generator):
    """The same model with updates that are no longer 0."""
    for layer in model.modules():
        if isinstance(layer, LowRank):
            layer.B.data.normal_(generator=generator)
    return model


def test_a_layer_is_a_matrix_written_out(rng):
    linear = nn.Linear(5, 4).double()
    layer = moved(LowRank(linear, rank=3, alpha=6.0), rng)
    x = torch.randn(2, 7, 5, generator=rng, dtype=torch.float64)
    W = [[*row] for row in linear.weight.tolist()]
    for i in range(4):
        for j in range(5):
            A, B = layer.A.tolist(), layer.B.tolist()
            W[i][j] += 6 / 3 * sum(B[i][r] * A[r][j] for r in range(3))
    expected = x @ torch.tensor(W, dtype=torch.float64).T + linear.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    before = linear.weight.clone()
    torch.testing.assert_close(layer.merged()(x), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(linear.weight, before)


def test_gradients(rng):
    layer = moved(LowRank(nn.Linear(3, 2).double(), rank=2, alpha=1.0), rng)
    x = torch.randn(2, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


def test_half_precision(rng):
    layer = moved(LowRank(nn.Linear(6, 5), rank=2, alpha=2.0), rng)
    x = torch.randn(3, 6, generator=rng)
    low = copy.deepcopy(layer).bfloat16()(x.bfloat16())
    assert low.dtype is torch.bfloat16
    torch.testing.assert_close(low.float(), layer(x), rtol=0.05, atol=0.05)


def theirs(phi, *, rank, alpha):
    """peft's model around a copy of `phi`, its layers in their order."""
    config = peft.LoraConfig(target_modules=[*NAMES], r=rank, lora_alpha=alpha)
    model = peft.inject_adapter_in_model(config, copy.deepcopy(phi))
    layers = [m for m in model.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    torch.manual_seed(3)
    for layer in layers:
        layer.reset_lora_parameters("default", init_lora_weights=True)
    return model, layers


def test_equal_to_peft(phi, tokens):
    """Same seed, same weights: the draw, the outputs, and then a step of AdamW."""
    peft_model, peft_layers = theirs(phi, rank=3, alpha=6.0)
    torch.manual_seed(3)
    ours = with_low_rank(phi, NAMES, rank=3, alpha=6.0)
    layers = [m for m in ours.modules() if isinstance(m, LowRank)]
    assert len(layers) == len(peft_layers) == 3 * 2
    labels = torch.arange(6) % 4
    for rate in (0.0, 1e-2):  # before a step, and after it
        for model in (ours, peft_model):
            trained = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=rate)
            for _ in range(2):  # B moves in the first step, A only in the second
                optimizer.zero_grad()
                F.cross_entropy(model(tokens)[:, :4], labels).backward()
                optimizer.step()
        tolerance = {"rtol": 0, "atol": 1e-5 if rate else 1e-6}
        torch.testing.assert_close(ours(tokens), peft_model(tokens), **tolerance)
        for layer, other in zip(layers, peft_layers, strict=True):
            A, B = other.lora_A["default"].weight, other.lora_B["default"].weight
            torch.testing.assert_close(layer.A, A, **tolerance)
            torch.testing.assert_close(layer.B, B, **tolerance)
    assert (ours(tokens) - phi(tokens)).abs().max() > 1e-3  # the steps went somewhere


def test_at_first_nothing_changes(phi, tokens):
    model = with_low_rank(phi, NAMES, rank=2, alpha=16.0)
    torch.testing.assert_close(model(tokens), phi(tokens), rtol=0, atol=0)
    spread = torch.cat([m.A.flatten() for m in model.modules() if type(m) is LowRank])
    assert spread.abs().max() <= 8**-0.5
    assert spread.abs().max() > 0.8 * 8**-0.5


def test_only_the_updates_are_trained(phi, tokens, rng):
    before = snapshot(phi)
    model = with_low_rank(phi, NAMES, rank=2, alpha=4.0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.rsplit(".", 1)[1] for name in trained} == {"A", "B"}
    assert len(trained) == 2 * 3 * 2
    head, labels = random_head(phi.m, 2, generator=rng), torch.arange(6) % 2
    options = {"steps": 4, "batch_size": 6, "learning_rate": 0.1, "generator": rng}
    found = finetune(model, head, tokens, labels, **options).phi
    assert all(p.requires_grad for p in phi.parameters())
    for name, tensor in snapshot(phi).items():
        assert torch.equal(tensor, before[name])
    state = found.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor) is (name not in trained), name


def test_merged_is_the_same(phi, tokens, rng):
    model = moved(with_low_rank(phi, NAMES, rank=2, alpha=4.0), rng)
    before = snapshot(model)
    merged = merge_low_rank(model)
    torch.testing.assert_close(merged(tokens), model(tokens), rtol=1e-4, atol=1e-5)
    assert (merged(tokens) - phi(tokens)).abs().max() > 0.01
    assert [*merged.state_dict()] == [*phi.state_dict()]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_names_are_whole(phi):
    one = with_low_rank(phi, ("attention.out",), rank=1, alpha=1.0)
    assert sum(isinstance(m, LowRank) for m in one.modules()) == 2
    known = "dense, down, key, out, query, up, value"
    for name in ("ut", "q_proj", "norm_1", ""):  # part of one; none; not linear
        message = rf"names .*\({known}\), got '{name}'"
        with pytest.raises(ValueError, match=message):
            with_low_rank(phi, (name,), rank=1, alpha=1.0)
    with pytest.raises(ValueError, match=r"names must be at least one name, got \[\]"):
        with_low_rank(phi, (), rank=1, alpha=1.0)


def test_a_matrix_and_its_parts(rng):
    config = TransformerConfig(
        vocabulary=9, context=6, width=8, layers=1, heads=2, kv_heads=1, hidden=6
    )
    model = Transformer(config)  # its logits come from the embedding
    for names in (["qkv", "q_proj"], ["qkv", "all-linear"]):
        message = r"names must not name both blocks.0.attention.qkv .*, got \['qkv'"
        with pytest.raises(ValueError, match=message):
            with_low_rank(model, names, rank=1, alpha=1.0)
    for name in ("unembedding", "lm_head"):
        with pytest.raises(ValueError, match=rf"names .*, got '{name}'"):
            with_low_rank(model, name, rank=1, alpha=1.0)
    every = with_low_rank(model, ["all-linear", "out", "o_proj"], rank=1, alpha=1.0)
    assert sum(isinstance(m, LowRank) for m in every.modules()) == 7
    # Neither is an update of one, which would be changed by the second call
    message = r"names .*\(down, down_proj, .*\), got 'v_proj'"
    with pytest.raises(ValueError, match=message):
        with_low_rank(
            with_low_rank(model, ["v_proj"], rank=1, alpha=1.0),
            ["v_proj"],
            rank=1,
            alpha=1.0,
        )


@pytest.mark.parametrize("rank", [0, 5])
def test_a_bad_rank(rank):
    message = f"rank must be a whole number from 1 to 4, got {rank}."
    with pytest.raises(ValueError, match=message):
        LowRank(nn.Linear(6, 4), rank=rank, alpha=1.0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.inf, math.nan])
def test_a_bad_alpha(alpha):
    with pytest.raises(ValueError, match=f"alpha must be .*, got {alpha}."):
        LowRank(nn.Linear(6, 4), rank=2, alpha=alpha)


@pytest.mark.parametrize("names", [NAMES, ("qkv", "out"), ("q_proj", "up_proj")])
def test_an_update_is_taken_off_to_the_last_bit(phi, tokens, rng, names):
    model = phi
    if names != NAMES:
        model = Pooled(drawn(SMALL), mean_of_tokens)
    updated = moved(with_low_rank(model, names, rank=2, alpha=4.0), rng)
    changed = snapshot(updated)
    bare = without_low_rank(updated)
    assert [*bare.state_dict()] == [*model.state_dict()]
    for name, weight in model.state_dict().items():
        assert torch.equal(bare.state_dict()[name], weight), name
    with torch.no_grad():
        before = model(tokens)
        assert torch.equal(bare(tokens), before)
        assert not torch.allclose(updated(tokens), before)
    for name, weight in changed.items():  # only the copy lost its updates
        assert torch.equal(updated.state_dict()[name], weight), name
