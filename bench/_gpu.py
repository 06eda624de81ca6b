"""The steps of ``bench/gpu.sh``: check, measure, make a record, each in its time.

Into the folder go ``gpu.jsonl``, with a line for each step, ``gpu.log``, and ``record``
with the record of a run. A step that fails or lasts too long is a line too, and the
next one begins. Checks and measurements end after seven minutes; the record has the
rest of ``--seconds``. The script watches its pace and stops it before the time is up;
``--only record`` then goes on from its last checkpoint, in ``runs/gpu-keep``.
``--small`` runs every step at sizes whose times mean nothing, on a CPU too, and limits
only the time of all. Set ``FMKIT_COMMIT`` to the commit if there is no checkout.

The seconds that a step is expected to take are estimates for an H200, made without one.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
import yaml

from fmkit import runtime

ROOT = Path(__file__).resolve().parents[1]
MEASURED, ALL, MARGIN = 420, 590, 15  # seconds; a stopped run needs some to end
LONG = 36_000  # seconds that no step takes
SKIPPED = 75  # EX_TEMPFAIL of sysexits.h: try again
CHAPTER, KEEP = "contrastive_learning", ROOT / "runs" / "gpu-keep"
AIMS = {  # step, number, at least or at most this
    ("simclr_step", "views_per_s"): 83_000,
    ("simclr_step", "compiled_views_per_s"): 83_000,
    ("lm_train", "plain_tokens_per_s"): 460_000,
    ("lm_train", "compiled_tokens_per_s"): 460_000,
    ("record", "probe"): 0.856,  # dkobak/simclr-cifar10: 100 epochs, ResNet-18
    ("record", "seconds"): 300,
}


@dataclass(frozen=True)
class Step:
    """A command, the seconds that it should take, and the most that it may take."""

    name: str
    expected: int
    most: int
    command: list[str]


def steps(small: bool) -> list[Step]:
    """Return the checks and measurements, in their order."""
    option = ["--small"] if small else []
    commands = [
        ("tests", 60, 110, ["pytest", "-q", "tests/test_cuda.py"]),
        ("ranks", 30, 60, ["bench._ranks"]),
        ("augment", 20, 40, ["bench.augment", *option]),
        ("simclr_step", 60, 90, ["bench.simclr_step", *option]),
        ("lm_train", 90, 120, ["bench.lm_train", "--gpt", *option]),
        ("decode", 30, 60, ["bench.decode", *option]),
    ]
    return [
        Step(name, expected, LONG if small else most, ["-m", *words])
        for name, expected, most, words in commands
    ]


def run(step: Step, log: Path, *, left: float, watch=lambda: None) -> dict:
    """Run a step for at most the seconds that are `left`; return its line.

    Its output goes into `log`; the last line of it is the result, as JSON if it is
    that. `watch` is called every second.
    """
    most = min(step.most, left)
    print(
        f"{step.name}: about {step.expected} s, at most {most:.0f} s; "
        f"{left:.0f} s are left",
        flush=True,
    )
    if left < step.expected:
        said = f"skipped: {left:.0f} s are too few"
        return line_of(step.name, SKIPPED, 0, said)
    start = time.monotonic()
    with open(log, "a+", encoding="utf-8", errors="replace") as output:
        first = output.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            [sys.executable, *step.command],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while not ended(process, 1):
                watch()
                if time.monotonic() - start > most:
                    break
        finally:  # also if this program is interrupted
            if not ended(process, 0):
                process.send_signal(signal.SIGINT)
                if not ended(process, MARGIN):
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        output.seek(first)
        text = output.read()
    print(text[-1500:], end="", flush=True)
    said = (text.strip().splitlines() or [""])[-1]
    return line_of(step.name, process.returncode, time.monotonic() - start, said)


def ended(process: subprocess.Popen, seconds: float) -> bool:
    """Wait for a process for some seconds; tell if it ended."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def line_of(name: str, status: int, seconds: float, said: str) -> dict:
    """Return what is written of a step."""
    try:
        result = json.loads(said)
    except ValueError:
        result = {"said": said[:300]}
    line = {"step": name, "exit": status, "seconds": round(seconds, 1)}
    return line | {"result": result}


class Pace:
    """Watches the checkpoints of a run; says how long the rest of it will take."""

    def __init__(self, folder: Path, *, steps: int, left: float):
        self.folder, self.steps = folder, steps
        self.end, self.read, self.first, self.done = time.monotonic() + left, 0, None, 0

    def __call__(self) -> None:
        paths = [*self.folder.rglob("*.pt")]
        changed = max((path.stat().st_mtime for path in paths), default=0)
        if changed <= self.read:
            return
        self.read = changed
        newest = max(paths, key=lambda path: path.stat().st_mtime)
        self.done = torch.load(newest, mmap=True, weights_only=True)["step"] + 1
        now = time.monotonic()
        self.first = self.first or (now, self.done)
        since, taken = now - self.first[0], self.done - self.first[1]
        if taken:
            rest = (self.steps - self.done) * since / taken
            print(
                f"record: {self.done:,} of {self.steps:,} steps; the others take about "
                f"{rest:.0f} s, and {self.end - now:.0f} s are left",
                flush=True,
            )


def record(folder: Path, *, small: bool, left: float) -> dict:
    """Make the record of the chapter, or a part of it; return its line."""
    from fmkit.assets import AssetError, fetch  # here: a missing package is one line

    out = folder / "record"
    kept = out / "kept" if small else KEEP
    profile = ROOT / "profiles" / ("smoke.yaml" if small else "gpu.yaml")
    steps = yaml.safe_load(profile.read_text(encoding="utf-8"))[CHAPTER]["steps"]
    given = [f"keep={kept}", *([] if small else ["data=cifar10-jpeg"])]
    try:
        fetch("efficientnet-lite0")
    except AssetError:
        given.append("image_size=0")  # the chapter without the pretrained network
    command = ["-m", "fmkit", "rerun", f"chapters/{CHAPTER}.ipynb", "-f", str(profile)]
    command += [word for text in given for word in ("-p", text)]
    pace = Pace(kept, steps=steps, left=left)
    whole = Step("record", 60, LONG, [*command, "-o", str(out)])
    line = run(whole, folder / "gpu.log", left=left, watch=pace)
    if line["exit"] == 0:
        metrics = json.loads((out / "record.json").read_text("utf-8"))["metrics"]
        wanted = {"probe": "simclr/probe/all/test", "knn": "simclr/knn/all/test"}
        wanted |= {"seconds": "simclr/seconds/0/train"}
        line["result"] = {name: metrics.get(key) for name, key in wanted.items()}
    else:
        line["result"] |= {"steps": pace.done, "of": steps}
        print("to go on: the same command with --only record", flush=True)
    return line


def summary(lines: list[dict]) -> str:
    """Return a table of the steps that failed, and of numbers beside their aims."""
    rows = [
        f"{line['step']}: ended with {line['exit']}" for line in lines if line["exit"]
    ]
    results = {line["step"]: line["result"] for line in lines}
    for (step, name), aim in AIMS.items():
        if (got := results.get(step, {}).get(name)) is not None:
            rows.append(f"{step} {name}: {got:,.6g}, the aim on an H200 is {aim:,}")
    return "\n".join(rows)


def attempted(make: Callable[[], dict], name: str) -> dict:
    """Return the line that `make` returns, or one that names its error."""
    try:
        return make()
    except Exception as error:
        return line_of(name, 1, 0, f"{type(error).__name__}: {error}")


def known_commit() -> str | None:
    """Return the commit that the code is of; None if nothing says it."""
    try:
        from fmkit.runs.record import commit
    except ModuleNotFoundError:  # a package that was not carried
        return os.environ.get("FMKIT_COMMIT")
    return commit(CHAPTER)


def machine() -> dict:
    """Return the line about the machine and the code."""
    device = runtime.pick_device()
    result = {
        "device": runtime.device_name(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": known_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return line_of("machine", 0, 0, json.dumps(result))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options of ``bench/gpu.sh``."""
    parser = argparse.ArgumentParser(prog="bench/gpu.sh", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--carried", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="STEP")
    parser.add_argument("--seconds", type=float, default=ALL)
    return parser


def main() -> None:
    options = parser().parse_args()
    # A shell lets background jobs ignore Ctrl-C, and their steps would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    start, folder = time.monotonic(), options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    lines = []

    def keep(line: dict) -> None:
        lines.append(line)
        with open(folder / "gpu.jsonl", "a", encoding="utf-8") as file:
            print(json.dumps(line | {"small": options.small}), file=file)
        print(json.dumps(line), flush=True)

    def left(seconds: float) -> float:
        return seconds - (time.monotonic() - start)

    keep(machine())
    for step in steps(options.small):
        if not options.only or step.name in options.only:
            measured = LONG if options.small else MEASURED
            enough = left(min(measured, options.seconds))
            keep(run(step, folder / "gpu.log", left=enough))
    if not options.only or "record" in options.only:
        rest = left(options.seconds) - MARGIN
        whole = partial(record, folder, small=options.small, left=rest)
        keep(attempted(whole, "record"))
    print(summary(lines))


if __name__ == "__main__":
    main()
