"""Prompts: the documents they should be, and answers as likely as in the loops."""

import copy

import pytest
import torch
from reference import prompt as reference_prompt
from support.bounds import additions_of, rounding
from support.models import drawn
from support.refusals import refused
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from fmkit import runtime
from fmkit.models.language_model import LanguageModel
from fmkit.models.transformer import TransformerConfig
from fmkit.prompt import (
    BARE,
    Format,
    choice_accuracy,
    draw_examples,
    mentions,
    score_answers,
    score_tokens,
)

CAPITALS = [("France", "Paris"), ("Chad", "N'Djamena"), ("Peru", "Lima")]
CLOZE = Format("The capital of {x} is {y}.", between=" ")
NOTES = Format("Q: {x} = ?\n{y}", between="\n")
START = 0


@pytest.fixture(scope="module")
def cutter():
    """A byte-level BPE of a few words: some answers are one token, some many."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    text = "Input: France\nOutput: Paris\n\nNew York, New Delhi is a city. " * 3
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def tiny_of(dtype, context=160):
    config = TransformerConfig(
        vocabulary=290,
        context=context,
        width=16,
        layers=2,
        heads=4,
        kv_heads=2,
        hidden=12,
    )
    return drawn(config).to(dtype)


@pytest.fixture(scope="module")
def tiny():
    return tiny_of(torch.float64)


# The documents


def test_a_prompt_is_that_of_the_notes():
    """In the notes: prompt, invented operator."""
    examples = [("2 ~ 3", "A: 5"), ("6 ~ 7", "A: 13")]
    expected = "Q: 2 ~ 3 = ?\nA: 5\nQ: 6 ~ 7 = ?\nA: 13\nQ: 15 ~ 2 = ?"
    assert NOTES.prompt(examples, "15 ~ 2") == expected
    assert NOTES.answer("A: 17") == "\nA: 17"


def test_formats_stand_before_between_and_after():
    """In the notes: question or cloze."""
    query = "Input: Peru\nOutput:"
    assert BARE.prompt([], "Peru") == query
    assert BARE.answer("Lima") == " Lima"
    one = "Input: France\nOutput: Paris\n\n"
    assert BARE.prompt(CAPITALS[:1], "Peru") == one + query
    told = Format(BARE.example, instruction="Name the capital.", between="\n")
    assert told.prompt([], "Peru") == "Name the capital.\n" + query
    expected = "Name the capital.\nInput: France\nOutput: Paris\n" + query
    assert told.prompt(CAPITALS[:1], "Peru") == expected
    expected = "The capital of France is Paris. The capital of Peru is"
    assert CLOZE.prompt(CAPITALS[:1], "Peru") == expected
    assert CLOZE.answer("Lima") == " Lima"


def test_prompt_and_answer_are_what_an_example_begins_with():
    for format in (BARE, CLOZE, NOTES, Format("{x}: \n {y} {{}}"), Format("{x}{y}")):
        shown = format.prompt(CAPITALS[:1], "x")
        whole = format.prompt([], "France") + format.answer("Paris")
        assert shown.startswith(whole)
        assert format.prompt([], "x") == format.prompt([], "x").rstrip()


def test_texts_may_look_like_marks():
    strange = Format("{x} -> {y}", between="|")
    assert strange.prompt([("{y}", "{x}"), ("{}", "%s")], "{0}") == (
        "{y} -> {x}|{} -> %s|{0} ->"
    )


@pytest.mark.parametrize(
    "example", ["{x} is", "is {y}", "{y} of {x}", "{x}{x} {y}", ""]
)
def test_a_format_has_its_marks(example):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message
        Format(example)
    assert str(error.value) == (
        f"example must hold {{x}} and then {{y}}, once each, got {example!r}."
    )


@pytest.mark.parametrize("pair", [("a", ""), ("a", " \n"), ("", "b")])
def test_an_example_is_whole(pair):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message
        BARE.prompt([*CAPITALS, pair], "Peru")
    assert str(error.value) == f"an example must have an x and an answer, got {pair}."


def test_a_query_and_an_answer_are_texts():
    with pytest.raises(ValueError, match=r"^x must be a text, got ' '\.$"):
        BARE.prompt([], " ")
    with pytest.raises(ValueError, match=r"^an answer must be a text, got ''\.$"):
        BARE.answer("")


# Which examples


def drawn_indices(items, k, seed=0):
    return draw_examples(items, k, generator=torch.Generator().manual_seed(seed))


OPEN = [(str(i), str(i)) for i in range(20)]
CLOSED = [(str(i), "ab"[i % 5 == 0]) for i in range(20)]  # 16 a, 4 b


@pytest.mark.parametrize("items", [OPEN, CLOSED], ids=["open", "closed"])
def test_fewer_examples_are_the_first_of_more(items):
    """In the notes: in-context learning."""
    for seed in range(5):
        whole = drawn_indices(items, 20, seed)
        assert sorted(whole) == [*range(20)]
        for k in (0, 1, 2, 7):
            assert drawn_indices(items, k, seed) == whole[:k]
    assert len({tuple(drawn_indices(items, 4, seed)) for seed in range(9)}) > 7


def test_answers_come_equally_often_while_there_are_any():
    for seed in range(20):
        order = [CLOSED[i][1] for i in drawn_indices(CLOSED, 20, seed)]
        for k in range(9):
            counts = [order[:k].count(answer) for answer in "ab"]
            assert abs(counts[0] - counts[1]) <= 1
        assert order[8:] == ["a"] * 12


def test_every_item_and_every_order_is_as_likely():
    seeds = range(2000)
    first = [drawn_indices(OPEN, 1, seed)[0] for seed in seeds]
    # 100 of each expected: beyond 5 standard deviations once in 90,000 for 20 items
    assert all(50 < first.count(i) < 150 for i in range(20))
    answers = [CLOSED[drawn_indices(CLOSED, 1, seed)[0]][1] for seed in seeds]
    # The first is a plain draw of an item, not of an answer
    assert answers.count("b") / len(answers) == pytest.approx(0.2, abs=0.05)


def test_k_larger_than_the_pool():
    message = r"^k must be from 0 to the number of items \(3\), got 4\.$"
    with pytest.raises(ValueError, match=message):
        drawn_indices(CAPITALS, 4)
    with pytest.raises(ValueError, match=r"items \(3\), got -1\.$"):
        drawn_indices(CAPITALS, -1)


# Scores

ANSWERS = ["Paris", "New York", "New", "New Delhi is a city", "Lima", "São"]


def queries(format, shared):
    """Prompts with the same examples or each with its own, and answers to choose."""
    prompts = []
    for i, (x, _) in enumerate([*CAPITALS, ("Mali", "Bamako"), ("a", "b")]):
        examples = CAPITALS[:2] if shared else (CAPITALS * 2)[i : i + 1 + i % 2]
        prompts.append(format.prompt(examples, x))
    return prompts, [[format.answer(y) for y in ANSWERS] for _ in prompts]


def scored(model, tokenizer, prompts, answers):
    return score_answers(LanguageModel(model, tokenizer, START), prompts, answers)


def compare(found, model, tokenizer, prompts, answers, *, error):
    for i, (text, of) in enumerate(zip(prompts, answers, strict=True)):
        for j, answer in enumerate(of):
            log_p, tokens, greedy = reference_prompt.score(
                model, tokenizer, text, answer, START
            )
            assert found.log_p[i, j].item() == pytest.approx(log_p, abs=error)
            assert found.tokens[i, j].item() == tokens
            assert found.bytes[i, j].item() == len(answer.encode())
            assert found.greedy[i, j].item() == greedy


@pytest.mark.parametrize("at_once", [1, 2**17, 2**28])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("format", [BARE, CLOZE, NOTES], ids=["bare", "cloze", "notes"])
def test_scores_are_those_of_whole_strings(
    tiny, cutter, format, shared, at_once, monkeypatch
):
    """In the notes: zero-shot adaptation, (14.5)."""
    monkeypatch.setattr(runtime, "bytes_at_once", lambda device: at_once)
    prompts, answers = queries(format, shared)
    found = scored(tiny, cutter, prompts, answers)
    compare(found, tiny, cutter, prompts, answers, error=1e-10)
    assert found.log_p.dtype == torch.float64
    assert len({*found.tokens.flatten().tolist()}) > 3


def test_scores_of_the_real_model(smollm2):
    model, tokenizer = smollm2.model, smollm2.tokenizer
    error = rounding(additions_of(model), size=41)  # its largest logit
    for shared in (True, False):
        prompts, answers = queries(BARE, shared)
        found = scored(model, tokenizer, prompts[:3], answers[:3])
        compare(found, model, tokenizer, prompts[:3], answers[:3], error=error)
    assert found.greedy.any()


def test_an_answer_may_begin_another(tiny, cutter):
    prompts, _ = queries(BARE, True)
    answers = [[" New", " New York", " New Delhi"]] * len(prompts)
    found = scored(tiny, cutter, prompts, answers)
    compare(found, tiny, cutter, prompts, answers, error=1e-10)
    assert (found.log_p[:, 0] > found.log_p[:, 1]).all()
    swapped = scored(tiny, cutter, prompts, [of[::-1] for of in answers])
    torch.testing.assert_close(swapped.log_p.flip(1), found.log_p)


def test_what_is_greedy_is_what_the_model_says(tiny, cutter):
    """In the notes: zero-shot adaptation."""
    text = BARE.prompt(CAPITALS, "Mali")
    ids = [START, *cutter.encode(text).ids]
    with torch.no_grad():
        for _ in range(3):
            ids.append(tiny(torch.tensor([ids]))[0, -1].argmax().item())
    said = cutter.decode(ids[-3:], skip_special_tokens=False)
    assert cutter.encode(text + said).ids == ids[1:], "choose another text"
    found = scored(tiny, cutter, [text], [[said, said + "x", "x" + said, "\n"]])
    assert found.greedy.tolist() == [[True, False, False, False]]


@pytest.mark.parametrize("texts", [["", ""], ["a"], ["a b"] * 3, ["", "a b c d e"]])
def test_prompts_that_are_empty_alone_or_alike(tiny, cutter, texts):
    answers = [[" Paris", " x"]] * len(texts)
    found = scored(tiny, cutter, texts, answers)
    compare(found, tiny, cutter, texts, answers, error=1e-10)


def test_each_query_has_its_own_answers_in_its_own_order(tiny, cutter):
    prompts, answers = queries(BARE, True)
    mixed = [of[i:] + of[:i] for i, of in enumerate(answers)]
    found = scored(tiny, cutter, prompts, mixed)
    compare(found, tiny, cutter, prompts, mixed, error=1e-10)
    backwards = scored(tiny, cutter, prompts[::-1], mixed[::-1])
    torch.testing.assert_close(backwards.log_p.flip(0), found.log_p)


def test_queries_may_differ_in_their_number_of_answers(tiny, cutter, monkeypatch):
    prompts, answers = queries(BARE, False)
    counts = (2, 1, 4, 1, 3)
    ragged = [of[:n] for of, n in zip(answers, counts, strict=True)]
    for at_once in (1, 2**28):
        monkeypatch.setattr(runtime, "bytes_at_once", lambda device, n=at_once: n)
        found = scored(tiny, cutter, prompts, ragged)
        compare(found, tiny, cutter, prompts, ragged, error=1e-10)
        for i, of in enumerate(ragged):
            rest = slice(len(of), None)
            assert (found.log_p[i, rest] == -torch.inf).all()
            assert not (found.tokens + found.bytes + found.greedy)[i, rest].any()
            # No answer is chosen in place of one that is there, however it is scored
            alone = scored(tiny, cutter, prompts[i : i + 1], [of])
            for table, row in (
                (found.log_p, alone.log_p),
                (found.log_p / found.tokens, alone.log_p / alone.tokens),
                (found.log_p.exp(), alone.log_p.exp()),
            ):
                choice = choice_accuracy(table)[i]
                torch.testing.assert_close(choice, choice_accuracy(row)[0])
    assert found.log_p.shape == (5, 4)


def test_tokens_may_be_given(tiny, cutter):
    """As a prompt and an answer whose common text has other tokens, or a cut prompt."""
    heads, tails = [[5, 9], [7]], [[[1, 2], [3]], [[4, 4, 4]]]
    log_p, greedy = score_tokens(tiny, heads, tails)
    for i, (head, row) in enumerate(zip(heads, tails, strict=True)):
        for j, tail in enumerate(row):
            with torch.no_grad():
                u = tiny(torch.tensor([head + tail]))[0, len(head) - 1 : -1]
            own = u.log_softmax(dim=-1)[range(len(tail)), tail].sum()
            torch.testing.assert_close(log_p[i, j], own)
            assert greedy[i, j] == (u.argmax(dim=-1) == torch.tensor(tail)).all()
    assert log_p[1, 1] == -torch.inf
    assert not greedy[1, 1]
    message = "a prompt and an answer must have a token, got []."
    assert refused(score_tokens, tiny, [[]], [[[1]]]) == message
    assert refused(score_tokens, tiny, [[1]], [[[1], []]]) == message


def test_a_tokenizer_s_own_start_symbol_is_left_out(tiny, cutter):
    prompts, answers = queries(BARE, True)
    adding = Tokenizer.from_str(cutter.to_str())
    adding.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", START)]
    )
    found = scored(tiny, adding, prompts, answers)
    assert torch.equal(found.log_p, scored(tiny, cutter, prompts, answers).log_p)


def test_what_is_shared_is_read_once(tiny, cutter, monkeypatch):
    read = []
    inside = tiny.contextualize

    def contextualize(vectors, cache):
        read.append(vectors.shape[:2])
        return inside(vectors, cache)

    monkeypatch.setattr(tiny, "contextualize", contextualize)
    prompts, answers = queries(BARE, True)
    scored(tiny, cutter, prompts, answers)
    heads = [[START, *cutter.encode(text).ids] for text in prompts]
    shared = next(t for t in range(999) if len({head[t] for head in heads}) > 1)
    assert shared > 20
    assert read[0] == (1, shared)
    of_prompts = [shape for shape in read[1:] if shape[0] <= len(prompts)]
    assert sum(B * T for B, T in of_prompts) == sum(len(h) - shared for h in heads)
    # Answers of one token need nothing further
    read.clear()
    scored(tiny, cutter, prompts, [["!"]] * len(prompts))
    assert sum(B * T for B, T in read) == shared + sum(len(h) - shared for h in heads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(tiny, cutter, dtype):
    """Of 48 nats at most; measured: 0.54 with 8 bits, 0.06 with 11."""
    prompts, answers = queries(BARE, True)
    expected = scored(tiny, cutter, prompts, answers).log_p
    half = copy.deepcopy(tiny).to(dtype)
    found = scored(half, cutter, prompts, answers).log_p
    assert found.dtype == torch.float64
    bound = {torch.bfloat16: 1.0, torch.float16: 0.12}[dtype]
    assert (found - expected).abs().max() < bound
    assert (found != found.to(dtype)).all()  # no sum is rounded to half precision


def test_scoring_leaves_nothing_behind(tiny, cutter):
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    found = scored(tiny, cutter, *queries(BARE, True))
    assert all(
        torch.equal(tensor, before[n]) for n, tensor in tiny.state_dict().items()
    )
    assert torch.is_grad_enabled()
    assert not found.log_p.requires_grad


def test_a_tie_is_shared():
    scores = torch.tensor([[2.0, 1, 1], [1, 2, 1], [2, 1, 2], [3, 3, 3], [1, 2, 2]])
    expected = torch.tensor([1, 0, 1 / 2, 1 / 3, 0], dtype=torch.float64)
    torch.testing.assert_close(choice_accuracy(scores), expected)


# What cannot be scored


@pytest.mark.parametrize("start", [-1, 290])
def test_a_start_symbol_that_is_no_token(tiny, cutter, start):
    message = rf"^an end must be the id of a token, got {start}\.$"
    with pytest.raises(ValueError, match=message):
        LanguageModel(tiny, cutter, None, (0, start))
    with pytest.raises(ValueError, match=rf"^start must .* token, got {start}\.$"):
        LanguageModel(tiny, cutter, start)


def test_tokens_that_the_model_lacks(tiny, cutter):
    more = Tokenizer.from_str(cutter.to_str())
    more.add_tokens(["zebra"])
    message = "an id must be from 0 to V - 1 (289), got 290."
    assert refused(scored, tiny, more, ["a"], [[" zebra"]]) == message


def test_nothing_is_dropped_in_silence(cutter):
    text = BARE.prompt(CAPITALS, "Peru")
    tokens = 1 + len(cutter.encode(text + " Lima").ids)
    # The last one is scored and not read
    fits = tiny_of(torch.float64, context=tokens - 1)
    answers = [[" x", " Lima"]]
    compare(
        scored(fits, cutter, [text], answers),
        fits,
        cutter,
        [text],
        answers,
        error=1e-10,
    )
    short = tiny_of(torch.float64, context=tokens - 2)
    assert refused(scored, short, cutter, [text], answers) == (
        "the tokens of prompt and answer must be at most one more than the context "
        f"({tokens - 2}), got {tokens}."
    )


def test_answers_without_a_token(tiny, cutter):
    found = refused(scored, tiny, cutter, ["a", "b"], [["x"], [""]])
    assert found == "an answer must have a token, got ''."


def test_tokens_across_the_border(tiny, cutter):
    found = refused(scored, tiny, cutter, ["Input: a\nOut"], [[" x", "put"]])
    message = "a prompt must keep its tokens when an answer follows, got "
    assert found == message + r"'Input: a\nOutput'."


def test_a_model_that_trains(cutter):
    model = tiny_of(torch.float32).train()
    message = "model.training must be False: call model.eval(), got True."
    assert refused(scored, model, cutter, ["a"], [["b"]]) == message


@pytest.mark.parametrize(
    ("prompts", "answers", "message"),
    [
        ([], [], "prompts must be at least one, got []."),
        (["a"], [["b"], ["c"]], "answers must be given for each prompt (1), got 2."),
        (
            ["a", "b"],
            [["c"], []],
            "answers must be at least one for each prompt, got [].",
        ),
    ],
)
def test_answers_are_for_prompts(tiny, cutter, prompts, answers, message):
    assert refused(scored, tiny, cutter, prompts, answers) == message


def test_scores_are_not_rounded_to_bfloat16(cutter):
    model, (prompts, answers) = tiny_of(torch.float32), queries(BARE, True)
    expected = scored(model, cutter, prompts, answers).log_p
    with torch.autocast("cpu", torch.bfloat16):
        found = scored(model, cutter, prompts, answers).log_p
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("The capital is Lima.", "Lima", True),
        ('It is "lima"!', "Lima", True),
        ("Limassol is a city.", "Lima", False),
        ("Colima is a city.", "Lima", False),
        ("It was 17.", "17", True),
        ("It was 170.", "17", False),
        ("C++ (a language)", "C++", True),
        ("", "Lima", False),
    ],
)
def test_a_text_mentions_a_word_and_no_part_of_one(text, answer, found):
    assert mentions(text, answer) is found
