"""Two processes on one device against one process: losses and weights, in float64.

It trains alone, starts itself twice through torchrun, and compares. NCCL refuses two
processes on a GPU, so they talk through gloo.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from fmkit import ranks, runtime
from fmkit.augment import ViewConfig, two_views
from fmkit.data.tokens import windows
from fmkit.losses import next_token_loss, nt_xent_loss
from fmkit.models.resnet import ResNet, ResNetConfig
from fmkit.models.transformer import Transformer, TransformerConfig
from fmkit.train import minibatches, train

STEPS, TOLERANCE = 5, 1e-10  # relative; two orders of adding up differ by 1e-14 or so
VIEWS = ViewConfig(size=16, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
CONFIG = TransformerConfig(
    vocabulary=50, context=16, width=64, layers=2, heads=4, kv_heads=2, hidden=96
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def taken(loss_of, batches, optimizer, model) -> dict[str, Tensor]:
    """The losses of some steps, and the weights and statistics after them."""
    options = {"modules": [model], "steps": STEPS, "agree": ranks.agree}
    losses = [r.loss for r in train(loss_of, batches, optimizer, **options)]
    return {"losses": torch.tensor(losses).double(), **model.state_dict()}


def contrastive(device: torch.device) -> dict[str, Tensor]:
    """SimCLR with the batch norm and the negatives of the whole batch."""
    runtime.seed_weights(0)
    phi = ResNet(ResNetConfig(3, (16, 32), (1, 1), 1))
    model = nn.Sequential(phi, nn.Linear(32, 16)).to(device).double()
    network, pairs = ranks.replicated(model), generator(1)
    shape = (64, 3, 16, 16)
    images = torch.randint(256, shape, generator=generator(2)).byte().to(device)

    def loss_of(batch: Tensor) -> Tensor:
        mine = ranks.part(len(batch))
        views = two_views(images[batch], VIEWS, generator=pairs, rows=mine)
        both = network(views.double()).chunk(2)
        return nt_xent_loss(*map(ranks.gathered, both), tau=0.2)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    batches = minibatches(64, batch_size=32, generator=generator(3))
    return taken(loss_of, batches, optimizer, model)


def language(device: torch.device) -> dict[str, Tensor]:
    """A language model, whose loss is a mean over rows."""
    runtime.seed_weights(0)
    model = Transformer(CONFIG).to(device).double()
    network = ranks.replicated(model)
    text = torch.randint(50, (2000,), generator=generator(4)).to(device)

    def loss_of(x: Tensor) -> Tensor:
        x = ranks.rows(x)
        return ranks.mean(next_token_loss(network(x[:, :-1]), x[:, 1:]))

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    batches = windows(text, context=16, batch_size=8, generator=generator(5))
    return taken(loss_of, batches, optimizer, model)


def main() -> None:
    device = runtime.pick_device()
    ranks.processes(device)
    with runtime.exact():
        runs = {
            f"{case.__name__} {name}": value.cpu()
            for case in (contrastive, language)
            for name, value in case(device).items()
        }
    if ranks.size() > 1:
        if ranks.rank() == 0:
            torch.save(runs, sys.argv[1])
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.pt"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", "2", "-m", "bench._ranks", str(path)]
        local = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=os.environ | local)
        others = torch.load(path, weights_only=True)
    gaps = {
        name: ((value - others[name]).norm() / value.norm()).item()
        for name, value in runs.items()
        if value.is_floating_point() and value.norm() > 0
    }
    name = max(gaps, key=gaps.get)
    print(f"the largest difference, {gaps[name]:.1e} relatively, is in {name}")
    summary = {"name": "ranks", "processes": 2, "gap": gaps[name]}
    summary |= {"equal": gaps[name] <= TOLERANCE}
    print(json.dumps(summary | {"device": runtime.device_name(device)}))


if __name__ == "__main__":
    main()
