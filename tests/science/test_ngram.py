"""The n-gram model: equal to the formula, a distribution everywhere, and no peeking."""

import math

import pytest
import torch
from reference import text as reference_text

from fmkit.assets import ASSETS, fetch
from fmkit.data.tokens import characters, encode
from fmkit.models.ngram import choose_order, discounts, fit_ngram, log_p_of_orders

V = 6


def text_like(n, *, rng):
    """Tokens below V - 1, each mostly what follows from the two before it."""
    tokens = [0, 1]
    noise = torch.randint(0, V - 1, (n,), generator=rng).tolist()
    free = (torch.rand(n, generator=rng) < 0.3).tolist()
    for i in range(n - 2):
        follows = (2 * tokens[-1] + tokens[-2] + 1) % (V - 1)
        tokens.append(noise[i] if free[i] else follows)
    return torch.tensor(tokens)


def next_probabilities(model, context):
    """p(x_{T+1} | context) of every member of V."""
    every = torch.arange(model.vocabulary)[:, None]
    rows = torch.cat([context.expand(len(every), -1), every], dim=1)
    return model.log_p(rows)[:, -1].exp()


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_it_is_the_formula(order, rng):
    """In the notes: (14.5)."""
    train, test = text_like(300, rng=rng), text_like(60, rng=rng)
    test[::7] = V - 1  # never seen, so that contexts are missing too
    model = fit_ngram(train, vocabulary=V, order=order)
    slow = reference_text.KneserNey(train.tolist(), V, order)
    listed = test.tolist()
    expected = [math.log(slow.p(listed[t], listed[:t])) for t in range(len(listed))]
    assert model.log_p(test).tolist() == pytest.approx(expected, rel=1e-10)
    assert model.order == order


@pytest.mark.parametrize("order", [1, 2, 4])
def test_probabilities_sum_to_one_wherever_one_stands(order, rng):
    """In the notes: language model."""
    model = fit_ngram(text_like(200, rng=rng), vocabulary=V, order=order)
    contexts = [torch.randint(0, V, (n,), generator=rng) for n in range(7)]
    contexts.append(torch.full((5,), V - 1))  # never seen
    for context in contexts:
        p = next_probabilities(model, context)
        assert p.sum().item() == pytest.approx(1, abs=1e-12)
        assert (p > 0).all()
        for token in range(V):
            row = torch.cat([context, torch.tensor([token])])
            assert model.log_p(row)[-1].exp() == pytest.approx(p[token].item())


def test_a_closed_form():
    """Of 0 0 1: bigrams 00 and 01 once each; before 0 stands one token, before 1 one.

    n_1 = 2, one larger 3, of every level, and n_2 one larger 1, so Y = 3/5 and D(1) =
    1 - 2 (3/5) (1/3) = 3/5: p_1(0) = (1 - 3/5 + 6/5 1/3) / 2 = 2/5, p_1(2) = 1/5.
    """
    model = fit_ngram(torch.tensor([0, 0, 1]), vocabulary=3, order=2)
    unigram = next_probabilities(model, torch.tensor([], dtype=torch.int64))
    assert unigram.tolist() == pytest.approx([2 / 5, 2 / 5, 1 / 5])
    after_0 = next_probabilities(model, torch.tensor([0]))
    expected = [(2 / 5 + 6 / 5 * 2 / 5) / 2] * 2 + [6 / 5 * 1 / 5 / 2]
    assert after_0.tolist() == pytest.approx(expected)
    after_1 = next_probabilities(model, torch.tensor([1]))  # nothing ever followed
    assert after_1.tolist() == pytest.approx(unigram.tolist())


def test_a_word_of_one_context_is_no_word_for_others():
    """Kneser and Ney's Francisco: frequent, but only after San."""
    san, francisco, glass, rest = 0, 1, 2, range(3, 9)
    tokens = [san, francisco] * 9 + [t for r in rest for t in (r, glass)]
    model = fit_ngram(torch.tensor(tokens), vocabulary=9, order=2)
    p = next_probabilities(model, torch.tensor([], dtype=torch.int64))
    assert p[glass] > 3 * p[francisco]


def test_knowing_nothing_costs_log_V():
    nothing = torch.tensor([], dtype=torch.int64)
    tokens = torch.tensor([3, 1, 4])
    for order in (1, 3):
        model = fit_ngram(nothing, vocabulary=7, order=order)
        torch.testing.assert_close(
            model.log_p(tokens), torch.full((3,), -math.log(7), dtype=torch.float64)
        )
    assert model.log_p(nothing).shape == (0,)


def test_only_the_nearest_tokens_matter_and_none_that_come(rng):
    model = fit_ngram(text_like(300, rng=rng), vocabulary=V, order=3)
    tokens = text_like(40, rng=rng)
    before = model.log_p(tokens)
    changed = tokens.clone()
    changed[20] = (tokens[20] + 1) % V
    differs = (model.log_p(changed) != before).nonzero().flatten().tolist()
    assert differs == [20, 21, 22]
    rows = torch.stack([tokens, changed])
    assert torch.equal(model.log_p(rows), torch.stack([before, model.log_p(changed)]))


def test_names_of_tokens_do_not_matter(rng):
    train, test = text_like(300, rng=rng), text_like(50, rng=rng)
    other = torch.randperm(V, generator=rng)
    a = fit_ngram(train, vocabulary=V, order=4).log_p(test)
    b = fit_ngram(other[train], vocabulary=V, order=4).log_p(other[test])
    torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_no_discount_is_below_its_floor():
    few = torch.tensor([1] + [2] * 30 + [3] * 30 + [4] * 300)
    assert discounts(few).tolist() == pytest.approx(
        [0, 0.05, 2 - 3 / 32, 3 - 301 / 248]
    )
    frequent = torch.full((9,), 1000)
    assert discounts(frequent).tolist() == pytest.approx([0, 1 / 3, 1, 5 / 3])


def test_long_runs_of_a_large_vocabulary(rng):
    """2000^7 exceeds 2^63, so such a run has no code of its own in 64 bits."""
    tokens = torch.randint(0, 2000, (30,), generator=rng).repeat(2)
    model = fit_ngram(tokens, vocabulary=2000, order=7)
    slow = reference_text.KneserNey(tokens.tolist(), 2000, 7)
    listed = [*tokens[20:28].tolist(), 1999, *tokens[9:12].tolist()]
    expected = [math.log(slow.p(listed[t], listed[:t])) for t in range(len(listed))]
    fast = model.log_p(torch.tensor(listed))
    assert fast.tolist() == pytest.approx(expected, rel=1e-10)


def test_the_order_is_chosen_by_what_was_held_out_of_train(rng):
    tokens = text_like(2000, rng=rng)
    best, nats = choose_order(tokens, vocabulary=V, orders=(5, 1, 3, 2))
    assert list(nats) == [1, 2, 3, 5]
    assert best == 3 == min(nats, key=nats.get)  # what made the text
    model = fit_ngram(tokens[:1800], vocabulary=V, order=3)
    assert nats[3] == pytest.approx(-model.log_p(tokens)[1800:].mean().item())


def test_all_orders_at_once_are_those_of_each_model(rng):
    train, test = text_like(300, rng=rng), text_like(60, rng=rng).view(2, 30)
    test[0, ::7] = V - 1
    found = log_p_of_orders(train, test, vocabulary=V, orders=(4, 1, 2))
    assert list(found) == [1, 2, 4]
    for n, log_p in found.items():
        model = fit_ngram(train, vocabulary=V, order=n)
        torch.testing.assert_close(log_p, model.log_p(test), rtol=1e-12, atol=0)


def test_the_smallest_of_equal_orders(rng):
    tokens = torch.zeros(2, dtype=torch.int64)
    best, nats = choose_order(tokens, vocabulary=4, orders=(3, 2))
    assert nats[2] == nats[3]
    assert best == 2


def test_what_is_refused():
    tokens = torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="order must be at least 1, got 0"):
        fit_ngram(tokens, vocabulary=3, order=0)
    with pytest.raises(ValueError, match=r"from 0 to V - 1 \(1\), got 2"):
        fit_ngram(tokens, vocabulary=2, order=1)
    with pytest.raises(ValueError, match=r"from 0 to V - 1 \(2\), got -1"):
        fit_ngram(tokens, vocabulary=3, order=2).log_p(tokens - 1)
    with pytest.raises(ValueError, match="orders must be at least 1, got 0"):
        choose_order(tokens, vocabulary=3, orders=())
    with pytest.raises(ValueError, match="order must be at least 1, got 0"):
        choose_order(tokens, vocabulary=3, orders=(0, 2))
    with pytest.raises(ValueError, match="orders must be at least 1, got 0"):
        log_p_of_orders(tokens, tokens, vocabulary=3, orders=())
    with pytest.raises(ValueError, match="order must be at least 1, got 0"):
        log_p_of_orders(tokens, tokens, vocabulary=3, orders=(0, 1))
    with pytest.raises(ValueError, match=r"from 0 to V - 1 \(2\), got 3"):
        log_p_of_orders(tokens, tokens + 1, vocabulary=3, orders=(1,))
    with pytest.raises(ValueError, match="tokens must be at least 2, got 1"):
        choose_order(tokens[:1], vocabulary=3, orders=(1,))


def test_characters_of_shakespeare(mirror, asset_cache):
    if "tinyshakespeare" not in ASSETS:
        pytest.skip("the catalogue has no tinyshakespeare")
    text = fetch("tinyshakespeare")["tinyshakespeare.txt"].read_text(encoding="utf-8")
    end = len(text) * 9 // 10
    tokenizer = characters([text[:end]])
    train, test = (
        torch.tensor(encode(tokenizer, part)) for part in (text[:end], text[end:])
    )
    model = fit_ngram(train, vocabulary=tokenizer.get_vocab_size(), order=5)
    # What the docstring of NGram says; Witten-Bell smoothing gives 1.67
    assert -model.log_p(test).mean().item() == pytest.approx(1.5612, abs=5e-4)
