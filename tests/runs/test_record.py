"""Records: what is kept, what is refused, and when a finding stops a run."""

import json
import math
import shutil
import subprocess

import numpy as np
import pytest
import torch
from support.notebooks import code, notebook, write

from fmkit.assets import hub
from fmkit.runs import record as records
from fmkit.runs.machine import versions
from fmkit.runs.record import FindingError, RecordError, Run, read_record, scores_of

CELL = "steps: int = 7  # T\nseed: int = 3  # of all\ndevice: str = 'cpu'  # where"
NAMESPACE = {"In": ["", CELL], "steps": 7, "seed": 3, "device": "cpu", "torch": torch}


@pytest.fixture
def path(tmp_path, monkeypatch):
    """The file of the record, as a rerun asks for it, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FMKIT_RECORD", str(tmp_path / "record.json"))
    monkeypatch.delenv("FMKIT_FINDINGS", raising=False)
    return tmp_path / "record.json"


def test_record_of_a_run(path):
    Run("tiny", NAMESPACE)
    record = read_record(path)
    assert list(record) == list(records.FIELDS)
    assert record["parameters"] == {"steps": 7, "seed": 3, "device": "cpu"}
    assert (record["chapter"], record["seed"], record["status"]) == (
        "tiny",
        3,
        "running",
    )
    assert record["threads"] == torch.get_num_threads()
    assert record["device"].startswith("cpu")
    assert record["versions"]["torch"] == torch.__version__


def test_every_change_is_kept_at_once_and_nothing_is_printed(path, capsys):
    run = Run("tiny", NAMESPACE)
    run.metric("pixels/probe/50/test", torch.tensor(0.5))
    assert read_record(path)["metrics"] == {"pixels/probe/50/test": 0.5}
    run.finding("half", np.float32(0.5), at_least=0.4)
    rest = {"unit": "", "at_least": 0.4, "at_most": None}
    found = {"half": {"values": [0.5], **rest, "holds": True}}
    assert read_record(path)["findings"] == found
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]
    assert capsys.readouterr() == ("", "")


def test_a_model_of_the_hub_is_recorded_with_its_commit(path, monkeypatch):
    monkeypatch.setattr(hub, "commits", {})
    run = Run("tiny", NAMESPACE)
    assert "a/b" not in read_record(path)["versions"]
    hub.commits["a/b"] = 40 * "f"
    run.metric("a", 1)
    assert read_record(path)["versions"]["a/b"] == 40 * "f"
    assert (run.record["versions"] | {"a/b": ""}).keys() == {*versions(), "a/b"}


def test_no_file_without_being_asked(path, monkeypatch):
    monkeypatch.delenv("FMKIT_RECORD")
    Run("tiny", NAMESPACE).metric("a", 1)
    assert not path.exists()


@pytest.mark.parametrize("name", ["seed", "device"])
def test_a_run_needs_seed_and_device(path, name):
    cell = "\n".join(line for line in CELL.split("\n") if not line.startswith(name))
    with pytest.raises(ValueError, match=f"parameters must name {name}, got"):
        Run("tiny", {**NAMESPACE, "In": ["", cell]})


@pytest.mark.parametrize("annotations", ["none", "eager", "deferred"])
def test_parameters_in_every_version_of_python(path, annotations):
    """From 3.14 on, a namespace has ``__annotate__``, and only of the last line."""
    has = {"eager": {"__annotations__": {"other": int}}}
    has["deferred"] = {"__annotate__": lambda form: {"device": str}}
    record = Run("tiny", NAMESPACE | {"other": 1} | has.get(annotations, {})).record
    assert record["parameters"] == {"steps": 7, "seed": 3, "device": "cpu"}


def test_parameters_are_those_of_the_cell_that_ran_last(path):
    cells = ["", "1 +", CELL, "x = 1", "", CELL.replace("steps", "rounds"), "y: int"]
    values = NAMESPACE | {"In": cells, "rounds": 8}
    assert Run("tiny", values).record["parameters"]["rounds"] == 8


def test_a_namespace_without_parameters(path):
    with pytest.raises(ValueError, match=r"parameters must name seed, got \[\]"):
        Run("tiny", {"steps": 7})


@pytest.mark.parametrize(
    ("cell", "values", "message"),
    [
        ("tau: float = 0.5", {"tau": "0.1"}, "tau must be float, got '0.1'"),
        ("head: bool = True", {"head": "false"}, "head must be bool, got 'false'"),
        ("n: list[int] = [1]", {"n": "[2]"}, r"n must be list\[int\], got '\[2\]'"),
        ("text: str = ''", {"text": 7}, "text must be str, got 7"),
    ],
)
def test_a_parameter_of_another_type(path, cell, values, message):
    """As papermill's own -p injects lists, false, and texts that look like numbers."""
    with pytest.raises(ValueError, match=f"^{message}.$"):
        Run("tiny", {**NAMESPACE, "In": ["", f"{CELL}\n{cell}"], **values})
    assert not path.exists()


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (math.nan, "be finite"),
        (-math.inf, "be finite"),
        (torch.tensor(math.nan), "be finite"),
        (True, "be a number"),
        ("1", "be a number"),
    ],
)
def test_a_metric_is_a_finite_number(path, value, rule):
    run = Run("tiny", NAMESPACE)
    with pytest.raises(ValueError, match=f"a/b must {rule}"):
        run.metric("a/b", value)
    assert read_record(path)["metrics"] == {}


def test_names_are_new(path):
    run = Run("tiny", NAMESPACE)
    run.metric("a", 1)
    run.finding("a", 1, at_most=1)
    with pytest.raises(ValueError, match="new among the metrics, got 'a'"):
        run.metric("a", 2)
    with pytest.raises(ValueError, match="sentence must be new, got 'a'"):
        run.finding("a", 2, at_most=3)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"at_least": 0.6}, "at least 0.6"),
        ({"at_most": 0.4}, "at most 0.4"),
        ({"at_least": 0.1, "at_most": 0.4}, "at least 0.1 and at most 0.4"),
    ],
)
def test_a_finding_that_does_not_hold(path, bounds, words):
    run = Run("tiny", NAMESPACE)
    with pytest.raises(FindingError, match=f"^half: 0.5, but must be {words}.$"):
        run.finding("half", 0.5, **bounds)
    assert read_record(path)["findings"]["half"]["holds"] is False


def stops(*cells, **values):
    """Whether a false finding stops a run in which these cells gave these values."""
    run = Run("tiny", {**NAMESPACE, "In": ["", *cells], **values})
    try:
        run.finding("false", 1, at_most=0)
    except FindingError:
        return True
    assert run.record["findings"]["false"]["holds"] is False
    return False


EDITED = CELL.replace("7", "50")


def chapter(path, cell, **own):
    """The chapter's file with `cell`, in the folder of its kernel."""
    whole = notebook(parameters=cell)
    if own:
        values = {"steps": 7, "seed": 3, "device": "cpu", **own}
        whole.metadata["fmkit"] = {"source_hash": "", "parameters": values}
    write(whole, path)


def test_a_finding_stops_a_run_only_at_the_chapters_own_parameters(path, tmp_path):
    assert stops(CELL)  # no file: its parameters cell decides
    assert not stops(CELL, "# Parameters\nsteps = 50\n", steps=50)  # injected
    assert stops(CELL, "# Parameters\nsteps = 7\n")
    assert stops(EDITED, steps=50)  # nothing shows that this was edited
    chapter(tmp_path / "tiny.ipynb", EDITED)
    assert stops(EDITED, steps=50)  # its own, since nobody has executed it otherwise
    for saved in (CELL, EDITED):  # an edited cell, saved or not
        chapter(tmp_path / "tiny.ipynb", saved, steps=7)
        assert not stops(EDITED, steps=50)
        assert stops(CELL)
    assert not stops(CELL, "# Parameters\nsteps = 50\n", steps=50)
    assert not stops(f"{CELL}\nnew: int = 1", new=1)
    (tmp_path / "tiny.ipynb").write_text('{"cells": [', encoding="utf-8")  # half saved
    assert stops(CELL)


def test_a_kernel_without_history(path, tmp_path):
    """As nbval's: its cells are those of the file, and a false finding stops it."""
    chapter(tmp_path / "tiny.ipynb", CELL, steps=7)
    for history in ({"In": [""]}, {"In": None}):
        values = {k: v for k, v in (NAMESPACE | history).items() if v is not None}
        run = Run("tiny", values)
        assert run.record["parameters"] == {"steps": 7, "seed": 3, "device": "cpu"}
        with pytest.raises(FindingError):
            run.finding("false", 1, at_most=0)


def test_own_parameters_where_a_kernel_starts_elsewhere(path, tmp_path, monkeypatch):
    """As papermill does, which starts it in its own folder."""
    monkeypatch.setattr(records, "PACKAGE", tmp_path / "checkout" / "fmkit")
    chapter(tmp_path / "checkout" / "chapters" / "tiny.ipynb", EDITED, steps=7)
    assert not stops(EDITED, steps=50)
    assert stops(CELL)


def test_findings_as_asked_for(path, monkeypatch):
    monkeypatch.setenv("FMKIT_FINDINGS", "report")
    assert not stops(CELL)
    monkeypatch.setenv("FMKIT_FINDINGS", "stop")
    assert stops(CELL, "steps = 50", steps=50)
    monkeypatch.setenv("FMKIT_FINDINGS", "perhaps")
    with pytest.raises(ValueError, match="FMKIT_FINDINGS must be stop or report"):
        Run("tiny", NAMESPACE)


def test_bounds_are_within_a_finding(path):
    Run("tiny", NAMESPACE).finding("half", 0.5, at_least=0.5, at_most=0.5)


@pytest.mark.parametrize(
    ("value", "options", "text"),
    [
        (0.5, {}, "0.5 (check: at least 0)"),
        (torch.tensor(0.5), {"unit": "nats"}, "0.5 nats (check: at least 0)"),
        (0.0712, {"unit": "points"}, "+7.1 points (check: at least +0.0)"),
        (
            [0.021, 0.038],
            {"unit": "points"},
            "+2.1, +3.8 points (check: at least +0.0)",
        ),
        (0.5, {"unit": "%"}, "50.0 % (check: at least 0.0)"),
    ],
)
def test_the_number_of_a_finding(path, monkeypatch, value, options, text):
    shown = []
    monkeypatch.setattr(records, "display", lambda data, *, raw: shown.append(data))
    run = Run("tiny", NAMESPACE)
    run.finding("A < B", value, at_least=0, **options)
    run.what_we_found()
    assert shown[0]["text/plain"].startswith(f"- A < B: {text}")
    assert "<li>A &lt; B: <strong>" in shown[0]["text/html"]
    assert "mathjax_ignore" in shown[0]["text/html"]  # dollars of data stay dollars


@pytest.mark.parametrize(
    ("value", "bounds"),
    [([0.2, -0.1], {"at_least": 0}), ([0.2, 0.1], {"at_most": 0.15})],
)
def test_every_seed_is_within(path, monkeypatch, value, bounds):
    shown = []
    monkeypatch.setattr(records, "display", lambda data, *, raw: shown.append(data))
    monkeypatch.setenv("FMKIT_FINDINGS", "report")
    run = Run("tiny", NAMESPACE)
    run.finding("A is larger", value, **bounds)
    run.what_we_found()
    assert "A is larger. Here this does not hold: " in shown[0]["text/plain"]
    assert "A is larger. Here this does not hold: " in shown[0]["text/html"]


def test_nothing_measured_is_no_finding(path, monkeypatch):
    with pytest.raises(ValueError, match=r"^half must .* own parameters, got \[\]"):
        Run("tiny", NAMESPACE).finding("half", [], at_least=0)
    monkeypatch.setenv("FMKIT_FINDINGS", "report")
    Run("tiny", NAMESPACE).finding("half", [], at_least=0)
    assert read_record(path)["findings"] == {}


@pytest.mark.parametrize("value", ["12", [1, "2"], [1, math.nan], None])
def test_a_finding_has_numbers(path, value):
    with pytest.raises((ValueError, TypeError), match=r"^(half|value) must|float"):
        Run("tiny", NAMESPACE).finding("half", value, at_least=0)


def test_findings_of_an_older_record(path):
    Run("tiny", NAMESPACE).finding("half", 0.5, at_least=0.4)
    expected = read_record(path)
    older = json.loads(path.read_text(encoding="utf-8"))
    del older["findings"]
    bounds = {"at_least": 0.4, "at_most": None, "holds": True}
    older["claims"] = {"half": {"value": 0.5, **bounds}}
    path.write_text(json.dumps(older), encoding="utf-8")
    assert read_record(path) == expected
    older["claims"]["half"].pop("holds")
    path.write_text(json.dumps(older), encoding="utf-8")
    with pytest.raises(RecordError, match="finding half is damaged"):
        read_record(path)


@pytest.mark.parametrize("bounds", [{}, {"at_least": math.nan}])
def test_a_finding_has_a_bound(path, bounds):
    with pytest.raises(ValueError, match=r"^at_least( or at_most)? must be"):
        Run("tiny", NAMESPACE).finding("half", 0.5, **bounds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-9], "holds no record"),
        (lambda text: "[]", "must have schema 1, got None"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "1, got 2"),
        (lambda text: text.replace('"commit"', '"comit"'), "not comit, commit"),
        (lambda text: text.replace('"seed": 3,\n "d', '"seed": "3",\n "d'), "seed"),
        (lambda text: text.replace("0.25", "NaN"), "metric a is not a number, got nan"),
    ],
)
def test_a_damaged_record(path, change, message):
    Run("tiny", NAMESPACE).metric("a", 0.25)
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(RecordError, match=message):
        read_record(path)


def test_a_record_that_is_not_there(tmp_path):
    with pytest.raises(RecordError, match="No such file"):
        read_record(tmp_path / "record.json")


@pytest.mark.parametrize("place", ["results", "fmkit/results"])  # checkout, wheel
def test_committed_records(path, monkeypatch, place):
    root = path.parent / "there"
    monkeypatch.setattr(records, "PACKAGE", root / "fmkit")
    assert records.committed("tiny") == {}
    Run("tiny", NAMESPACE)
    (root / place / "tiny").mkdir(parents=True)
    shutil.copy(path, root / place / "tiny" / "gpu.json")
    assert records.committed("tiny") == {
        "gpu": json.loads(path.read_text(encoding="utf-8"))
    }


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with a package, two executed chapters and a record of each."""
    root = tmp_path / "checkout"
    (root / "fmkit").mkdir(parents=True)
    (root / "fmkit" / "__init__.py").touch()
    (root / "fmkit" / "table.txt").write_text("1", encoding="utf-8")
    for name in ("one", "two"):
        (root / "results" / name).mkdir(parents=True)
        (root / "results" / name / "seed0.json").write_text("{}", encoding="utf-8")
        write(notebook(code(f"f({name!r})")), root / "chapters" / f"{name}.ipynb")
    monkeypatch.setattr(records, "PACKAGE", root / "fmkit")
    monkeypatch.chdir(root / "chapters")
    return root


def git(root, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(root), *who, *arguments]
    text = subprocess.check_output(command, encoding="utf-8", stderr=subprocess.DEVNULL)
    return text.strip()


def commit_of(root):
    git(root, "add", ".")
    git(root, "commit", "-m", "ours")
    return git(root, "rev-parse", "--short", "HEAD")


def test_commit_of_no_checkout_and_of_another(checkout):
    assert records.commit("one") is None
    git(checkout, "init")
    git(checkout, "commit", "--allow-empty", "-m", "another's")
    assert records.commit("one") is None  # installed inside another's checkout


def test_commit_of_code_that_was_copied(checkout, monkeypatch):
    monkeypatch.setenv("FMKIT_COMMIT", "1a2b3c4")
    assert records.commit("one") == "1a2b3c4"
    git(checkout, "init")
    assert records.commit("one") == "1a2b3c4"
    short = commit_of(checkout)
    assert records.commit("one") == short  # what is known for certain


def edited(path, change):
    whole = json.loads(path.read_text(encoding="utf-8"))
    change(whole["cells"])
    path.write_text(json.dumps(whole), encoding="utf-8")


def outputs(cells):
    cells[1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "1"}]
    cells[1]["execution_count"] = 9


def words(cells):
    cells[0]["source"] = ["Other words."]


def line(cells):
    cells[-1]["source"] = [*cells[-1]["source"], "\n", "g(1)"]


def test_commit_names_what_a_chapter_depends_on(checkout, monkeypatch):
    git(checkout, "init")
    short = commit_of(checkout)
    own, other = (checkout / "chapters" / f"{name}.ipynb" for name in ("one", "two"))
    for path, change in [(own, outputs), (own, words), (other, line)]:
        edited(path, change)  # make execute has put the outputs of other chapters back
    (checkout / "results" / "two" / "seed0.json").write_text("[]", encoding="utf-8")
    (checkout / "notes.md").touch()
    assert records.commit("one") == short
    assert records.commit("none") == short  # one that has no notebook
    monkeypatch.chdir(checkout)
    assert records.commit("two") == f"{short}+changes"

    edited(own, line)
    assert records.commit("one") == f"{short}+changes"
    assert records.commit("one") != (short := commit_of(checkout)) + "+changes"
    assert records.commit("one") == short


@pytest.mark.parametrize(
    "file", ["fmkit/table.txt", "fmkit/new.py", "results/one/seed0.json"]
)
def test_commit_sees_code_and_records(checkout, file):
    git(checkout, "init")
    short = commit_of(checkout)
    (checkout / file).write_text("changed", encoding="utf-8")
    assert records.commit("one") == f"{short}+changes"


def test_commit_sees_the_results_that_a_chapter_names(checkout):
    read = code("records = committed('two')")
    write(notebook(read), checkout / "chapters" / "one.ipynb")
    git(checkout, "init")
    short = commit_of(checkout)
    assert records.commit("one") == short
    (checkout / "results" / "two" / "seed0.json").write_text("[]", encoding="utf-8")
    assert records.commit("one") == f"{short}+changes"


def test_commit_of_a_notebook_that_is_not_in_it(checkout, tmp_path, monkeypatch):
    git(checkout, "init")
    short = commit_of(checkout)
    write(notebook(), checkout / "chapters" / "new.ipynb")
    write(notebook(), tmp_path / "elsewhere" / "one.ipynb")
    assert records.commit("new") == f"{short}+changes"
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert records.commit("one") == f"{short}+changes"
    own = (checkout / "chapters" / "one.ipynb").read_text(encoding="utf-8")
    copy = tmp_path / "elsewhere" / "one.ipynb"  # as on another machine
    copy.write_text(own, encoding="utf-8")
    assert records.commit("one") == short


def test_a_card_carries_its_record(path, monkeypatch):
    shown = []
    show = lambda data, *, raw, metadata: shown.append((data, metadata))  # noqa: E731
    monkeypatch.setattr(records, "display", show)
    run = Run("tiny", NAMESPACE)
    run.finding("one", 1, at_least=0.5)
    run.card()
    [(data, metadata)] = shown
    assert set(data) == {"text/html", "text/plain"}  # another type warns on a page
    assert "1 of 1 hold" in data["text/html"]
    assert "mathjax_ignore" in data["text/html"]  # dollars of data stay dollars
    [text] = metadata.values()
    assert text == json.dumps(read_record(path))  # in the order of the chapter
    assert [*metadata] == ["fmkit"]


def test_scores_of_several_runs():
    first = {"ours/probe/10/test": 0.5, "ours/probe/100/test": 0.8}
    runs = [{"metrics": first}, {"metrics": {"ours/probe/10/test": 0.6}}]
    for run in runs:
        run["metrics"]["ours/probe/all/test"] = 0.9
    assert scores_of(runs) == {("ours", "probe", 10, "test"): [0.5, 0.6]}
    assert scores_of([]) == {}


# Several processes, and runs that are kept


def test_a_record_says_how_many_processes_there_were(path, monkeypatch):
    run = Run("tiny", NAMESPACE)
    assert read_record(path)["processes"] == 1
    assert "processes" not in dict(records.card_of(run.record))["device"]
    monkeypatch.setattr(records.ranks, "size", lambda: 3)  # the chapter has joined
    run.metric("a/b/0/test", 1.0)
    assert read_record(path)["processes"] == 3
    device = dict(records.card_of(run.record))["device"]
    assert device.endswith(" threads in each of 3 processes")


def test_an_older_record_was_made_by_one_process(path):
    Run("tiny", NAMESPACE)
    older = json.loads(path.read_text(encoding="utf-8"))
    del older["processes"]
    path.write_text(json.dumps(older), encoding="utf-8")
    assert read_record(path)["processes"] == 1


def test_what_a_run_keeps_lies_beside_its_record(path, monkeypatch, tmp_path):
    def run(keep):
        cell = f"{CELL}\nkeep: str = ''  # a folder"
        return Run("tiny", NAMESPACE | {"In": ["", cell], "keep": keep})

    assert run("").kept("a.pt") is None
    assert run("kept").kept("a.pt") == tmp_path / "kept" / "a.pt"
    assert (tmp_path / "kept").is_dir()
    assert run(str(tmp_path / "b")).kept("a.pt") == tmp_path / "b" / "a.pt"
    assert run("kept").settings == {"steps": 7, "seed": 3}
    monkeypatch.setattr(records.ranks, "rank", lambda: 1)
    assert run("other").kept("a.pt") is None
    assert not (tmp_path / "other").exists()
