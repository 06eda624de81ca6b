"""The command: what it prints, and one sentence for whatever goes wrong."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fmkit import assets
from fmkit.assets import ASSETS
from fmkit.cli import main


def test_info_names_versions_device_and_every_licence(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FMKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("FMKIT_DEVICE", "cpu")
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert f"torch {torch.__version__}" in out
    assert (
        f"device cpu ({platform.machine()}), {torch.get_num_threads()} threads" in out
    )
    assert f"assets are kept in {tmp_path}" in out
    for asset in ASSETS.values():
        assert asset.name in out
        assert f"licence {asset.licence}; {asset.source}" in out
    assert "not fetched" in out


def test_fetch_brings_what_is_optional_only_by_name(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(assets, "fetch", lambda name: asked.append(name) or {})
    assert main(["fetch"]) == 0
    needed = ["animals", "efficientnet-lite0", "smollm2-135m-instruct-q4", "minilm-l6"]
    assert asked == needed
    assert main(["fetch", "cifar10"]) == 0
    assert asked[4:] == ["cifar10"]


def test_fetch_of_an_unknown_name(capsys):
    assert main(["fetch", "aminals"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("fmkit: no asset is named 'aminals'; there are animals,")
    assert said.count("\n") == 1


def test_a_device_that_is_not_here(capsys, monkeypatch):
    monkeypatch.setenv("FMKIT_DEVICE", "tpu")
    assert main(["info"]) == 1
    assert "FMKIT_DEVICE must be one of auto, cpu" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["sing"], ["rerun"], ["rerun", "a.ipynb"]])
def test_a_command_line_that_is_none(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: fmkit" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["", "info", "fetch", "rerun", "sweep", "book", "html", "pdf"]
)
def test_help(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([*filter(None, [command]), "--help"])
    assert stop.value.code == 0
    assert f"usage: fmkit {command}".strip() in capsys.readouterr().out


def test_the_command_is_installed(tmp_path):
    command = [str(Path(sys.executable).with_name("fmkit")), "rerun", "no.ipynb"]
    run = subprocess.run(
        [*command, "-o", "out"], cwd=tmp_path, capture_output=True, text=True
    )
    said = "fmkit: no.ipynb cannot be read (No such file or directory).\n"
    assert (run.returncode, run.stdout, run.stderr) == (1, "", said)
