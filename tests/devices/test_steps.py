"""Between two looks at the loss, a step of training never waits for the GPU.

Every wait would let the GPU run dry, in each of thousands of steps. The first step and
the last are not held to this: the first makes the optimizer's state, the last looks.
"""

from dataclasses import replace

import pytest
import torch
from support.models import drawn
from torch import nn

from fmkit import runtime
from fmkit.adapt import Predictor, finetuning, random_head
from fmkit.augment import ViewConfig, mask_patches, mask_tokens, two_views
from fmkit.data.tokens import windows
from fmkit.losses import (
    masked_token_loss,
    next_token_loss,
    nt_xent_loss,
    reconstruction_loss,
    simclr_loss,
    supcon_loss,
)
from fmkit.models.resnet import ResNet, ResNetConfig
from fmkit.models.transformer import TransformerConfig
from fmkit.muon import Muon
from fmkit.train import minibatches, train, warmup_cosine

STEPS = 5
CONFIG = TransformerConfig(
    vocabulary=31, context=8, width=16, layers=2, heads=4, kv_heads=2, hidden=12
)
CHANGES = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
VIEWS = ViewConfig(size=6, rotation=20.0, grey=0.2, **CHANGES)


def waits_of(seen, loss_of, batches, optimizer, modules):
    """What the host waits for from the second step up to the last but one."""
    assert runtime.look_every(seen.device) > STEPS
    options = {"modules": modules, "steps": STEPS, "schedule": warmup_cosine(0.1)}
    for record in train(loss_of, batches, optimizer, **options):
        if record.step == 0:
            seen.clear()
        if record.step == STEPS - 2:
            waits = [*seen.waits]
    assert seen.waits, "the last step looks at the loss"
    return waits


def adamw(weights):
    return torch.optim.AdamW(weights, lr=1e-3)


def muon(model):
    return Muon.of(model, lr=0.02)


def sgd(weights):
    return torch.optim.SGD(weights, lr=1e-2, momentum=0.9)


LOSSES = {
    "simclr": lambda z, y: simclr_loss(*z.chunk(2)),
    "nt_xent": lambda z, y: nt_xent_loss(*z.chunk(2), tau=0.5),
    "supcon": lambda z, y: supcon_loss(z, y.repeat(2), tau=0.5),
}


@pytest.mark.parametrize("optimizer_of", [adamw, sgd])
@pytest.mark.parametrize("loss", LOSSES)
def test_of_images(gpu, rng, loss, optimizer_of):
    """As in the chapter on contrastive learning: two views of each image of a batch."""
    images = torch.randint(256, (20, 3, 8, 8), generator=rng, dtype=torch.uint8)
    images, labels = images.to("cuda"), (torch.arange(20) % 3).to("cuda")
    phi = ResNet(ResNetConfig(channels=3, widths=(4, 8), blocks=(1, 1))).to("cuda")
    head = nn.Linear(phi.m, 8).to("cuda")

    def loss_of(batch):
        views = two_views(images[batch], VIEWS, generator=rng)
        return LOSSES[loss](head(phi(views)), labels[batch])

    optimizer = optimizer_of([*phi.parameters(), *head.parameters()])
    batches = minibatches(20, batch_size=8, generator=rng)
    assert waits_of(gpu, loss_of, batches, optimizer, [phi, head]) == []


def test_of_hidden_squares(gpu, rng):
    """As in the chapter on pretraining: an image is rebuilt from what is left of it."""
    images = torch.randint(256, (20, 1, 8, 8), generator=rng, dtype=torch.uint8)
    images = images.to("cuda")
    phi = ResNet(ResNetConfig(widths=(4, 8), blocks=(1, 1))).to("cuda")
    decoder = nn.Linear(phi.m, 64).to("cuda")

    def loss_of(batch):
        x = phi.prepare(images[batch])
        hidden = mask_patches(x, patch=2, share=0.5, generator=rng)
        return reconstruction_loss(decoder(phi(hidden)).view_as(x), x).mean()

    optimizer = sgd([*phi.parameters(), *decoder.parameters()])
    batches = minibatches(20, batch_size=8, generator=rng)
    assert waits_of(gpu, loss_of, batches, optimizer, [phi, decoder]) == []


def test_of_finetuning(gpu, rng):
    images = torch.randint(256, (20, 1, 8, 8), generator=rng, dtype=torch.uint8)
    phi = ResNet(ResNetConfig(widths=(4, 8), blocks=(1, 1)))
    model = Predictor(phi, random_head(phi.m, 3, generator=rng)).to("cuda")
    data = images.to("cuda"), (torch.arange(20) % 3).to("cuda")
    options = {"steps": STEPS, "batch_size": 8, "learning_rate": 1e-3}
    for record in finetuning(model, *data, generator=rng, **options):
        if record.step == 0:
            gpu.clear()
        if record.step == STEPS - 2:
            assert gpu.waits == []


@pytest.mark.parametrize("optimizer_of", [lambda m: adamw(m.parameters()), muon])
@pytest.mark.parametrize("masks", [False, True], ids=["next", "masked"])
def test_of_texts(gpu, rng, optimizer_of, masks):
    """As in the chapter on language models, from left to right and with masks."""
    model = drawn(replace(CONFIG, causal=not masks)).to("cuda")
    tokens = torch.randint(30, (200,), generator=rng)

    def loss_of(batch):
        x = batch[:, 1:]
        if not masks:
            return next_token_loss(model(batch[:, :-1]), x)
        seen, hidden = mask_tokens(x, share=0.15, mask=30, generator=rng)
        return masked_token_loss(model(seen), x, hidden)

    batches = windows(tokens, context=8, batch_size=4, generator=rng)
    assert waits_of(gpu, loss_of, batches, optimizer_of(model), [model]) == []
