"""Several processes that train together are one process, to 12 digits.

As a program, ``python test_ranks.py RANK W FOLDER`` is one of W processes: it computes
every case and every part of the interrupted runs. The processes meet through a file,
not a port, have one thread each, and may be as slow as a loaded machine makes them.
``torchrun test_ranks.py FOLDER`` loses a process in the middle of a step.
"""

import os
import re
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fmkit import checkpoint, ranks
from fmkit._check import Refused
from fmkit.augment import ViewConfig, mask_tokens, two_views
from fmkit.checkpoint import resume
from fmkit.data.tokens import windows
from fmkit.lora import with_low_rank
from fmkit.losses import (
    masked_token_loss,
    next_token_loss,
    nt_xent_loss,
    simclr_loss,
    supcon_loss,
)
from fmkit.models.resnet import ResNet, ResNetConfig
from fmkit.models.transformer import Transformer, TransformerConfig
from fmkit.train import Diverged, minibatches, train

B, STEPS = 12, 4
ENOUGH = 300  # seconds, for a process on a loaded machine
VIEWS = ViewConfig(size=12, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
SHAPE = {"vocabulary": 23, "context": 8, "width": 16, "layers": 2, "hidden": 16}
CONFIG = TransformerConfig(**SHAPE, heads=2, kv_heads=1)
LOSSES = {
    "nt_xent": lambda a, b, y: nt_xent_loss(a, b, tau=0.2),
    "simclr": lambda a, b, y: simclr_loss(a, b) / B,
    "supcon": lambda a, b, y: supcon_loss(torch.cat([a, b]), y.repeat(2), tau=0.2),
}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def state_of(model, optimizer):
    """Every number of a run, by name: weights, statistics, momenta."""
    names = dict(enumerate(n for n, p in model.named_parameters() if p.requires_grad))
    state = {name: ranks.whole(x) for name, x in model.state_dict().items()}
    for i, slots in optimizer.state_dict()["state"].items():
        slots = {n: ranks.whole(x) for n, x in slots.items() if torch.is_tensor(x)}
        state |= {f"{names[i]} {name}": x for name, x in slots.items()}
    return state


def steps_of(loss_of, batches, optimizer, model):
    """The losses of some steps and the state after them."""
    options = {"modules": [model], "steps": STEPS, "agree": ranks.agree}
    losses = [r.loss for r in train(loss_of, batches, optimizer, **options)]
    return losses, state_of(model, optimizer)


def pairs(loss, *, gathered=ranks.gathered, local=False):
    """Contrastive pretraining of a small network with batch norm."""
    torch.manual_seed(0)
    phi = ResNet(ResNetConfig(3, (8, 16), (1, 1), 1))
    model = nn.Sequential(phi, nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)).double()
    network = ranks.replicated(model)
    if local and ranks.size() > 1:
        for layer in network.modules():
            if isinstance(layer, ranks._GlobalBatchNorm):
                layer.__class__ = nn.BatchNorm2d
    images = torch.randint(256, (40, 3, 12, 12), generator=generator(1)).byte()
    labels, drawn = torch.randint(3, (40,), generator=generator(2)), generator(3)

    def loss_of(batch):
        mine = ranks.part(len(batch))
        views = two_views(images[batch], VIEWS, generator=drawn, rows=mine)
        a, b = (gathered(z) for z in network(views.double()).chunk(2))
        y = labels[batch] if len(a) == len(batch) else labels[batch][mine]
        return LOSSES[loss](a, b, y)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    batches = minibatches(40, batch_size=B, generator=generator(4))
    return steps_of(loss_of, batches, optimizer, model)


TEXT = torch.randint(23, (300,), generator=generator(5))


def causal_run(divide):
    """A causal model on random windows, as `resume` takes it."""
    torch.manual_seed(0)
    model = Transformer(CONFIG).double()
    network = divide(model)

    def loss_of(x):
        x = ranks.rows(x)
        return ranks.mean(next_token_loss(network(x[:, :-1]), x[:, 1:]))

    batches = windows(TEXT, context=8, batch_size=B, generator=generator(6))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return loss_of, batches, optimizer, model


def causal(divide):
    return steps_of(*causal_run(divide))


def masked():
    """A masked model: processes have different numbers of hidden tokens."""
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(**SHAPE, heads=2, kv_heads=1, causal=False))
    network, hiding = ranks.replicated(model.double()), generator(7)

    def loss_of(x):
        hidden = mask_tokens(x[:, 1:], share=0.2, mask=22, generator=hiding)
        seen, masked, x = (ranks.rows(part) for part in (*hidden, x[:, 1:]))
        loss = masked_token_loss(network(seen), x, masked)
        return ranks.mean(loss, weight=masked.sum())

    batches = windows(TEXT, context=8, batch_size=B, generator=generator(6))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return steps_of(loss_of, batches, optimizer, model)


def low_rank():
    """Low-rank updates of a frozen model."""
    torch.manual_seed(0)
    model = with_low_rank(Transformer(CONFIG), ["qkv", "out"], rank=2, alpha=4.0)
    network = ranks.replicated(model.double())

    def loss_of(x):
        x = ranks.rows(x)
        return ranks.mean(next_token_loss(network(x[:, :-1]), x[:, 1:]))

    batches = windows(TEXT, context=8, batch_size=B, generator=generator(6))
    trained = [p for p in model.parameters() if p.requires_grad]
    return steps_of(loss_of, batches, torch.optim.AdamW(trained, lr=0.1), model)


def called_in_parts():
    """A divided model whose methods are called without `forward`."""
    _, batches, optimizer, model = causal_run(ranks.sharded)

    def by_methods(x):
        x = ranks.rows(x)
        u = model.logits(model.contextualize(model.embed(x[:, :-1])))
        return ranks.mean(next_token_loss(u, x[:, 1:]))

    return steps_of(by_methods, batches, optimizer, model)


CASES = {
    **{loss: (lambda loss=loss: pairs(loss)) for loss in LOSSES},
    "causal, replicated": lambda: causal(ranks.replicated),
    "causal, sharded": lambda: causal(ranks.sharded),
    "causal, sharded, in parts": called_in_parts,
    "masked": masked,
    "low rank": low_rank,
}


# Peers' bugs


class OwnSlice(ranks._Gathered):
    """The gradient of the own loss alone: lightly before its pull request 1531."""

    @staticmethod
    def backward(ctx, gradient):
        return ranks.rows(gradient)


def without_gradient(x):
    """A gather that only the own rows get a gradient through: Bolts 179."""
    every = ranks.gathered(x.detach())
    mine = ranks.part(len(every))
    return torch.cat([every[: mine.start], x, every[mine.stop :]])


BUGS = {
    "own slice": lambda: pairs("nt_xent", gathered=OwnSlice.apply),
    "no gradient": lambda: pairs("nt_xent", gathered=without_gradient),
    "no gather": lambda: pairs("nt_xent", gathered=lambda x: x),
    "local batch norm": lambda: pairs("nt_xent", local=True),
}


# Runs that another number of processes goes on with


DIVIDED = {"replicated": ranks.replicated, "sharded": ranks.sharded}
LAST = {2: 3, 3: 6, 1: 9}  # the number of processes, and where their part ends
SETTINGS = {"seed": 0, "tau": 0.1}


def go_on(path, divide, *, until=9, settings=SETTINGS, in_step=lambda step: None):
    """Train to a step and stop as if interrupted: the losses so far and the state."""
    of_batch, batches, optimizer, model = causal_run(divide)
    losses, last = [], {}

    def loss_of(x):
        loss = of_batch(x)
        in_step(len(losses))
        return loss

    notes = {"losses": losses, "last": last}
    options = {"model": model, "generators": {}, "steps": 9, "settings": settings}
    for record in resume(path, loss_of, batches, optimizer, **options, notes=notes):
        losses.append(record.loss)
        last[record.step] = record.loss_tensor
        if len(losses) == until:
            break
    return losses, state_of(model, optimizer)


def outcome_of(function):
    """The sentence of a refusal, and what a function returns otherwise."""
    try:
        return function()
    except (Refused, Diverged) as error:
        return f"{type(error).__name__}: {error}"


def one_bad_loss():
    """The loss of one process alone is not finite: at which step they all stop."""
    model = nn.Linear(2, 1)

    def loss_of(step):
        bad = step == 2 and ranks.rank() == ranks.size() - 1
        return model.weight.sum() * (float("nan") if bad else 1.0)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"modules": [model], "steps": 4, "agree": ranks.agree}
    for _ in train(loss_of, iter(range(4)), optimizer, **options):
        pass


def other_settings(folder):
    go_on(folder / "replicated.pt", ranks.replicated, settings={**SETTINGS, "tau": 0.2})


def work(folder):
    """All that the processes of this W compute, by name."""
    W = ranks.size()
    found = {name: case() for name, case in CASES.items()}
    if W > 1:
        found |= {name: bug() for name, bug in BUGS.items()}
    checkpoint.SECONDS = 0  # a checkpoint after every step
    for name, divide in DIVIDED.items():
        found[f"resumed {name}"] = go_on(folder / f"{name}.pt", divide, until=LAST[W])
    found["refused"] = outcome_of(lambda: other_settings(folder))
    found["indivisible"] = outcome_of(lambda: ranks.rows(torch.zeros(7)))
    found["bad loss"] = outcome_of(one_bad_loss)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What 2, 3 and then 1 processes compute, each by its name."""
    folder = tmp_path_factory.mktemp("ranks")
    found = {}
    for W in (2, 3):
        command = [sys.executable, __file__]
        started = [
            subprocess.Popen([*command, str(rank), str(W), str(folder)], env=alone())
            for rank in range(W)
        ]
        try:
            assert [process.wait(timeout=ENOUGH) for process in started] == [0] * W
        finally:
            for process in started:
                process.kill()
        found[W] = torch.load(folder / f"found{W}", weights_only=False)
    found[1] = work(folder)
    return found


def alone():
    """The environment of a process with one thread and without a launcher."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return os.environ | threads


def distance(a, b):
    """The largest relative difference of two results: of losses, and of any tensor."""
    (losses, state), (other_losses, other_state) = a, b
    assert state.keys() == other_state.keys()
    gaps = [abs(x - y) / abs(y) for x, y in zip(losses, other_losses, strict=True)]
    for name, x in state.items():
        x, y = x.double(), other_state[name].double()
        gaps.append(((x - y).norm() / y.norm().clamp(min=1e-300)).item())
    return max(gaps)


@pytest.mark.parametrize("W", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_processes_compute_what_one_computes(found, case, W):
    assert distance(found[W][case], found[1][case]) < 1e-12


@pytest.mark.parametrize("bug", BUGS)
def test_bugs_of_peers_are_seen(found, bug):
    for W in (2, 3):
        assert distance(found[W][bug], found[1]["nt_xent"]) > 1e-3


@pytest.mark.parametrize("kind", DIVIDED)
def test_another_number_of_processes_goes_on(found, kind):
    """2 processes, then 3, then 1: as if one had done all of it."""
    straight = go_on(None, ranks.replicated)
    assert distance(found[1][f"resumed {kind}"], straight) < 1e-12
    assert [len(found[W][f"resumed {kind}"][0]) for W in LAST] == [3, 6, 9]


def test_other_settings_are_refused_by_all(found):
    for W in LAST:
        message = r"CheckpointError: \S+replicated\.pt is of another run: "
        message += r"its tau is 0\.1, not 0\.2\."
        assert re.fullmatch(message, found[W]["refused"])


def test_a_batch_must_divide(found):
    for W in (2, 3):
        rule = f"be a multiple of the number of processes ({W})"
        assert found[W]["indivisible"] == f"Refused: batch_size must {rule}, got 7."
    assert found[1]["indivisible"].shape == (7,)


def test_divergence_of_one_is_that_of_all(found):
    for W in LAST:
        assert found[W]["bad loss"].startswith("Diverged: the loss became")
        assert "at step 2" in found[W]["bad loss"]


def lose_one(folder):
    """Train under torchrun, and kill process 1 in the middle of step 5, once."""
    ranks.processes(torch.device("cpu"))
    checkpoint.SECONDS = 0
    steps = []

    def in_step(step):
        steps.append(step)
        lost = ranks.rank() == 1 and step == 5
        if lost and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)

    result = go_on(folder / "run.pt", ranks.replicated, in_step=in_step)
    if ranks.rank() == 0:
        torch.save((result, steps), folder / "result")


def test_a_killed_process_costs_the_steps_since_the_last_save(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "--max-restarts", "1", __file__, tmp_path]
    run = subprocess.run(command, env=alone(), capture_output=True, timeout=ENOUGH)
    assert run.returncode == 0, run.stderr.decode()[-3000:]
    result, steps = torch.load(tmp_path / "result", weights_only=False)
    assert steps == [5, 6, 7, 8]  # of the second start: step 4 was saved
    assert distance(result, go_on(None, ranks.replicated)) < 1e-12


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) == 2:
        sys.exit(lose_one(Path(sys.argv[1])))
    rank, W, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    place = f"file://{folder}/meet{W}"
    patience = {"timeout": timedelta(seconds=ENOUGH)}
    dist.init_process_group("gloo", place, rank=rank, world_size=W, **patience)
    results = work(folder)
    if rank == 0:
        torch.save(results, folder / f"found{W}")
    dist.barrier()
    dist.destroy_process_group()
