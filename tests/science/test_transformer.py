"""The Transformer: equal to the loops, blind to the future, the same in pieces.

A row of padding alone may be wholly masked: this torch gives 0 for it, not 0 / 0, so
no test misses its exception.
"""

import copy
import math
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from reference import transformer as reference_transformer
from support.models import SMALL, float64_model

from fmkit.models.transformer import (
    Block,
    Cache,
    Transformer,
    TransformerConfig,
    rotate,
    rotation_table,
)


@pytest.fixture(scope="module")
def small():
    return float64_model(SMALL)


@pytest.fixture
def tokens(rng):
    return torch.randint(SMALL.vocabulary, (3, 8), generator=rng)


@pytest.fixture
def vectors(rng):
    return torch.randn(2, 6, SMALL.width, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "masked"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@torch.no_grad()
def test_the_decoder_is_the_loops(kv_heads, tied, causal, tokens):
    """In the notes: Transformer, (14.7)."""
    config = replace(SMALL, kv_heads=kv_heads, tied=tied, causal=causal)
    model = float64_model(config)
    weights = {name: weight.tolist() for name, weight in model.named_parameters()}
    for T in (8, 1):
        for row, u in zip(tokens[:2, :T].tolist(), model(tokens[:2, :T]), strict=True):
            expected = reference_transformer.transformer(row, weights, config)
            expected = torch.tensor(expected, dtype=torch.float64)
            torch.testing.assert_close(u, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    "parts",
    [
        {"own_head_width": 6},
        {"qkv_bias": True},
        {"out_bias": True},
        {"head_norm": True},
        {"rope_divisors": (1.0, 4.0)},
        {"unrotated": (1,)},
        {"own_head_width": 2, "qkv_bias": True, "head_norm": True, "unrotated": (0,)},
    ],
    ids=str,
)
@torch.no_grad()
def test_what_families_add_is_the_loops(parts, tokens):
    """Also through a cache, and with a backward pass that reaches every weight."""
    config = replace(SMALL, **parts)
    model = float64_model(config)
    weights = {name: weight.tolist() for name, weight in model.named_parameters()}
    u = model(tokens)
    for row, ids in zip(u[:2], tokens[:2].tolist(), strict=True):
        loops = reference_transformer.transformer(ids, weights, config)
        expected = torch.tensor(loops, dtype=torch.float64)
        torch.testing.assert_close(row, expected, rtol=1e-10, atol=1e-11)
    cache = Cache(config, padding=[0, 2, 0], room=8, like=model.embedding.weight)
    torch.testing.assert_close(in_pieces(model, tokens, cache, [5, 1, 2])[::2], u[::2])
    with torch.enable_grad():
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters())


@torch.no_grad()
def test_the_parts_are_the_whole(small, tokens):
    """In the notes: embedding matrix, logits."""
    c = small.contextualize(small.embed(tokens))
    torch.testing.assert_close(small.logits(c), small(tokens), rtol=0, atol=0)
    # One vector, or many in any arrangement
    torch.testing.assert_close(small.logits(c[1, 2]), small(tokens)[1, 2])


# What sees what


@torch.no_grad()
def test_the_future_cannot_reach_the_past(small, tokens):
    """In the notes: autoregressive."""
    before = small(tokens)
    for t in range(tokens.shape[1]):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % SMALL.vocabulary
        after = small(changed)
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0, atol=0)
        assert (after[:, t:] != before[:, t:]).any(dim=-1).all()


@torch.no_grad()
def test_a_masked_model_does_not_look_at_padding(tokens):
    model = float64_model(replace(SMALL, causal=False))
    lengths = (8, 3, 1)
    real = torch.arange(8) < torch.tensor(lengths)[:, None]
    c = model.contextualize(model.embed(tokens), real=real)
    for i, T in enumerate(lengths):
        alone = model.contextualize(model.embed(tokens[i : i + 1, :T]))
        torch.testing.assert_close(c[i, :T], alone[0], rtol=1e-10, atol=1e-11)


def test_an_autoregressive_model_needs_no_such_mask(small, vectors):
    with pytest.raises(ValueError, match=r"^real .*None.*causal"):
        small.contextualize(vectors, real=torch.ones(2, 6).bool())


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "masked"])
def test_the_jacobian_s_zeros(causal, vectors):
    """In the notes: autoregressive."""
    model = float64_model(replace(SMALL, causal=causal))
    one = vectors[:1]
    jacobian = torch.autograd.functional.jacobian(model.contextualize, one)
    reached = jacobian[0, :, :, 0].abs().amax(dim=(1, 3))  # (T of c, T of e)
    seen = torch.ones(6, 6).bool()
    assert torch.equal(reached > 0, seen.tril() if causal else seen)


@torch.no_grad()
def test_rows_do_not_see_each_other(small, tokens):
    alone = torch.cat([small(row[None]) for row in tokens])
    torch.testing.assert_close(small(tokens), alone, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_a_beginning_is_the_beginning_of_the_whole(small, tokens):
    for T in range(1, 8):
        torch.testing.assert_close(
            small(tokens[:, :T]), small(tokens)[:, :T], rtol=1e-12, atol=1e-12
        )


@torch.no_grad()
def test_order_matters(small):
    """Without rotations the last token would see a bag."""
    a, b = small(torch.tensor([[1, 2, 3, 4], [2, 1, 3, 4]]))[:, -1]
    assert (a - b).abs().max() > 1e-3


# In pieces, with a cache


def in_pieces(model, tokens, cache, sizes):
    return torch.cat([model(part, cache) for part in tokens.split(sizes, dim=1)], dim=1)


PIECES = [[8], [5, 1, 1, 1], [1] * 8, [3, 4, 1], [1, 7], [2, 3, 3]]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@torch.no_grad()
def test_in_pieces_is_at_once(kv_heads, tokens):
    model = float64_model(replace(SMALL, kv_heads=kv_heads))
    expected = model(tokens)
    for sizes in PIECES:
        cache = Cache(model.config, padding=[0] * 3, room=9, like=model.cos)
        found = in_pieces(model, tokens, cache, sizes)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
        assert cache.used == 8


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@torch.no_grad()
def test_a_prompt_is_read_without_a_mask(kv_heads, tokens, monkeypatch):
    """Flash attention takes none. The order of a causal model is told it otherwise."""
    model, masks = float64_model(replace(SMALL, kv_heads=kv_heads)), []
    attention = F.scaled_dot_product_attention

    def watched(*args, attn_mask, is_causal, **options):
        masks.append((attn_mask is not None, is_causal))
        return attention(*args, attn_mask=attn_mask, is_causal=is_causal, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    cache = model.cache(padding=[0] * 3, room=9)
    found = in_pieces(model, tokens, cache, [5, 1, 2])
    assert masks[::2] == [(False, True), (False, False), (True, False)]
    torch.testing.assert_close(found, model(tokens), rtol=1e-11, atol=1e-12)
    masks.clear()
    model(tokens, model.cache(padding=[0, 1, 0], room=9))
    assert masks == [(True, False)] * 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sizes", PIECES, ids=str)
@torch.no_grad()
def test_padded_rows_are_each_row_alone(small, tokens, sizes, dtype):
    """The middle one is so short that the first pieces hold none of it."""
    model, padding = copy.deepcopy(small).to(dtype), [0, 5, 2]
    cache = model.cache(padding=padding, room=8)
    found = in_pieces(model, tokens, cache, sizes)
    assert found.dtype == dtype
    assert found.isfinite().all()
    error = 1e-5 if dtype == torch.float32 else 1e-11
    for row, u, n in zip(tokens, found, padding, strict=True):
        alone = model(row[None, n:])[0]
        torch.testing.assert_close(u[n:], alone, rtol=error, atol=error)


@pytest.mark.parametrize("sizes", PIECES, ids=str)
@torch.no_grad()
def test_what_padding_holds_has_no_influence(small, tokens, sizes, rng):
    padding = torch.tensor([4, 5, 2])
    hidden = torch.arange(8) < padding[:, None]
    other = torch.randint(SMALL.vocabulary, (3, 8), generator=rng)
    assert (other != tokens)[hidden].any(dim=0)

    def with_padding(which):
        cache = Cache(SMALL, padding=padding.tolist(), room=8, like=small.cos)
        return in_pieces(small, which, cache, sizes)[~hidden]

    same = with_padding(torch.where(hidden, other, tokens))
    torch.testing.assert_close(same, with_padding(tokens), rtol=0, atol=0)


@torch.no_grad()
def test_a_cache_keeps_its_rows_and_its_kind(small, tokens):
    cache = Cache(SMALL, padding=[0] * 3, room=8, like=small.cos.float())
    assert cache.keys.dtype == torch.float32
    assert cache.keys.shape == cache.values.shape == (2, 3, 2, 8, 4)
    assert not cache.keys.any()
    copy.deepcopy(small).float()(tokens[:, :5], cache)
    filled = cache.keys.abs().amax(dim=(2, 4)) > 0  # (layers, B, room)
    assert filled[..., :5].all()
    assert not filled[..., 5:].any()


@pytest.mark.parametrize("padding", [[0, 0, 0], [0, 3, 2]], ids=["none", "some"])
@torch.no_grad()
def test_forked_rows_go_on_from_their_own(small, tokens, padding):
    """Row 0 twice and row 1 never, with other tokens after it each time."""
    begun = small.cache(padding=padding, room=5)
    small(tokens[:, :5], begun)
    before = begun.keys.clone(), begun.values.clone()
    rows = [2, 0, 0]
    forked = begun.fork(rows, room=9)
    after = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 0, 1]])
    found = in_pieces(small, after, forked, [3, 1])
    assert (forked.used, begun.used) == (9, 5)
    for row, u, new in zip(rows, found, after, strict=True):
        whole = torch.cat([tokens[row, padding[row] : 5], new])
        expected = small(whole[None])[0, -4:]
        torch.testing.assert_close(u, expected, rtol=1e-11, atol=1e-12)
    # What was forked is as it was, and can be forked once more
    assert torch.equal(begun.keys, before[0])
    assert torch.equal(begun.values, before[1])
    again = in_pieces(small, after, begun.fork(rows, room=9), [4])
    torch.testing.assert_close(again, found, rtol=1e-11, atol=1e-12)


@torch.no_grad()
def test_an_empty_cache_can_be_forked(small, tokens):
    forked = small.cache(padding=[0], room=1).fork([0, 0, 0], room=8)
    torch.testing.assert_close(small(tokens, forked), small(tokens))


# Rotations


def test_the_table_is_the_formula():
    cos, sin = rotation_table(SMALL)
    for t in range(12):
        for i in range(2):
            angle = t * 50.0 ** (-2 * i / 4)
            assert cos[t, i].item() == pytest.approx(math.cos(angle), abs=1e-7)
            assert sin[t, i].item() == pytest.approx(math.sin(angle), abs=1e-7)


def test_far_positions_keep_their_angles():
    """In float32 the angle 8,191 itself would be 5e-4 off."""
    config = replace(SMALL, context=8192, rope_base=100_000.0)
    cos, _ = rotation_table(config)
    angle = 8191 * 100_000.0**-0.5
    assert cos[8191, 1].item() == pytest.approx(math.cos(angle), abs=1e-7)


def turned(x, positions):
    """The same vectors at other positions; every head has the angles of its token."""
    tables = rotation_table(replace(SMALL, context=100))
    return rotate(x, *(t.double()[positions][:, :, None] for t in tables))


def test_only_the_distance_of_two_tokens_counts(rng):
    q, k = torch.randn(2, 1, 6, 3, 4, generator=rng, dtype=torch.float64)
    here = torch.arange(6)[None]
    scores = torch.einsum("btnw,bsnw->bnts", turned(q, here), turned(k, here))
    there = torch.einsum("btnw,bsnw->bnts", turned(q, here + 37), turned(k, here + 37))
    # Cosines in float32
    torch.testing.assert_close(there, scores, rtol=0, atol=1e-6)
    beside = torch.einsum("btnw,bsnw->bnts", turned(q, here + 1), turned(k, here))
    assert (beside - scores).abs().max() > 0.1


def test_a_rotation_keeps_lengths_and_position_0_is_none(rng):
    x = torch.randn(2, 5, 3, 4, generator=rng, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 50, 99]])
    y = turned(x, positions)
    torch.testing.assert_close(y[:, 0], x[:, 0], rtol=0, atol=0)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=0)
    # Pair (i, i + w/2) keeps its length too: no other coordinate takes part
    pairs = [z.unflatten(-1, (2, 2)).norm(dim=-2) for z in (x, y)]
    torch.testing.assert_close(*pairs, rtol=1e-6, atol=0)
    assert (y[:, 1] - x[:, 1]).abs().min() > 0


# Gradients


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "masked"])
def test_gradients_of_a_layer(causal, rng):
    config = replace(SMALL, width=8, heads=2, kv_heads=1, hidden=3, causal=causal)
    torch.manual_seed(0)
    block = Block(config).double()
    names = [name for name, _ in block.named_parameters()]
    rotation = tuple(t[None, :3, None].double() for t in rotation_table(config))
    x = torch.randn(1, 3, 8, generator=rng, dtype=torch.float64, requires_grad=True)

    def forward(x, *weights):
        named = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(block, named, (x, rotation))

    assert torch.autograd.gradcheck(forward, (x, *block.parameters()), fast_mode=True)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_every_parameter_learns(tied, tokens):
    model = Transformer(replace(SMALL, tied=tied))
    F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters())


def test_parameters_are_counted():
    """Four query heads, two of keys and two of values, each of width 4."""
    d, V, hidden = 16, 11, 6
    layer = d * (4 + 2 + 2) * 4 + d * d + 3 * d * hidden + 2 * d
    counts = {
        tied: sum(
            p.numel() for p in Transformer(replace(SMALL, tied=tied)).parameters()
        )
        for tied in (True, False)
    }
    assert counts == {True: V * d + 2 * layer + d, False: 2 * V * d + 2 * layer + d}


# How it begins


def test_the_first_loss_is_log_V(rng):
    config = TransformerConfig(
        vocabulary=500, context=32, width=64, layers=2, heads=4, kv_heads=2, hidden=128
    )
    torch.manual_seed(0)
    tokens = torch.randint(500, (8, 33), generator=rng)
    for tied in (True, False):
        with torch.no_grad():
            u = Transformer(replace(config, tied=tied))(tokens[:, :-1])
        # u has variance 64 times 0.02^2 = 0.03, half of which adds to the loss
        loss = F.cross_entropy(u.flatten(0, 1), tokens[:, 1:].flatten())
        assert loss.item() == pytest.approx(math.log(500), abs=0.05)


def test_initial_weights_have_their_scales():
    torch.manual_seed(0)
    config = replace(SMALL, width=128, layers=8, hidden=200, vocabulary=300, tied=False)
    for name, weight in Transformer(config).named_parameters():
        if "norm" in name:
            assert (weight == 1).all()
            continue
        ends = name.endswith(("attention.out.weight", "mlp.down.weight"))
        std = 0.02 / 4 if ends else 0.02  # 16 branches
        # 16,384 draws or more: one deviation is 0.6 % of the scale
        assert weight.std().item() == pytest.approx(std, rel=0.03)
        assert abs(weight.mean().item()) < 4 * std / weight.numel() ** 0.5


def test_weights_are_drawn_from_the_global_seed_only(tokens):
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in Transformer(SMALL).parameters()])

    first = weights(0)
    random.seed(5)
    assert torch.equal(weights(0), first)
    assert not torch.equal(weights(1), first)
    model = Transformer(SMALL)
    state = torch.random.get_rng_state()
    model(tokens)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_tied_is_one_matrix():
    model = Transformer(SMALL).double()
    assert model.unembedding.weight is model.embedding.weight
    model = Transformer(replace(SMALL, tied=False))
    assert not torch.equal(model.unembedding.weight, model.embedding.weight)


# Precision


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.bfloat16, 0.05), (torch.float16, 0.006)]
)
@torch.no_grad()
def test_half_precision(small, tokens, dtype, bound):
    """Of the largest logit, 5.4; measured: 0.034 with 8 bits, 0.0024 with 11."""
    expected = copy.deepcopy(small).float()(tokens)
    half = copy.deepcopy(small).to(dtype)
    found = half(tokens)
    assert found.dtype == dtype
    error = (found.float() - expected).abs().max() / expected.abs().max()
    assert error < bound
    cache = Cache(SMALL, padding=[0, 2, 0], room=8, like=half.cos)
    pieces = in_pieces(half, tokens, cache, [5, 1, 2]).float()
    error = (pieces - expected)[[0, 2]].abs().max() / expected.abs().max()
    assert error < bound


@pytest.mark.parametrize("size", [1e-4, 1e4])
@torch.no_grad()
def test_extreme_vectors_stay_finite(small, vectors, size):
    model = copy.deepcopy(small).float()
    assert model.contextualize(size * vectors.float()).isfinite().all()


# Bad input


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"vocabulary": 0}, "vocabulary must be at least 1, got 0."),
        ({"context": 0}, "context must be at least 1, got 0."),
        ({"layers": 0}, "layers must be at least 1, got 0."),
        ({"heads": 0}, "heads must be at least 1, got 0."),
        ({"kv_heads": -1}, "kv_heads must be at least 1, got -1."),
        ({"hidden": 0}, "hidden must be at least 1, got 0."),
        ({"width": 0}, "width must be a multiple of twice the heads (8), got 0."),
        ({"width": 12}, "width must be a multiple of twice the heads (8), got 12."),
        ({"kv_heads": 3}, "kv_heads must divide the heads (4), got 3."),
        ({"kv_heads": 8}, "kv_heads must divide the heads (4), got 8."),
        (
            {"own_head_width": 5},
            "own_head_width must be even and at least 2, got 5.",
        ),
        ({"rope_base": 0.0}, "rope_base must be above 0 and finite, got 0.0."),
        ({"norm_epsilon": -1.0}, "norm_epsilon must be at least 0, got -1.0."),
        (
            {"rope_divisors": (1.0,)},
            "rope_divisors must be 2 numbers above 0, or none, got (1.0,).",
        ),
        (
            {"rope_divisors": (1.0, 0.0)},
            "rope_divisors must be 2 numbers above 0, or none, got (1.0, 0.0).",
        ),
        ({"unrotated": (2,)}, "unrotated must be layers from 0 to 1, got (2,)."),
    ],
)
def test_wrong_configs(wrong, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message
        replace(SMALL, **wrong)
    assert str(error.value) == message


def test_wrong_tokens(small):
    for token in (11, -1):  # fmkit looks at ids where they enter, torch always
        with pytest.raises(IndexError):
            small(torch.tensor([[3, token, 0]]))
    longer = torch.zeros(1, 13).long()
    message = r"^the number of tokens must be at most the context \(12\), got 13\.$"
    with pytest.raises(ValueError, match=message):
        small(longer)
    assert small(longer[:, :12]).shape == (1, 12, 11)


@torch.no_grad()
def test_a_full_cache(small, tokens):
    cache = Cache(SMALL, padding=[0, 1, 0], room=8, like=small.cos)
    small(tokens[:, :6], cache)
    before = cache.keys.clone()
    message = r"^the number of tokens must be at most the room of the cache \(8\), got"
    with pytest.raises(ValueError, match=f"{message} 9\\.$"):
        small(tokens[:, :3], cache)
    assert cache.used == 6
    assert torch.equal(cache.keys, before)
    small(tokens[:, 6:], cache)
    with pytest.raises(ValueError, match=f"{message} 9\\.$"):
        small(tokens[:, :1], cache)
    for room in (0, 13):
        message = rf"^room must be from 1 to the context \(12\), got {room}\.$"
        with pytest.raises(ValueError, match=message):
            Cache(SMALL, padding=[0], room=room, like=small.cos)
    message = r"^room .*\(8\), got 7\.$"
    with pytest.raises(ValueError, match=message):
        cache.fork([0], room=7)
    with pytest.raises(ValueError, match=r"^room must be from 1 to the context"):
        cache.fork([0], room=13)
    masked = replace(SMALL, causal=False)  # a token sees what is not there yet
    with pytest.raises(
        ValueError, match=r"^causal must be True for a cache, got False"
    ):
        Cache(masked, padding=[0], room=4, like=small.cos)
