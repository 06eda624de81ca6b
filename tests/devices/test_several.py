"""The chapters that can, executed by two processes: the numbers are those of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fmkit.runs.record import read_record

ROOT = Path(__file__).resolve().parents[2]
ENOUGH = 600  # seconds, for a loaded machine
# SGD, because the first steps of Adam make rounding of small gradients visible
CHAPTERS = {
    "contrastive_learning": ["optimizer=sgd", "learning_rate=0.01", "image_size=0"],
    "language_models": ["pretrained="],
}
CLOSE = 1e-3  # float32 after four steps; a gradient of own rows only is off by 1e-1
SMALL = 0.1  # alignment and uniformity of vectors nearly in one place are rounding
COUNTED = ("probe", "knn", "knn-centred", "finetune", "partner-found")
CHOICES = 0.07  # of what is counted: some images are near a boundary, 1 of 16 at most


def executed(chapter, out, *, launcher=(), given=()):
    """The record of a chapter at the smoke profile."""
    command = [sys.executable, *launcher, "-m", "fmkit", "rerun"]
    command += [f"chapters/{chapter}.ipynb", "-f", "profiles/smoke.yaml", "-o", out]
    for one in (*CHAPTERS[chapter], *given):
        command += ["-p", one]
    variables = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "FMKIT_DEVICE": "cpu"}
    options = {"capture_output": True, "encoding": "utf-8", "timeout": ENOUGH}
    run = subprocess.run(command, cwd=ROOT, env=os.environ | variables, **options)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count(": finished") == 1
    return read_record(out / "record.json")


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_two_processes_execute_a_chapter(chapter, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = executed(chapter, tmp_path / "two", launcher=torchrun, given=["keep=kept"])
    one = executed(chapter, tmp_path / "one")
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["metrics"].keys() == two["metrics"].keys()
    far = {}
    for name, value in one["metrics"].items():
        kind = name.split("/")[1]
        near = CHOICES if kind in COUNTED else CLOSE * max(abs(value), SMALL)
        if kind != "seconds" and abs(two["metrics"][name] - value) > near:
            far[name] = value, two["metrics"][name]
    assert far == {}
    kept = {path.suffix for path in (tmp_path / "two" / "kept").iterdir()}
    assert ".pt" in kept
    assert not (tmp_path / "one" / "kept").exists()
