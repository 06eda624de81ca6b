"""Build prompts from zero or more examples, and compute the likelihood of answers.

A ``Format`` writes pairs (x, y) as text, ``draw_examples`` draws the pairs that precede
a query, and ``score_answers`` computes the likelihood that a model gives to each
answer, or ``score_tokens`` if you encode the texts yourself. q queries, at most a
answers to each, n answers in all, B rows, T tokens, V vocabulary.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fmkit import runtime
from fmkit._check import require
from fmkit.data.tokens import check_ids
from fmkit.models.language_model import LanguageModel
from fmkit.models.transformer import Cache, Transformer
from fmkit.progress import progress

Pair = tuple[str, str]


@dataclass(frozen=True)
class Format:
    """The format in which examples and a query form one document: the prompt of 14.3.1.

    In the notes: question or cloze.
    """

    example: str  # with {x} and, after it, {y}; the text after {y} ends an example
    instruction: str = ""  # stands once, before all examples
    between: str = "\n\n"  # between the instruction, the examples and the query

    def __post_init__(self) -> None:
        marks = [self.example.count(mark) for mark in ("{x}", "{y}")]
        once = marks == [1, 1]
        ordered = once and self.example.index("{x}") < self.example.index("{y}")
        require(ordered, "example", "hold {x} and then {y}, once each", self.example)

    def _parts(self) -> tuple[str, str, str]:
        """Split the example: the text before x, between x and y, and after y."""
        before, rest = self.example.split("{x}")
        middle, after = rest.split("{y}")
        return before, middle, after

    def prompt(self, examples: Sequence[Pair], x: str) -> str:
        """Return the document up to the answer to x, without white space at its end.

        Raises ``ValueError`` if x is empty, or an example has an empty part.

        In the notes: prompt, invented operator.
        """
        before, middle, after = self._parts()
        for pair in examples:
            whole = all(text.strip() for text in pair)
            require(whole, "an example", "have an x and an answer", pair)
        require(bool(x.strip()), "x", "be a text", x)
        shown = [before + x + middle + y + after for x, y in examples]
        head = [self.instruction] if self.instruction else []
        return self.between.join([*head, *shown, before + x + middle.rstrip()])

    def answer(self, y: str) -> str:
        """Return y after the white space that ``prompt`` left out."""
        require(bool(y.strip()), "an answer", "be a text", y)
        middle = self._parts()[1]
        return middle[len(middle.rstrip()) :] + y


BARE = Format("Input: {x}\nOutput: {y}")


def draw_examples(
    items: Sequence[Pair], k: int, *, generator: torch.Generator
) -> list[int]:
    """Draw the k of `items` to show, in the order in which to show them.

    Balanced: if answers repeat, examples are dealt in rounds, one of each answer that
    still has any. Nested: from a generator in the same state, fewer examples are the
    first of more. Raises ``ValueError`` if k exceeds the number of items.

    In the notes: in-context learning.
    """
    rule = f"be from 0 to the number of items ({len(items)})"
    require(0 <= k <= len(items), "k", rule, k)
    order = torch.randperm(len(items), generator=generator).tolist()
    counts: dict[str, int] = {}
    rounds = {}  # for each item, how many earlier items have the same answer
    for i in order:
        answer = items[i][1]
        rounds[i] = counts.get(answer, 0)
        counts[answer] = rounds[i] + 1
    return sorted(order, key=rounds.__getitem__)[:k]


@dataclass(frozen=True)
class Scored:
    """The scores of each answer to each query, on the CPU.

    If queries differ in their number of answers, shorter rows are filled up: log p with
    minus infinity, tokens and bytes with 0, and greedy with False.
    """

    log_p: Float[Tensor, "q a"]  # log p(answer | prompt), nats, in float64
    tokens: Int[Tensor, "q a"]  # of the answer
    bytes: Int[Tensor, "q a"]  # of the answer in UTF-8, with its white space
    greedy: Bool[Tensor, "q a"]  # whether each of its tokens is the most probable one


def mentions(text: str, answer: str) -> bool:
    """Tell if a text contains an answer as a whole word, in letters of any case."""
    pattern = rf"(?<!\w){re.escape(answer)}(?!\w)"
    return bool(re.search(pattern, text, re.IGNORECASE))


def choice_accuracy(scores: Float[Tensor, "q a"]) -> Float[Tensor, " q"]:
    """Return the accuracy of each choice, if answer 0 of each query is the correct one.

    The answer with the highest score is chosen, and one is drawn if k answers share it,
    so a tie that includes the correct answer gives 1/k. ``argmax(dim=1) == 0`` gives 1,
    because argmax takes the first of a tie. Equal scores everywhere give 1/a, which is
    chance. Scores of minus infinity fill up the rows of queries with fewer answers.
    """
    best = runtime.float64(scores == scores.max(dim=1, keepdim=True).values)
    return best[:, 0] / best.sum(dim=1)


def score_answers(
    lm: LanguageModel,
    prompts: Sequence[str],
    answers: Sequence[Sequence[str]],
    *,
    bar: str = "scoring answers",
) -> Scored:
    r"""Compute log p of each answer after its prompt, token by token.

    .. math:: \log p(y \mid x) = \sum_t \log p(y_t \mid \perp, x, y_1, \dots, y_{t-1})

    The start symbol of `lm` precedes every prompt. If it has none, an empty prompt
    follows an end symbol, as one document follows another in pretraining. Prompt and
    answer are encoded as one text, so an answer begins with the white space that
    separates them. Queries may differ in their number of answers. Nothing is cut off.
    Speed, device and precision are those of :func:`fmkit.prompt.score_tokens`. `bar`
    names the progress bar.

    Raises ``ValueError``, before anything is computed, if a prompt has no answer; if an
    answer has no token; if the tokens of a prompt are not the first tokens of prompt
    and answer; and as ``score_tokens`` does.

    In the notes: zero-shot adaptation, (14.5).
    """
    heads, tails = _tokens(lm, prompts, answers)
    log_p, greedy = score_tokens(lm.model, heads, tails, bar=bar)
    return Scored(
        log_p,
        _table([[len(tail) for tail in row] for row in tails]),
        _table([[len(answer.encode()) for answer in row] for row in answers]),
        greedy,
    )


@torch.inference_mode()
@runtime.exact()
def score_tokens(
    model: Transformer,
    heads: Sequence[list[int]],
    tails: Sequence[Sequence[list[int]]],
    *,
    bar: str = "scoring answers",
) -> tuple[Float[Tensor, "q a"], Bool[Tensor, "q a"]]:
    """Compute log p of tokens after others, and whether each is the most probable one.

    ``tails[i]`` are the answers to the prompt ``heads[i]``, which begins with the start
    symbol if the model has one. The results are those of
    :class:`~fmkit.prompt.Scored`. Unlike scoring each whole text, the common beginning
    of all prompts is computed once, and each prompt once for all its answers. Device
    and precision are the model's, also inside autocast.

    Raises ``ValueError``, before anything is computed, if the model is not in eval
    mode; if there is no prompt, or one without an answer; if a prompt or an answer has
    no token; if prompt and answer exceed the context by more than the last token, which
    is not read; or if a token has no vector in the model.
    """
    require(not model.training, "model.training", "be False: call model.eval()", True)
    require(len(heads) >= 1, "prompts", "be at least one", heads)
    context = model.config.context
    for head, row in zip(heads, tails, strict=True):
        require(len(row) >= 1, "answers", "be at least one for each prompt", row)
        require(all([head, *row]), "a prompt and an answer", "have a token", [])
        length = len(head) + max(map(len, row))
        rule = f"be at most one more than the context ({context})"
        require(length <= context + 1, "the tokens of prompt and answer", rule, length)
        ids = torch.tensor([*head, *(i for tail in row for i in tail)])
        check_ids(ids, vocabulary=model.config.vocabulary)
    # At least the last token of each prompt is left out, because the logits after it
    # predict the first token of an answer
    columns = zip(*(head[:-1] for head in heads), strict=False)
    shared = sum(1 for _ in takewhile(lambda column: len({*column}) == 1, columns))
    prefix = model.cache(padding=[0], room=max(shared, 1))
    if shared:
        _read(model, [heads[0][:shared]], prefix)
    log_p = torch.full(_size(tails), -torch.inf, dtype=torch.float64)
    greedy = torch.zeros(log_p.shape, dtype=torch.bool)
    batches = [*_batches(model, heads, tails)]
    for rows in progress(batches, bar=bar):
        cache = prefix.fork([0] * len(rows), room=len(heads[rows[0]]))
        last = _read(model, [heads[i][shared:] for i in rows], cache)[:, -1]
        some = [tails[i] for i in rows]
        places = (
            [i for i in rows for _ in tails[i]],
            [j for row in some for j in range(len(row))],
        )
        log_p[places], greedy[places] = _score(model, last, cache, some)
    return log_p, greedy


def _size(rows: Sequence[Sequence[object]]) -> tuple[int, int]:
    return len(rows), max(map(len, rows))


def _table(rows: Sequence[Sequence[int]]) -> Int[Tensor, "q a"]:
    """Return counts of the answers as a table, 0 where a query has none."""
    _, a = _size(rows)
    return torch.tensor([[*row, *[0] * (a - len(row))] for row in rows])


def _tokens(
    lm: LanguageModel, prompts: Sequence[str], answers: Sequence[Sequence[str]]
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Return the ids of every prompt, after the start symbol, and of its answers."""
    same = len(answers) == len(prompts)
    require(same, "answers", f"be given for each prompt ({len(prompts)})", len(answers))

    def encoded(texts: Sequence[str]) -> list[list[int]]:
        encodings = lm.tokenizer.encode_batch([*texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    heads, tails = encoded(prompts), []
    for prompt, head, row in zip(prompts, heads, answers, strict=True):
        tails.append([])
        for answer, ids in zip(row, encoded([prompt + y for y in row]), strict=True):
            rule = "keep its tokens when an answer follows"
            begins = ids[: len(head)] == head
            require(begins, "a prompt", rule, prompt[-20:] + answer)
            require(len(ids) > len(head), "an answer", "have a token", answer)
            tails[-1].append(ids[len(head) :])
    heads = [lm.begun(head) for head in heads]
    # Without a start symbol a document follows the end of another one
    heads = [head or [*lm.ends[:1]] for head in heads]
    rule = "have a token, because the model has neither a start nor an end symbol"
    require(all(heads), "a prompt", rule, "")
    return heads, tails


def _batches(
    model: Transformer, heads: Sequence[list[int]], tails: Sequence[Sequence[list[int]]]
) -> Iterator[list[int]]:
    """Yield queries with equally many tokens, as many at a time as memory allows."""
    shape, weight = model.config, model.embedding.weight
    size, memory = weight.element_size(), runtime.bytes_at_once(weight.device)
    a_token = 2 * shape.layers * shape.kv_heads * shape.head_width * size
    longest = max(len(tail) for row in tails for tail in row)
    groups: dict[int, list[int]] = {}
    for i, head in enumerate(heads):
        groups.setdefault(len(head), []).append(i)
    for length, rows in sorted(groups.items()):
        # A row for each answer, and one for the prompt; logits are copied once
        a_row = (length + longest) * a_token + 2 * longest * shape.vocabulary * size
        together = max(1, memory // (a_row * (_size(tails)[1] + 1)))
        for first in range(0, len(rows), together):
            yield rows[first : first + together]


def _read(
    model: Transformer, rows: list[list[int]], cache: Cache
) -> Float[Tensor, "B T d"]:
    """Compute c of tokens that follow those in the cache, and add them to it."""
    tokens = torch.tensor(rows, device=model.embedding.weight.device)
    return model.contextualize(model.embed(tokens), cache)


def _score(
    model: Transformer,
    last: Float[Tensor, "B d"],
    cache: Cache,
    tails: Sequence[Sequence[list[int]]],
) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """Compute log p of the answers to each row of a cache; tell which are greedy.

    `last` is c of the last token of each prompt, whose logits predict the first token
    of an answer. For the other tokens the cache is forked, once for each longer answer.
    """
    rows = [i for i, row in enumerate(tails) for _ in row]
    answers = [tail for row in tails for tail in row]
    log_p, best = _of_tokens(model.logits(last), rows, [tail[0] for tail in answers])
    longer = [n for n, tail in enumerate(answers) if len(tail) > 1]
    if longer:
        lengths = torch.tensor([len(answers[n]) - 1 for n in longer])
        T = int(lengths.max())
        forked = cache.fork([rows[n] for n in longer], room=cache.used + T)
        # Padded on the right, where a causal model does not see it
        inputs = [answers[n][:-1] + [0] * (T + 1 - len(answers[n])) for n in longer]
        real = torch.arange(T) < lengths[:, None]  # (n, T)
        c = _read(model, inputs, forked)
        u = model.logits(c[real.to(c.device)])
        later = [token for n in longer for token in answers[n][1:]]
        log_p_later, best_later = _of_tokens(u, range(len(later)), later)
        owners = torch.tensor(longer).repeat_interleave(lengths)
        log_p.index_add_(0, owners, log_p_later)
        best[owners[~best_later]] = False
    return log_p, best


def _of_tokens(
    u: Float[Tensor, "n V"], rows: Sequence[int], tokens: Sequence[int]
) -> tuple[Float[Tensor, " m"], Bool[Tensor, " m"]]:
    """Compute log p of tokens by the given rows of logits; tell which are greedy."""
    log_p = u.to(torch.promote_types(u.dtype, torch.float32)).log_softmax(dim=-1)
    best = u.argmax(dim=-1).cpu()[[*rows]] == torch.tensor(tokens)
    return log_p[[*rows], [*tokens]].cpu().double(), best
