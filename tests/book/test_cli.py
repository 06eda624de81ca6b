"""The command: what it prints, and one sentence for whatever goes wrong."""

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from support.notebooks import code, notebook, write

from fmkit import assets
from fmkit.assets import ASSETS
from fmkit.cli import main
from fmkit.runs import parameters


def test_info_names_versions_device_and_every_licence(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FMKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("FMKIT_DEVICE", "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert f"torch {torch.__version__}" in out
    assert f"device cpu ({platform.machine()})\n" in out
    assert "chapters run with 3 threads\n" in out
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
    message = capsys.readouterr().err
    assert message.startswith("fmkit: no asset is named 'aminals'; there are animals,")
    assert message.count("\n") == 1


LAZY = """\
import sys
from fmkit.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
assert not {"torch", "nbformat", "matplotlib"} & set(sys.modules)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["info"], ["sing"], ["rerun"]])
def test_no_answer_waits_for_torch(monkeypatch, arguments):
    monkeypatch.setenv("FMKIT_DEVICE", "cpu")
    subprocess.run(
        [sys.executable, "-c", LAZY, *arguments], capture_output=True, check=True
    )


BARE = """\
import sys
for name in {blocked}:
    sys.modules[name] = None
from fmkit.cli import main
sys.exit(main({arguments}))
"""
OF_RUNS = [
    "papermill",
    "nbformat",
    "nbclient",
    "IPython",
    "ipykernel",
    "yaml",
    "joblib",
]
OF_BOOK = ["jupyter_book", "sphinx", "docutils", "sklearn"]


def bare(*arguments, blocked=OF_RUNS + OF_BOOK):
    """The command where none of the extras is installed."""
    code = BARE.format(blocked=blocked, arguments=[*arguments])
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8"
    )


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["parameters", "a.ipynb"], "runs"),
        (["rerun", "a.ipynb", "-o", "out"], "runs"),
        (["sweep", "a.ipynb", "-p", "seed=1", "-o", "out"], "runs"),
        (["book"], "book"),
        (["html"], "book"),
        (["pdf"], "book"),
        (["execute"], "book"),
    ],
)
def test_a_missing_extra_is_named(arguments, extra):
    run = bare(*arguments)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.count("\n") == 1
    assert run.stderr.endswith(f'pip install "fmkit[{extra}]".\n')


def test_a_sweep_on_a_cluster_needs_another_extra():
    arguments = ["sweep", "a.ipynb", "-p", "seed=1", "-o", "out", "--on", "dask"]
    for blocked in (["dask", "distributed"], [*OF_RUNS, "dask"]):
        run = bare(*arguments, blocked=blocked)
        assert (run.returncode, run.stdout) == (1, "")
        assert run.stderr.count("\n") == 1
        assert run.stderr.endswith('pip install "fmkit[dask]".\n')


def test_info_needs_no_extra():
    run = bare("info")
    assert (run.returncode, run.stderr) == (0, "")
    assert "threads" not in run.stdout


@pytest.mark.parametrize("name", ["fmkit.losess", None])
def test_a_module_of_ours_that_is_missing_is_a_bug(monkeypatch, capsys, name):
    def broken(path):
        raise ModuleNotFoundError("no module", name=name)

    monkeypatch.setattr(parameters, "read_notebook", broken)
    assert main(["rerun", "a.ipynb", "-o", "out"]) == 70
    assert "this is a bug" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows has other pipes")
def test_a_reader_that_stops_is_no_bug(monkeypatch):
    """As in ``fmkit info | head``."""
    monkeypatch.setenv("FMKIT_DEVICE", "cpu")
    command = [
        sys.executable,
        "-c",
        "import fmkit.cli, sys; sys.exit(fmkit.cli.main())",
    ]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        run = subprocess.run([*command, "info"], stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert (run.returncode, run.stderr) == (141, b"")


def test_a_device_that_is_not_here(capsys, monkeypatch):
    monkeypatch.setenv("FMKIT_DEVICE", "tpu")
    assert main(["info"]) == 1
    assert "FMKIT_DEVICE must be one of auto, cpu" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["sing"], ["rerun"], ["rerun", "a.ipynb"]])
def test_a_command_line_that_is_none(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: fmkit" in capsys.readouterr().err


COMMANDS = ["info", "fetch", "parameters", "rerun", "sweep"]
COMMANDS += ["book", "html", "pdf", "execute"]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([*filter(None, [command]), "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: fmkit {command}".strip() in out
    assert max(map(len, out.splitlines())) <= 88
    if command in ("fetch", "parameters", "rerun", "sweep", "book"):
        assert (
            f"\n  {'FMKIT_CACHE=CACHE ' * (command == 'fetch')}fmkit {command}" in out
        )


def test_alone_it_says_what_it_can_do(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    for command in COMMANDS:
        assert re.search(f"^    {command}\\b", out, re.MULTILINE)
    assert "to begin, in the folder of the book:" in out


@pytest.mark.parametrize("command", [[], ["info"]])
def test_the_version(capsys, command):
    assert main(["--version", *command]) == 0
    assert capsys.readouterr().out == f"fmkit {version('fmkit')}\n"


SOURCE = """\
import importlib.metadata, sys
known = importlib.metadata.version
def version(name):
    if name == "fmkit":
        raise importlib.metadata.PackageNotFoundError(name)
    return known(name)
importlib.metadata.version = version
from fmkit.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("argument", ["--version", "info"])
def test_it_need_not_be_installed(argument):
    """On a GPU that is lent, fmkit is a folder on Python's path."""
    run = subprocess.run(
        [sys.executable, "-c", SOURCE, argument], capture_output=True, encoding="utf-8"
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "fmkit source\n" in run.stdout


def test_parameters_are_those_that_a_rerun_takes(tmp_path, capsys):
    cell = "seed: int = 0  # of all that is drawn\nsizes: list[int] = [10, 50]"
    path = write(notebook(code("1 + 1"), parameters=cell), tmp_path / "a.ipynb")
    assert main(["parameters", str(path)]) == 0
    assert capsys.readouterr().out == f"{cell}\n"


@pytest.mark.parametrize("cell", ["seed = 0", "print(1)"])
def test_parameters_that_a_rerun_would_refuse(tmp_path, capsys, cell):
    path = write(notebook(parameters=cell), tmp_path / "a.ipynb")
    assert main(["parameters", str(path)]) == 1
    message = f"the parameters cell must hold annotated literals, got {cell}."
    assert capsys.readouterr() == ("", f"fmkit: {message}\n")


def test_the_command_is_installed(tmp_path):
    command = [str(Path(sys.executable).with_name("fmkit")), "rerun", "no.ipynb"]
    run = subprocess.run(
        [*command, "-o", "out"], cwd=tmp_path, capture_output=True, encoding="utf-8"
    )
    message = "fmkit: no.ipynb cannot be read (No such file or directory).\n"
    assert (run.returncode, run.stdout, run.stderr) == (1, "", message)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such arguments")
@pytest.mark.parametrize(
    "arguments",
    [
        ["fetch", b"caf\xe9"],
        ["rerun", b"caf\xe9.ipynb", "-o", "out"],
        ["rerun", "a.ipynb", "-o", b"caf\xe9"],
        ["rerun", "a.ipynb", "-f", b"caf\xe9.yaml", "-o", "out"],
        ["sweep", "a.ipynb", "-p", b"name=a,caf\xe9", "-o", "out"],
    ],
)
def test_an_argument_that_is_no_text(tmp_path, arguments):
    """As a name from an old disk: no record could hold it."""
    command = ["-c", "from fmkit.cli import main; raise SystemExit(main())"]
    run = subprocess.run([sys.executable, *command, *arguments], capture_output=True)
    assert (run.returncode, run.stdout) == (1, b"")
    assert run.stderr.startswith(b"fmkit: an argument must be text in utf-8, got '")
    assert run.stderr.count(b"\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_folder_whose_name_is_no_text(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    command = ["-c", "from fmkit.cli import main; raise SystemExit(main())"]
    command += ["rerun", "a.ipynb", "-o", "out"]
    run = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True)
    assert (run.returncode, run.stdout) == (1, b"")
    assert run.stderr.startswith(
        b"fmkit: the current folder must be text in utf-8, got"
    )
    assert run.stderr.count(b"\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps a folder that is in use")
def test_a_folder_that_was_removed(tmp_path):
    (tmp_path / "gone").mkdir()
    code = "import os; from fmkit.cli import main; os.rmdir(os.getcwd())"
    command = ["-c", f"{code}; raise SystemExit(main())", "rerun", "a.ipynb", "-oout"]
    run = subprocess.run(
        [sys.executable, *command], cwd=tmp_path / "gone", capture_output=True
    )
    assert (run.returncode, run.stdout) == (1, b"")
    assert run.stderr == b"fmkit: the current folder no longer exists.\n"
