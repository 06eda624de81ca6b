"""Generate text with a language model: token by token, with a key-value cache.

B rows, T tokens of a prompt, V vocabulary. ``stream`` yields the tokens of all rows at
each step, and ``generate`` collects them. A function of its own chooses a token from
the logits u: ``greedy``, or one made by ``sampler``. End symbols end a row, and so do
``StopStrings``. On a CPU decode with :func:`fmkit.models.packed.packed`, which reads
the weights faster.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from fmkit import runtime
from fmkit._check import require
from fmkit.data.tokens import check_ids

Choose = Callable[[Float[Tensor, "B V"]], Int[Tensor, " B"]]
Stop = Callable[[list[int]], bool]  # whether a row ends with its last new token
# Logits of V tokens are rounded by eps log(V) / 2 or less, and log V is below 13; the
# other eps are those of the softmax. So far a sum of probabilities may be off.
ROUNDING = 8  # eps


def greedy(u: Float[Tensor, "B V"]) -> Int[Tensor, " B"]:
    """Choose the most probable token of each row, the first one of a tie.

    In the notes: zero-shot adaptation.
    """
    return u.argmax(dim=-1)


def sampler(
    *,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Choose:
    """Return a function that draws from softmax(u / temperature), cut to `top_p`.

    Temperature 0 is :func:`fmkit.generate.greedy`, the limit. The draw of a row depends
    on the generator, on the step, and on the row's place in a batch of this size. It
    depends neither on the other rows' tokens nor on when those rows end. The generator
    must be on the model's device. Raises ``ValueError`` if the temperature is below 0
    or `top_p` is outside (0, 1]; on a CPU the function raises it if a row of logits
    holds NaN or infinity, or nothing but minus infinity.

    In the notes: (14.6).
    """
    require(temperature >= 0, "temperature", "be at least 0", temperature)
    require(0 < top_p <= 1, "top_p", "be above 0 and at most 1", top_p)
    if temperature == 0:
        return greedy

    def choose(u: Float[Tensor, "B V"]) -> Int[Tensor, " B"]:
        u = u.to(torch.promote_types(u.dtype, torch.float32))
        # Subtract the maximum before dividing, because with a temperature near 0
        # several logits would become infinite
        u = (u - u.amax(dim=-1, keepdim=True)) / temperature
        if top_p < 1:
            u = keep_top_p(u, top_p)
        p = u.softmax(dim=-1)
        finite = not runtime.on_host(p) or bool(p.isfinite().all())
        require(finite, "u", "be finite for a token and never infinite", float("nan"))
        # As torch.multinomial draws one token: whose exponential time is over first. It
        # looks at p before, for which a GPU would be waited
        times = torch.empty_like(p).exponential_(generator=generator)
        return (p / times).argmax(dim=-1)

    return choose


def keep_top_p(u: Float[Tensor, "B V"], p: float) -> Float[Tensor, "B V"]:
    """Keep u of the nucleus and set the rest to minus infinity (Holtzman et al. 2020).

    The nucleus is the smallest set of most probable tokens that together have
    probability p: a token belongs to it if the more probable ones have less than p.
    Sums that reach p up to rounding have reached it; if p is 1, all tokens belong to
    it. Raises ``ValueError`` unless p is above 0 and at most 1.
    """
    require(0 < p <= 1, "p", "be above 0 and at most 1", p)
    values, order = u.sort(dim=-1, descending=True, stable=True)
    exact = values.to(torch.promote_types(u.dtype, torch.float32))
    before = F.pad(exact.softmax(-1).cumsum(-1)[..., :-1], (1, 0))
    enough = p - ROUNDING * torch.finfo(before.dtype).eps
    # The most probable token belongs to it, however small p is, and all do if p is 1
    outside = (before >= enough) & (before > 0) & (p < 1)
    return torch.empty_like(u).scatter(
        -1, order, values.masked_fill(outside, float("-inf"))
    )


@dataclass(frozen=True)
class StopStrings:
    """End a row when one of some strings is in its text: a `stop` of ``generate``.

    The text is that of the new tokens alone, so a string in the prompt ends nothing. A
    string may begin in one token and end in another. The row keeps all its tokens;
    :meth:`text` is what comes before the string. Raises ``ValueError`` if a string is
    empty, or if `strings` is one string.
    """

    tokenizer: Tokenizer
    strings: Collection[str]

    def __post_init__(self) -> None:
        several = not isinstance(self.strings, str)
        require(several, "strings", "be several, such as a list", self.strings)
        for string in self.strings:
            require(bool(string), "a stop string", "be a text", string)

    def __call__(self, tokens: list[int]) -> bool:
        """Tell whether one of the strings is in the text of new tokens.

        Special tokens count as they are written, so their text may be such a string.
        """
        text = self.tokenizer.decode(tokens, skip_special_tokens=False)
        return any(string in text for string in self.strings)

    def text(self, tokens: list[int]) -> str:
        """Return the text of tokens up to the first of the strings.

        Special tokens are left out.
        """
        text = self.tokenizer.decode(tokens)
        starts = [text.find(string) for string in self.strings if string in text]
        return text[: min(starts, default=None)]


def generate(
    model: nn.Module,
    prompts: list[list[int]],
    *,
    new_tokens: int,
    choose: Choose = greedy,
    eos: int | Collection[int] | None = None,
    stop: Stop | None = None,
) -> list[list[int]]:
    """Collect the tokens of :func:`~fmkit.generate.stream`, a list for each row.

    The lists contain neither the prompt nor the end symbol of a row.

    In the notes: answer of several words, in-context learning.
    """
    rows: list[list[int]] = [[] for _ in prompts]
    how = {"new_tokens": new_tokens, "choose": choose, "eos": eos, "stop": stop}
    for step in stream(model, prompts, **how):
        for row, token in zip(rows, step, strict=True):
            if token is not None:
                row.append(token)
    return rows


def stream(
    model: nn.Module,
    prompts: list[list[int]],
    *,
    new_tokens: int,
    choose: Choose = greedy,
    eos: int | Collection[int] | None = None,
    stop: Stop | None = None,
) -> Iterator[list[int | None]]:
    """Yield the next token of every row, up to `new_tokens` times.

    Prompts may differ in length: shorter ones are padded on the left, and no token
    attends to padding. A row ends when `eos` is chosen, an id or one of several, which
    is not yielded, and after a token with which `stop` is true of its new tokens: see
    :class:`~fmkit.generate.StopStrings`. From then on the row yields None, and when all
    rows have ended nothing more is yielded. On CUDA the model is one step ahead of what
    is yielded, so that it does not wait for a token to be read. Precision and device
    are those of the weights. Raises ``ValueError``, before anything is computed, if the
    model is not in eval mode, a prompt is empty, an id is outside V, or the longest
    prompt and `new_tokens` exceed the context.
    """
    require(not model.training, "model.training", "be False: call model.eval()", True)
    require(len(prompts) >= 1, "prompts", "be at least one", prompts)
    require(new_tokens >= 1, "new_tokens", "be at least 1", new_tokens)
    require(all(prompts), "a prompt", "have at least one token", [])
    for prompt in prompts:
        check_ids(torch.tensor(prompt), vocabulary=model.config.vocabulary)
    ends = [eos] if isinstance(eos, int) else [*(eos or ())]
    known = all(isinstance(i, int) and 0 <= i < model.config.vocabulary for i in ends)
    rule = f"be ids from 0 to V - 1 ({model.config.vocabulary - 1})"
    require(known, "eos", rule, eos)
    longest = max(len(prompt) for prompt in prompts)
    context = model.config.context
    rule = f"leave room for {new_tokens} new tokens in the context ({context})"
    require(longest + new_tokens <= context, "the longest prompt", rule, longest)
    padded = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    padding = [longest - len(prompt) for prompt in prompts]
    steps = _steps(model, padded, padding, new_tokens, choose)
    return _ended(steps, len(padded), {*ends}, stop)


def _ended(
    steps: Iterator[Int[Tensor, " B"]], B: int, eos: set[int], stop: Stop | None
) -> Iterator[list[int | None]]:
    """Yield the tokens of rows that have not ended; stop when all have."""
    rows: list[list[int]] = [[] for _ in range(B)]
    ended = [False] * B
    for step in runtime.read_late(steps):
        ended = [end or token in eos for end, token in zip(ended, step, strict=True)]
        if all(ended):
            return
        yield [None if end else t for end, t in zip(ended, step, strict=True)]
        if stop is not None:
            for i, token in enumerate(step):
                if not ended[i]:
                    rows[i].append(token)
                    ended[i] = stop(rows[i])
            if all(ended):  # before another step is computed
                return


@torch.inference_mode()  # as a decorator it is left at every yield
def _steps(
    model: nn.Module,
    padded: list[list[int]],
    padding: list[int],
    new_tokens: int,
    choose: Choose,
) -> Iterator[Int[Tensor, " B"]]:
    """Yield the tokens of each step where the model is; no step reads any of them."""
    cache = model.cache(padding=padding, room=len(padded[0]) + new_tokens)
    tokens = torch.tensor(padded, device=model.embedding.weight.device)
    for _ in range(new_tokens):
        contextual = model.contextualize(model.embed(tokens), cache)
        chosen = choose(model.logits(contextual[:, -1]))
        yield chosen
        tokens = chosen[:, None]
