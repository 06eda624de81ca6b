"""The kernel of a rerun: this Python's, and no settings of the reader reach it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import pytest
from support.notebooks import code, notebook, write

from fmkit.cli import main
from fmkit.runs import kernel
from fmkit.runs.parameters import read_notebook
from fmkit.runs.record import read_record


def run(tmp_path, *cells, out="out", **metadata):
    """Rerun a notebook of `cells` with this metadata into `out`; the exit status."""
    whole = notebook(*cells)
    whole.metadata = metadata
    path = write(whole, tmp_path / "book" / "tiny.ipynb")
    return main(["rerun", str(path), "-p", "steps=9", "-o", str(tmp_path / out)])


def outputs(folder):
    """What the cells of an executed notebook show."""
    cells = read_notebook(folder / "tiny.ipynb").cells
    return [output for cell in cells for output in cell.get("outputs", [])]


# Which Python


@pytest.mark.parametrize(
    "metadata",
    [
        {"kernelspec": {"name": ".venv", "display_name": ".venv (3.9.1)"}},
        {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        {},
    ],
    ids=["of VS Code", "of another environment", "none"],
)
def test_whatever_kernel_a_notebook_names(tmp_path, monkeypatch, metadata):
    other = tmp_path / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    spec = {"argv": ["false"], "display_name": "Python 3", "language": "python"}
    (other / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    cell = code("import sys\n\nprint(sys.executable, steps)")
    assert run(tmp_path, cell, **metadata) == 0
    assert [o.text for o in outputs(tmp_path / "out")] == [f"{sys.executable} 9\n"]


@pytest.mark.parametrize(
    "metadata",
    [
        {"kernelspec": {"name": "ir", "display_name": "R", "language": "R"}},
        {"language_info": {"name": "R"}},
    ],
)
def test_another_language(tmp_path, capsys, metadata):
    assert run(tmp_path, code("1"), **metadata) == 1
    assert "tiny.ipynb must be in Python, got R.\n" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise ImportError('it is\\nbroken')", "(broken); see "),
        ("import os\nos.kill(os.getpid(), 9)", "Kernel died before replying to"),
    ],
)
def test_a_kernel_that_cannot_start(tmp_path, monkeypatch, capfd, text, reason):
    (tmp_path / "ipykernel").mkdir()
    (tmp_path / "ipykernel" / "__init__.py").write_text(text, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    start = time.monotonic()
    assert run(tmp_path, code("1")) == 1
    assert time.monotonic() - start < 60  # which is how long a silent one has
    shown = capfd.readouterr().err
    assert "tiny.ipynb failed in starting its kernel: " in shown
    assert reason in shown
    assert shown.count("\n") == 1
    record = read_record(tmp_path / "out" / "record.json")
    assert record["status"] == "failed"
    assert record["error"].startswith("starting its kernel: ")


def test_no_ipykernel(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipykernel", None)
    assert run(tmp_path, code("1")) == 1
    shown = capsys.readouterr().err
    assert shown == (
        "fmkit: this command needs ipykernel, which is not installed; install it "
        'with: pip install "fmkit[runs]".\n'
    )
    assert not (tmp_path / "out").exists()


def test_files_beside_a_notebook_are_for_its_cells_only(tmp_path):
    """Their names may be those of modules that a kernel or fmkit has."""
    (tmp_path / "book").mkdir()
    for name in ("random", "logging", "ipykernel", "fmkit"):
        file = tmp_path / "book" / f"{name}.py"
        file.write_text("raise RuntimeError('found')", encoding="utf-8")
    (tmp_path / "book" / "point.py").write_text("MINE = 7", encoding="utf-8")
    assert run(tmp_path, code("import point\n\nprint(point.MINE)")) == 0
    assert [o.text for o in outputs(tmp_path / "out")] == ["7\n"]


# The reader's settings

SVG = 'c = get_config()\nc.InlineBackend.figure_formats = {"svg"}\n'
SVG += 'c.InteractiveShell.ast_node_interactivity = "all"\n'
LARGE = "figure.figsize: 1, 1\nlines.linewidth: 20\naxes.facecolor: red\n"
DRAW = """\
import matplotlib.pyplot as plt

1
sorted(name for name in dir() if name.startswith("from_"))
plt.plot([1, 2], [2, 1])
plt.rcParams["figure.figsize"]"""


def test_the_readers_settings_reach_no_cell(tmp_path, monkeypatch):
    """A profile of IPython, its start-up file, and matplotlib's four places."""
    assert run(tmp_path, code(DRAW), out="plain") == 0
    home, book = tmp_path / "home", tmp_path / "book"
    profile = home / ".ipython" / "profile_default"
    files = {
        profile / "ipython_kernel_config.py": SVG,
        profile / "ipython_config.py": SVG,
        profile / "startup" / "a.py": "from_profile = 1",
        home / "start.py": "from_pythonstartup = 1",
        home / ".config" / "matplotlib" / "matplotlibrc": LARGE,
        home / "own" / "matplotlibrc": LARGE,
        book / "matplotlibrc": LARGE,
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    fonts = Path(matplotlib.get_cachedir()).parent  # a second to make them again
    variables = {"HOME": home, "XDG_CACHE_HOME": fonts, "XDG_CONFIG_HOME": None}
    variables |= {"IPYTHONDIR": home / ".ipython", "MATPLOTLIBRC": home / "own"}
    variables |= {"PYTHONSTARTUP": home / "start.py", "MPLBACKEND": "svg"}
    for name, value in variables.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, str(value))
    assert run(tmp_path, code(DRAW), out="set") == 0
    assert outputs(tmp_path / "set") == outputs(tmp_path / "plain")
    kinds = [[*output.get("data", {})] for output in outputs(tmp_path / "set")]
    assert ["image/png", "text/plain"] in [sorted(kind) for kind in kinds]
    left = {path for path in home.rglob("*") if path.is_file()}
    assert left == {*files} - {book / "matplotlibrc"}  # nothing is written there
    assert os.environ["MPLBACKEND"] == "svg"


def test_a_kernel_whose_parent_has_died_before_it_began():
    """Nobody would tell it to stop; where init is not its parent, it would stay."""
    command = [sys.executable, str(kernel.LAUNCHER), "-f", "none.json"]
    options = {"capture_output": True, "encoding": "utf-8", "timeout": 60}
    run = subprocess.run(command, env={**os.environ, "JPY_PARENT_PID": "1"}, **options)
    assert (run.returncode, run.stderr) == (1, "its parent has died\n")
