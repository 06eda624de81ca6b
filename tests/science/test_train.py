"""The training loop, compared with the same steps by hand."""

import contextlib
import copy
import math
from itertools import count, islice, repeat

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

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
    records = [*train(loss_of, batches, optimizer, modules=[model], steps=10)]
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
    for _ in train(loss_of, batches, optimizer, modules=[model], steps=10):
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
    options = {"steps": 3, "schedule": lambda step, steps: 1.5 * step / steps}
    steps = train(loss_of, batches_of(20, 4), optimizer, modules=[model], **options)
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
        modules=[model],
        steps=3,
        schedule=lambda step, steps: 0.5,
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
        settings = {"schedule": warmup_cosine(0.25), "tokens_a_step": 12}
        settings |= {"modules": [model], "steps": 20, "first_step": first_step}
        batches = islice(order, first_step, None)
        run = train(loss_of, batches, optimizer, **settings)
        assert len(run) == 20 - first_step
        return [(r.step, r.loss, r.learning_rate, r.tokens) for r in islice(run, steps)]

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
    options = {"modules": [model], "steps": 5, "first_step": 2, "tokens_a_step": 100}
    run = train(loss_of, batches, optimizer, **options)
    counts = [(record.step, record.tokens) for record in run]
    assert counts == [(2, 300), (3, 400), (4, 500)]
    [record] = train(loss_of, batches, optimizer, modules=[model], steps=1)
    assert record.tokens == 0


def test_a_finished_run_has_nothing_left(problem):
    model, _, _, loss_of = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"modules": [model], "steps": 3, "first_step": 3}
    assert [*train(loss_of, count(), optimizer, **options)] == []


@pytest.mark.parametrize("first_step", [-1, 4])
def test_the_first_step_is_one_of_the_steps(problem, first_step):
    model, _, _, loss_of = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"modules": [model], "steps": 3, "first_step": first_step}
    with pytest.raises(ValueError, match=rf"first_step .* \(3\), got {first_step}"):
        train(loss_of, count(), optimizer, **options)


def test_a_step_at_rate_0_changes_nothing(problem):
    model, _, _, loss_of = problem
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    options = {"steps": 5, "schedule": lambda step, steps: 0}
    for _ in train(loss_of, batches_of(20, 4), optimizer, modules=[model], **options):
        pass
    assert torch.equal(model.weight, before)


def test_records(problem):
    model, _, _, loss_of = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = train(loss_of, batches_of(20, 4), optimizer, modules=[model], steps=4)
    assert len(run) == 4
    records = [*run]
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

    for record in train(loss_of, batches(), optimizer, modules=[model], steps=100):
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
    steps = train(failing, count(), optimizer, modules=[model], steps=9)
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
        next(
            train(
                lambda _: loss_of([0]) * math.nan,
                count(),
                optimizer,
                modules=[model],
                steps=3,
            )
        )
    assert torch.equal(model.weight, before)


def test_a_learning_rate_that_is_too_large_is_named(problem):
    model, _, _, loss_of = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=1e100)
    batches = repeat(torch.arange(20))
    with pytest.raises(Diverged, match="A smaller learning rate is the usual remedy"):
        list(train(loss_of, batches, optimizer, modules=[model], steps=9))
    assert loss_of(torch.arange(20)).isfinite()


def test_steps_must_be_some(problem):
    model, _, _, loss_of = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        train(loss_of, count(), optimizer, modules=[model], steps=0)


def test_modules_hold_all_that_is_trained(problem):
    model, _, _, loss_of = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    message = "modules must hold all parameters of the optimizer, got '2 .* outside'"
    with pytest.raises(ValueError, match=message):
        train(loss_of, count(), optimizer, modules=[nn.Linear(1, 1)], steps=1)


@pytest.mark.parametrize("first_step", [0, 2])
def test_batches_that_end_early_are_an_error(problem, first_step):
    model, _, _, loss_of = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"modules": [model], "steps": 10, "first_step": first_step}
    run = train(loss_of, batches_of(20, 4)[:3], optimizer, **options)
    for _ in range(3):
        next(run)
    message = f"batches must last for 10 steps, .* before step {first_step + 3}"
    with pytest.raises(ValueError, match=message):
        next(run)


# The device decides: what is not asked at every step


def normalized(seed=0):
    """A model with batch norm, whose buffers change in every forward pass."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))


def trained_until(model, *, bad_step, wrong=math.nan, stop=None, steps=60, add=False):
    """The losses of the records that come, the error, and all states on the way.

    The loss of the bad step is multiplied by `wrong`, which also spoils the weights,
    or with `add` increased by it, which leaves its gradient finite.
    """
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    states = []

    def loss_of(step):
        states.append(copy.deepcopy(model.state_dict()))
        loss = (model(x) - x[:, :1]).square().mean()
        if step == bad_step:
            loss = loss + wrong if add else loss * wrong
        return loss

    losses, error = [], None
    run = train(loss_of, count(), optimizer, modules=[model], steps=steps)
    try:
        for record in run:
            losses.append(record.loss)
            if record.step == stop:
                break
    except Diverged as caught:
        error = caught
    return losses, error, states


def assert_state(model, state):
    wrong = [n for n, x in model.state_dict().items() if not torch.equal(x, state[n])]
    assert wrong == []


@pytest.mark.parametrize("wrong", [math.nan, -math.inf])
@pytest.mark.parametrize("bad_step", [0, 1, 13, 19, 20, 39, 59])
def test_asked_every_20th_step_it_keeps_the_same_promise(monkeypatch, bad_step, wrong):
    """Same state, bit for bit; same step, losses and error as asked every step."""
    every_step = normalized()
    options = {"bad_step": bad_step, "wrong": wrong}
    losses, error, states = trained_until(every_step, **options)
    monkeypatch.setattr("fmkit.runtime.look_every", lambda device: 20)
    rarely = normalized()
    later, same, _ = trained_until(rarely, **options)
    assert (error.step, str(error)) == (same.step, str(same))
    assert error.step == bad_step
    assert error.last_loss == same.last_loss == (losses[-1] if losses else None)
    assert later[:bad_step] == losses
    assert len(later) == bad_step // 20 * 20 + 19  # the look raises at the 20th step
    assert not any(map(math.isfinite, later[bad_step:]))
    assert_state(rarely, every_step.state_dict())
    if bad_step:
        good = states[bad_step - 1]
        assert_state(rarely, good)
        assert good["1.num_batches_tracked"] == bad_step - 1


def test_one_bad_loss_among_good_ones_is_not_forgotten(monkeypatch):
    """Its gradient is finite, so are all losses after it: still it is an error."""
    monkeypatch.setattr("fmkit.runtime.look_every", lambda device: 20)
    losses, error, states = trained_until(model := normalized(), bad_step=5, add=True)
    assert math.isfinite(losses[-1])
    assert (error.step, error.last_loss) == (5, losses[4])
    assert_state(model, states[4])


def test_without_a_bad_loss_both_are_one_run(monkeypatch):
    every_step, rarely = normalized(), normalized()
    losses, _, _ = trained_until(every_step, bad_step=None, steps=25)
    monkeypatch.setattr("fmkit.runtime.look_every", lambda device: 20)
    same, error, _ = trained_until(rarely, bad_step=None, steps=25)
    assert (same, error) == (losses, None)
    assert_state(rarely, every_step.state_dict())


def test_the_last_step_is_asked_too(monkeypatch):
    monkeypatch.setattr("fmkit.runtime.look_every", lambda device: 20)
    _, error, states = trained_until(model := normalized(), bad_step=5, steps=9)
    assert error.step == 5
    assert_state(model, states[4])


def test_a_caller_who_stops_between_two_looks_has_the_good_state(monkeypatch):
    monkeypatch.setattr("fmkit.runtime.look_every", lambda device: 20)
    losses, error, states = trained_until(model := normalized(), bad_step=5, stop=8)
    assert len(losses) == 9
    assert error is None
    assert_state(model, states[4])


def test_the_host_looks_every_20th_step_on_a_gpu_and_a_loss_is_read_when_asked(
    monkeypatch, problem
):
    """Counted: how often a number leaves its device."""
    model, _, _, loss_of = problem
    monkeypatch.setattr("fmkit.runtime.look_every", lambda device: 20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    read = []
    with Watching(torch.ops.aten._local_scalar_dense.default, read):
        records = [
            *train(
                loss_of,
                repeat(torch.arange(8)),
                optimizer,
                modules=[model],
                steps=100,
            )
        ]
        assert len(read) == 5 + 1  # the looks, and one at the end
        assert records[7].loss > 0
        assert len(read) == 7


def test_each_step_overwrites_one_kept_copy():
    """No clone after the first step; 20 steps allocate as one does."""
    model = normalized()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(20, 4)
    options = {"modules": [model], "steps": 20}
    run = train(lambda _: model(x).square().mean(), count(), optimizer, **options)
    kept, copied = [], []
    with Watching(torch.ops.aten.clone.default, kept):
        next(run)
    tensors = len([*model.parameters()]) + 2 * len([*model.buffers()])
    assert len(kept) == tensors
    with (
        Watching(torch.ops.aten.clone.default, kept),
        Watching(torch.ops.aten._foreach_copy_.default, copied),
    ):
        assert len([*run]) == 19
    assert len(kept) == tensors
    assert len({tuple(x.data_ptr() for x in call[0]) for call in copied}) == 2


class Watching(TorchDispatchMode):
    """Keep the arguments of every call of one operator of torch."""

    def __init__(self, operator, calls):
        super().__init__()
        self.operator, self.calls = operator, calls

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is self.operator:
            self.calls.append(args)
        return func(*args, **(kwargs or {}))


def test_processes_agree_that_a_loss_is_not_finite(problem):
    """Another process has a NaN at step 3: this one stops there too."""
    model, _, _, loss_of = problem
    flags, states = [], []

    def agree(finite):
        flags.append(bool(finite))
        states.append(model.weight.detach().clone())
        return finite & torch.tensor(len(flags) != 4)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = train(
        loss_of,
        batches_of(20, 4),
        optimizer,
        modules=[model],
        steps=9,
        agree=agree,
    )
    with pytest.raises(Diverged, match="at step 3"):
        list(run)
    assert flags == [True] * 4
    assert torch.equal(model.weight, states[2])


def test_warmup_then_cosine():
    rate = warmup_cosine(0.4)
    assert [rate(step, 10) for step in range(5)] == [0.2, 0.4, 0.6, 0.8, 1.0]
    expected = [(1 + math.cos(math.pi * i / 6)) / 2 for i in range(7)]
    assert [rate(step, 10) for step in range(4, 11)] == pytest.approx(expected)
    assert rate(7, 10) == pytest.approx(0.5)
    assert rate(99, 10) == rate(10, 10) == 0
    assert warmup_cosine()(0, 3) == 1
    assert [warmup_cosine(1.0)(i, 2) for i in (0, 1)] == [1 / 3, 2 / 3]


@pytest.mark.parametrize(("share", "part"), [(0.1, 10), (0.05, 20)])
def test_a_share_of_the_steps_is_a_whole_number_of_them(share, part):
    """Rounding of the share never loses a step of the warm-up."""
    rate = warmup_cosine(share)
    for steps in range(1, 5000):
        assert rate(0, steps) == (1 / (steps // part + 1) if steps >= part else 1)


@pytest.mark.parametrize("warmup", [-0.1, 1.1])
def test_warmup_within_the_steps(warmup):
    with pytest.raises(ValueError, match=f"warmup must be from 0 to 1, got {warmup}"):
        warmup_cosine(warmup)


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
