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
    """Its text stands once in the file, what comes of it is Python, its test exists."""
    for mutant in mutants():
        if mutant.file == file:
            source = mutant.planted()
            assert source is not None, f"{mutant.bug}: mend its text, or delete it"
            ast.parse(source)
            path, _, name = mutant.test.partition("::")
            assert name.partition("[")[0] in functions_of(ROOT / path), mutant.bug


def test_a_sample_of_today_is_caught():
    command = [sys.executable, "-m", "tools.mutants", "--sample", "20"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
