"""Measure what a second process costs: time, bytes and memory of a training step.

Each process has one thread, and the global batch is the same. `efficiency` is
T1 / (2 T2), for the times of a step with one process and with two: it is 1 if a second
process halves the time. It is the median over rounds; in each round one process and
then both take the same steps. SimCLR is the network of the chapter with 128 images a
step, the language model that of ``bench.lm_train`` with 64 windows. Each process
updates all weights by itself, so the optimizer is not divided. The losses of both runs
are compared first.

`bytes` is the number of bytes that all processes send in a step over the loopback
interface, divided by the least possible: gradients in a ring, and for SimCLR the
representations and their gradients once. Bytes of other programs are counted too.

The last measurement, at 30 million parameters, is how much the peak memory of each of
two processes grows with replicas (DDP) and with divided weights (FSDP2).
"""

import contextlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from bench import report
from fmkit import ranks
from fmkit.augment import ViewConfig, two_views
from fmkit.data.tokens import windows
from fmkit.losses import next_token_loss, nt_xent_loss
from fmkit.models.resnet import ResNet, ResNetConfig
from fmkit.models.transformer import Transformer, TransformerConfig
from fmkit.train import minibatches, train

W, STEPS, ROUNDS, WARM = 2, 5, 7, 3
IMAGES, WINDOWS, CONTEXT, VOCABULARY = 128, 64, 64, 512
LAPTOP = {"width": 128, "layers": 4, "heads": 4, "kv_heads": 4, "hidden": 336}
LARGE = {"width": 512, "layers": 8, "heads": 8, "kv_heads": 8, "hidden": 1408}
LARGE_VOCABULARY, LARGE_WINDOWS = 8192, 2
TOLERANCE = 1e-4  # of a loss, relative, after float32 steps


class Training:
    """A model in training, some steps at a time."""

    def __init__(self, model: nn.Module, network: nn.Module, batches, loss_of):
        self.model, self.batches = model, batches
        self.loss_of = lambda batch: loss_of(network, batch)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def steps(self, count: int) -> float:
        """Take steps; return the last loss."""
        options = {"modules": [self.model], "steps": count, "agree": ranks.agree}
        *_, last = train(self.loss_of, self.batches, self.optimizer, **options)
        return last.loss


def simclr() -> Training:
    torch.manual_seed(0)
    phi = ResNet(ResNetConfig())
    head = nn.Sequential(nn.Linear(phi.m, phi.m), nn.ReLU(), nn.Linear(phi.m, phi.m))
    model = nn.Sequential(phi, head)
    images = torch.randint(256, (1024, 1, 28, 28), dtype=torch.uint8)
    views = ViewConfig(size=28, area=(0.3, 1.0))
    drawn = torch.Generator().manual_seed(1)

    def loss_of(network, batch):
        mine = ranks.part(len(batch))
        x = two_views(images[batch], views, generator=drawn, rows=mine)
        a, b = (ranks.gathered(z) for z in network(x).chunk(2))
        return nt_xent_loss(a, b, tau=0.1)

    order = torch.Generator().manual_seed(2)
    batches = minibatches(len(images), batch_size=IMAGES, generator=order)
    return Training(model, ranks.replicated(model), batches, loss_of)


def language_model(
    divide=ranks.replicated, shape=LAPTOP, vocabulary=VOCABULARY, batch_size=WINDOWS
) -> Training:
    torch.manual_seed(0)
    config = TransformerConfig(vocabulary=vocabulary, context=CONTEXT, **shape)
    model = Transformer(config)
    network = divide(model)
    text = torch.randint(vocabulary, (100_000,))

    def loss_of(network, x):
        x = ranks.rows(x)
        return ranks.mean(next_token_loss(network(x[:, :-1]), x[:, 1:]))

    options = {"context": CONTEXT, "batch_size": batch_size}
    batches = windows(text, **options, generator=torch.Generator().manual_seed(2))
    return Training(model, network, batches, loss_of)


@contextlib.contextmanager
def one_process():
    """Let this process compute the whole batch, although others have joined it."""
    size, rank = ranks.size, ranks.rank
    ranks.size, ranks.rank = lambda: 1, lambda: 0
    try:
        yield
    finally:
        ranks.size, ranks.rank = size, rank


def on_loopback() -> int:
    """Return how many bytes the loopback interface has sent; 0 where it is unknown."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/dev").read_text(encoding="utf-8").splitlines():
            name, _, counts = line.partition(":")
            if name.strip() == "lo":
                return int(counts.split()[8])
    return 0


def seconds_and_bytes(training: Training) -> tuple[float, int]:
    before, start = on_loopback(), time.perf_counter()
    training.steps(STEPS)
    seconds = time.perf_counter() - start
    return seconds / STEPS, (on_loopback() - before) // STEPS


def least_bytes(model: nn.Module, gathered: int) -> int:
    """Return what W processes must send in all to add up gradients, and to gather."""
    gradients = sum(p.numel() for p in model.parameters())
    return 4 * (2 * (W - 1) * gradients + 2 * (W - 1) * gathered)


def compare(make, name: str, gathered: int) -> dict[str, float]:
    """Time one process and W in turns; process 0 prints a line."""
    with one_process():
        alone = make()
        loss = alone.steps(WARM)
    together = make()
    gap = abs(together.steps(WARM) / loss - 1)
    pairs, sent = [], []
    for _ in range(ROUNDS):
        dist.barrier()
        if dist.get_rank() == 0:
            with one_process():
                one = seconds_and_bytes(alone)[0]
        dist.barrier()
        seconds, count = seconds_and_bytes(together)
        if dist.get_rank() == 0:
            pairs.append((one, seconds))
            sent.append(count)
    if dist.get_rank() > 0:
        return {}
    efficiency = statistics.median(one / (W * many) for one, many in pairs)
    one, many = (statistics.median(times) for times in zip(*pairs, strict=True))
    share = min(sent) / least_bytes(together.model, gathered)
    print(
        f"{name:16} {1000 * one:6.1f} ms a step alone, {1000 * many:6.1f} ms by {W}: "
        f"efficiency {efficiency:.2f}; {min(sent) / 1e6:.2f} MB sent, "
        f"{share:.2f} of the least possible; losses differ by {gap:.0e}",
        flush=True,
    )
    key = name.replace(" ", "_")
    case = {"alone": one, "together": many, "efficiency": efficiency, "bytes": share}
    return {"gap": gap, **{f"{key}_{k}": value for k, value in case.items()}}


def peak_megabytes(kind: str) -> float:
    """Return how much the peak memory of this process grows by 30 million parameters.

    What libraries need, which each kind imports in another amount, is left out.
    """
    divide = getattr(ranks, kind)
    language_model(divide).steps(2)
    before = peak()
    shape, vocabulary = LARGE, LARGE_VOCABULARY
    language_model(divide, shape, vocabulary, batch_size=LARGE_WINDOWS).steps(2)
    return peak() - before


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # MB


def work(what: str) -> dict[str, float]:
    """Compute one part of the benchmark, in each process."""
    if what == "speed":
        representations = 2 * IMAGES * ResNetConfig().m
        cases = [compare(simclr, "SimCLR", representations)]
        cases.append(compare(language_model, "language model", 0))
        gap = max([case.pop("gap") for case in cases if case], default=0.0)
        return {"gap": gap} | cases[0] | cases[1]
    return {what: peak_megabytes(what)}


def processes(what: str) -> dict[str, float]:
    """Start W processes for a part; return what the first one finds."""
    variables = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if what != "speed":  # glibc gives freed memory back, so the peak is what was in use
        variables["MALLOC_MMAP_THRESHOLD_"] = str(2**16)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bench.scale", what, folder]
        started = [
            subprocess.Popen([*command, str(rank)], env=os.environ | variables)
            for rank in range(W)
        ]
        if any([process.wait() for process in started]):
            raise SystemExit(f"a process of {what} failed")
        return torch.load(Path(folder) / "result")


def main() -> None:
    case = processes("speed")
    equal = case.pop("gap") <= TOLERANCE
    for kind in ("replicated", "sharded"):
        case |= processes(kind)
    with torch.device("meta"):
        shape = {"vocabulary": LARGE_VOCABULARY, "context": CONTEXT, **LARGE}
        model = Transformer(TransformerConfig(**shape))
    count = sum(p.numel() for p in model.parameters())
    print(
        f"{count / 1e6:.0f} million parameters: {case['replicated']:,.0f} MB a process "
        f"replicated, {case['sharded']:,.0f} MB divided"
    )
    case["ratio"] = min(case["SimCLR_efficiency"], case["language_model_efficiency"])
    report("scale", case, equal=equal, device=torch.device("cpu"))


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        what, folder, rank = sys.argv[1:]
        torch.set_num_threads(1)
        patience = timedelta(minutes=5)
        options = {"rank": int(rank), "world_size": W, "timeout": patience}
        dist.init_process_group("gloo", f"file://{folder}/meet", **options)
        result = work(what)
        if dist.get_rank() == 0:
            torch.save(result, Path(folder) / "result")
        dist.barrier()
        dist.destroy_process_group()
