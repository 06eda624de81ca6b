"""Pretrain with SimCLR on a folder of unlabelled images, then probe labelled images.

python examples/simclr.py UNLABELLED LABELLED STEPS

UNLABELLED is a folder or a zip file of images; LABELLED has train/class/image and
test/class/image.
"""

import sys

import torch
from torch import nn

from fmkit.adapt import frozen_outputs
from fmkit.augment import ViewConfig, two_views
from fmkit.data.folders import read_folder, read_unlabelled
from fmkit.evaluate import accuracy
from fmkit.losses import nt_xent_loss
from fmkit.models.resnet import ResNet, ResNetConfig
from fmkit.probe import linear_probe
from fmkit.train import minibatches, train

unlabelled, labelled, steps = sys.argv[1:]
images = read_unlabelled(unlabelled, size=32)
rng = torch.Generator().manual_seed(0)
phi = ResNet(ResNetConfig(channels=images.shape[1]))
g = nn.Sequential(nn.Linear(phi.m, phi.m), nn.ReLU(), nn.Linear(phi.m, 128))


def loss_of(batch):
    views = two_views(images[batch], ViewConfig(size=32), generator=rng)
    return nt_xent_loss(*g(phi(views)).chunk(2), tau=0.2)


optimizer = torch.optim.AdamW([*phi.parameters(), *g.parameters()], lr=2e-3)
batches = minibatches(len(images), batch_size=128, generator=rng)
options = {"modules": [phi, g], "steps": int(steps)}
for record in train(loss_of, batches, optimizer, **options):
    print(f"step {record.step}: {record.loss:.3f} nats")

data = read_folder(labelled, size=32)
x, x_test = (frozen_outputs(phi, data[part].images) for part in ("train", "test"))
k = len(data["train"].classes)
probe = linear_probe(x, data["train"].labels, classes=k, generator=rng)
print(f"accuracy {accuracy(probe.logits(x_test), data['test'].labels):.3f}")
