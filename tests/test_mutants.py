"""The bugs of ``mutants.toml`` can be planted, and a sample of them is, each day."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

from tools.mutants import mutants

ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def functions_of(path):
    """The names of a file's functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_there_are_enough_and_each_is_another():
    entries = [(m.file, m.old, m.new) for m in mutants()]
    assert len(entries) >= 150
    assert len({*entries}) == len(entries)
    named = [(m.file, m.bug) for m in mutants()]
    assert len({*named}) == len(named)


@pytest.mark.parametrize("file", sorted({m.file for m in mutants()}))
def test_every_bug_can_be_planted(file):
    """Its text stands once in its file, what comes of it is code, its test exists."""
    for mutant in mutants():
        if mutant.file == file:
            source = mutant.planted()
            assert source is not None, f"{mutant.bug}: mend its text, or delete it"
            if file.endswith(".py"):
                ast.parse(source)
            path, _, name = mutant.test.partition("::")
            assert name.partition("[")[0] in functions_of(ROOT / path), mutant.bug


def python(*arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")


def test_a_sample_of_today_is_caught():
    run = python("-m", "tools.mutants", "--sample", "20")
    assert run.returncode == 0, run.stdout + run.stderr


THREE = """
from tools import mutants as tool
file, test = "fmkit/losses.py", "tests/science/test_losses.py::test_closed_forms"
texts = {"sum": ("mean(dim=1)", "sum(dim=1)"), "old": ("no such text", "")}
texts["none"] = "mean(dim=1)", "mean(dim=(1,))"
tool.mutants = lambda: [tool.Mutant(file, bug, *t, test) for bug, t in texts.items()]
tool.PRELOADED = ["pytest", "torch"]
tool.main()
"""


def test_what_is_not_caught_is_named():
    run = python("-c", THREE)
    gone, survived, counts = run.stdout.splitlines()
    assert survived.startswith("survived: fmkit/losses.py: none (tests/science/")
    assert gone.startswith("gone: fmkit/losses.py: old (")
    assert counts == "2 planted: 1 caught, 1 survived, 0 broken; 1 gone"
    assert run.returncode == 1


def test_a_file_without_bugs_is_refused():
    run = python("-m", "tools.mutants", "--only", "README.md")
    assert run.returncode == 2
    assert run.stderr.endswith("error: tests/mutants.toml has no bug of README.md.\n")
