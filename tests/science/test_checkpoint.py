"""Runs that are stopped: what they left, and that they go on bit for bit.

As a program, `python test_checkpoint.py PATH` is a run that waits in the middle of step
`STOP` for whatever stops it.
"""

import os
import random
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fmkit import checkpoint
from fmkit._check import Refused
from fmkit.checkpoint import CheckpointError, load_checkpoint, resume, save_checkpoint
from fmkit.models.transformer import Transformer, TransformerConfig
from fmkit.train import minibatches, train, warmup_cosine

STEPS, EVERY, STOP = 12, 3, 7  # so that step 5 is the last one that is kept
CONFIG = TransformerConfig(
    vocabulary=11, context=8, width=8, layers=1, heads=2, kv_heads=1, hidden=8
)


def new_run():
    """A model, its optimizer and what its windows are drawn from."""
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    weights = [p for p in model.parameters() if p.dim() == 2]
    norms = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": weights}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.02)
    generators = {"windows": torch.Generator().manual_seed(1)}
    return {"model": model, "optimizer": optimizer, "generators": generators}


def go_on(run, path=None, *, first_step=0, before_step=lambda step: None):
    """Train on random windows of a text, and keep a checkpoint: the losses."""
    text = torch.arange(60) ** 2 % CONFIG.vocabulary
    step = first_step

    def windows():
        while True:
            starts = torch.randint(52, (4,), generator=run["generators"]["windows"])
            yield text[starts[:, None] + torch.arange(8)]

    def loss_of(x):
        before_step(step)
        return F.cross_entropy(
            run["model"](x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()
        )

    losses = []
    for record in train(
        loss_of,
        windows(),
        run["optimizer"],
        modules=[run["model"]],
        steps=STEPS,
        first_step=first_step,
        schedule=warmup_cosine(0.25),
    ):
        step = record.step + 1
        losses.append(record.loss)
        if path and step % EVERY == 0:
            save_checkpoint(path, step=record.step, **run)
    return losses


def numbers(run):
    """Every tensor of a run by its name."""
    state = run["optimizer"].state_dict()["state"]
    moments = {f"{i} {n}": t for i, slot in state.items() for n, t in slot.items()}
    states = {name: g.get_state() for name, g in run["generators"].items()}
    return {**run["model"].state_dict(), **moments, **states}


def assert_same(a, b):
    a, b = numbers(a), numbers(b)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.fixture(scope="module")
def whole():
    """The run in one piece, and its losses."""
    run = new_run()
    return run, go_on(run)


@pytest.fixture
def kept(tmp_path):
    """The checkpoint of a run's end."""
    go_on(run := new_run(), tmp_path / "run.pt")
    return tmp_path / "run.pt", run


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(tmp_path, whole, stop):
    path = tmp_path / "of" / "run.pt"
    command = [sys.executable, __file__, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"7\n"
        process.send_signal(stop)
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert (b"KeyboardInterrupt" in errors) == (stop == signal.SIGINT)
    run = new_run()
    first_step = load_checkpoint(path, **run)
    assert first_step == 6
    losses = go_on(run, path, first_step=first_step)
    finished, expected = whole
    assert losses == expected[6:]
    assert_same(run, finished)
    assert load_checkpoint(path, **new_run()) == STEPS
    assert [p.name for p in path.parent.iterdir()] == ["run.pt"]


def test_a_run_that_keeps_checkpoints_is_the_run_without(kept, whole):
    assert_same(kept[1], whole[0])


def test_what_is_loaded_is_what_was_saved(kept):
    path, run = kept
    loaded = new_run()
    assert load_checkpoint(path, **loaded) == STEPS
    assert_same(loaded, run)
    rates = [group["lr"] for group in loaded["optimizer"].param_groups]
    assert rates == [0.02, 0.02]  # the schedule is at its last step


def test_batches_of_an_order_go_on_without_a_state(rng):
    batches = [*islice(minibatches(10, batch_size=3, generator=rng), 20)]
    again = minibatches(10, batch_size=3, generator=torch.Generator().manual_seed(0))
    rest = [*islice(islice(again, 7, None), 13)]
    assert all(torch.equal(a, b) for a, b in zip(rest, batches[7:], strict=True))


def test_dropout_goes_on_too(tmp_path):
    model = nn.Linear(3, 3)
    run = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "generators": {"global": torch.default_generator},
    }
    torch.manual_seed(3)
    F.dropout(torch.ones(50))
    save_checkpoint(tmp_path / "run.pt", step=0, **run)
    expected = F.dropout(torch.ones(50))
    torch.manual_seed(99)
    load_checkpoint(tmp_path / "run.pt", **run)
    assert torch.equal(F.dropout(torch.ones(50)), expected)


def test_an_interrupt_while_writing_leaves_the_last_one(kept, monkeypatch):
    path, run = kept
    before = path.read_bytes()

    def half(saved, file):
        file.write(before[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, step=99, **run)
    assert path.read_bytes() == before
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("width", [8, 200])  # torch has words of its own for the second
def test_a_full_disk_leaves_the_last_one(tmp_path, width):
    from support.processes import no_file_above  # which a program does not find

    path, model = tmp_path / "run.pt", nn.Linear(width, width)
    run = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    run["generators"] = {}
    save_checkpoint(path, step=98, **run)
    before = path.read_bytes()
    with no_file_above(1000), pytest.raises(Refused, match=r"run\.pt .*File too large"):
        save_checkpoint(path, step=99, **run)
    assert path.read_bytes() == before
    assert [*path.parent.iterdir()] == [path]


# Runs that go on by themselves


def resumed(path, *, steps=8, until=8, settings=None, fused=None):
    """Train a model on noise, which `until` may stop: losses, squares, weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    noise = torch.Generator().manual_seed(1)

    def loss_of(batch):
        x = data[batch] + torch.randn(5, 4, generator=noise)
        return F.softplus(model(x)).mean()

    data = torch.randn(20, 4, generator=torch.Generator().manual_seed(2))
    order = torch.Generator().manual_seed(3)
    batches = minibatches(20, batch_size=5, generator=order)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    losses, squares = [], {}
    options = {"model": model, "generators": {"noise": noise}, "steps": steps}
    options |= {"notes": {"losses": losses, "squares": squares}, "settings": settings}
    records = resume(path, loss_of, batches, optimizer, **options)
    taken = []
    for record in records:
        taken.append(record)
        losses.append(record.loss)
        squares[record.step] = (record.loss_tensor.square(), "of a loss")
        if len(losses) == until:
            break
    return losses, squares, model.state_dict(), taken


@pytest.fixture
def every_step(monkeypatch):
    """A checkpoint after each step."""
    monkeypatch.setattr(checkpoint, "SECONDS", 0)


@pytest.mark.parametrize("until", [2, 5, 7, 8])
def test_a_run_goes_on_by_itself(tmp_path, every_step, until):
    path = tmp_path / "kept" / "run.pt"
    *first, taken = resumed(path, until=until)
    whole = resumed(None)
    assert whole[0][:until] == first[0]
    saved = taken[min(until - 2, 6)].seconds
    *second, taken = resumed(path)
    assert second[0] == whole[0]
    assert all(torch.equal(second[2][name], x) for name, x in whole[2].items())
    assert second[1] == whole[1]
    assert [record.step for record in taken] == [*range(min(until - 1, 7), 8)]
    assert all(record.seconds > saved for record in taken)


def test_a_run_at_its_end_takes_its_last_step_again(tmp_path):
    first, *others = (resumed(tmp_path / "run.pt", until=None) for _ in range(3))
    for again in others:
        assert again[0] == first[0]
        assert [record.step for record in again[3]] == [7]


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resumed(None)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": 0.1, "seed": 1}, r"its seed is 0, not 1\."),
        ({"tau": 0.1}, r"its seed is 0, not None\."),
        ({"tau": 0.1, "seed": 0, "head": True}, r"its head is None, not True\."),
    ],
)
def test_other_settings(tmp_path, settings, message):
    resumed(tmp_path / "run.pt", settings={"tau": 0.1, "seed": 0})
    resumed(tmp_path / "run.pt", settings={"tau": 0.1, "seed": 0})
    with pytest.raises(CheckpointError, match=rf"run\.pt is of another run: {message}"):
        resumed(tmp_path / "run.pt", settings=settings)


def test_a_fused_optimizer_goes_on_where_another_stopped(tmp_path, every_step):
    resumed(tmp_path / "run.pt", until=5, fused=True)
    losses = resumed(tmp_path / "run.pt", fused=False)[0]
    torch.testing.assert_close(losses, resumed(None)[0])
    saved, run = new_run(), new_run()
    saved["optimizer"].param_groups[0]["fused"] = True  # as on a GPU
    save_checkpoint(tmp_path / "other.pt", step=0, **saved)
    load_checkpoint(tmp_path / "other.pt", **run)
    assert run["optimizer"].param_groups[0]["fused"] is None


def test_how_often_a_run_is_saved():
    assert checkpoint._next_interval(1, 0.001) == 10  # the first steps say little
    assert checkpoint._next_interval(10, 1.0) == 100
    assert checkpoint._next_interval(100, 10.0) == 600  # a minute
    assert checkpoint._next_interval(600, 120.0) == 300
    assert checkpoint._next_interval(1, 200.0) == 1


# Files that are something else


def refused_unchanged(path, run, message):
    """Check that loading raises one sentence, and changes nothing."""
    before = {name: tensor.clone() for name, tensor in numbers(run).items()}
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path, **run)
    after = numbers(run)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_no_file(tmp_path):
    refused_unchanged(tmp_path / "run.pt", new_run(), r"run\.pt is missing")


def test_damaged_files(kept):
    """Cut at any place, and with any bit of a tensor turned."""
    path, _ = kept
    whole, run = path.read_bytes(), new_run()
    places = random.Random(0)
    message = r"run\.pt is missing, damaged or no checkpoint\."
    for size in (0, 1, *places.choices(range(len(whole)), k=20), len(whole) - 1):
        path.write_bytes(whole[:size])
        refused_unchanged(path, run, message)
    path.write_bytes(whole)
    load_checkpoint(path, **run)
    block = run["model"].state_dict()["embedding.weight"].numpy().tobytes()
    start = whole.index(block)
    for _ in range(20):
        turned = bytearray(whole)
        turned[start + places.randrange(len(block))] ^= 1 << places.randrange(8)
        path.write_bytes(turned)
        refused_unchanged(path, run, message)


class Outsider:
    """Makes a folder if it is unpickled without care."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_other_files_of_torch(tmp_path):
    folder = tmp_path / "made"
    for content in ({"weight": torch.zeros(2)}, [1], Outsider(str(folder))):
        torch.save(content, tmp_path / "run.pt")
        refused_unchanged(tmp_path / "run.pt", new_run(), "damaged or no checkpoint")
    assert not folder.exists()


def run_of(model, optimizer_of=None, **generators):
    """A run of any model, after a step, so that the optimizer has a state to lose."""
    optimizer_of = optimizer_of or (
        lambda m: torch.optim.AdamW(m.parameters(), lr=0.02)
    )
    optimizer = optimizer_of(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    generators = generators or {"windows": torch.Generator()}
    return {"model": model, "optimizer": optimizer, "generators": generators}


class Elsewhere(torch.Generator):
    """A generator of another kind of device: that of a GPU has 16 bytes of state."""

    def get_state(self):
        return torch.zeros(16, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("other", "part"),
    [
        (lambda: run_of(nn.Linear(3, 2)), "model"),
        (lambda: run_of(nn.Linear(3, 4).double()), "model"),
        (lambda: run_of(nn.Linear(3, 4, bias=False)), "model"),
        (lambda: run_of(nn.Sequential(nn.Linear(3, 4))), "model"),
        (
            lambda: run_of(
                nn.Linear(3, 4), lambda m: torch.optim.AdamW(m.parameters(), lr=0.1)
            ),
            "optimizer",
        ),
        (
            lambda: run_of(
                nn.Linear(3, 4), lambda m: torch.optim.SGD(m.parameters(), lr=0.02)
            ),
            "optimizer",
        ),
        (
            lambda: run_of(
                nn.Linear(3, 4), lambda m: torch.optim.AdamW([m.weight], lr=0.02)
            ),
            "optimizer",
        ),
        (
            lambda: run_of(
                nn.Linear(3, 4),
                lambda m: torch.optim.AdamW([m.bias, m.weight], lr=0.02),
            ),
            "optimizer",
        ),
        (
            lambda: run_of(
                nn.Linear(3, 4), windows=torch.Generator(), views=torch.Generator()
            ),
            "generators",
        ),
        (lambda: run_of(nn.Linear(3, 4), windows=Elsewhere()), "generators"),
    ],
)
def test_another_run(tmp_path, other, part):
    path = tmp_path / "run.pt"
    save_checkpoint(path, step=0, **run_of(nn.Linear(3, 4)))
    refused_unchanged(
        path, other(), rf"run\.pt is of another run: its {part} differs\."
    )


def test_what_cannot_be_saved(tmp_path):
    run = run_of(nn.Linear(3, 4))
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        save_checkpoint(tmp_path / "run.pt", step=-1, **run)
    run["model"] = nn.Linear(3, 4)
    message = "optimizer must hold parameters of the model only, got '2 others'"
    with pytest.raises(ValueError, match=message):
        save_checkpoint(tmp_path / "run.pt", step=0, **run)
    assert [*tmp_path.iterdir()] == []


def wait_at(step):
    if step == STOP:
        print(step, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    # A shell ignores it for what it runs in the background, children too
    signal.signal(signal.SIGINT, signal.default_int_handler)
    go_on(new_run(), Path(sys.argv[1]), before_step=wait_at)
