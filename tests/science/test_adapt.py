"""Frozen outputs, heads and finetuning, compared with the algorithm of the notes."""

import copy
import re
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from support.models import snapshot, unchanged
from torch import nn

from fmkit.adapt import (
    Predictor,
    finetune,
    finetuning,
    frozen_outputs,
    frozen_outputs_at,
    probe_head,
    random_head,
)
from fmkit.data.tokens import PADDING
from fmkit.models.pooling import Pooled, mean_of_tokens
from fmkit.models.resnet import ResNet, ResNetConfig
from fmkit.models.transformer import Transformer, TransformerConfig
from fmkit.probe import linear_probe
from fmkit.train import Diverged, minibatches, warmup_cosine

CONFIG = ResNetConfig(widths=(4, 6), blocks=(1, 1))


@pytest.fixture
def phi():
    torch.manual_seed(0)
    return ResNet(CONFIG)


@pytest.fixture
def task(rng):
    """Images of two classes, which differ by the side that is bright."""
    images = torch.randint(80, (40, 1, 12, 12), generator=rng, dtype=torch.uint8)
    labels = torch.arange(40) % 2
    images[labels == 0, ..., :6] += 120
    images[labels == 1, ..., 6:] += 120
    return images, labels


def test_frozen_outputs_are_the_model_s_in_eval_mode(phi, task):
    images, _ = task
    before = snapshot(phi.train())
    phi_x = frozen_outputs(phi, images)
    assert phi.training  # as it came
    assert unchanged(phi, before)
    assert not phi_x.requires_grad
    with torch.no_grad():
        alone = torch.cat([phi.eval()(phi.prepare(x[None])) for x in images])
    torch.testing.assert_close(phi_x, alone, rtol=1e-5, atol=1e-6)


def test_frozen_outputs_are_not_rounded_to_bfloat16(phi, task):
    images, _ = task
    expected = frozen_outputs(phi, images)
    with torch.autocast("cpu", torch.bfloat16):
        assert phi.eval()(phi.prepare(images)).dtype == torch.bfloat16
        assert torch.equal(frozen_outputs(phi, images), expected)


def test_a_flag_called_frozen_is_no_context(phi, task):
    images, _ = task
    expected = frozen_outputs(phi, images)
    phi.frozen = True
    assert torch.equal(frozen_outputs(phi, images), expected)


def test_frozen_outputs_of_some_rows_leave_the_others_nan(phi, task):
    images, rows = task[0][:5], torch.tensor([3, 1])
    outputs = frozen_outputs_at(phi, images, rows)
    every = frozen_outputs(phi, images)
    torch.testing.assert_close(outputs[rows], every[rows], rtol=1e-5, atol=1e-6)
    assert outputs[[0, 2, 4]].isnan().all()


class Restless(nn.Module):
    """A model that counts its batches, frozen or not."""

    def __init__(self, name="seen"):
        super().__init__()
        self.name = name
        self.register_buffer("seen", torch.zeros(1))
        self.weight = nn.Parameter(torch.zeros(1))

    def prepare(self, images):
        return images.float()

    def forward(self, x):
        getattr(self, self.name).add_(1)
        return x.flatten(1)


@pytest.mark.parametrize("name", ["seen", "weight"])
def test_a_frozen_model_that_changes_is_caught(task, name):
    with pytest.raises(AssertionError, match=f"{name} of a frozen model changed"):
        frozen_outputs(Restless(name), task[0])


def test_a_frozen_model_in_train_mode_inside_is_caught(task):
    """Batch norm writes its statistics without raising their version."""
    phi = nn.BatchNorm2d(1)
    phi.prepare = lambda images: images.float()
    phi.eval = lambda: phi
    with pytest.raises(AssertionError, match="running_mean of a frozen model changed"):
        frozen_outputs(phi, task[0])


def test_a_parameter_that_is_replaced_is_caught(task):
    model = Restless()

    def forward(x):
        model.weight = nn.Parameter(torch.zeros(1))
        return x.flatten(1)

    model.forward = forward
    with pytest.raises(AssertionError, match="weight of a frozen model changed"):
        frozen_outputs(model, task[0])


def test_frozen_outputs_copy_no_parameter(phi, task, monkeypatch):
    """Of a large model, a copy of all weights costs more than the outputs."""
    copied = []
    clone = torch.Tensor.clone

    def watched(tensor, *args, **kwargs):
        copied.append(tensor.data_ptr())
        return clone(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "clone", watched)
    frozen_outputs(phi, task[0])
    assert len(copied) == len([*phi.buffers()])
    assert not {p.data_ptr() for p in phi.parameters()} & {*copied}


def test_frozen_outputs_of_a_predictor_are_its_logits(phi, task):
    """In the notes: linear head."""
    head = nn.Linear(6, 3)
    u = frozen_outputs(Predictor(phi, head), task[0], bar="u")
    phi_x = frozen_outputs(phi, task[0], bar="phi")
    torch.testing.assert_close(u, head(phi_x).detach(), rtol=1e-5, atol=1e-6)


def test_random_head(rng):
    """In the notes: (14.3)."""
    head = random_head(400, 50, generator=rng)
    assert head.bias.abs().max() == 0
    # 20,000 draws of N(0, 1/400): the deviation of the mean square is 1/400 / 100
    assert head.weight.square().mean().item() == pytest.approx(1 / 400, rel=0.04)
    assert abs(head.weight.mean().item()) < 4 / 400**0.5 / 20_000**0.5
    again = random_head(400, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.weight, head.weight)  # the seed of rng
    with pytest.raises(ValueError, match="m must be at least 1, got 0"):
        random_head(0, 2, generator=rng)


def test_probe_head_gives_the_probe_s_logits(rng):
    x = torch.randn(30, 5, generator=rng)
    probe = linear_probe(x, torch.arange(30) % 3, classes=3, generator=rng)
    torch.testing.assert_close(probe_head(probe)(x).detach(), probe.logits(x))


def by_hand(phi, head, images, labels, *, steps, size, rate, seed):
    """(14.2) to (14.4): start there, then follow the gradient by w and by theta."""
    theta, w = copy.deepcopy(phi), copy.deepcopy(head)
    optimizer = torch.optim.AdamW([*theta.parameters(), *w.parameters()])
    generator = torch.Generator().manual_seed(seed)
    batches = minibatches(len(images), batch_size=size, generator=generator)
    schedule, losses = warmup_cosine(0.1), []
    for step in range(steps):
        batch = next(batches)
        optimizer.param_groups[0]["lr"] = rate * schedule(step, steps)
        u = w(theta(images[batch].float() / 255))
        y = labels[batch]
        total = sum(u[i].logsumexp(0) - u[i, y[i]] for i in range(len(u)))
        losses.append(total.item() / len(u))
        optimizer.zero_grad()
        (total / len(u)).backward()
        optimizer.step()
    return theta.eval(), w, losses


@pytest.mark.parametrize("training", [True, False])
def test_finetuning_is_the_algorithm(phi, task, training):
    """In the notes: finetuning, (14.2), (14.4)."""
    images, labels = task
    phi.train(training)
    head = random_head(phi.m, 2, generator=torch.Generator().manual_seed(1))
    model = finetune(
        phi,
        head,
        images,
        labels,
        steps=12,
        batch_size=16,
        learning_rate=1e-2,
        generator=torch.Generator().manual_seed(2),
    )
    theta, w, losses = by_hand(
        phi, head, images, labels, steps=12, size=16, rate=1e-2, seed=2
    )
    assert model.losses == pytest.approx(losses, rel=1e-3)
    x = phi.prepare(images)
    with torch.no_grad():
        torch.testing.assert_close(model(x), w(theta(x)), rtol=1e-3, atol=1e-3)
        start = head(phi.eval()(x))
    assert (model(x) - start).abs().max() > 0.05  # it went somewhere
    assert not model.training


def test_finetuning_shows_each_step_and_its_model(phi, task):
    """Records like those of `train`, of the very model; finetune is the same run."""
    model = Predictor(copy.deepcopy(phi).train(), nn.Linear(6, 2))
    start = copy.deepcopy(model)
    options = {"steps": 5, "batch_size": 8, "learning_rate": 0.1}
    records = finetuning(
        model, *task, **options, generator=torch.Generator().manual_seed(4)
    )
    assert len(records) == 5
    assert unchanged(model, snapshot(start))  # nothing happens before it is asked for
    history, heads = [], [start.head.weight.clone()]
    for record in records:
        history.append(record.loss)
        heads.append(model.head.weight.clone())
    assert record.step == 4
    assert not any(torch.equal(a, b) for a, b in pairwise(heads))
    assert model.training
    again = finetune(
        start.phi,
        start.head,
        *task,
        **options,
        generator=torch.Generator().manual_seed(4),
    )
    assert again.losses == history
    assert unchanged(again, snapshot(model))


def test_what_is_finetuned_is_a_copy(phi, task, rng):
    head = random_head(phi.m, 2, generator=rng)
    before, head_before = snapshot(phi), snapshot(head)
    options = {"steps": 3, "batch_size": 8, "learning_rate": 0.1, "generator": rng}
    model = finetune(phi.train(), head, *task, **options)
    assert unchanged(phi, before)
    assert unchanged(head, head_before)
    assert phi.training
    moved = [*model.phi.parameters(), *model.head.parameters()]
    still = [*phi.parameters(), *head.parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(moved, still, strict=True))


def test_in_eval_mode_the_statistics_of_pretraining_stay(phi, task, rng):
    head = random_head(phi.m, 2, generator=rng)
    options = {"steps": 3, "batch_size": 8, "learning_rate": 0.1, "generator": rng}
    for training in (True, False):
        model = finetune(phi.train(training), head, *task, **options)
        stays = unchanged(model.phi, {n: b.clone() for n, b in phi.named_buffers()})
        assert stays is not training


def test_finetuning_learns_the_task(phi, task, rng):
    images, labels = task
    head = random_head(phi.m, 2, generator=rng)
    model = finetune(
        phi.train(),
        head,
        images[:30],
        labels[:30],
        steps=60,
        batch_size=15,
        learning_rate=1e-2,
        generator=rng,
    )
    u = frozen_outputs(model, images[30:])
    assert (u.argmax(dim=1) == labels[30:]).all()


def test_lp_ft_starts_at_the_probe(phi, task, rng):
    """After a step of next to nothing its predictions are the probe's."""
    images, labels = task
    phi.eval()
    phi_x = frozen_outputs(phi, images)
    probe = linear_probe(phi_x, labels, classes=2, generator=rng)
    options = {"steps": 1, "batch_size": 40, "learning_rate": 1e-9, "generator": rng}
    model = finetune(phi, probe_head(probe), images, labels, **options)
    u = frozen_outputs(model, images)
    torch.testing.assert_close(u, probe.logits(phi_x), rtol=1e-4, atol=1e-4)


def test_finetuning_that_diverges_says_so(phi, task, rng):
    head = random_head(phi.m, 2, generator=rng)
    head.weight.data.fill_(float("inf"))
    message = re.escape("A smaller learning rate is the usual remedy")
    options = {"steps": 3, "batch_size": 8, "learning_rate": 1e-3, "generator": rng}
    with pytest.raises(Diverged, match=message):
        finetune(phi, head, *task, **options)


# Texts


@pytest.fixture
def texts(rng):
    """phi of a text and a task: whether token 3 or token 4 stands somewhere in it."""
    torch.manual_seed(0)
    shape = {"width": 16, "layers": 2, "heads": 2, "kv_heads": 2, "hidden": 16}
    config = TransformerConfig(vocabulary=9, context=8, causal=False, **shape)
    tokens = torch.randint(5, 9, (40, 8), generator=rng)
    labels = torch.arange(40) % 2
    places = torch.randint(1, 5, (40,), generator=rng)
    tokens[torch.arange(40), places] = 3 + labels
    lengths = torch.randint(5, 9, (40, 1), generator=rng)
    tokens[torch.arange(8) >= lengths] = PADDING
    return Pooled(Transformer(config), mean_of_tokens), tokens, labels


def test_finetuning_of_texts_is_the_algorithm(texts):
    """In the notes: finetuning a language model."""
    phi, tokens, labels = texts
    head = random_head(phi.m, 2, generator=torch.Generator().manual_seed(1))
    options = {"steps": 40, "batch_size": 10, "learning_rate": 1e-2}
    before = snapshot(phi)
    model = finetune(
        phi,
        head,
        tokens[:30],
        labels[:30],
        **options,
        generator=torch.Generator().manual_seed(2),
    )
    assert unchanged(phi, before)
    theta, w = copy.deepcopy(phi), copy.deepcopy(head)
    optimizer = torch.optim.AdamW([*theta.parameters(), *w.parameters()])
    generator = torch.Generator().manual_seed(2)
    batches = minibatches(30, batch_size=10, generator=generator)
    schedule = warmup_cosine(0.1)
    for step in range(40):
        optimizer.param_groups[0]["lr"] = 1e-2 * schedule(step, 40)
        total = 0
        for i in next(batches).tolist():  # one text at a time, without its padding
            x = tokens[i][tokens[i] != PADDING]
            total = total + F.cross_entropy(w(theta(x[None])), labels[i : i + 1]) / 10
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    u = frozen_outputs(model, tokens)
    torch.testing.assert_close(u, w(theta(tokens)).detach(), rtol=1e-2, atol=1e-2)
    assert (u[30:].argmax(dim=1) == labels[30:]).all()


def test_only_what_has_a_gradient_is_trained(texts, rng):
    phi, tokens, labels = texts
    phi.requires_grad_(False)
    phi.encoder.blocks[-1].requires_grad_(True)
    head = random_head(phi.m, 2, generator=rng)
    options = {"steps": 3, "batch_size": 10, "learning_rate": 0.1, "generator": rng}
    model = finetune(phi, head, tokens, labels, **options)
    state = model.phi.state_dict()
    for name, before in phi.state_dict().items():
        assert torch.equal(state[name], before) is ("blocks.1" not in name), name
    assert not torch.equal(model.head.weight, head.weight)
