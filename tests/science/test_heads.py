"""Attention weights, outputs of heads, and heads that are switched off."""

import math
from dataclasses import replace

import pytest
import torch
from support.models import SMALL, float64_model

from fmkit._check import Refused
from fmkit.models.heads import ablated, attention_weights, head_outputs
from fmkit.models.transformer import rotate

FAMILIES = [
    {},
    {"causal": False},
    {"kv_heads": 4},
    {"own_head_width": 6},
    {"qkv_bias": True},
    {"head_norm": True},
    {"unrotated": (1,)},
]
CLOSE = {"rtol": 1e-10, "atol": 1e-11}


def model_of(**parts):
    return float64_model(replace(SMALL, **parts))


@pytest.fixture(scope="module")
def small():
    return model_of()


@pytest.fixture
def tokens(rng):
    return torch.randint(SMALL.vocabulary, (3, 8), generator=rng)


def hooks_of(model):
    return sum(len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("parts", FAMILIES, ids=str)
def test_weights_are_shares_of_what_a_token_may_see(parts, tokens):
    weights = attention_weights(model_of(**parts), tokens)
    assert weights.shape == (2, 3, 4, 8, 8)
    torch.testing.assert_close(weights.sum(4), torch.ones_like(weights[..., 0]))
    later = torch.ones(8, 8, dtype=torch.bool).triu(1)
    assert ((weights[..., later] == 0) == parts.get("causal", True)).all()


def test_a_weight_by_hand(small, tokens):
    """Of the first layer: head 2 has the second of two keys."""
    layer, w = small.blocks[0].attention, 4
    with torch.no_grad():
        x = small.blocks[0].norm_1(small.embed(tokens))
        q, k, _ = layer.qkv(x).unflatten(2, (-1, w)).split([4, 2, 2], dim=2)
        cos, sin = (table[:8].view(1, 8, 1, -1) for table in (small.cos, small.sin))
        q, k = rotate(q, cos, sin)[1, :, 2], rotate(k, cos, sin)[1, :, 1]
    powers = [math.exp((q[5] @ k[s]).item() / math.sqrt(w)) for s in range(6)]
    expected = torch.tensor([power / sum(powers) for power in powers]).double()
    found = attention_weights(small, tokens)[0, 1, 2, 5, :6]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("parts", FAMILIES, ids=str)
@torch.no_grad()
def test_outputs_are_weighted_sums_of_values(parts, tokens):
    """Of every layer, with what the layer itself computes by its fused product."""
    model = model_of(**parts)
    weights, outputs = attention_weights(model, tokens), head_outputs(model, tokens)
    config, x = model.config, model.embed(tokens)
    k, w = config.kv_heads, config.head_width
    table = tuple(table[:8].view(1, 8, 1, -1) for table in (model.cos, model.sin))
    for layer, block in enumerate(model.blocks):
        values = block.attention.qkv(block.norm_1(x)).unflatten(2, (-1, w))[:, :, -k:]
        values = values.repeat_interleave(config.heads // k, dim=2)
        expected = torch.einsum("bhts,bshw->bthw", weights[layer], values)
        torch.testing.assert_close(outputs[layer], expected, **CLOSE)
        x = block(x, None if layer in config.unrotated else table)


@torch.no_grad()
def test_ablation_takes_one_head_away(small, tokens):
    """Its layer loses what the head adds, by its columns of the last product."""
    before, u = head_outputs(small, tokens), small(tokens)
    [added] = of_layer(small, tokens, 1)
    with ablated(small, [(1, 2)]) as model:
        assert model is small
        after = head_outputs(small, tokens)
        [left] = of_layer(small, tokens, 1)
        assert not torch.allclose(small(tokens), u)
    rest = [0, 1, 3]
    torch.testing.assert_close(after[:, :, :, rest], before[:, :, :, rest], **CLOSE)
    part = before[1, :, :, 2] @ small.blocks[1].attention.out.weight[:, 8:12].T
    torch.testing.assert_close(added - left, part, **CLOSE)
    torch.testing.assert_close(small(tokens), u, rtol=0, atol=0)


def of_layer(model, tokens, layer):
    found = []
    attention = model.blocks[layer].attention
    hook = attention.register_forward_hook(lambda *_: found.append(_[2]))
    with torch.no_grad():
        model(tokens)
    hook.remove()
    return found


@torch.no_grad()
def test_ablation_of_several_heads_is_that_of_each(small, tokens):
    with ablated(small, [(0, 1), (1, 0)]):
        both = small(tokens)
    with ablated(small, [(0, 1)]), ablated(small, [(1, 0)]):
        torch.testing.assert_close(small(tokens), both, rtol=0, atol=0)


@torch.no_grad()
def test_ablation_of_several_heads_by_other_outputs(small, tokens):
    outputs = head_outputs(small, tokens)
    means = outputs.mean(dim=(1, 2))
    u = small(tokens)
    heads = [(0, 1), (0, 3), (1, 0)]
    with ablated(small, heads, outputs=means):
        replaced = small(tokens)
    with ablated(small, heads):
        zeros = small(tokens)
    assert not torch.allclose(replaced, zeros)
    # A head that gives the same at every token is not changed by its mean
    one = tokens[:1, :1]
    own = head_outputs(small, one)[:, 0, 0]
    with ablated(small, heads, outputs=own):
        torch.testing.assert_close(small(one), u[:1, :1], **CLOSE)


def test_no_hook_stays(small, tokens):
    assert hooks_of(small) == 0
    attention_weights(small, tokens)
    head_outputs(small, tokens)
    with ablated(small, [(0, 0), (0, 1), (1, 1)]):
        assert hooks_of(small) == 2
    assert hooks_of(small) == 0

    def failing():
        with ablated(small, [(0, 0)]):
            raise KeyError("inside")

    with pytest.raises(KeyError):
        failing()
    with pytest.raises(Refused):
        attention_weights(small, tokens.repeat(1, 2))  # beyond the context
    assert hooks_of(small) == 0


@pytest.mark.parametrize("head", [(2, 0), (0, 4), (-1, 0), (0, -1)])
def test_a_head_that_the_model_lacks(small, head):
    with (
        pytest.raises(ValueError, match=rf"heads.*\({head[0]}, {head[1]}\)"),
        ablated(small, [(0, 0), head]),
    ):
        pass
    assert hooks_of(small) == 0
