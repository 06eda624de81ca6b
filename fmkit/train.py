"""One training loop, which yields a record for each step and knows no model or data.

A loop that keeps the loss of every step::

    records = train(loss_of, batches, optimizer, modules=[model], steps=300)
    for record in progress(records, bar="training"):
        history.append(record.loss)

:mod:`fmkit.checkpoint` saves a run, so that it can be stopped and continued.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from fmkit import runtime
from fmkit._check import Refused, require


@dataclass(frozen=True)
class Record:
    """The record of one optimizer step."""

    step: int  # from 0
    loss_tensor: Float[Tensor, ""]  # on its device, computed before the update
    learning_rate: float  # of this step
    seconds: float  # since the first step of this call began
    tokens: int  # seen up to and including this step; 0 without `tokens_a_step`

    @property
    def loss(self) -> float:
        """The loss before the update. Reading it waits for the device."""
        return self.loss_tensor.item()


class Records(Iterator[Record]):
    """The records of a run, in order. Its length is the number of steps of the run."""

    def __init__(self, records: Iterator[Record], steps: int):
        self._records, self._steps = records, steps

    def __next__(self) -> Record:
        return next(self._records)

    def __len__(self) -> int:
        return self._steps


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


def constant(step: int, steps: int) -> float:
    """Leave the learning rate as it is: a schedule whose multiplier is always 1."""
    return 1.0


def train(
    loss_of: Callable[..., Float[Tensor, ""]],
    batches: Iterable,
    optimizer: Optimizer,
    *,
    modules: Sequence[nn.Module],
    steps: int,
    first_step: int = 0,
    schedule: Callable[[int, int], float] = constant,
    tokens_a_step: int = 0,
    agree: Callable[[Bool[Tensor, ""]], Bool[Tensor, ""]] = lambda finite: finite,
) -> Records:
    """Minimize `loss_of(batch)` over `batches` and yield a record for each step.

    Each step is taken when its record is asked for. `modules` are all modules that
    the loss is computed with; together they hold the parameters of the optimizer.
    `schedule(step, steps)` multiplies the learning rates of the optimizer during a
    step. Afterwards the optimizer has its own rates again, so a checkpoint stores
    these. A batch that is a tensor is first brought to the device of the parameters, so
    that indices are where the data is; the host does not wait for it. Every batch has
    `tokens_a_step` tokens. A run that continues starts at `first_step`, and its
    `batches` with the batch of that step. The precision is that of
    :func:`fmkit.runtime.autocast` for the device of the parameters.

    Raises :class:`Diverged` if a loss is not finite. The trained parameters and all
    buffers of `modules` (the statistics of batch norm) are then exactly those of the
    last finite loss. On a CPU the loss is checked at every step. On another device
    the check would stop the device, so it happens at every 20th step and at the last
    one: the error still names the first bad step and restores the same state, but
    records of steps since then, whose losses are not finite, may have been yielded.
    If the caller stops in between, the state is restored too.

    `agree` maps the flag "this loss is finite" to the flag that decides. Where
    several processes train together, it returns whether the loss is finite in all of
    them, so that all raise at the same step.

    Raises ``ValueError`` if `steps`, `first_step` or `modules` are wrong, and if
    `batches` end before the last step.

    In the notes: pretrained model.
    """
    require(steps >= 1, "steps", "be at least 1", steps)
    inside = 0 <= first_step <= steps
    require(inside, "first_step", f"be from 0 to steps ({steps})", first_step)
    held = {id(p) for module in modules for p in module.parameters()}
    missing = sum(
        id(p) not in held for g in optimizer.param_groups for p in g["params"]
    )
    rule = "hold all parameters of the optimizer"
    require(missing == 0, "modules", rule, f"{missing} parameters outside")

    def records() -> Iterator[Record]:
        weights = [p.detach() for g in optimizer.param_groups for p in g["params"]]
        buffers = [buffer for module in modules for buffer in module.buffers()]
        device, source = weights[0].device, iter(batches)
        every = runtime.look_every(device)
        good = [tensor.clone() for tensor in weights + buffers]  # overwritten in place
        entering = [buffer.clone() for buffer in buffers]  # a forward pass changes them
        finite = torch.ones((), dtype=torch.bool, device=device)  # all losses so far
        recent = deque(maxlen=every + 1)  # losses since the last look, and one before
        start = time.perf_counter()
        try:
            for step in range(first_step, steps):
                batch = _next(source, step, steps, device)
                _copy(entering, buffers)
                optimizer.zero_grad(set_to_none=True)
                with runtime.fixed_shapes(device):
                    with runtime.autocast(device):
                        loss = loss_of(batch)
                    loss.backward()  # queued before the host waits for the loss
                loss = loss.detach()
                finite = finite & agree(loss.isfinite())
                recent.append((finite, loss))
                looks = (step + 1) % every == 0 or step + 1 == steps
                if looks and not finite:
                    raise _diverged(step, recent)
                # A finite loss says that the weights before this update are good
                _keep(good, weights + entering, finite, known=looks)
                multiplier = float(schedule(step, steps))
                _step_at(multiplier, optimizer)
                rate = optimizer.param_groups[0]["lr"] * multiplier
                seconds = time.perf_counter() - start
                yield Record(step, loss, rate, seconds, (step + 1) * tokens_a_step)
        finally:
            if not finite:
                _copy(weights + buffers, good)

    return Records(records(), steps - first_step)


def _next(source: Iterator, step: int, steps: int, device: torch.device) -> object:
    """Return the batch of `step`. Raises ``ValueError`` if there is none."""
    for batch in source:
        return runtime.sent(batch, device) if isinstance(batch, Tensor) else batch
    raise Refused(f"batches must last for {steps} steps, but ended before step {step}.")


def _copy(into: list[Tensor], values: list[Tensor]) -> None:
    """Copy values in place: one kernel for all tensors, no new memory."""
    if into:
        torch._foreach_copy_(into, values)


def _keep(
    good: list[Tensor], now: list[Tensor], finite: Bool[Tensor, ""], *, known: bool
) -> None:
    """Copy `now` into `good` if all losses are finite, which `known` says is certain.

    Otherwise the device decides, so that the host need not wait for it.
    """
    if known:
        _copy(good, now)
    else:
        for old, new in zip(good, now, strict=True):
            torch.where(finite, new, old, out=old)


def _diverged(
    step: int, recent: Sequence[tuple[Bool[Tensor, ""], Float[Tensor, ""]]]
) -> Diverged:
    """Return the error for the first bad step among `recent`, which end at `step`.

    Each entry has the flag that all losses so far are finite, and the loss.
    """
    bad = [bool(finite) for finite, _ in recent].index(False)
    last_loss = recent[bad - 1][1].item() if bad else None
    return Diverged(step + 1 - len(recent) + bad, recent[bad][1].item(), last_loss)


def _step_at(multiplier: float, optimizer: Optimizer) -> None:
    """Take a step with every learning rate multiplied; the optimizer keeps its own."""
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * multiplier
        optimizer.step()
    finally:  # also after an interrupt
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def warmup_cosine(warmup: float = 0.0) -> Callable[[int, int], float]:
    """Return a schedule that rises linearly to 1 and then falls to 0 as a half cosine.

    `warmup` is the share of the steps during which it rises. Raises ``ValueError`` if
    `warmup` is not from 0 to 1. Source: Loshchilov and Hutter 2017 (SGDR), without
    restarts.
    """
    require(0 <= warmup <= 1, "warmup", "be from 0 to 1", warmup)

    def multiplier(step: int, steps: int) -> float:
        warmup_steps = int(warmup * steps)
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        done = (step - warmup_steps) / max(steps - warmup_steps, 1)
        return (1 + math.cos(math.pi * min(done, 1.0))) / 2

    return multiplier


def minibatches(
    n: int, *, batch_size: int, generator: torch.Generator
) -> Iterator[Int[Tensor, " B"]]:
    """Yield indices of batches without end, in a new order of all n examples an epoch.

    The incomplete last batch of an epoch is left out. If n is less than `batch_size`,
    every batch has all n examples. Raises ``ValueError`` if `n` or `batch_size` is
    below 1.
    """
    require(n >= 1, "n", "be at least 1 (there is nothing to train on)", n)
    require(batch_size >= 1, "batch_size", "be at least 1", batch_size)
    size = min(batch_size, n)
    while True:
        order = torch.randperm(n, generator=generator)
        yield from order[: n - n % size].split(size)
