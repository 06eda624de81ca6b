"""The script that trains a base model, at a size of seconds."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from importlib.metadata import PathDistribution
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.processes import stopped

from fmkit._check import Refused
from fmkit.data import installed
from fmkit.data.docstrings import Document
from fmkit.models.saved import load_trained
from fmkit.models.transformer import Transformer, TransformerConfig
from fmkit.runs.record import read_record
from tools import base_model

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
CLOSE = 1e-3  # float32 after six steps; a gradient of own rows only is off by 1e-1
CHOICES = 0.05  # of what is counted: 2 of 64 choices may be near a tie
FILES = sorted(Path(sysconfig.get_path("stdlib")).glob("[c-j]*/*.py"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus of some folders of the standard library, in a folder of its own."""
    folder, texts = tmp_path_factory.mktemp("base"), []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        texts += [Document(text, "Python", path.parent.name)] if text.strip() else []
    base_model.write_corpus(folder, texts, vocabulary=1024)
    return folder


def command(folder, *options, launcher=()):
    return [sys.executable, *launcher, "-m", "tools.base_model", folder, *options]


def run(folder, *options, launcher=()):
    """Train the tiny model; the record of it."""
    variables = {"OMP_NUM_THREADS": "1", "FMKIT_DEVICE": "cpu"}
    done = subprocess.run(
        command(folder, "tiny", *options, launcher=launcher),
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return read_record(folder / "tiny" / "record.json")


def metrics_of(record):
    """What does not depend on the time."""
    found = record["metrics"]
    return {name: value for name, value in found.items() if "seconds" not in name}


def test_two_processes_go_on_where_one_was_killed(corpus, tmp_path, monkeypatch):
    """The record is that of a run in one process."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        shutil.copytree(corpus, folder)
    record = run(whole)
    assert record["status"] == "finished"
    names = {name.split("/")[0] for name in record["metrics"]}
    assert names == {"step-1", "step-2", "step-4", "step-6", "model", "corpus"}
    last = load_trained(whole / "tiny" / "step-000006.safetensors")
    parameters = sum(p.numel() for p in last.model.parameters())
    assert record["metrics"]["model/parameters/0/train"] == parameters
    assert record["metrics"]["step-6/tokens/0/train"] == 6 * 4 * 256

    monkeypatch.setenv("FMKIT_DEVICE", "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    checkpoint, written = killed / "tiny" / "run.pt", killed / "tiny" / "record.json"
    stopped(command(killed, "tiny"), when=checkpoint.exists, by=signal.SIGKILL)
    assert checkpoint.exists()
    assert not written.exists()
    two = run(killed, launcher=TORCHRUN)
    assert (record["processes"], two["processes"]) == (1, 2)
    assert metrics_of(two) == pytest.approx(metrics_of(record), abs=CHOICES)
    for name in ("nats/0/test", "induction/0/test", "second-copy/0/test"):
        name = f"step-6/{name}"
        assert two["metrics"][name] == pytest.approx(record["metrics"][name], abs=CLOSE)


@pytest.mark.parametrize("size", base_model.SIZES.values())
def test_each_model_is_kept_once(size):
    kept = base_model.kept_after(size.steps)
    assert kept[:3] == [1, 2, 4]
    assert kept[-1] == size.steps
    assert len(kept) == len(set(kept))


def test_a_corpus_must_be_made_first(tmp_path):
    with pytest.raises(Refused, match=f"base_model {tmp_path} corpus"):
        base_model.read_corpus(tmp_path)


def test_a_corpus_keeps_its_tokens_and_names_licences(corpus):
    read = base_model.read_corpus(corpus)
    assert read.train.dtype == torch.int16
    text = read.tokenizer.decode(read.test[:200].tolist())
    assert any(text[:200] in path.read_text(encoding="utf-8") for path in FILES)
    assert "torch " in (corpus / "licences.txt").read_text(encoding="utf-8")


def test_scores_of_a_head_that_copies(monkeypatch):
    n = base_model.COPIED
    T = 2 * n + 1
    planted = torch.zeros(2, base_model.DRAWS, 2, T, T)
    t = torch.arange(n + 1, T)
    planted[1, :, 0, t, t - n + 1] = 0.75  # the token after the same one
    planted[0, :, 1, t, t - 1] = 0.5
    monkeypatch.setattr(base_model, "attention_weights", lambda *_: planted)
    shape = {"width": 16, "layers": 2, "heads": 2, "kv_heads": 2, "hidden": 16}
    model = Transformer(TransformerConfig(vocabulary=99, context=T, **shape))
    found = base_model.copying(model)
    assert found["induction/0"] == pytest.approx(0.75)
    assert found["previous-token/0"] == pytest.approx(0.5)


@pytest.mark.parametrize("k", base_model.EXAMPLES)
def test_no_query_is_among_its_examples(k, monkeypatch):
    def scored(_, prompts, answers):
        for prompt, given in zip(prompts, answers, strict=True):
            *shown, query = prompt.split("\n\n")
            assert len(shown) == k
            asked = query.split("\n")[0]
            assert all(asked not in one.split("\n") for one in shown)
            assert len({*given}) == base_model.ANSWERS
        correct_first = torch.tensor([[0.0, *[-1.0] * (len(given) - 1)]])
        return SimpleNamespace(log_p=correct_first.expand(len(prompts), -1))

    monkeypatch.setattr(base_model, "score_answers", scored)
    for task in base_model.TASKS:
        assert base_model.accuracy(None, task, k) == 1


def distribution(folder, name, *, files, about):
    """Install a distribution of these files in a folder, as pip does."""
    info = folder / f"{name}-1.dist-info"
    for path, text in (files | {f"{info.name}/LICENSE.txt": "all rights"}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(text if isinstance(text, bytes) else text.encode())
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n{about}"
    (info / "METADATA").write_text(head, encoding="utf-8")
    listed = [f"{path},," for path in (*files, f"{info.name}/LICENSE.txt")]
    (info / "RECORD").write_text("\n".join(listed) + "\n", encoding="utf-8")
    return PathDistribution(info)


def test_what_is_installed(tmp_path, monkeypatch):
    files = {
        "b/one.py": "x = 1\n",
        "b/sub/two.md": "# Two\r\n",
        "b/tests/test_one.py": "a test",
        "b/data.csv": "1,2",
        "b/latin.py": "é".encode("latin-1"),
        "b/table.py": "0," * installed.LARGEST,
        "b/empty.py": "\n",
    }
    b = distribution(
        tmp_path, "B", files=files, about="License-Expression: MIT\n\nA readme.\n"
    )
    no = {"a/one.py": "a = 1\n"}
    none = distribution(tmp_path, "A", files=no, about="License: UNKNOWN\n")
    classified = "Classifier: License :: OSI Approved :: BSD License\n"
    c = distribution(tmp_path, "C", files={"c.py": "c = 1\n"}, about=classified)
    wanted = ("metadata", "version", "files", "locate_file")
    c = SimpleNamespace(**{name: getattr(c, name) for name in wanted})  # another class
    own = distribution(tmp_path, "fmkit", files={"f.py": "f = 1\n"}, about="License: X")
    monkeypatch.setattr(installed, "distributions", lambda: iter([c, own, none, b]))
    library = tmp_path / "library"
    for place in ("json/it.py", "test/it.py", "site-packages/it.py"):
        (library / place).parent.mkdir(parents=True)
        (library / place).write_text("library\n", encoding="utf-8")
    monkeypatch.setattr(installed.sysconfig, "get_path", lambda _: str(library))
    assert installed.load_installed() == [
        Document("library\n", "Python", "Python/json"),
        Document("A readme.\n", "b", "b metadata"),
        Document("x = 1\n", "b", "b"),
        Document("# Two\n", "b", "b/sub"),
        Document("c = 1\n", "c", "c"),
    ]
    python, *others = installed.licences().items()
    assert python[1] == "PSF-2.0"
    assert others == [("b 1", "MIT"), ("c 1", "BSD License")]
