"""Prompts for zero, one or some examples, and the likelihood of given answers.

A :class:`Format` says how pairs (x, y) are written down, :func:`draw_examples` which of
them come before a query, :func:`score_answers` how likely a model finds each answer.
q queries, a answers to each, B rows, T tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from fmkit._check import require
from fmkit.progress import progress

Pair = tuple[str, str]
AT_ONCE = 2**28  # bytes of a batch: keys and values of all its rows, and logits


@dataclass(frozen=True)
class Format:
    """How examples and a query become one document: the prompt of 14.3.1.

    In the notes: question or cloze.
    """

    example: str  # with {x} and, after it, {y}; what follows {y} ends an example
    instruction: str = ""  # stands once, before all examples
    between: str = "\n\n"  # between the instruction, the examples and the query

    def __post_init__(self) -> None:
        marks = [self.example.count(mark) for mark in ("{x}", "{y}")]
        right = marks == [1, 1] and self.example.index("{x}") < self.example.index(
            "{y}"
        )
        require(right, "example", "hold {x} and then {y}, once each", self.example)

    def _parts(self) -> tuple[str, str, str]:
        """What stands before x, between x and y, and after y."""
        before, rest = self.example.split("{x}")
        middle, after = rest.split("{y}")
        return before, middle, after

    def prompt(self, examples: Sequence[Pair], x: str) -> str:
        """The document up to the answer to x, without the white space before that.

        Raises ``ValueError`` for an empty x, and for an example with an empty part.

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
        """What makes the prompt an example: the white space that it left out, and y."""
        require(bool(y.strip()), "an answer", "be a text", y)
        middle = self._parts()[1]
        return middle[len(middle.rstrip()) :] + y


BARE = Format("Input: {x}\nOutput: {y}")


def draw_examples(
    items: Sequence[Pair], k: int, *, generator: torch.Generator
) -> list[int]:
    """Which k of `items` are shown, in the order in which they are.

    Balanced: where answers repeat, none comes once more before each other one that is
    left has come as often. Nested: from a generator in the same state, fewer examples
    are the first of more. Raises ``ValueError`` for more than there are.

    In the notes: in-context learning.
    """
    rule = f"be from 0 to the number of items ({len(items)})"
    require(0 <= k <= len(items), "k", rule, k)
    order = torch.randperm(len(items), generator=generator).tolist()
    came: dict[str, int] = {}
    rounds = {}  # of each item: how often its answer has come before
    for i in order:
        answer = items[i][1]
        rounds[i] = came.get(answer, 0)
        came[answer] = rounds[i] + 1
    return sorted(order, key=rounds.__getitem__)[:k]


@dataclass(frozen=True)
class Scored:
    """What :func:`score_answers` found for each answer to each query, on the CPU."""

    log_p: Float[Tensor, "q a"]  # log p(answer | prompt), nats, in float64
    tokens: Int[Tensor, "q a"]  # of the answer
    bytes: Int[Tensor, "q a"]  # of the answer in UTF-8, its white space too
    greedy: Bool[Tensor, "q a"]  # whether each of its tokens is the most probable one


@torch.inference_mode()
def score_answers(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    answers: Sequence[Sequence[str]],
    *,
    start: int,
    label: str,
) -> Scored:
    r"""log p of each answer after its prompt, token by token.

    .. math:: \log p(y \mid x) = \sum_t \log p(y_t \mid \perp, x, y_1, \dots, y_{t-1})

    `start` is the id of the start symbol, which stands before every prompt. Prompt and
    answer are cut into tokens as one text, so an answer begins with the white space
    that parts them. Unlike scoring each whole text, what all prompts begin with is
    computed once, and each prompt once for all its answers. Nothing is cut off. Device
    and precision are the model's. `label` names the progress bar.

    Raises ``ValueError``, before anything is computed, for a model that is not in eval
    mode; for queries that differ in their number of answers; for an answer without a
    token; where prompt and answer exceed the context; and where the tokens of a prompt
    are not the beginning of those of prompt and answer.

    In the notes: zero-shot adaptation, (14.5).
    """
    require(not model.training, "model.training", "be False: call model.eval()", True)
    heads, tails = _tokens(tokenizer, prompts, answers, start)
    most = model.config.context
    for head, of in zip(heads, tails, strict=True):
        length = len(head) + max(map(len, of))
        rule = f"be at most the context ({most})"
        require(length <= most, "the tokens of prompt and answer", rule, length)
    # A token is left of each prompt at least: what follows it is the answer's first
    columns = zip(*(head[:-1] for head in heads), strict=False)
    shared = sum(1 for _ in takewhile(lambda column: len({*column}) == 1, columns))
    prefix = model.cache(padding=[0], room=max(shared, 1))
    if shared:
        _read(model, [heads[0][:shared]], prefix)
    log_p = torch.zeros(len(heads), len(tails[0]), dtype=torch.float64)
    greedy = torch.ones_like(log_p, dtype=torch.bool)
    batches = [*_batches(model, heads, tails)]
    for rows in progress(batches, label=label):
        cache = prefix.fork([0] * len(rows), room=len(heads[rows[0]]))
        last = _read(model, [heads[i][shared:] for i in rows], cache)[:, -1]
        found = _score(model, last, cache, [tails[i] for i in rows])
        log_p[rows], greedy[rows] = found
    return Scored(
        log_p,
        torch.tensor([[len(tail) for tail in of] for of in tails]),
        torch.tensor([[len(answer.encode()) for answer in of] for of in answers]),
        greedy,
    )


def _tokens(
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    answers: Sequence[Sequence[str]],
    start: int,
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Ids of every prompt, `start` before them, and of every answer to it."""
    require(len(prompts) >= 1, "prompts", "be at least one", prompts)
    same = len(answers) == len(prompts)
    require(same, "answers", f"be for each prompt ({len(prompts)})", len(answers))
    counts = sorted({len(of) for of in answers})
    rule = "be as many for every prompt, and at least one"
    require(len(counts) == 1 and counts[0] >= 1, "answers", rule, counts)

    def encoded(texts: Sequence[str]) -> list[list[int]]:
        found = tokenizer.encode_batch([*texts], add_special_tokens=False)
        return [encoding.ids for encoding in found]

    heads, tails = encoded(prompts), []
    for prompt, head, of in zip(prompts, heads, answers, strict=True):
        tails.append([])
        for answer, ids in zip(of, encoded([prompt + y for y in of]), strict=True):
            rule = "keep its tokens when an answer follows"
            begins = ids[: len(head)] == head
            require(begins, "a prompt", rule, prompt[-20:] + answer)
            require(len(ids) > len(head), "an answer", "have a token", answer)
            tails[-1].append(ids[len(head) :])
    return [[start, *head] for head in heads], tails


def _batches(
    model: nn.Module, heads: list[list[int]], tails: list[list[list[int]]]
) -> Iterator[list[int]]:
    """Queries with equally many tokens, as many at a time as memory is meant for."""
    shape, size = model.config, model.embedding.weight.element_size()
    a_token = 2 * shape.layers * shape.kv_heads * shape.head_width * size
    longest = max(len(tail) for of in tails for tail in of)
    groups: dict[int, list[int]] = {}
    for i, head in enumerate(heads):
        groups.setdefault(len(head), []).append(i)
    for length, rows in sorted(groups.items()):
        # A row for each answer, and one for the prompt; logits are copied once
        a_row = (length + longest) * a_token + 2 * longest * shape.vocabulary * size
        together = max(1, AT_ONCE // (a_row * (len(tails[0]) + 1)))
        for first in range(0, len(rows), together):
            yield rows[first : first + together]


def _read(
    model: nn.Module, rows: list[list[int]], cache: Any
) -> Float[Tensor, "B T d"]:
    """c of tokens that follow what the cache holds, and are held by it then."""
    tokens = torch.tensor(rows, device=model.embedding.weight.device)
    return model.contextualize(model.embed(tokens), cache)


def _score(
    model: nn.Module,
    last: Float[Tensor, "B d"],
    cache: Any,  # a Cache: leaves do not import each other
    tails: list[list[list[int]]],
) -> tuple[Float[Tensor, "B a"], Bool[Tensor, "B a"]]:
    """log p of the answers to each row of a cache, and whether they are the greedy.

    `last` is the c of the last token of each prompt, from which an answer's first token
    follows. For the other tokens the cache is forked over the answers that have any.
    """
    rows, answers = zip(
        *((i, y) for i, of in enumerate(tails) for y in of), strict=True
    )
    log_p, best = _of_tokens(model.logits(last), rows, [y[0] for y in answers])
    longer = [n for n, y in enumerate(answers) if len(y) > 1]
    if longer:
        T = max(len(answers[n]) for n in longer) - 1
        forked = cache.fork([rows[n] for n in longer], room=cache.used + T)
        # Padded on the right, which a causal model does not see
        padded = [answers[n][:-1] + [0] * (T + 1 - len(answers[n])) for n in longer]
        c = _read(model, padded, forked)
        real = torch.tensor(
            [[t < len(answers[n]) - 1 for t in range(T)] for n in longer]
        )
        owners = [n for n in longer for _ in answers[n][1:]]
        later = [token for n in longer for token in answers[n][1:]]
        u = model.logits(c[real.to(c.device)])
        for n, log_p_t, is_best in zip(
            owners, *_of_tokens(u, range(len(later)), later), strict=True
        ):
            log_p[n] += log_p_t
            best[n] &= is_best
    shape = len(tails), len(tails[0])
    return log_p.view(shape), best.view(shape)


def _of_tokens(
    u: Float[Tensor, "n V"], rows: Sequence[int], tokens: Sequence[int]
) -> tuple[Float[Tensor, " m"], Bool[Tensor, " m"]]:
    """log p of a token by each of the given rows of logits, and whether it leads."""
    log_p = u.to(torch.promote_types(u.dtype, torch.float32)).log_softmax(dim=-1)
    best = u.argmax(dim=-1).cpu()[[*rows]] == torch.tensor(tokens)
    return log_p[[*rows], [*tokens]].cpu().double(), best
