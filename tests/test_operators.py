"""Documents of operators: what is held out, what is scored, what one can know.

Planted by hand, one at a time, and each caught here: a difference with its sign; the
smaller for the larger; another digit; the operator never seen among the known ones;
operands of another document, or exchanged in the text; another operator lacking; seen
for unseen; pairs in both parts; another split; a pair of operands twice; the global
seed; half of the symbols; a start symbol at the end; other padding; examples counted
too early; an answer that begins with its =; the loss of all tokens; a whole answer
short of a token; log p with its sign; questions among the scores; the least likely
token; documents of unequal length; no example; an observer who has seen the answer, who
forgets, who knows the new operator, who hears operators ruled out, who answers where
nothing is left, who never draws between equals, who never rules out.
"""

from collections import Counter

import pytest
import torch

from fmkit.data.operators import (
    ANSWERS,
    KNOWN,
    NEVER,
    OPERATORS,
    SYMBOLS,
    TOKENIZER,
    Documents,
    answer_loss,
    answer_places,
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


def drawn(rng, *, count=40, examples=4, seen=True):
    return draw_documents(
        count,
        symbols=symbol_pairs(seen=seen),
        operands=operand_pairs(seen=seen),
        examples=examples,
        generator=rng,
    )


def examples_of(text):
    """(a, symbol, b, y) of each example, read out of the text."""
    for example in text.split(";")[:-1]:
        question, y = example.split("=")
        [symbol] = {c for c in question if not c.isdigit()}
        a, b = question.split(symbol)
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
        "b + 1": 6,
        "last digit of a + b": 2,
        "last digit of ab": 5,
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
    assert not {*SYMBOLS} & {*"0123456789=;"}


def test_operands_are_parted():
    seen, unseen = (
        {*map(tuple, operand_pairs(seen=s).tolist())} for s in (True, False)
    )
    assert seen | unseen == {(a, b) for a in range(20) for b in range(10)}
    assert not seen & unseen
    assert {*NOTES} <= unseen
    assert len(unseen) == 40


@pytest.mark.parametrize("seen", [True, False])
def test_documents_are_what_they_say(rng, seen):
    documents = drawn(rng, count=300, examples=7, seen=seen)
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
    used = Counter(documents.operators.tolist())
    assert len(used) == KNOWN
    assert min(used.values()) > 15


def test_a_generator_s_documents_are_its_own():
    one, same, other = (
        drawn(torch.Generator().manual_seed(i)).texts() for i in (0, 0, 1)
    )
    assert one == same != other


def test_the_prompt_of_the_notes():
    assert written(0, NOTES).texts() == ["2~3=5;6~7=13;15~2=17;"]


# What is read


def test_tokens_are_characters_after_a_start():
    x = to_tokens(["2~3=5;", "10~9=90;"])
    assert x.shape == (2, 9)
    assert TOKENIZER.pieces(x[0]) == ["⊥", *"2~3=5;", "⊥", "⊥"]
    assert TOKENIZER.pieces(x[1]) == ["⊥", *"10~9=90;"]


def places_by_hand(text):
    """For each character the example it is in, if it belongs to an answer."""
    example, answering, found = 0, False, []
    for character in text:
        found.append(example if answering else None)
        if character == "=":
            answering = True
        if character == ";":
            answering, example = False, example + 1
    return found


def test_answers_are_where_they_are(rng):
    texts = drawn(rng, examples=3).texts()
    inside, example = answer_places(to_tokens(texts))
    for i, text in enumerate(texts):
        found = [None, *places_by_hand(text)]
        found += [None] * (inside.shape[1] - len(found))
        assert [
            e if j else None
            for e, j in zip(example[i].tolist(), inside[i].tolist(), strict=True)
        ] == found


def scored(rng, texts):
    """Tokens that are predicted, and logits of them that are made up."""
    x = to_tokens(texts)[:, 1:]
    u = torch.randn(*x.shape, TOKENIZER.vocabulary, generator=rng, dtype=torch.float64)
    hit = torch.rand(x.shape, generator=rng) < 0.7
    return u.scatter_add(2, x[..., None], 9 * hit[..., None].double()), x


def test_scores_equal_a_loop(rng):
    texts = drawn(rng, examples=3).texts()
    u, x = scored(rng, texts)
    scores = answer_scores(u, x)
    p, total, count = u.softmax(dim=2), 0.0, 0
    for i, text in enumerate(texts):
        log_p, tokens, hits = [0.0] * 3, [0] * 3, [0] * 3
        for t, k in enumerate(places_by_hand(text)):
            if k is not None:
                log_p[k] += p[i, t, x[i, t]].log().item()
                tokens[k] += 1
                hits[k] += int(u[i, t].argmax() == x[i, t])
        assert scores.log_p[i].tolist() == pytest.approx(log_p, rel=1e-4)
        assert scores.tokens[i].tolist() == tokens
        assert scores.hits[i].tolist() == hits
        assert scores.right[i].tolist() == [
            h == n for h, n in zip(hits, tokens, strict=True)
        ]
        total, count = total - sum(log_p), count + sum(tokens)
    assert 0.1 < scores.right.double().mean() < 0.9
    torch.testing.assert_close(answer_loss(u, x).item(), total / count)


def test_questions_cost_nothing(rng):
    u, x = scored(rng, drawn(rng).texts())
    inside, _ = answer_places(x)
    other = torch.where(inside[..., None], u, torch.randn_like(u))
    assert answer_loss(other, x) == answer_loss(u, x)
    assert torch.equal(answer_scores(other, x).log_p, answer_scores(u, x).log_p)
    assert (answer_loss(u.zero_(), x) - torch.tensor(TOKENIZER.vocabulary).log()) < 1e-6


def test_documents_of_different_length_are_refused():
    x = to_tokens(["2~3=5;", "2~3=5;6~7=13;"])
    u = torch.zeros(*x.shape, TOKENIZER.vocabulary)
    with pytest.raises(
        ValueError, match=r"as many examples in every row, got \(1, 2\)"
    ):
        answer_scores(u, x)


@pytest.mark.parametrize("examples", [0, 85])
def test_too_many_examples_are_refused(rng, examples):
    several = len(operand_pairs(seen=False))
    with pytest.raises(
        ValueError, match=rf"from 1 to the pairs of operands \({several}"
    ):
        drawn(rng, examples=examples, seen=False)


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
    documents = drawn(rng, count=400, examples=5, seen=seen)
    p, right = ideal_observer(documents)
    for i, text in enumerate(documents.texts()):
        by_hand_p, by_hand_right = zip(*observed_by_hand(text), strict=True)
        assert p[i].tolist() == pytest.approx(by_hand_p, rel=1e-12)
        assert right[i].tolist() == pytest.approx(by_hand_right, rel=1e-12)


def test_what_the_observer_knows_of_the_notes_prompt():
    p, right = ideal_observer(written(0, NOTES))
    # 2~3: 5 is a + b and its last digit, and 3 is the larger and a + 1; then two are
    # left, which say 13 and 3
    assert p[0].tolist() == pytest.approx([2 / 8, 1 / 2, 1.0])
    assert right[0].tolist() == pytest.approx([1 / 2, 1 / 2, 1.0])


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
