"""A wheel brings what chapters read: an installation without the repository."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from fmkit.book.contents import notebooks_of
from fmkit.runs.cells import code_of, results_named, trees_of
from fmkit.runs.parameters import read_notebook
from fmkit.runs.stale import data_of

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("fmkit", "results", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of an unpacked wheel, which was built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, folder / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "-w", str(folder), str(folder / "source")]
    run = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    assert "would be ignored" not in run.stdout + run.stderr
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_every_package_is_in_the_wheel():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    modules = (ROOT / "fmkit").rglob("__init__.py")
    packages = [".".join(m.parent.relative_to(ROOT).parts) for m in modules]
    listed = settings["tool"]["setuptools"]["packages"]
    assert listed == sorted([*packages, "fmkit.results"])


def test_the_wheel_has_all_that_modules_read(installed):
    for path in (installed / "fmkit").rglob("*.py"):
        for place in data_of(ast.parse(path.read_text(encoding="utf-8")), path):
            original = ROOT / place.relative_to(installed)
            files = [original] if original.is_file() else original.rglob("*.[a-oq-z]*")
            for file in files:
                assert (installed / file.relative_to(ROOT)).is_file()


def test_the_wheel_has_every_record_and_model_that_chapters_read(installed):
    notebooks = [read_notebook(path) for path in notebooks_of(ROOT)]
    named = results_named(tree for n in notebooks for tree in trees_of(code_of(n)))
    assert "language_models" in named
    for name in named:
        files = [file for file in (ROOT / "results" / name).iterdir()]
        assert files
        for file in files:
            copied = installed / "fmkit" / "results" / name / file.name
            assert copied.read_bytes() == file.read_bytes()


def test_the_wheel_reads_them(installed, tmp_path):
    source = "from fmkit.runs.record import committed, results; import fmkit\n"
    source += "from fmkit.tasks.questions import TASKS\n"
    source += (
        "print(fmkit.__file__, len(committed('contrastive_learning')), len(TASKS))"
    )
    command = [sys.executable, "-c", source]
    environ = os.environ | {"PYTHONPATH": str(installed)}
    run = subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, encoding="utf-8"
    )
    assert run.returncode == 0, run.stderr
    file, records, tasks = run.stdout.split()
    assert Path(file).is_relative_to(installed)
    folder = ROOT / "results" / "contrastive_learning"
    assert int(records) == len([*folder.glob("*.json")]) > 0
    assert int(tasks) == len([*(ROOT / "fmkit" / "tasks").glob("*.toml")]) > 0
