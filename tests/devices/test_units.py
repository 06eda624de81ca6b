"""The science on a GPU and on a Mac: the numbers of the CPU, and no error of a device.

The kernels are the CPU's. So equal means to the last bit, except where a GPU takes
another way to the same number. Metrics and decoding are in ``test_evaluation.py``.
"""

import copy

import pytest
import torch
from support.bounds import additions_of, rounding
from support.models import drawn

from fmkit import evaluate, runtime
from fmkit.adapt import finetune, frozen_outputs, probe_head
from fmkit.augment import ViewConfig, mask_patches, mask_tokens, random_views
from fmkit.checkpoint import load_checkpoint, save_checkpoint
from fmkit.data.tokens import utf8_bytes
from fmkit.generate import generate, sampler
from fmkit.losses import (
    masked_token_loss,
    next_token_loss,
    nt_xent_loss,
    reconstruction_loss,
    simclr_loss,
    supcon_loss,
)
from fmkit.models.language_model import LanguageModel
from fmkit.models.resnet import ResNet, ResNetConfig
from fmkit.models.transformer import TransformerConfig
from fmkit.probe import least_squares_probe, linear_probe, logistic_path
from fmkit.prompt import BARE, score_answers
from fmkit.train import Diverged, train

CONFIG = TransformerConfig(
    vocabulary=257, context=64, width=16, layers=2, heads=4, kv_heads=2, hidden=12
)
LARGEST = 20  # logits of the drawn model are below it
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]
LABELS = torch.tensor([0, 1, 0, 2, 1, 2, 0, 1, 2, 0, 1, 2])


@pytest.fixture(params=["gpu", "mac"])
def on(request):
    """A pretended device."""
    return request.getfixturevalue(request.param).device


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(1)
    shape = (12, 3, 8, 8)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def tiny():
    return drawn(CONFIG)


@pytest.fixture(scope="module")
def resnet():
    runtime.seed_weights(0)
    return ResNet(ResNetConfig(channels=3, widths=(4, 8), blocks=(1, 1)))


def on_both(call, on, *values):
    """What `call` makes of values on the CPU, and of copies on the device, moved back.

    Nothing is computed in bfloat16.
    """
    with runtime.exact():
        here = call(*copy.deepcopy(values))
        there = call(*(copy.deepcopy(value).to(on) for value in values))
    return here, to_cpu(there)


def to_cpu(value):
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    return [*map(to_cpu, value)] if isinstance(value, (tuple, list)) else value


def seeded(seed=2):
    return torch.Generator().manual_seed(seed)


# Losses, views and masks


@pytest.mark.parametrize(
    "loss_of",
    [
        lambda x, y: simclr_loss(*x.chunk(2)),
        lambda x, y: nt_xent_loss(*x.chunk(2), tau=0.1),
        lambda x, y: supcon_loss(x, y, tau=0.1),
        lambda x, y: next_token_loss(x[None], y[None]),
        lambda x, y: masked_token_loss(x[None], y[None], y[None] > 0),
        lambda x, y: reconstruction_loss(x.view(12, 1, 1, 5), x.view(12, 1, 1, 5) / 2),
    ],
    ids=["simclr", "nt_xent", "supcon", "next", "masked", "reconstruction"],
)
def test_losses_and_gradients_are_float32_inside_autocast(on, rng, loss_of):
    def with_gradient(x, y):
        x.requires_grad_()
        with runtime.autocast(x.device):
            loss = loss_of(x, y).sum()
        loss.backward()
        return loss.detach().cpu(), x.grad.cpu()

    x = torch.randn(12, 5, generator=rng)
    here = with_gradient(x.clone(), LABELS)
    there = with_gradient(x.to(on), LABELS.to(on))
    error = rounding(additions=x.numel(), size=5)  # nats: no loss is larger
    torch.testing.assert_close(there, here, rtol=0, atol=error)


VIEWS = ViewConfig(
    size=6, rotation=20.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1
)


def test_views_are_float32_inside_autocast(on, images):
    here = random_views(images, VIEWS, generator=seeded())
    with runtime.autocast(on):
        there = random_views(images.to(on), VIEWS, generator=seeded())
    assert there.device == on
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=0)


def test_masks_are_where_the_generator_says(on, images):
    def masked(x, tokens):
        generator = seeded()
        patches = mask_patches(x, patch=2, share=0.5, generator=generator)
        return patches, mask_tokens(tokens, share=0.3, mask=9, generator=generator)

    here, there = on_both(masked, on, images.float(), torch.arange(12).view(3, 4))
    torch.testing.assert_close(there, [*here[:1], [*here[1]]], rtol=0, atol=0)


# Training


def steps_of(model, x, optimizer_of, *, spoilt=None):
    """Train for four steps; the loss of a spoilt one is NaN."""
    optimizer = optimizer_of(model)

    def loss_of(step):
        scale = float("nan") if step == spoilt else 1.0
        return model(x.roll(step, dims=0)).square().mean() * scale

    options = {"modules": [model], "steps": 4}
    return [r.loss for r in train(loss_of, range(4), optimizer, **options)]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


@pytest.mark.parametrize("optimizer_of", [sgd, adamw])
def test_training_ends_with_the_weights_of_the_cpu(on, images, resnet, optimizer_of):
    def trained(model, x):
        losses = steps_of(model.train(), model.prepare(x), optimizer_of)
        return losses, [*model.state_dict().values()]

    here, there = on_both(trained, on, resnet, images)
    assert here[0] == there[0]
    torch.testing.assert_close(there[1], [*here[1]], rtol=0, atol=0)


def test_divergence_restores_the_same_weights(on, images, resnet):
    def spoilt(model, x):
        with pytest.raises(Diverged, match=r"NaN|nan") as error:
            steps_of(model.train(), model.prepare(x), sgd, spoilt=2)
        return error.value.step, [*model.state_dict().values()]

    here, there = on_both(spoilt, on, resnet, images)
    assert here[0] == there[0] == 2
    torch.testing.assert_close(there[1], [*here[1]], rtol=0, atol=0)


def test_a_checkpoint_of_the_device_continues_on_the_cpu(on, images, resnet, tmp_path):
    there = copy.deepcopy(resnet).to(on)
    x, optimizer = there.train().prepare(images.to(on)), sgd(there)
    run = {"model": there, "optimizer": optimizer, "generators": {"order": seeded()}}
    with runtime.exact():
        steps_of(there, x, lambda _: optimizer)
    save_checkpoint(tmp_path / "run.pt", step=3, **run)
    here = copy.deepcopy(resnet)
    run = {"model": here, "optimizer": sgd(here), "generators": {"order": seeded(3)}}
    assert load_checkpoint(tmp_path / "run.pt", **run) == 4
    there, here = (to_cpu([*model.state_dict().values()]) for model in (there, here))
    torch.testing.assert_close(there, here, rtol=0, atol=0)


def test_a_checkpoint_of_the_cpu_continues_with_a_fused_optimizer(gpu, tmp_path):
    def run(device, fused):
        model = torch.nn.Linear(3, 1).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
        return {"model": model, "optimizer": optimizer, "generators": {}}

    here, there = run("cpu", fused=False), run("cuda", fused=True)
    here["model"](torch.ones(2, 3)).sum().backward()
    here["optimizer"].step()
    save_checkpoint(tmp_path / "run.pt", step=0, **here)
    load_checkpoint(tmp_path / "run.pt", **there)
    states = there["optimizer"].state.values()
    assert [state["step"].device.type for state in states] == ["cuda"] * 2


# Adaptation


def test_frozen_outputs_and_finetuning_are_those_of_the_cpu(
    on, images, resnet, monkeypatch
):
    # The fused optimizer of a GPU adds in another order
    monkeypatch.setattr(runtime, "fused", lambda device: False)
    y = LABELS[:6]

    def adapted(model, images, y):
        features = frozen_outputs(model, images)
        probe = linear_probe(features[:6], y, classes=3, generator=seeded())
        head = probe_head(probe).to(images.device)
        options = {"steps": 3, "batch_size": 4, "learning_rate": 1e-3}
        data = images[:6], y
        tuned = finetune(model.train(), head, *data, generator=seeded(), **options)
        return features, frozen_outputs(tuned, images)

    here, there = on_both(adapted, on, resnet, images, y)
    torch.testing.assert_close(there, [*here], rtol=0, atol=0)


def test_probes_are_those_of_the_cpu(gpu, rng):
    x, y = torch.randn(12, 3, generator=rng), LABELS

    def fitted(x, y):
        path = logistic_path(x, y, classes=3, lambdas=[1.0, 0.1])
        probe = linear_probe(x, y, classes=3, generator=seeded())
        return path.weight, path.bias, probe.weight, probe.logits(x)

    here, there = on_both(fitted, gpu.device, x, y)
    torch.testing.assert_close(there, [*here], rtol=0, atol=0)
    here, there = on_both(least_squares_probe, gpu.device, x, x[:, 0] + 1)
    torch.testing.assert_close(there, [*here], rtol=0, atol=0)


# Language models


def test_a_sampler_draws_from_a_generator_of_the_device_only(gpu, tiny):
    def sampled(model, kind):
        choose = sampler(generator=torch.Generator(kind).manual_seed(1), top_p=0.9)
        with runtime.exact():
            return generate(model, PROMPTS, new_tokens=9, choose=choose)

    there = copy.deepcopy(tiny).to("cuda")
    assert sampled(there, "cuda") == sampled(tiny, "cpu")
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for"):
        sampled(there, "cpu")


def test_answers_are_as_probable_as_on_the_cpu(on, tiny):
    prompts = [BARE.prompt([("a", "b")], x) for x in ("c", "longer")]
    answers = [[" e", " f"]] * 2

    def scored(model):
        lm = LanguageModel(model, utf8_bytes(), start=0)
        return score_answers(lm, prompts, answers).log_p

    here, there = on_both(scored, on, tiny)
    error = 2 * rounding(additions_of(tiny), size=LARGEST)  # an answer has two tokens
    torch.testing.assert_close(there, here, rtol=0, atol=error)


def test_nats_of_a_text_are_those_of_the_cpu(on, tiny):
    x = torch.arange(40).view(2, 20)

    def nats(model, x):
        return evaluate.token_nats(model, x.split(1))

    here, there = on_both(nats, on, tiny, x)
    error = rounding(additions_of(tiny), size=LARGEST)
    torch.testing.assert_close(there, here, rtol=0, atol=error)
