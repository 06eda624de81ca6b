"""Look at the attention heads of a Transformer, and switch some of them off.

Hooks of torch read the input of each attention layer and change the input of the
product that ends it. The class ``Transformer`` needs no code for this, and without a
hook its outputs are what they were.

B batch, T tokens, L layers, h heads of a layer, w width of a head.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from fmkit import runtime
from fmkit._check import require
from fmkit.models.transformer import Attention, Transformer


@runtime.exact()
def attention_weights(
    model: Transformer, tokens: Integer[Tensor, "B T"]
) -> Float[Tensor, "L B h T T"]:
    """Compute how much every head attends from each token to each token.

    Entry (l, b, j, t, s) is the weight that head j of layer l gives to token s of row b
    when it computes its output for token t, so entries sum to 1 over s. In an
    autoregressive model those with s > t are 0. The forward pass itself uses a fused
    product that never stores these weights; here they are computed again from the
    input of each layer. The result takes 4 L B h T^2 bytes in float32.
    """
    found: list[Tensor] = []

    def look(layer: Attention, inputs: tuple) -> None:
        x, rotation = inputs[:2]
        q, k, _ = layer.projected(x, rotation)
        k = k.repeat_interleave(layer.h // layer.k, dim=2)  # query head j has key j
        scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / layer.w**0.5
        if layer.causal:
            T = x.shape[1]
            later = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        found.append(scores.softmax(dim=3))

    with ExitStack() as hooks, torch.no_grad():
        for block in model.blocks:
            hooks.enter_context(_hook(block.attention, look))
        model.contextualize(model.embed(tokens))
    return torch.stack(found)


@runtime.exact()
def head_outputs(
    model: Transformer, tokens: Integer[Tensor, "B T"]
) -> Float[Tensor, "L B T h w"]:
    """Compute the weighted sum of values of every head, at each token.

    It is what a head adds to the others' before the product ``out`` of its layer.
    """
    found: list[Tensor] = []

    def look(out: torch.nn.Module, inputs: tuple[Tensor]) -> None:
        found.append(inputs[0].unflatten(2, (model.config.heads, -1)))

    with ExitStack() as hooks, torch.no_grad():
        for block in model.blocks:
            hooks.enter_context(_hook(block.attention.out, look))
        model.contextualize(model.embed(tokens))
    return torch.stack(found)


@contextmanager
def ablated(
    model: Transformer,
    heads: Sequence[tuple[int, int]],
    *,
    outputs: Float[Tensor, "L h w"] | None = None,
) -> Iterator[Transformer]:
    """Switch off `heads`, each given as (layer, head), while the context lasts.

    The output of such a head is replaced at every token: by 0, or by its entry of
    `outputs`, for example by its mean over other texts (mean ablation). Other heads
    of its layer are not changed; those of later layers see the difference. Raises
    ``ValueError`` if the model has no such head.
    """
    config = model.config
    for layer, head in heads:
        inside = 0 <= layer < config.layers and 0 <= head < config.heads
        rule = f"be in {config.layers} layers of {config.heads} heads"
        require(inside, "heads", rule, (layer, head))

    def replace(layer: int):
        def change(_, inputs: tuple[Tensor]) -> tuple[Tensor]:
            changed = inputs[0].unflatten(2, (config.heads, -1)).clone()
            for of, head in heads:
                if of == layer:
                    new = 0.0 if outputs is None else outputs[layer, head]
                    changed[:, :, head] = new
            return (changed.flatten(2),)

        return change

    with ExitStack() as hooks:
        for layer in {layer for layer, _ in heads}:
            out = model.blocks[layer].attention.out
            hooks.enter_context(_hook(out, replace(layer)))
        yield model


@contextmanager
def _hook(module: torch.nn.Module, function) -> Iterator[None]:
    """Call `function(module, inputs)` before `module`, while the context lasts."""
    handle = module.register_forward_pre_hook(function)
    try:
        yield
    finally:
        handle.remove()
