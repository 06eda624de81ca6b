"""Text from a language model: one token after another, with a key-value cache.

B rows, T tokens of a prompt, V vocabulary. :func:`stream` yields what every row got at
each step, :func:`generate` collects it. How a token is chosen from the logits u is a
function of its own: :func:`greedy`, or what :func:`sampler` makes. :func:`packed` is
the same model in a layout that a CPU reads faster.
"""

import copy
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fmkit._check import require

Choose = Callable[[Float[Tensor, "B V"]], Int[Tensor, " B"]]


def greedy(u: Float[Tensor, "B V"]) -> Int[Tensor, " B"]:
    """The most probable token of each row; of equal ones the first.

    In the notes: zero-shot adaptation.
    """
    return u.argmax(dim=-1)


def sampler(
    *,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
) -> Choose:
    """Draws from softmax(u / temperature), cut to the `top_k` and then to `top_p`.

    Temperature 0 is :func:`greedy`, the limit. What a row draws depends on the
    generator, on the step, and on the row's place in a batch of this size: neither on
    what the other rows hold nor on when they end. The generator lies where the model
    does. Raises ``ValueError`` for a temperature below 0, a `top_k` below 1 and a
    `top_p` outside (0, 1].

    In the notes: (14.6).
    """
    require(temperature >= 0, "temperature", "be at least 0", temperature)
    require(top_k is None or top_k >= 1, "top_k", "be at least 1", top_k)
    require(0 < top_p <= 1, "top_p", "be above 0 and at most 1", top_p)
    if temperature == 0:
        return greedy

    def choose(u: Float[Tensor, "B V"]) -> Int[Tensor, " B"]:
        u = u.to(torch.promote_types(u.dtype, torch.float32))
        # The largest is 0 first: a temperature near 0 would make two infinities of two
        u = (u - u.amax(dim=-1, keepdim=True)) / temperature
        if top_k is not None:
            u = keep_top_k(u, top_k)
        if top_p < 1:
            u = keep_top_p(u, top_p)
        return torch.multinomial(u.softmax(-1), 1, generator=generator)[:, 0]

    return choose


def keep_top_k(u: Float[Tensor, "B V"], k: int) -> Float[Tensor, "B V"]:
    """u of the k most probable tokens, minus infinity elsewhere (Fan et al. 2018).

    Exactly k of them, all where V is less: ties do not make it more.
    """
    best = u.topk(min(k, u.shape[-1]), dim=-1)
    nothing = torch.full_like(u, float("-inf"))
    return nothing.scatter(-1, best.indices, best.values)


def keep_top_p(u: Float[Tensor, "B V"], p: float) -> Float[Tensor, "B V"]:
    """u of the nucleus, minus infinity elsewhere (Holtzman et al. 2020).

    That is the fewest tokens, the most probable first, that have p together: one is in
    it as long as those before it have less than p.
    """
    values, order = u.sort(dim=-1, descending=True, stable=True)
    probabilities = values.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    return torch.empty_like(u).scatter(
        -1, order, values.masked_fill(before >= p, float("-inf"))
    )


def generate(
    model: nn.Module,
    prompts: list[list[int]],
    *,
    new_tokens: int,
    choose: Choose = greedy,
    eos: int | None = None,
) -> list[list[int]]:
    """What :func:`stream` yields, a list for each row: neither prompt nor `eos`.

    In the notes: answer of several words, in-context learning.
    """
    rows: list[list[int]] = [[] for _ in prompts]
    steps = stream(model, prompts, new_tokens=new_tokens, choose=choose, eos=eos)
    for step in steps:
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
    eos: int | None = None,
) -> Iterator[list[int | None]]:
    """The next token of every row, up to `new_tokens` times.

    Prompts may differ in length: shorter ones are padded on the left, which nothing
    sees. A row ends when it is given `eos`, which is not yielded: from then on it has
    None, and when all have ended nothing more comes. Precision and device are those of
    the weights. Raises ``ValueError``, before anything is computed, for a model that is
    not in eval mode, for an empty prompt, for ids outside V, and where the longest
    prompt and `new_tokens` exceed the context.
    """
    require(not model.training, "model.training", "be False: call model.eval()", True)
    require(len(prompts) >= 1, "prompts", "be at least one", prompts)
    require(new_tokens >= 1, "new_tokens", "be at least 1", new_tokens)
    longest, shortest = (end(map(len, prompts)) for end in (max, min))
    require(shortest >= 1, "a prompt", "have at least one token", [])
    V, context = model.config.vocabulary, model.config.context
    least, most = min(map(min, prompts)), max(map(max, prompts))
    inside, wrong = least >= 0 and most < V, least if least < 0 else most
    require(inside, "a token", f"be from 0 to V - 1 ({V - 1})", wrong)
    rule = f"leave room for {new_tokens} new tokens in the context ({context})"
    require(longest + new_tokens <= context, "the longest prompt", rule, longest)
    padded = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    padding = [longest - len(prompt) for prompt in prompts]
    return _stream(model, padded, padding, new_tokens, choose, eos)


@torch.inference_mode()  # as a decorator it is left at every yield
def _stream(
    model: nn.Module,
    padded: list[list[int]],
    padding: list[int],
    new_tokens: int,
    choose: Choose,
    eos: int | None,
) -> Iterator[list[int | None]]:
    cache = model.cache(padding=padding, room=len(padded[0]) + new_tokens)
    tokens = torch.tensor(padded, device=model.embedding.weight.device)
    ended = [False] * len(padded)
    for _ in range(new_tokens):
        # Not model.embed: it checks the ids, and these are known to be in V
        contextual = model.contextualize(model.embedding(tokens), cache)
        chosen = choose(model.logits(contextual[:, -1]))
        row = chosen.tolist()
        ended = [end or token == eos for end, token in zip(ended, row, strict=True)]
        if all(ended):
            return
        yield [None if end else t for end, t in zip(ended, row, strict=True)]
        tokens = chosen[:, None]


class _PackedLinear(nn.Module):
    """A linear layer whose matrix lies in oneDNN's blocks."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.bias = linear.bias
        # Blocks for 64 rows are the best, or as good, for 1, 8 and 64 of them
        blocks = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 64)
        self.blocks = blocks

    def forward(self, x: Tensor) -> Tensor:
        product = torch.ops.mkldnn._linear_pointwise
        return product(x, self.blocks, self.bias, "none", [], "")


def packed(model: nn.Module) -> nn.Module:
    """The same model for a CPU, its linear layers repacked: up to twice as fast.

    A step reads every weight once, so it takes as long as reading them does. What is
    no linear layer is shared with the model; repacked weights take their memory once
    more. It can neither be trained nor moved nor saved. Where there is nothing to gain
    (another device, a torch without oneDNN, a precision that the processor lacks) it
    is the model itself.
    """
    dtype, device = model.embedding.weight.dtype, model.embedding.weight.device
    if device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return model
    half = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if not (half or dtype == torch.float32):
        return model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    for module in [*twin.modules()]:
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, _PackedLinear(child))
    return twin
