"""Our features beside busy processes: the environment that fmkit sets, and torch's own.

One worker has the variables of :mod:`fmkit.runs.machine` and the other, the peer, has
none of them, as a plain `python` has. Both compute features of the animals by
EfficientNet-Lite0 at 96 px, in turns, for SECONDS each; the time is that of 1,000
images. First one process per core is busy beside them, and the ratio should be at least
2.5; then the machine is quiet, and `quiet` should be at least 0.95. `memory` is our
peak memory in times the peer's, and should be at most 1.3.
"""

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import time

import torch

from bench import compared, report
from fmkit import runtime
from fmkit.adapt import frozen_outputs
from fmkit.assets import fetch, load_array
from fmkit.models.efficientnet import load_efficientnet_lite0
from fmkit.runs import machine

SIZE, IMAGES, SECONDS, ROUNDS = 96, 32, 5.0, 4
TOLERANCE = 1e-5  # relative: the numbers of threads may differ


def work() -> None:
    """Answer each line of stdin: compute features for so many seconds."""
    [weights] = fetch("efficientnet-lite0").values()
    phi, _ = load_efficientnet_lite0(weights, size=SIZE)
    images = torch.tensor(load_array(fetch("animals")["images.gz"])[:IMAGES])
    images = images.unsqueeze(1)
    cpu = torch.device("cpu")
    size = frozen_outputs(phi, images, bar="warm").norm().item()
    for line in sys.stdin:
        start, done = time.perf_counter(), 0
        while (seconds := time.perf_counter() - start) < float(line):
            frozen_outputs(phi, images, bar="features")
            done += len(images)
        answer = {"seconds": 1000 * seconds / max(done, 1), "norm": size}
        answer |= {"threads": torch.get_num_threads()}
        answer |= {"memory": runtime.peak_memory_mb(cpu)}
        print(json.dumps(answer), flush=True)


class Worker:
    """A process that computes features when it is asked to."""

    def __init__(self, variables: dict[str, str]):
        inherited = {k: v for k, v in os.environ.items() if k not in SET}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.busy", "work"],
            env=inherited | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )

    def ask(self, seconds: float) -> dict[str, float]:
        """Return seconds for 1,000 images, a norm, threads and peak memory in MB."""
        print(seconds, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


SET = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY"),
    *("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"),
)


def spin() -> None:
    while True:
        pass


@contextlib.contextmanager
def busy_cores(count: int):
    """Keep `count` processes busy meanwhile."""
    processes = [
        multiprocessing.Process(target=spin, daemon=True) for _ in range(count)
    ]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def main() -> None:
    for name in SET:
        os.environ.pop(name, None)  # what `make bench` was started with decides nothing
    ours, peer = workers = [Worker(machine.variables()), Worker({})]
    with contextlib.ExitStack() as stack:
        for worker in workers:
            stack.callback(worker.close)
        first = [worker.ask(1.0) for worker in workers]  # both warm
        gap = abs(first[0]["norm"] / first[1]["norm"] - 1)
        print(f"norms of the features differ by {gap:.1e}, relatively")
        print(f"threads: ours {first[0]['threads']}, peer {first[1]['threads']}")

        def pairs() -> list[tuple[float, float]]:
            return [
                (ours.ask(SECONDS)["seconds"], peer.ask(SECONDS)["seconds"])
                for _ in range(ROUNDS)
            ]

        with busy_cores(machine.usable_cores()):
            case = compared(pairs(), label="1,000 images, busy cores")
        quiet = compared(pairs(), label="1,000 images, quiet machine")
        peaks = [worker.ask(0.1)["memory"] for worker in workers]
    memory = peaks[0] / peaks[1]
    print(f"peak memory: ours {peaks[0]:.0f} MB, peer {peaks[1]:.0f} MB")
    case |= {"quiet": quiet["ratio"], "memory": memory}
    report("busy", case, equal=gap <= TOLERANCE, device=torch.device("cpu"))


if __name__ == "__main__":
    work() if sys.argv[1:] == ["work"] else main()
