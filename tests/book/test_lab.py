"""JupyterLab shows the chapters' MyST."""

import subprocess
import sys

import pytest


def test_jupyterlab_takes_the_myst_extension():
    """An extension made for another JupyterLab is listed as enabled, but not as OK."""
    pytest.importorskip("jupyterlab", reason="the extra lab is not installed")
    command = [sys.executable, "-m", "jupyter", "labextension", "list"]
    run = subprocess.run(command, capture_output=True, encoding="utf-8")
    [line] = [
        x for x in (run.stdout + run.stderr).splitlines() if "jupyterlab-myst v" in x
    ]
    assert "enabled" in line
    assert "OK" in line
