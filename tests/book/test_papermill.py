"""A chapter with papermill itself, from any folder, on a reader's images."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from support.notebooks import RUN, book, code, notebook, write

from fmkit.runs.parameters import read_notebook
from fmkit.runs.record import record_in
from fmkit.runs.rerun import rerun
from tools import for_binder

CHAPTER = (
    Path(__file__).resolve().parents[2] / "chapters" / "contrastive_learning.ipynb"
)
SMALL = {
    **{"steps": 2, "batch_size": 4, "widths": [4], "blocks": [1], "picture_size": 8},
    **{"image_size": 0, "n_task": [2], "draws": 1, "data": "pics"},
}


@pytest.fixture
def images(tmp_path):
    """Noise in two classes, in the folder where the command is typed."""
    draw = random.Random(0)
    for split, number in {"train": 8, "test": 4}.items():
        for name in ("one", "two"):
            folder = tmp_path / "pics" / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                image = Image.frombytes("RGB", (8, 8), draw.randbytes(3 * 8 * 8))
                image.save(folder / f"{i}.png")
    return tmp_path


def papermill(folder, *arguments):
    """Run papermill in a folder, as a shell does."""
    hidden = ("FMKIT_FINDINGS", "FMKIT_RECORD", "MPLBACKEND")
    return subprocess.run(
        [sys.executable, "-m", "papermill", str(CHAPTER), "out.ipynb", *arguments],
        cwd=folder,
        env={name: v for name, v in os.environ.items() if name not in hidden},
        capture_output=True,
        encoding="utf-8",
    )


def test_a_chapter_runs_from_any_folder(images):
    run = papermill(images, "-y", json.dumps(SMALL))
    assert run.returncode == 0, run.stderr[-2000:]
    executed = read_notebook(images / "out.ipynb")
    record = record_in(executed, CHAPTER.stem)
    assert record["parameters"].items() >= SMALL.items()
    assert any(name.startswith("Recorded, ") for name in record["findings"])
    assert record["metrics"]["simclr/probe/2/test"] <= 1
    outputs = [o for cell in executed.cells for o in cell.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 5
    assert sorted(path.name for path in images.iterdir()) == ["out.ipynb", "pics"]


def test_on_binder_chapters_have_smaller_values_and_report(tmp_path):
    """Values of the profile in a cell of their own; the others stay as they are."""
    cell = code("run.finding('more than five', steps, at_least=5)")
    for name in ("one", "other"):
        write(notebook(cell, derived=RUN), tmp_path / "chapters" / f"{name}.ipynb")
    before = {p.stem: read_notebook(p) for p in tmp_path.glob("chapters/*.ipynb")}
    (tmp_path / "small.yaml").write_text("one: {steps: 2}\nother: {}", encoding="utf-8")
    for _ in range(2):
        for_binder.main(tmp_path / "small.yaml", book(tmp_path))
        (tmp_path / "vendor").rmdir()
    one, other = (
        read_notebook(tmp_path / "chapters" / f"{name}.ipynb")
        for name in ("one", "other")
    )
    assert other == before["other"]
    sources = [cell.source for cell in before["one"].cells]
    assert [cell.source for cell in one.cells] == [
        *sources[:2],
        "# Parameters\nsteps = 2\n",
        *sources[2:],
    ]
    record = rerun(tmp_path / "chapters" / "one.ipynb", tmp_path / "out", given={})
    assert (record["parameters"]["steps"], record["status"]) == (2, "finished")
    assert not record["findings"]["more than five"]["holds"]
