"""One training loop: it yields a record a step and knows neither model nor data.

for record in train(loss_of, batches, optimizer, steps=steps, schedule=schedule):
    history.append(record)

A run that can be stopped and goes on later is in :mod:`fmkit.checkpoint`.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim import Optimizer

from fmkit import runtime
from fmkit._check import require


@dataclass(frozen=True)
class Record:
    """One optimizer step: the loss before it, the learning rate of it."""

    step: int  # from 0
    loss: float
    learning_rate: float
    seconds: float  # since this call began
    tokens: int  # seen so far, this step's too; 0 where nobody says how many a step has


class Diverged(RuntimeError):
    """The loss became NaN or infinite; the weights are those of the last finite one."""

    def __init__(self, step: int, loss: float, last_loss: float | None):
        self.step, self.loss, self.last_loss = step, loss, last_loss
        before = "there was no finite loss before it"
        if last_loss is not None:
            before = f"the last finite loss was {last_loss:.4g}"
        super().__init__(
            f"the loss became {loss} at step {step}; {before}, and the weights it was "
            "computed with are kept. A smaller learning rate is the usual remedy."
        )


def train(
    loss_of: Callable[..., Float[Tensor, ""]],
    batches: Iterable,
    optimizer: Optimizer,
    *,
    steps: int,
    first_step: int = 0,
    schedule: Callable[[int], float] = lambda step: 1.0,
    buffers: Iterable[Tensor] = (),
    tokens_a_step: int = 0,
) -> Iterator[Record]:
    """Minimize `loss_of(batch)` over `batches` until step `steps`, a record for each.

    `schedule(step)` multiplies the optimizer's learning rates while it takes the step;
    after it they are its own again, so that a checkpoint holds those. Every batch has
    `tokens_a_step` tokens. A run that goes on starts at `first_step`, and `batches`
    with the batch of that step. Precision is the runtime's for the device of the
    parameters. Raises :class:`Diverged` at a loss that is no finite number, with
    parameters, and the `buffers` given (batch norm's statistics), set back to where the
    loss was last finite.

    In the notes: pretrained model.
    """
    require(steps >= 1, "steps", "be at least 1", steps)
    inside = 0 <= first_step <= steps
    require(inside, "first_step", f"be from 0 to steps ({steps})", first_step)
    groups = optimizer.param_groups
    kept = [p for group in groups for p in group["params"]] + list(buffers)
    # Of before this step and of before the last one: a loss tells on the step before it
    good = [tensor.detach().clone() for tensor in kept]
    start, last_loss = time.perf_counter(), None
    for step, batch in zip(range(first_step, steps), batches, strict=False):
        before = [tensor.detach().clone() for tensor in kept]
        optimizer.zero_grad(set_to_none=True)
        with runtime.autocast(kept[0].device):
            loss = loss_of(batch)
        value = loss.item()
        if not math.isfinite(value):
            _restore(kept, good)
            raise Diverged(step, value, last_loss)
        good, last_loss = before, value
        loss.backward()
        multiplier = float(schedule(step))
        _step_at(multiplier, optimizer)
        rate, seconds = groups[0]["lr"] * multiplier, time.perf_counter() - start
        yield Record(step, value, rate, seconds, (step + 1) * tokens_a_step)


def _step_at(multiplier: float, optimizer: Optimizer) -> None:
    """A step at that many times the optimizer's rates, which it keeps."""
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * multiplier
        optimizer.step()
    finally:  # an interrupt too
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


@torch.no_grad()
def _restore(tensors: list[Tensor], values: list[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def warmup_cosine(*, steps: int, warmup_steps: int) -> Callable[[int], float]:
    """Multiplier of the learning rate: a line up to 1, then half a cosine down to 0.

    Source: Loshchilov and Hutter 2017 (SGDR), without restarts.
    """
    inside = 0 <= warmup_steps <= steps
    require(inside, "warmup_steps", f"be from 0 to steps ({steps})", warmup_steps)

    def multiplier(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        done = (step - warmup_steps) / max(steps - warmup_steps, 1)
        return (1 + math.cos(math.pi * min(done, 1.0))) / 2

    return multiplier


def minibatches(
    n: int, *, batch_size: int, generator: torch.Generator
) -> Iterator[Int[Tensor, " B"]]:
    """Indices of batches without end: each epoch is a new order of all n examples.

    An epoch's incomplete last batch is left out; where n is less than `batch_size`,
    every batch is all n.
    """
    require(n >= 1, "n", "be at least 1 (there is nothing to train on)", n)
    require(batch_size >= 1, "batch_size", "be at least 1", batch_size)
    size = min(batch_size, n)
    while True:
        order = torch.randperm(n, generator=generator)
        yield from order[: n - n % size].split(size)
