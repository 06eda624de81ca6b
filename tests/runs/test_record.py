"""Records: what is kept, what is refused, what a claim does."""

import json
import math
import shutil
import subprocess

import numpy as np
import pytest
import torch

from fmkit.runs import record as records
from fmkit.runs.record import ClaimError, RecordError, Run, read_record, scores_of

NAMESPACE = {
    "__annotations__": {"steps": int, "seed": int, "device": str},
    "steps": 7,  # as papermill injected it
    "seed": 3,
    "device": "cpu",
    "torch": torch,
}


@pytest.fixture
def path(tmp_path, monkeypatch):
    """The file of the record, as a rerun asks for it."""
    monkeypatch.setenv("FMKIT_RECORD", str(tmp_path / "record.json"))
    monkeypatch.delenv("FMKIT_CLAIMS", raising=False)
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
    run.claim("half", np.float32(0.5), at_least=0.4)
    assert read_record(path)["claims"] == {
        "half": {"value": 0.5, "at_least": 0.4, "at_most": None, "holds": True}
    }
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]
    assert capsys.readouterr() == ("", "")


def test_no_file_without_being_asked(path, monkeypatch):
    monkeypatch.delenv("FMKIT_RECORD")
    Run("tiny", NAMESPACE).metric("a", 1)
    assert not path.exists()


@pytest.mark.parametrize("name", ["seed", "device"])
def test_a_run_needs_seed_and_device(path, name):
    annotated = {k: v for k, v in NAMESPACE["__annotations__"].items() if k != name}
    with pytest.raises(ValueError, match=f"parameters must name {name}, got"):
        Run("tiny", {**NAMESPACE, "__annotations__": annotated})


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
    run.claim("a", 1, at_most=1)
    with pytest.raises(ValueError, match="new among the metrics, got 'a'"):
        run.metric("a", 2)
    with pytest.raises(ValueError, match="new among the claims, got 'a'"):
        run.claim("a", 2, at_most=3)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"at_least": 0.6}, "at least 0.6"),
        ({"at_most": 0.4}, "at most 0.4"),
        ({"at_least": 0.1, "at_most": 0.4}, "at least 0.1 and at most 0.4"),
    ],
)
def test_a_claim_that_does_not_hold(path, monkeypatch, bounds, words):
    run = Run("tiny", NAMESPACE)
    with pytest.raises(ClaimError, match=f"^half is 0.5, but {words} is claimed.$"):
        run.claim("half", 0.5, **bounds)
    assert read_record(path)["claims"]["half"]["holds"] is False
    monkeypatch.setenv("FMKIT_CLAIMS", "report")
    run.claim("half again", 0.5, **bounds)
    assert read_record(path)["claims"]["half again"]["holds"] is False


def test_bounds_are_within_a_claim(path):
    Run("tiny", NAMESPACE).claim("half", 0.5, at_least=0.5, at_most=0.5)


@pytest.mark.parametrize("bounds", [{}, {"at_least": math.nan}])
def test_a_claim_has_a_bound(path, bounds):
    with pytest.raises(ValueError, match=r"^at_least( or at_most)? must be"):
        Run("tiny", NAMESPACE).claim("half", 0.5, **bounds)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:-9], "holds no record"),
        (lambda text: "[]", "must have schema 1, got None"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "1, got 2"),
        (lambda text: text.replace('"commit"', '"comit"'), "not comit, commit"),
        (lambda text: text.replace('"seed": 3,\n "d', '"seed": "3",\n "d'), "seed"),
        (lambda text: text.replace("0.25", "NaN"), "metric a that is no number: nan"),
    ],
)
def test_a_damaged_record(path, change, said):
    Run("tiny", NAMESPACE).metric("a", 0.25)
    path.write_text(change(path.read_text()))
    with pytest.raises(RecordError, match=said):
        read_record(path)


def test_a_record_that_is_not_there(tmp_path):
    with pytest.raises(RecordError, match="No such file"):
        read_record(tmp_path / "record.json")


def test_committed_records_lie_beside_the_package(path, monkeypatch):
    root = path.parent / "checkout"
    monkeypatch.setattr(records, "PACKAGE", root / "fmkit")
    assert records.committed("tiny") == {}
    Run("tiny", NAMESPACE)
    (root / "results" / "tiny").mkdir(parents=True)
    shutil.copy(path, root / "results" / "tiny" / "gpu.json")
    assert records.committed("tiny") == {"gpu": json.loads(path.read_text())}


def test_commit(tmp_path, monkeypatch):
    package = tmp_path / "fmkit"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setattr(records, "PACKAGE", package)

    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL)

    assert records.commit() is None  # no checkout
    git("init")
    git("commit", "--allow-empty", "-m", "another's")
    assert records.commit() is None  # installed inside another's checkout
    git("add", "fmkit")
    git("commit", "-m", "ours")
    short = git("rev-parse", "--short", "HEAD").strip()
    assert records.commit() == short
    (package / "__init__.py").write_text("changed = True\n")
    assert records.commit() == f"{short}+changes"


def test_scores_of_several_runs():
    first = {"ours/probe/10/test": 0.5, "ours/probe/100/test": 0.8}
    runs = [{"metrics": first}, {"metrics": {"ours/probe/10/test": 0.6}}]
    for run in runs:
        run["metrics"]["ours/probe/all/test"] = 0.9
    assert scores_of(runs) == {("ours", "probe", 10, "test"): [0.5, 0.6]}
    assert scores_of([]) == {}
