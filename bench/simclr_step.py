"""Whole steps of SimCLR: views, network, loss, backward, optimizer.

The peer is the same network in a loop as one would write it by hand: kornia's views,
the default layout, NT-Xent with a mask, AdamW. Ours are `two_views`, `ResNet` in
channels-last, `nt_xent_loss` and `train`. The loss and its gradient on the same views
are compared first. On a CPU the network is the small one of the chapters and a batch
128 images; on CUDA they are those of profiles/gpu.yaml (ResNet-18 and 1,024), and both
run in bfloat16 if the card has it. Times are for STEPS steps, of networks that are not
compiled.

Then what else there is to gain: compilation and, on a CPU, bfloat16. A processor that
only emulates bfloat16 takes many times as long, so it is left out.
"""

import copy
import shutil
import statistics
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench import SMALL, ceiling, report, side_by_side, timed
from bench.augment import CONFIG, SIZE, kornia_of, views_of
from fmkit import runtime
from fmkit.augment import render_views, two_views
from fmkit.losses import nt_xent_loss
from fmkit.models.resnet import ResNet, ResNetConfig
from fmkit.train import minibatches, train

LAPTOP = ResNetConfig(channels=3)
RESNET18 = ResNetConfig(3, (64, 128, 256, 512), (2, 2, 2, 2), stem_stride=1)
TAU, RATE = 0.2, 1e-3
STEPS, ROUNDS = (3, 1) if SMALL else (12, 5)
AIM = 83_000  # views a second with ResNet-18 on an H200: 35 % of what it can compute
TOLERANCE = 1e-6  # of the loss and of the gradient, in float64


class Network(nn.Module):
    """phi and its projection head."""

    def __init__(self, config: ResNetConfig):
        super().__init__()
        self.phi = ResNet(config)
        m = config.m
        self.head = nn.Sequential(nn.Linear(m, m), nn.ReLU(), nn.Linear(m, 128))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.phi(x))


class PlainResNet(ResNet):
    """The same network in torch's default layout."""

    def __init__(self, config: ResNetConfig):
        super().__init__(config)
        self.to(memory_format=torch.contiguous_format)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stages(self.stem(2 * x - 1)).mean(dim=(2, 3))


def plain(network: Network) -> Network:
    """A copy of `network` in torch's default layout."""
    twin = copy.deepcopy(network)
    twin.phi = PlainResNet(network.phi.config).to(network.head[0].weight)
    twin.phi.load_state_dict(network.phi.state_dict())
    return twin.train(network.training)


def plain_nt_xent(z: torch.Tensor) -> torch.Tensor:
    """NT-Xent as it is usually written, with a mask over the diagonal."""
    B = len(z) // 2
    z = F.normalize(z, dim=1)
    similarity = z @ z.T / TAU
    mask = torch.eye(2 * B, dtype=torch.bool, device=z.device)
    similarity = similarity.masked_fill(mask, float("-inf"))
    partner = torch.arange(2 * B, device=z.device).roll(B)
    return F.cross_entropy(similarity, partner)


def peer_steps(network: Network, images: torch.Tensor, batch: int, *, steps: int):
    """`steps` steps of the loop one writes by hand; the loss of each."""
    views, optimizer = kornia_of("resample"), adamw(network, images.device)
    losses = []
    for start in range(0, steps * batch, batch):
        x = images[start : start + batch].float() / 255
        x = torch.cat([views(x), views(x)])
        with runtime.autocast(images.device):
            loss = plain_nt_xent(network(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def our_steps(network, images, batch, *, steps, precision=None, seed=0):
    """`steps` steps as a chapter takes them; the loss of each."""
    device = images.device
    generator = torch.Generator().manual_seed(seed)

    def loss_of(rows):
        x = two_views(images[rows.to(device)], CONFIG, generator=generator)
        inside = runtime.autocast(device)
        if precision is not None:
            inside = torch.autocast(device.type, precision)
        with inside:
            return nt_xent_loss(*network(x).chunk(2), tau=TAU)

    order = torch.Generator().manual_seed(seed)
    batches = minibatches(len(images), batch_size=batch, generator=order)
    optimizer = adamw(network, device)
    records = [*train(loss_of, batches, optimizer, modules=[network], steps=steps)]
    return [record.loss for record in records]


def adamw(network: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), lr=RATE, fused=runtime.fused(device))


def one_step(network, x, loss_of):
    """The loss and its whole gradient on given views: what a step is made of."""
    loss = loss_of(network(x))
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in network.parameters()])


def gap_of_one_step(start: Network, images: torch.Tensor) -> float:
    """The larger of the differences in loss and in gradient, relative to their size.

    Not in weights: AdamW's first step has the gradient's sign and no size, so it makes
    much of a rounding where a gradient is nearly 0. And in float64: in float32 the two
    layouts add up in other orders, and at a ReLU's kink that is 1e-3 of a gradient.
    That the views are kornia's is compared in bench.augment.
    """
    peer, pair = kornia_of("resample"), []
    for _ in range(2):
        peer(images.float() / 255)  # draws
        pair.append(render_views(images, views_of(peer), size=SIZE))
    x, start = torch.cat(pair).double(), copy.deepcopy(start).double()
    theirs = one_step(plain(start), x, plain_nt_xent)
    ours = one_step(start, x, lambda z: nt_xent_loss(*z.chunk(2), tau=TAU))
    gradients = (ours[1] - theirs[1]).norm() / theirs[1].norm()
    return max(abs(ours[0] - theirs[0]) / theirs[0], gradients.item())


def main() -> None:
    device = runtime.pick_device()
    on_gpu = device.type == "cuda"
    config, batch = (RESNET18, 1024) if on_gpu else (LAPTOP, 128)
    if SMALL:
        config, batch = LAPTOP, 16
    torch.manual_seed(0)
    start = Network(config).to(device).train()
    shape = (STEPS * batch, 3, SIZE, SIZE)
    images = torch.randint(256, shape, dtype=torch.uint8).to(device)
    gap = gap_of_one_step(start, images[:128])
    print(
        f"loss and gradient on the same views differ by at most {gap:.1e}, relatively"
    )

    ours, theirs = copy.deepcopy(start), plain(start)
    our_steps(ours, images, batch, steps=2)  # both warm
    peer_steps(theirs, images, batch, steps=2)
    case = side_by_side(
        lambda: our_steps(ours, images, batch, steps=STEPS),
        lambda: peer_steps(theirs, images, batch, steps=STEPS),
        rounds=ROUNDS,
        label=f"{STEPS} steps, {2 * batch} views each",
    )
    with FlopCounterMode(display=False) as counter:
        our_steps(copy.deepcopy(start), images, batch, steps=1)
    flop = counter.get_total_flops() * STEPS
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    views = 2 * batch * STEPS

    def show(name, seconds, dtype):
        rate, limit = flop / seconds / 1e9, ceiling(device, kinds[dtype])
        print(
            f"{name:32} {views / seconds:9,.0f} views/s, {rate:,.0f} "
            f"GFLOP/s, {rate / limit:.0%} of {limit:,.0f} ({dtype})"
        )

    low = "bfloat16" if on_gpu and runtime.computes_bfloat16(device) else "float32"
    for name in ("ours", "peer"):
        show(name, case[name], low)
    if not on_gpu and runtime.computes_bfloat16(device):
        in_bfloat16(start, images, batch, show)
    elif not on_gpu:
        print("bfloat16: this processor only emulates it, so it is not timed")
    case["views_per_s"] = views / case["ours"]
    if on_gpu or shutil.which("g++"):
        seconds = compiled_seconds(start, images, batch)
        show("ours compiled", seconds, low)
        case["compiled_views_per_s"] = views / seconds
    if on_gpu:
        print(f"the aim on an H200: {AIM:,} views/s")
    report("simclr_step", case, equal=gap <= TOLERANCE, device=device)


def compiled_seconds(start, images, batch) -> float:
    """The median time of STEPS steps of the compiled network."""
    network = torch.compile(copy.deepcopy(start))
    our_steps(network, images, batch, steps=2)  # compiles
    rounds = ROUNDS if images.device.type == "cuda" else 1
    steps = partial(our_steps, network, images, batch, steps=STEPS)
    return statistics.median(timed(steps)[0] for _ in range(rounds))


def in_bfloat16(start, images, batch, show) -> None:
    """Train longer in both precisions, for their rates and the losses at the end."""
    last = {}
    for name, precision in {"float32": None, "bfloat16": torch.bfloat16}.items():
        for seed in range(3 if precision is None else 1):
            network = copy.deepcopy(start)
            options = {"steps": 4 * STEPS, "precision": precision, "seed": seed}
            seconds, losses = timed(
                partial(our_steps, network, images, batch, **options)
            )
            last[name, seed] = sum(losses[-STEPS:]) / STEPS
        show(f"ours in {name}", seconds / 4, name)
    spread = [last["float32", seed] for seed in range(3)]
    print(
        f"loss of the last {STEPS} steps: bfloat16 {last['bfloat16', 0]:.4f}, float32 "
        f"{min(spread):.4f} to {max(spread):.4f} over three seeds"
    )


if __name__ == "__main__":
    main()
