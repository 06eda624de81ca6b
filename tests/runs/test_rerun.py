"""Strict papermill: what is refused before a run, and what a run leaves."""

import json
import os
import signal
import subprocess
import sys
import time

import papermill
import pytest
import torch
from nbclient import NotebookClient
from support.notebooks import PARAMETERS, RUN, book, code, notebook, write
from support.processes import no_file_above

from fmkit.book.execute import execute
from fmkit.cli import main
from fmkit.runs.cells import RerunError
from fmkit.runs.parameters import defaults_of, parameters_of, read_notebook
from fmkit.runs.record import FIELDS, read_record, record_in


def run(tmp_path, *cells, given=(), derived=""):
    """Rerun a notebook of `cells` into ``out``; the exit status."""
    path = write(notebook(*cells, derived=derived), tmp_path / "tiny.ipynb")
    arguments = [part for one in given for part in ("-p", one)]
    return main(["rerun", str(path), *arguments, "-o", str(tmp_path / "out")])


def test_parameters_are_those_that_papermill_sees(tmp_path):
    theirs = papermill.inspect_notebook(str(write(notebook(), tmp_path / "a.ipynb")))
    parameters = parameters_of(notebook())
    ours = {name: (p.kind, repr(p.default)) for name, p in parameters.items()}
    assert {
        name: (p["inferred_type_name"], p["default"].replace('"', "'"))
        for name, p in theirs.items()
    } == ours


def test_a_value_of_several_lines():
    [sizes] = parameters_of(
        notebook(parameters="sizes: list[float] = [\n    1,\n    2.5,\n]  # n")
    ).values()
    assert sizes.default == [1.0, 2.5]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("steps", "-p must be name=value, got 'steps'"),
        ("steeps=7", "no parameter is named steeps (did you mean steps?); there are"),
        ("zzz=7", "no parameter is named zzz; there are steps, tau, name,"),
        ("steps=7.5", "steps must be int, got '7.5'"),
        ("steps=", "steps must be int, got ''"),
        ("sizes=[3", "sizes must be a list such as [a, 'b, c'], got '[3'"),
        ("name=caf\udce9", "an argument must be text in utf-8, got 'name=caf\\udce9'"),
    ],
)
def test_a_wrong_argument(tmp_path, capsys, argument, message):
    assert run(tmp_path, given=[argument]) == 1
    assert capsys.readouterr().err.startswith(f"fmkit: {message}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("tiny: [1", "is not YAML"),
        ("tiny: 2001-99-99", "must map chapters to their parameters"),
        ("tiny: {seed: !!int 010}", "is not YAML"),
        ("tiny:\n  seed: 1\n  seed: 2\n", "p.yaml, line 3: seed is given twice."),
        ("- tiny", "must map chapters to their parameters"),
        ("tiny: 3", "must map chapters to their parameters"),
        ("other: {}", "has no section tiny, only other"),
        ("tiny: {steeps: 1}", "p.yaml, line 1: no parameter is named steeps"),
        ("tiny:\n  tau: 1\n  seed: 12:30\n", "p.yaml, line 3: seed must be int, got"),
        ("tiny:\n  name:\n", "p.yaml, line 2: name must be str, got None."),
    ],
)
def test_a_wrong_profile(tmp_path, capsys, text, message):
    path, profile = write(notebook(), tmp_path / "tiny.ipynb"), tmp_path / "p.yaml"
    if text:
        profile.write_text(text, encoding="utf-8")
    assert main(["rerun", str(path), "-f", str(profile), "-o", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("not a notebook", "is not a notebook"),
        ("[]", "is not a notebook"),
        ('{"cells": []}', "one cell must be tagged parameters, got 0"),
    ],
)
def test_no_notebook(tmp_path, capsys, content, message):
    path = tmp_path / "tiny.ipynb"
    if content:
        path.write_text(content, encoding="utf-8")
    assert main(["rerun", str(path), "-o", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err


def test_a_notebook_without_a_parameters_cell(tmp_path):
    whole = notebook()
    whole.cells[1].metadata["tags"] = []
    with pytest.raises(RerunError, match="one cell must be tagged parameters, got 0"):
        parameters_of(whole)


@pytest.mark.parametrize("out", [".", "file", "file/out", "sealed"])
def test_a_folder_that_cannot_be_written(tmp_path, capsys, out):
    path = write(notebook(), tmp_path / "tiny.ipynb")
    before = path.read_text(encoding="utf-8")
    (tmp_path / "file").touch()
    (tmp_path / "sealed").mkdir(mode=0o500)
    if out == "sealed" and os.access(tmp_path / out, os.W_OK):
        pytest.skip("this user may write everywhere")
    assert main(["rerun", str(path), "-o", str(tmp_path / out)]) == 1
    message = capsys.readouterr().err
    assert "cannot be written" in message or "must not be the chapter's own" in message
    assert path.read_text(encoding="utf-8") == before


def test_a_value_is_given_once(tmp_path, capsys):
    assert run(tmp_path, given=["seed=1", "tau=1", "seed=1"]) == 1
    assert capsys.readouterr().err == "fmkit: seed is given twice.\n"


def test_a_tilde_that_a_shell_leaves(tmp_path, monkeypatch, capsys):
    """Of ``-o ~/runs`` a shell reads the tilde, of ``--out=~/runs`` it does not."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write(notebook(), tmp_path / "tiny.ipynb")
    (tmp_path / "p.yaml").write_text("tiny: {steps: 5}", encoding="utf-8")
    (tmp_path / "file").touch()
    command = ["rerun", "~/tiny.ipynb", "--profile=~/p.yaml", "--out=~/file"]
    assert main(command) == 1
    assert capsys.readouterr().err.startswith(f"fmkit: {tmp_path}/file cannot be writt")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The folder of a run with other parameters, some given in a profile."""
    folder = tmp_path_factory.mktemp("good") / "with {braces}"
    cells = [
        code("run.metric('a/b', tau * steps)\nprint(steps, tau, name)"),
        code("import os\n\nprint(os.environ.get('MPLBACKEND'), os.getcwd())"),
        code("run.finding('three steps', steps, at_most=3)", "finding"),
        code("run.what_we_found()\nrun.card()"),
    ]
    path = write(notebook(*cells, derived=RUN), folder / "tiny.ipynb")
    (folder / "p.yaml").write_text("tiny: {steps: 5, name: blue}", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLBACKEND", "Agg")
        arguments = ["-f", str(folder / "p.yaml"), "-p", "steps=6"]
        status = main(["rerun", str(path), *arguments, "-o", str(folder / "out")])
        assert os.environ["MPLBACKEND"] == "Agg"
        assert "FMKIT_RECORD" not in os.environ
    assert status == 0
    return folder


def test_record_of_a_rerun(good):
    record = read_record(good / "out" / "record.json")
    assert (record["status"], record["error"]) == ("finished", None)
    assert record["parameters"]["steps"] == 6  # -p wins over the profile
    assert record["parameters"]["name"] == "blue"
    assert record["parameters"]["tau"] == 0.5
    assert record["metrics"] == {"a/b": 3.0}
    assert record["findings"]["three steps"]["holds"] is False  # reported, not raised


def test_notebook_of_a_rerun(good):
    cells = read_notebook(good / "out" / "tiny.ipynb").cells
    texts = [o.get("text", "") for c in cells for o in c.get("outputs", [])]
    inline = "module://matplotlib_inline.backend_inline"  # the kernel's own choice
    assert texts[:2] == ["6 0.5 blue\n", f"{inline} {good}\n"]
    shown = [o.data for o in cells[-1].outputs]
    assert "<li>three steps. Here this does not hold: " in shown[0]["text/html"]
    assert "three steps" in shown[0]["text/plain"]
    assert "at most 3" in shown[0]["text/plain"]
    assert "steps = 6, tau = 0.5, name = blue" in shown[1]["text/plain"]
    assert "0 of 1 hold" in shown[1]["text/html"]


FINDING = """\
import logging

logging.getLogger('tornado.general').error('late')
run.finding('ten', 3, at_least=10)"""


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (FINDING, "cell 4: FindingError: ten: 3, but must be at least 10"),
        ("import os\nos._exit(1)", "cell 4: its kernel died"),
    ],
)
def test_a_failing_cell(tmp_path, capfd, source, error):
    cells = [code("run.metric('a', 1)"), code(source), code("print('never')")]
    assert run(tmp_path, *cells, derived=RUN) == 1
    shown = capfd.readouterr().err
    assert f"tiny.ipynb failed in {error}" in shown
    assert shown.count("\n") == 1
    record = read_record(tmp_path / "out" / "record.json")
    assert (record["status"], record["error"]) == ("failed", error)
    assert record["metrics"] == {"a": 1.0}
    cells = read_notebook(tmp_path / "out" / "tiny.ipynb").cells
    assert not any("never" in o.get("text", "") for o in cells[-1].outputs)


def test_papermill_itself_and_findings(tmp_path, monkeypatch):
    """As the reader types it, from another folder than the notebook's."""
    found = code("run.finding('three steps', steps, at_most=3)\nrun.card()")
    path = write(notebook(found, derived=RUN), tmp_path / "chapters" / "tiny.ipynb")
    monkeypatch.chdir(tmp_path)
    out = str(tmp_path / "out.ipynb")
    papermill.execute_notebook(str(path), out, parameters={"steps": 50})
    record = record_in(read_notebook(tmp_path / "out.ipynb"), "tiny")
    assert record["parameters"]["steps"] == 50
    assert record["findings"]["three steps"]["holds"] is False
    assert [*record] == [*FIELDS]  # as it was written


def test_an_edited_parameters_cell_in_a_kernel(tmp_path, monkeypatch):
    """A cell is changed and run again, as in JupyterLab; then the notebook is saved."""
    tried = "try:\n    run.finding('three', steps, at_most=2)\n    print('reported')\n"
    tried += "except AssertionError:\n    print('stopped')"
    own = [code(RUN), code(tried)]
    edited = code(PARAMETERS.replace("steps: int = 3", "steps: int = 50"))
    again = [code(f"# again\n{RUN}"), code(f"# again\n{tried}")]
    whole = notebook(*own, edited, *again)
    saved = notebook(parameters=edited.source)
    saved.metadata["fmkit"] = {"parameters": defaults_of(notebook())}
    write(saved, tmp_path / "tiny.ipynb")
    monkeypatch.delenv("FMKIT_RECORD", raising=False)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(whole, resources=resources, timeout=300).execute()
    texts = [o.text for c in whole.cells for o in c.get("outputs", [])]
    assert texts == ["stopped\n", "reported\n"]


def test_execute_makes_the_parameters_the_chapters_own(tmp_path, monkeypatch):
    """So a finding stops it at new defaults too, and does not at a reader's values."""
    monkeypatch.chdir(tmp_path)
    asked = "import os\n\nprint(os.environ['FMKIT_FINDINGS'])"
    path = write(notebook(code(asked)), tmp_path / "chapters" / "tiny.ipynb")
    whole = read_notebook(path)
    whole.metadata["fmkit"] = {"source_hash": "old", "parameters": {"steps": 1}}
    write(whole, path)
    book(tmp_path)
    assert execute(tmp_path) == [path]
    executed = read_notebook(path)
    assert executed.metadata["fmkit"]["parameters"] == defaults_of(notebook())
    assert executed.cells[-1].outputs[0].text == "stop\n"
    assert os.environ.get("FMKIT_FINDINGS") is None


def test_a_record_of_a_chapter_that_made_none(tmp_path):
    assert run(tmp_path, code("print(1)"), given=["steps=9"]) == 0
    record = read_record(tmp_path / "out" / "record.json")
    assert (record["status"], record["parameters"]["steps"]) == ("finished", 9)


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "0"}


@pytest.mark.parametrize(
    ("variables", "number"),
    [({}, signal.SIGINT), ({}, signal.SIGHUP), (TORCHRUN, signal.SIGTERM)],
    ids=["Ctrl-C", "its terminal closed", "another process of torchrun failed"],
)
def test_interrupted(tmp_path, variables, number):
    started = tmp_path / "started"
    source = f"import time\n\nopen({str(started)!r}, 'w')\ntime.sleep(60)"
    cell = code(f"{source}\nranks.processes(device)")
    path = write(notebook(cell), tmp_path / "tiny.ipynb")
    command = [sys.executable, "-c", "from fmkit.cli import main; exit(main())"]
    with subprocess.Popen(
        [*command, "rerun", str(path), "-o", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=os.environ | variables,
        # Tests in the background of a shell, or under nohup, ignore these signals
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    ) as process:
        while not started.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        message = process.communicate()[1]
    assert (process.returncode, message) == (130, "fmkit: interrupted.\n")
    record = json.loads((tmp_path / "out" / "record.json").read_text(encoding="utf-8"))
    assert (record["status"], record["error"]) == ("failed", "interrupted")
    names = {"tiny.ipynb", "record.json"}  # none that a reader would wonder at
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def test_a_bug_shows_its_traceback_and_is_named_in_the_record(
    tmp_path, monkeypatch, capsys
):
    def fails(*_, **__):
        raise ValueError("expected 3")  # as torch may

    monkeypatch.setattr(papermill, "execute_notebook", fails)
    assert run(tmp_path, code("1")) == 70
    assert "Traceback" in capsys.readouterr().err
    record = read_record(tmp_path / "out" / "record.json")
    assert (record["status"], record["error"]) == ("failed", "ValueError: expected 3")


def test_a_bug_in_torch_is_not_the_readers(tmp_path, monkeypatch, capsys):
    def fails():
        raise ValueError("expected 3")

    monkeypatch.setattr(papermill, "execute_notebook", lambda *_, **__: None)
    monkeypatch.setattr(torch, "get_num_threads", fails)
    assert run(tmp_path, code("1")) == 70
    assert "ValueError: expected 3" in capsys.readouterr().err


# A full disk


@pytest.fixture
def grows(tmp_path, capsys):
    """Results of a notebook that prints more the more steps there are."""
    cells = [code("run.metric('a', steps)"), code("print('x' * 1000 * steps)")]
    assert run(tmp_path, *cells, derived=RUN, given=["steps=1"]) == 0
    capsys.readouterr()
    return tmp_path / "tiny.ipynb", tmp_path / "out"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_disk_that_is_full_before_a_run(grows, capsys):
    """The results of the run before stay, also the record, which would have room."""
    path, out = grows
    before = contents(out)
    size = 1000
    assert len(before["record.json"]) < size < len(before["tiny.ipynb"])
    with no_file_above(size):
        assert main(["rerun", str(path), "-o", str(out)]) == 1
    message = f"{out / 'tiny.ipynb'} cannot be written (File too large)."
    assert capsys.readouterr().err == f"fmkit: {message}\n"
    assert contents(out) == before


def test_a_disk_that_fills_up(grows, capsys):
    """What fits is whole: the notebook before its long output, and the record."""
    path, out = grows
    with no_file_above(50_000):
        assert main(["rerun", str(path), "-p", "steps=60", "-o", str(out)]) == 1
    message = f"{out / 'tiny.ipynb'} cannot be written (File too large)"
    assert capsys.readouterr().err == f"fmkit: {message}.\n"
    record = read_record(out / "record.json")
    assert (record["status"], record["error"]) == ("failed", message)
    assert record["metrics"] == {"a": 60.0}
    cells = read_notebook(out / "tiny.ipynb").cells
    assert any("steps = 60" in cell.source for cell in cells)
    assert {path.name for path in out.iterdir()} == {"tiny.ipynb", "record.json"}


def test_a_disk_that_is_full_for_the_record(tmp_path, capsys):
    """The kernel writes it, and the cell that cannot names it."""
    cell = code("run.metric('a' * 50_000, 1)")
    with no_file_above(30_000):
        assert run(tmp_path, cell, derived=RUN) == 1
    said = f"{tmp_path / 'out' / 'record.json'} cannot be written (File too large)"
    error = f"cell 3: Refused: {said}"
    assert f"tiny.ipynb failed in {error}; see" in capsys.readouterr().err
    assert read_record(tmp_path / "out" / "record.json")["error"] == error


# Several processes


def test_processes_after_the_first_write_elsewhere(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fmkit.ranks.rank", lambda: 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    assert run(tmp_path, code("x = 1")) == 0
    assert capsys.readouterr().out == ""
    assert [*(tmp_path / "temporary").iterdir()] == []
    assert run(tmp_path, code("1 / 0")) == 1
    [left] = (tmp_path / "temporary").iterdir()  # what there is to read
    assert f"see {left / 'tiny.ipynb'}." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_several_processes_need_a_chapter_that_joins_them(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("fmkit.ranks.started", lambda: 2)
    assert run(tmp_path, code("x = 1")) == 1
    assert "must call ranks.processes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(tmp_path, code("if steps < 0:\n    ranks.processes(on)")) == 0


def test_a_checkpoint_of_other_code_is_refused(tmp_path, capsys):
    """Sweeps run a point again if the code has changed, into the same folder."""
    train = """
from pathlib import Path
import torch
from fmkit.checkpoint import resume
model = torch.nn.Linear(1, 1)
descent = torch.optim.SGD(model.parameters(), lr=0.1)
batches = [torch.ones(1, 1)] * steps
of_run = {{"model": model, "generators": {{}}, "settings": run.settings}}
path = Path("{folder}/model.pt")
for _ in resume(
    path, lambda x: model(x).square().mean() * {scale}, batches, descent,
    steps=steps, **of_run
):
    pass
"""
    cells = {
        scale: (code(RUN), code(train.format(folder=tmp_path.as_posix(), scale=scale)))
        for scale in (1, 2)
    }
    assert run(tmp_path, *cells[1]) == run(tmp_path, *cells[1]) == 0
    assert run(tmp_path, *cells[2]) == 1
    assert "model.pt is of another run: its code is " in capsys.readouterr().err
