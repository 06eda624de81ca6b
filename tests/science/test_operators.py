"""Documents of operators: what is held out, what is scored, what one can know."""

from collections import Counter

import pytest
import torch

from fmkit.tasks.operators import (
    ANSWERS,
    EQUALS,
    KNOWN,
    NEVER,
    NUMBERS,
    OPERATORS,
    SYMBOLS,
    VOCABULARY,
    Documents,
    answer_loss,
    answer_scores,
    draw_documents,
    ideal_observer,
    operand_pairs,
    symbol_pairs,
    to_tokens,
)

NOTES = [(2, 3), (6, 7), (15, 2)]  # the pairs of the prompt in 14.3.1


def written(operator, pairs, symbol=0):
    """One document of that operator."""
    return Documents(
        torch.tensor([symbol]), torch.tensor([operator]), torch.tensor([pairs])
    )


def documents_of(rng, *, count=40, examples=4, seen=True):
    return draw_documents(
        count,
        symbols=symbol_pairs(seen=seen),
        operands=operand_pairs(seen=seen),
        examples=examples,
        generator=rng,
    )


def examples_of(text):
    """(a, symbol, b, y) of each example, read out of the text."""
    for example in text.split(", "):
        a, symbol, b, equals, y = example.split(" ")
        assert equals == "="
        yield int(a), symbol, int(b), int(y)


# What is drawn


def test_what_the_operators_answer():
    names = [*OPERATORS]
    assert (names[0], names[NEVER], len(names)) == ("a + b", "a + b + 1", KNOWN + 1)
    of = {name: ANSWERS[i, 17, 5].item() for i, name in enumerate(names)}
    assert of == {
        "a + b": 22,
        "|a - b|": 12,
        "larger": 17,
        "smaller": 5,
        "a + 1": 18,
        "19 - a": 2,
        "19 - larger": 2,
        "38 - a - b": 16,
        "a + b + 1": 23,
    }
    assert ANSWERS[1, 5, 7] == 2


def test_symbols_and_operators_are_parted():
    seen, unseen = ({*map(tuple, symbol_pairs(seen=s).tolist())} for s in (True, False))
    everything = {(s, o) for s in range(len(SYMBOLS)) for o in range(KNOWN)}
    assert seen | unseen == everything
    assert not seen & unseen
    assert sorted(s for s, _ in unseen) == [*range(len(SYMBOLS))]  # one for each
    assert {*Counter(o for _, o in unseen).values()} <= {3, 4}  # and evenly
    assert SYMBOLS[0] == "~"
    assert (0, 0) in unseen
    assert len({*SYMBOLS}) == len(SYMBOLS)
    assert not {*SYMBOLS} & {*"0123456789=, "}


def test_operands_are_parted():
    seen, unseen = (
        {*map(tuple, operand_pairs(seen=s).tolist())} for s in (True, False)
    )
    assert seen | unseen == {(a, b) for a in range(20) for b in range(20)}
    assert not seen & unseen
    assert {*NOTES} <= unseen
    assert len(unseen) == 40


@pytest.mark.parametrize("seen", [True, False])
def test_documents_are_what_they_say(rng, seen):
    documents = documents_of(rng, count=300, examples=7, seen=seen)
    symbols = {*map(tuple, symbol_pairs(seen=seen).tolist())}
    operands = {*map(tuple, operand_pairs(seen=seen).tolist())}
    functions = [*OPERATORS.values()]
    for i, text in enumerate(documents.texts()):
        s, o = documents.symbols[i].item(), documents.operators[i].item()
        assert (s, o) in symbols
        found = [*examples_of(text)]
        assert len({(a, b) for a, _, b, _ in found}) == 7  # none twice
        for a, symbol, b, y in found:
            assert symbol == SYMBOLS[s]
            assert (a, b) in operands
            assert y == functions[o](a, b)
    assert len({*documents.symbols.tolist()}) == len(SYMBOLS)
    firsts = {*map(tuple, documents.operands[:, 0].tolist())}
    assert len(firsts) > 0.5 * min(300, len(operands))  # each has its own
    used = Counter(documents.operators.tolist())
    assert len(used) == KNOWN
    assert min(used.values()) > 15


def test_a_generator_s_documents_are_its_own():
    one, same, other = (
        documents_of(torch.Generator().manual_seed(i)).texts() for i in (0, 0, 1)
    )
    assert one == same != other


def test_the_prompt_of_the_notes():
    assert written(0, NOTES).texts() == ["2 ~ 3 = 5, 6 ~ 7 = 13, 15 ~ 2 = 17"]


# What is read


def test_tokens_are_five_an_example(rng):
    documents = documents_of(rng, examples=3)
    x = to_tokens(documents)
    assert x.shape == (40, 15)
    for row, text in zip(x.tolist(), documents.texts(), strict=True):
        expected = []
        for a, symbol, b, y in examples_of(text):
            expected += [a, NUMBERS + SYMBOLS.index(symbol), b, EQUALS, y]
        assert row == expected


def test_every_token_has_its_place():
    signs = range(NUMBERS, NUMBERS + len(SYMBOLS))
    assert [*range(VOCABULARY)] == [*range(NUMBERS), *signs, EQUALS]
    assert (ANSWERS.min(), ANSWERS.max()) == (0, NUMBERS - 1)


def scored(rng):
    """Tokens, and logits of them that are made up."""
    x = to_tokens(documents_of(rng, examples=3))
    u = torch.randn(*x.shape, VOCABULARY, generator=rng, dtype=torch.float64)
    hit = torch.rand(x.shape, generator=rng) < 0.5
    following = x.roll(-1, dims=1)
    return u.scatter_add(2, following[..., None], 9 * hit[..., None].double()), x


def test_scores_equal_a_loop(rng):
    u, x = scored(rng)
    log_p, right = answer_scores(u, x)
    total = 0.0
    for i, row in enumerate(x.tolist()):
        places = [t for t, token in enumerate(row) if token == EQUALS]
        for k, t in enumerate(places):
            p = u[i, t].exp() / u[i, t].exp().sum()
            expected = p[row[t + 1]].log().item()
            assert log_p[i, k].item() == pytest.approx(expected, rel=1e-12)
            assert right[i, k] == (max(p) == p[row[t + 1]])
            total += expected
    assert log_p.shape == right.shape == (40, 3)
    assert 0.1 < right.double().mean() < 0.9
    assert answer_loss(u, x).item() == pytest.approx(-total / 120, rel=1e-12)


def test_questions_cost_nothing(rng):
    u, x = scored(rng)
    asked = torch.arange(x.shape[1]) % 5 == 3
    other = torch.where(asked[:, None], u, torch.randn_like(u))
    assert answer_loss(other, x) == answer_loss(u, x)
    knows_nothing = torch.tensor(VOCABULARY).double().log()
    torch.testing.assert_close(answer_loss(u.zero_(), x), knows_nothing)


@pytest.mark.parametrize("examples", [0, 41])
def test_too_many_examples_are_refused(rng, examples):
    several = len(operand_pairs(seen=False))
    with pytest.raises(
        ValueError, match=rf"from 1 to the pairs of operands \({several}"
    ):
        documents_of(rng, examples=examples, seen=False)


# What one can know


def observed_by_hand(text):
    """For each answer p of it and the chance to be right, by counting hypotheses."""
    known = [*OPERATORS.values()][:KNOWN]
    before = []
    for a, _, b, y in examples_of(text):
        left = [f for f in known if all(f(i, j) == z for i, j, z in before)]
        answers = Counter(f(a, b) for f in left)
        p = answers[y] / len(left) if left else 0.0
        best = [z for z, n in answers.items() if n == max(answers.values())]
        yield p, (y in best) / max(len(best), 1)
        before.append((a, b, y))


@pytest.mark.parametrize("seen", [True, False])
def test_the_observer_equals_a_loop_over_hypotheses(rng, seen):
    documents = documents_of(rng, count=400, examples=5, seen=seen)
    p, right = ideal_observer(documents)
    for i, text in enumerate(documents.texts()):
        by_hand_p, by_hand_right = zip(*observed_by_hand(text), strict=True)
        assert p[i].tolist() == pytest.approx(by_hand_p, rel=1e-12)
        assert right[i].tolist() == pytest.approx(by_hand_right, rel=1e-12)


def test_what_the_observer_knows_of_the_notes_prompt():
    p, right = ideal_observer(written(0, NOTES))
    # 2 ~ 3: 3 is the larger and a + 1, all other answers are one operator's
    assert p[0].tolist() == pytest.approx([1 / 8, 1.0, 1.0])
    assert right[0].tolist() == pytest.approx([0.0, 1.0, 1.0])


def test_the_observer_is_lost_where_nothing_it_knows_agrees():
    p, right = ideal_observer(written(NEVER, [(2, 5), (6, 8), (15, 2)]))
    assert p[0, 1:].tolist() == right[0, 1:].tolist() == [0.0, 0.0]


def test_no_other_predictor_is_more_often_right(rng):
    """Of all functions of what the observer sees, enumerated for one question."""
    pairs = operand_pairs(seen=False)[[5, 30]]
    documents = Documents(
        torch.zeros(KNOWN, dtype=torch.long),
        torch.arange(KNOWN),
        pairs.expand(KNOWN, 2, 2),
    )
    _p, right = ideal_observer(documents)
    by_evidence = {}
    for o in range(KNOWN):
        y, z = documents.answers[o].tolist()
        by_evidence.setdefault(y, []).append(z)
    best = sum(max(Counter(zs).values()) for zs in by_evidence.values()) / KNOWN
    assert right[:, 1].mean().item() == pytest.approx(best, rel=1e-12)
