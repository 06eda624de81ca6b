"""The training loop, compared with the same steps by hand."""

import contextlib
import copy
import math
import re
from itertools import count, islice, repeat

import pytest
import torch
from torch import nn

from fmkit.train import Diverged, minibatches, train, warmup_cosine


@pytest.fixture
def problem(rng):
    """A model, its data, and its loss of a batch of rows."""
    model = nn.Linear(4, 1).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, 4, generator=rng))
        model.bias.zero_()
    x = torch.randn(20, 4, generator=rng, dtype=torch.float64)
    y = torch.randn(20, 1, generator=rng, dtype=torch.float64)

    def loss_of(batch):
        return ((model(x[batch]) - y[batch]) ** 2).mean()

    return model, x, y, loss_of


def batches_of(n, size):
    return [torch.arange(i, i + size) % n for i in range(0, 10 * size, size)]


def test_sgd_is_the_formula(problem):
    """In the notes: pretrained model."""
    model, x, y, loss_of = problem
    w, b = model.weight.detach().clone()[0], model.bias.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = batches_of(20, 4)
    records = [*train(loss_of, batches, optimizer, steps=10)]
    for record, batch in zip(records, batches, strict=True):
        error = x[batch] @ w + b - y[batch, 0]
        assert record.loss == pytest.approx((error**2).mean().item(), rel=1e-12)
        w = w - 0.1 * 2 * (error[:, None] * x[batch]).mean(dim=0)
        b = b - 0.1 * 2 * error.mean()
    torch.testing.assert_close(model.weight[0], w, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(model.bias, b, rtol=1e-12, atol=1e-14)


def test_adamw_is_the_formula(problem):
    """Kingma and Ba 2014, algorithm 1; the decay is apart (Loshchilov, Hutter 2019).

    In the notes: pretrained model.
    """
    model, x, y, loss_of = problem
    w = model.weight.detach().clone()[0]
    model.bias.requires_grad_(False)
    optimizer = torch.optim.AdamW([model.weight], lr=0.01, weight_decay=0.1)
    batches = batches_of(20, 4)
    for _ in train(loss_of, batches, optimizer, steps=10):
        pass
    first = second = torch.zeros(4).double()
    for t, batch in enumerate(batches, start=1):
        error = x[batch] @ w - y[batch, 0]
        gradient = 2 * (error[:, None] * x[batch]).mean(dim=0)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        step = (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
        w = w - 0.01 * 0.1 * w - 0.01 * step
    torch.testing.assert_close(model.weight[0], w, rtol=1e-10, atol=1e-12)


def test_the_schedule_multiplies_each_group_s_rate_and_gives_it_back(problem):
    model, _, _, loss_of = problem
    groups = [{"params": [model.weight], "lr": 0.4}, {"params": [model.bias]}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    before, taken = copy.deepcopy(model), []
    optimizer.register_step_pre_hook(
        lambda *_: taken.append([group["lr"] for group in optimizer.param_groups])
    )
    steps = train(
        loss_of, batches_of(20, 4), optimizer, steps=3, schedule=lambda s: s / 2
    )
    assert [record.learning_rate for record in steps] == [0, 0.2, 0.4]
    assert taken == [[0, 0], [0.2, 0.05], [0.4, 0.1]]
    assert [group["lr"] for group in optimizer.param_groups] == [0.4, 0.1]
    assert not torch.equal(model.bias, before.bias)


def interrupted():
    raise KeyboardInterrupt


@pytest.mark.parametrize("stop", ["break", "divergence", "interrupt"])
def test_however_it_stops_the_optimizer_has_its_own_rates(problem, stop, monkeypatch):
    model, _, _, loss_of = problem
    groups = [{"params": [model.weight], "lr": 0.4}, {"params": [model.bias]}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    factor = math.nan if stop == "divergence" else 1
    if stop == "interrupt":
        monkeypatch.setattr(optimizer, "step", interrupted)
    expected = {"divergence": Diverged, "interrupt": KeyboardInterrupt}.get(stop)
    steps = train(
        lambda batch: loss_of(batch) * factor,
        batches_of(20, 4),
        optimizer,
        steps=3,
        schedule=lambda s: 0.5,
    )
    with pytest.raises(expected) if expected else contextlib.nullcontext():
        next(steps)
    assert [group["lr"] for group in optimizer.param_groups] == [0.4, 0.1]


def test_a_run_that_goes_on_is_the_run_in_one_piece(problem):
    """Momentum, a schedule, and batches of an order: the tail of both runs is one."""
    model, _, _, loss_of = problem
    begun = copy.deepcopy(model.state_dict())

    def records(optimizer, *, first_step, steps):
        order = minibatches(
            20, batch_size=3, generator=torch.Generator().manual_seed(1)
        )
        settings = {
            "schedule": warmup_cosine(steps=20, warmup_steps=5),
            "tokens_a_step": 12,
        }
        batches = islice(order, first_step, None)
        run = train(
            loss_of, batches, optimizer, steps=20, first_step=first_step, **settings
        )
        return [vars(r) | {"seconds": 0} for r in islice(run, steps)]

    def sgd():
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    whole, end = records(sgd(), first_step=0, steps=20), model.weight.detach().clone()
    model.load_state_dict(begun)
    optimizer = sgd()
    parts = records(optimizer, first_step=0, steps=8)
    parts += records(optimizer, first_step=8, steps=12)
    assert parts == whole
    assert torch.equal(model.weight, end)


def test_tokens_are_counted_from_the_first_step(problem):
    model, _, _, loss_of = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = batches_of(20, 4)
    run = train(loss_of, batches, optimizer, steps=5, first_step=2, tokens_a_step=100)
    found = [(record.step, record.tokens) for record in run]
    assert found == [(2, 300), (3, 400), (4, 500)]
    [record] = train(loss_of, batches, optimizer, steps=1)
    assert record.tokens == 0


def test_a_finished_run_has_nothing_left(problem):
    model, _, _, loss_of = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert [*train(loss_of, count(), optimizer, steps=3, first_step=3)] == []


@pytest.mark.parametrize("first_step", [-1, 4])
def test_the_first_step_is_one_of_the_steps(problem, first_step):
    model, _, _, loss_of = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    message = re.escape(f"first_step must be from 0 to steps (3), got {first_step}")
    with pytest.raises(ValueError, match=message):
        next(train(loss_of, count(), optimizer, steps=3, first_step=first_step))


def test_a_step_at_rate_0_changes_nothing(problem):
    model, _, _, loss_of = problem
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in train(
        loss_of, batches_of(20, 4), optimizer, steps=5, schedule=lambda s: 0
    ):
        pass
    assert torch.equal(model.weight, before)


def test_records(problem):
    model, _, _, loss_of = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    records = [*train(loss_of, batches_of(20, 4), optimizer, steps=4)]
    assert [record.step for record in records] == [0, 1, 2, 3]
    seconds = [record.seconds for record in records]
    assert seconds == sorted(seconds)
    assert 0 < seconds[0] <= seconds[-1] < 60


def test_the_caller_may_stop(problem):
    model, _, _, loss_of = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    drawn = []

    def batches():
        for i in count():
            drawn.append(i)
            yield torch.arange(4)

    for record in train(loss_of, batches(), optimizer, steps=100):
        if record.step == 2:
            break
    assert drawn == [0, 1, 2]


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("at", [1, 5])
def test_a_diverging_loss_keeps_the_last_good_state(problem, wrong, at):
    """Good are the weights of the last finite loss, not those its step led to."""
    model, _, _, loss_of = problem
    model.register_buffer("steps", torch.zeros(1))
    states, losses = [], []

    def failing(step):
        states.append(copy.deepcopy(model.state_dict()))
        model.steps += 1  # as batch norm counts
        loss = loss_of(torch.arange(4)) * (wrong if step == at else 1)
        losses.append(loss.item())
        return loss

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = train(failing, count(), optimizer, steps=9, buffers=model.buffers())
    seen = [next(steps).step for _ in range(at)]
    message = f"the loss became {wrong} at step {at}; "
    with pytest.raises(Diverged, match=message) as info:
        next(steps)
    assert seen == [*range(at)]
    assert (info.value.step, info.value.last_loss) == (at, losses[at - 1])
    for name, tensor in states[at - 1].items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_a_loss_that_is_never_finite(problem):
    model, _, _, loss_of = problem
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(Diverged, match="there was no finite loss before it"):
        next(train(lambda _: loss_of([0]) * math.nan, count(), optimizer, steps=3))
    assert torch.equal(model.weight, before)


def test_a_learning_rate_that_is_too_large_is_named(problem):
    model, _, _, loss_of = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=1e100)
    with pytest.raises(Diverged, match="A smaller learning rate is the usual remedy"):
        list(train(loss_of, repeat(torch.arange(20)), optimizer, steps=9))
    assert loss_of(torch.arange(20)).isfinite()


def test_steps_must_be_some(problem):
    model, _, _, loss_of = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        next(train(loss_of, count(), optimizer, steps=0))


def test_warmup_then_cosine():
    rate = warmup_cosine(steps=10, warmup_steps=4)
    assert [rate(step) for step in range(5)] == [0.2, 0.4, 0.6, 0.8, 1.0]
    expected = [(1 + math.cos(math.pi * i / 6)) / 2 for i in range(7)]
    assert [rate(step) for step in range(4, 11)] == pytest.approx(expected)
    assert rate(7) == pytest.approx(0.5)
    assert rate(99) == rate(10) == 0
    assert warmup_cosine(steps=3, warmup_steps=0)(0) == 1
    assert [warmup_cosine(steps=2, warmup_steps=2)(i) for i in (0, 1)] == [1 / 3, 2 / 3]


@pytest.mark.parametrize("warmup", [-1, 11])
def test_warmup_within_the_steps(warmup):
    message = re.escape(f"warmup_steps must be from 0 to steps (10), got {warmup}")
    with pytest.raises(ValueError, match=message):
        warmup_cosine(steps=10, warmup_steps=warmup)


def test_an_epoch_holds_every_example_once(rng):
    batches = [*islice(minibatches(12, batch_size=4, generator=rng), 6)]
    epochs = [torch.cat(batches[:3]), torch.cat(batches[3:])]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == [*range(12)]
    assert not torch.equal(*epochs)


def test_what_is_left_of_an_epoch_waits_for_the_next(rng):
    batches = [*islice(minibatches(10, batch_size=4, generator=rng), 40)]
    assert {len(batch) for batch in batches} == {4}
    for a, b in zip(batches[::2], batches[1::2], strict=True):
        assert len({*a.tolist(), *b.tolist()}) == 8
    # An example is left out of all 20 epochs with probability (1/5)^20
    assert {int(i) for batch in batches for i in batch} == {*range(10)}


def test_few_examples_make_one_batch(rng):
    [batch] = islice(minibatches(3, batch_size=4, generator=rng), 1)
    assert sorted(batch.tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("n", "batch_size", "message"),
    [(0, 4, "n must be at least 1"), (4, 0, "batch_size must be at least 1, got 0")],
)
def test_wrong_batches(rng, n, batch_size, message):
    with pytest.raises(ValueError, match=message):
        next(minibatches(n, batch_size=batch_size, generator=rng))
