"""Decoding: the loop's tokens, whatever the padding; draws from the right numbers."""

import math
import random
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from reference import generate as reference_generate
from support.models import drawn
from support.refusals import refused
from tokenizers import Tokenizer, decoders, models

from fmkit.generate import StopStrings, generate, greedy, keep_top_p, sampler, stream
from fmkit.models.packed import packed
from fmkit.models.transformer import TransformerConfig

TINY = TransformerConfig(
    vocabulary=23,
    context=24,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    hidden=12,
    tied=False,
)
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]


@pytest.fixture(scope="module")
def tiny():
    return drawn(TINY)


@pytest.fixture
def u(rng):
    """Logits of three rows; in double, so that a bound is what it says."""
    return 2 * torch.randn(3, 12, generator=rng, dtype=torch.float64)


# The same tokens, however they are computed


def test_a_batch_is_each_prompt_through_the_loop(tiny):
    """In the notes: answer of several words, in-context learning."""
    expected = [reference_generate.greedy(tiny, p, 19) for p in PROMPTS]
    assert generate(tiny, PROMPTS, new_tokens=19) == expected
    assert len({tuple(row) for row in expected}) == 3
    assert min(len({*row}) for row in expected) > 2, "a constant would agree with much"
    for prompt, row in zip(PROMPTS, expected, strict=True):
        assert generate(tiny, [prompt], new_tokens=19) == [row]


@pytest.mark.parametrize("packing", [False, True], ids=["plain", "packed"])
def test_the_real_model_says_what_it_says_without_a_cache(smollm2, packing):
    lm = smollm2.packed() if packing else smollm2
    texts = ["The capital of France is", "Water boils at", "def add(a, b):\n    return"]
    prompts = [encoding.ids for encoding in lm.tokenizer.encode_batch(texts)]
    assert len({len(prompt) for prompt in prompts}) == 3
    found = generate(lm.model, prompts, new_tokens=32)
    # What the loop does, in one pass: each token is the best after those before it
    for prompt, new in zip(prompts, found, strict=True):
        with torch.no_grad():
            best = (
                smollm2.model(torch.tensor([prompt + new]))[0].argmax(dim=-1).tolist()
            )
        assert best[len(prompt) - 1 : -1] == new
    assert lm.tokenizer.decode(found[0]).startswith(" Paris")


def test_bfloat16_stays_bfloat16(tiny):
    model = drawn(TINY).bfloat16()
    seen = []

    def choose(u):
        seen.append(u.dtype)
        return greedy(u)

    generate(model, PROMPTS, new_tokens=3, choose=choose)
    assert seen == [torch.bfloat16] * 3


def test_packing_changes_layout_only(tiny, rng):
    twin = packed(tiny)
    assert twin is not tiny
    assert twin.embedding.weight is tiny.embedding.weight
    assert isinstance(tiny.blocks[0].mlp.down, torch.nn.Linear)
    tokens = torch.randint(TINY.vocabulary, (2, 9), generator=rng)
    with torch.no_grad():
        torch.testing.assert_close(twin(tokens), tiny(tokens))
    assert packed(drawn(TINY).double()).blocks[0].mlp.down.weight.dtype == torch.float64


def test_packing_keeps_a_bias(rng):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(2, 5)
            self.linear = torch.nn.Linear(5, 4)

    model, x = Model(), torch.randn(3, 5, generator=rng)
    with torch.no_grad():
        torch.testing.assert_close(packed(model).linear(x), model.linear(x))


def test_logits_of_a_prompt_are_those_of_its_end(tiny, monkeypatch):
    shapes = []
    logits = tiny.logits
    monkeypatch.setattr(tiny, "logits", lambda c: shapes.append(c.shape) or logits(c))
    generate(tiny, PROMPTS, new_tokens=2)
    assert shapes == [(3, 16), (3, 16)]


# Where a row ends


def test_a_row_ends_at_eos_and_the_others_go_on(tiny):
    whole = generate(tiny, PROMPTS, new_tokens=12)
    eos = whole[1][3]
    expected = [row[: row.index(eos)] if eos in row else row for row in whole]
    assert len({len(row) for row in expected}) > 1
    assert generate(tiny, PROMPTS, new_tokens=12, eos=eos) == expected
    steps = [*stream(tiny, PROMPTS, new_tokens=12, eos=eos)]
    assert len(steps) == max(len(row) for row in expected)
    for i, row in enumerate(expected):
        nothing = [None] * (len(steps) - len(row))
        assert [step[i] for step in steps] == row + nothing


def test_a_row_ends_at_any_of_several_eos(tiny):
    """As generation_config.json has them: the first one that is chosen ends a row."""
    whole = generate(tiny, PROMPTS, new_tokens=12)
    eos = [whole[0][5], whole[1][3]]
    expected = [
        row[: min([row.index(e) for e in eos if e in row], default=12)] for row in whole
    ]
    assert generate(tiny, PROMPTS, new_tokens=12, eos=eos) == expected
    assert generate(tiny, PROMPTS, new_tokens=12, eos=()) == whole
    for wrong in ([1, -1], -1, TINY.vocabulary):
        with pytest.raises(ValueError, match=r"^eos must be ids from 0 to V - 1 \("):
            stream(tiny, PROMPTS, new_tokens=1, eos=wrong)


def test_token_0_is_a_token(tiny):
    def zeros(u):
        return torch.zeros(len(u), dtype=torch.long)

    assert generate(tiny, [[1], [0]], new_tokens=2, choose=zeros) == [[0, 0]] * 2


def test_when_all_rows_have_ended_nothing_is_computed(tiny):
    calls = []

    def choose(u):
        calls.append(len(u))
        return torch.tensor([7, 5, 7] if len(calls) == 1 else [5, 7, 5])

    steps = stream(tiny, PROMPTS, new_tokens=9, choose=choose, eos=7)
    assert [*steps] == [[None, 5, None]]  # 5 is not said by rows that have ended
    assert calls == [3, 3]


def test_tokens_come_when_they_are_known(tiny):
    calls = []

    def choose(u):
        calls.append(len(u))
        return greedy(u)

    steps = stream(tiny, PROMPTS, new_tokens=9, choose=choose)
    assert calls == []
    next(steps)
    assert calls == [3]
    # Between two tokens a reader may train, so no mode may be left on
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


# Where a string ends a row


PIECES = ["<s>", "a", "b", "\n", "\n\n", "Q", ":", " c\nQ", "ab", "<end>"]


@pytest.fixture(scope="module")
def writing():
    """A tokenizer whose tokens are PIECES, which no text could be cut into."""
    vocabulary = {piece: i for i, piece in enumerate(PIECES)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<s>", "<end>"])
    return tokenizer


def written(model, tokenizer, rows, strings, *, prompts=None, eos=None):
    """The texts, and how many tokens each has, if these pieces are chosen in turn."""
    ids = [[PIECES.index(piece) for piece in row] for row in rows]
    steps = iter(zip(*ids, strict=True))
    stop = StopStrings(tokenizer, strings)
    found = generate(
        model,
        prompts or [[1]] * len(rows),
        new_tokens=len(ids[0]),
        choose=lambda u: torch.tensor(next(steps)),
        eos=eos,
        stop=stop,
    )
    return [stop.text(row) for row in found], [*map(len, found)]


def test_a_string_ends_a_row_and_the_others_go_on(tiny, writing):
    rows = [["a", "\n", "b", "a"], ["b", "a", "\n", "b"], ["a", "a", "b", "<s>"]]
    found = written(tiny, writing, rows, ["\n"], eos=0)
    assert found == (["a", "ba", "aab"], [2, 3, 3])
    # A row that has ended stays so, though a string has ended the others since
    rows = [["<s>", "\n", "a"], ["b", "\n", "a"]]
    assert written(tiny, writing, rows, ["\n"], eos=0) == (["", "b"], [0, 2])


@pytest.mark.parametrize(
    ("pieces", "strings", "text", "count"),
    [
        (["a", "\n", "Q", ":", "b"], ["\nQ:"], "a", 4),  # of three tokens
        (["a", "\n", "\n", "b", "b"], ["\n\n"], "a", 3),
        (["a", "\n\n", "b", "b", "b"], ["\n"], "a", 2),  # a part of a token
        (["a", " c\nQ", ":", "b", "b"], ["\nQ:", ":b"], "a c", 3),
        (["a", "b", "Q", ":", "b"], [":", "Q:"], "ab", 4),  # the one that begins first
        (["ab", "b", "ab", "ab", "b"], ["ba", "\n"], "ab", 3),
        (["ab", "ab", "b", "b", "b"], ["Q"], "ababbbb", 5),
        (["ab", "ab", "b", "b", "b"], [], "ababbbb", 5),
        (["a", "<end>", "b", "b", "b"], ["<end>"], "a", 2),  # not of the text
        (["a", "<end>", "b", "b", "b"], ["Q"], "abbb", 5),
        (["\n", "b", "b", "b", "b"], ["\n"], "", 1),
    ],
)
def test_what_comes_before_the_first_string(
    tiny, writing, pieces, strings, text, count
):
    assert written(tiny, writing, [pieces], strings) == ([text], [count])


def test_a_string_in_the_prompt_ends_nothing(tiny, writing):
    for prompt in ([1, 3], [3, 3, 3]):
        found = written(tiny, writing, [["b", "b"]], ["\n", "\nb"], prompts=[prompt])
        assert found == (["bb"], [2])


def test_after_the_last_string_nothing_is_computed(tiny, writing):
    calls = []

    def choose(u):
        calls.append(len(u))
        return torch.tensor([3, 1] if len(calls) == 1 else [1, 3])

    stop = StopStrings(writing, ["\n"])
    steps = stream(tiny, [[1], [2]], new_tokens=9, choose=choose, stop=stop)
    assert [*steps] == [[3, 1], [None, 3]]
    assert calls == [2, 2]


def test_strings_that_are_none(writing):
    found = refused(StopStrings, writing, ["\n", ""])
    assert found == "a stop string must be a text, got ''."
    found = refused(StopStrings, writing, "\n\n")
    assert found == r"strings must be several, such as a list, got '\n\n'."


# Draws


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_p": 0.8},
        {"top_p": 0.7, "temperature": 1.5},
    ],
    ids=str,
)
def test_tokens_are_drawn_as_often_as_they_should_be(u, rng, options):
    """In the notes: (14.6)."""
    choose, n = sampler(generator=rng, **options), 40_000
    for row in u:
        drawn = choose(row.expand(n, -1))
        found = drawn.bincount(minlength=len(row)) / n
        p = torch.tensor(reference_generate.probabilities(row.tolist(), **options))
        # 216 counts, each binomial: beyond 5 standard deviations less than once in
        # 8,000 seeds; what has no probability never comes
        bound = 5 * (p * (1 - p) / n).sqrt()
        assert ((found - p).abs() <= bound).all()


def test_the_nucleus_is_the_fewest_that_have_p():
    p = torch.tensor([[0.1, 0.4, 0.2, 0.3]], dtype=torch.float64)
    sizes = {0.05: 1, 0.39: 1, 0.41: 2, 0.69: 2, 0.71: 3, 0.89: 3, 0.91: 4}
    for top_p, size in sizes.items():
        kept = keep_top_p(p.log(), top_p).isfinite()
        assert kept.tolist() == [[size > 3, size > 0, size > 2, size > 1]]
    half = torch.tensor([[0.5, 0.25, 0.25]]).log()
    assert keep_top_p(half, 0.5).isfinite().tolist() == [[True, False, False]]
    # Of transformers' tests: 0.5 + 0.3 is more than 0.8 in float32
    tied = torch.tensor([[0.3, 0.1, 0.1, 0.5]]).log()
    assert keep_top_p(tied, 0.8).isfinite().tolist() == [[True, False, False, True]]
    far = torch.tensor([[20.0, 0.0, -90.0]])  # together all but nothing
    assert torch.equal(keep_top_p(far, 1.0), far)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_nucleus_that_is_reached_is_enough(dtype, rng):
    """However its sum is rounded: p is, as a fraction, what some of the tokens have."""
    weights = [[1] * V for V in (2, 10, 1000, 50_000)]
    weights += [torch.randint(1, 20, (V,), generator=rng).tolist() for V in [6] * 300]
    for row in weights:
        row.sort(reverse=True)
        n = int(torch.randint(1, len(row), (), generator=rng))
        p = Fraction(sum(row[:n]), sum(row))
        u = (torch.tensor([row], dtype=dtype) / sum(row)).log()
        assert keep_top_p(u, float(p)).isfinite().sum() == n
        step = float(Fraction(row[n], 2 * sum(row)))  # half of the next token
        assert keep_top_p(u, float(p) + step).isfinite().sum() == n + 1
        assert keep_top_p(u, float(p) - step).isfinite().sum() == n


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_draws_are_those_of_multinomial(dtype, top_p, rng):
    """To the bit: the chapters' texts were drawn by it."""
    u = 3 * torch.randn(64, 500, generator=rng, dtype=dtype)
    ours, theirs = (torch.Generator().manual_seed(5) for _ in range(2))
    choose = sampler(generator=ours, top_p=top_p)
    p = (keep_top_p(u, top_p) if top_p < 1 else u).softmax(dim=-1)
    for _ in range(5):
        expected = torch.multinomial(p, 1, generator=theirs)[:, 0]
        assert torch.equal(choose(u), expected)


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_logits_that_are_no_numbers(rng, top_p):
    choose = sampler(generator=rng, top_p=top_p)
    for wrong in (float("nan"), float("inf")):
        u = torch.zeros(2, 5)
        u[1, 2] = wrong
        assert "got nan." in refused(choose, u)
    assert "got nan." in refused(choose, torch.full((1, 5), -torch.inf))
    u = torch.full((1, 5), -torch.inf)
    u[0, 3] = -1e30
    assert choose(u).tolist() == [3]


def test_what_is_kept_keeps_its_logit(u):
    kept = keep_top_p(u, 0.6)
    inside = kept.isfinite()
    assert torch.equal(kept[inside], u[inside])
    for row, some in zip(u, inside, strict=True):
        assert row[some].min() > row[~some].max()


def test_a_temperature_near_0_is_greedy(u, rng):
    for temperature in (0.0, 1e-37, 1e-4):
        choose = sampler(generator=rng, temperature=temperature)
        # 1e3 / 1e-37 would be infinite, were the largest not taken away before
        assert torch.equal(choose(1e3 * u.float()), greedy(u))
    for logits in (u, u.float()):  # 1e-9 is less than their rounding
        choose = sampler(generator=rng, top_p=1e-9)
        assert torch.equal(choose(logits), greedy(u))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws_in_float32(dtype, rng):
    # Of so many rows, some have two tokens that only float32 tells apart
    u = (3 * torch.randn(20_000, 100, generator=rng)).to(dtype)

    def draws(u):
        generator = torch.Generator().manual_seed(5)
        return sampler(generator=generator, temperature=0.7, top_p=0.9)(u)

    assert torch.equal(draws(u), draws(u.float()))


def test_equal_seeds_give_equal_texts(tiny):
    def texts(seed, prompts=PROMPTS):
        generator = torch.Generator().manual_seed(seed)
        choose = sampler(generator=generator, temperature=1.5)
        return generate(tiny, prompts, new_tokens=15, choose=choose)

    torch.manual_seed(0)
    first = texts(1)
    torch.manual_seed(1)  # the global seed has no part in it
    random.seed(1)
    assert texts(1) == first
    assert texts(2) != first
    assert first != generate(tiny, PROMPTS, new_tokens=15)
    # What another row holds changes nothing; its place does
    others = texts(1, [[8, 8], PROMPTS[1], [7] * 5])
    assert others[1] == first[1]
    assert others[0] != first[0]
    assert len({tuple(row) for row in texts(1, [[3]] * 3)}) == 3


# What cannot be done


@pytest.mark.parametrize(
    ("prompts", "new_tokens", "message"),
    [
        ([], 1, r"prompts must be at least one, got \[\]\."),
        ([[1], []], 1, r"a prompt must have at least one token, got \[\]\."),
        ([[1]], 0, r"new_tokens must be at least 1, got 0\."),
        ([[1, 23]], 1, r"an id must be from 0 to V - 1 \(22\), got 23\."),
        ([[1], [-1, 2]], 1, r"an id must be from 0 to V - 1 \(22\), got -1\."),
        (
            [[1], [1] * 25],
            1,
            r"the longest prompt must leave room for 1 new tokens in the context "
            r"\(24\), got 25\.",
        ),
        (
            [[1] * 5],
            20,
            r"the longest prompt must leave room for 20 new tokens in the context "
            r"\(24\), got 5\.",
        ),
    ],
)
def test_wrong_prompts_are_refused_at_once(tiny, prompts, new_tokens, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        stream(tiny, prompts, new_tokens=new_tokens)  # no step is asked for


def test_the_whole_context_can_be_used(tiny):
    assert len(generate(tiny, [[1] * 5], new_tokens=19)[0]) == 19


def test_a_model_that_trains_is_refused():
    message = r"^model.training must be False: call model.eval\(\), got True\.$"
    with pytest.raises(ValueError, match=message):
        stream(drawn(replace(TINY, layers=1)).train(), [[1]], new_tokens=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, r"temperature must be at least 0, got -0\.1\."),
        ({"top_p": 0.0}, r"top_p must be above 0 and at most 1, got 0\.0\."),
        ({"top_p": 1.1}, r"top_p must be above 0 and at most 1, got 1\.1\."),
    ],
)
def test_wrong_samplers(rng, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        sampler(generator=rng, **options)


@pytest.mark.parametrize("p", [0.0, -0.5, 1.5, math.nan])
def test_a_nucleus_of_no_share(p):
    with pytest.raises(ValueError, match=rf"^p must be above 0 and at most 1, got {p}"):
        keep_top_p(torch.zeros(1, 3), p)
