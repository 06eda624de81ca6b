"""The script that trains a base model, on a GPU: it uses minutes of a real one."""

import sysconfig
from pathlib import Path

import pytest

from fmkit.data.docstrings import Document
from fmkit.runs.record import read_record
from tools import base_model


def test_the_record_of_a_gpu_is_that_of_a_cpu(gpu, tmp_path, monkeypatch):
    folder = Path(sysconfig.get_path("stdlib"))
    texts = [
        Document(path.read_text(encoding="utf-8"), "Python", path.parent.name)
        for path in sorted(folder.glob("[ejl]*/*r.py"))
    ]
    base_model.write_corpus(tmp_path, texts, vocabulary=512)
    monkeypatch.setattr(base_model, "HELD_OUT", 4)
    monkeypatch.setattr(base_model, "QUERIES", 2)
    metrics = {}
    for device in ("cuda", "cpu"):
        monkeypatch.setenv("FMKIT_DEVICE", device)
        base_model.main([str(tmp_path), "tiny", "--steps", "2"])
        path = tmp_path / "tiny" / "record.json"
        record = read_record(path)
        assert record["parameters"]["device"] == device
        metrics[device] = record["metrics"]
        (tmp_path / "tiny" / "run.pt").unlink()
    assert gpu.waits  # it was used
    for name, value in metrics["cpu"].items():
        if "seconds" not in name:
            assert metrics["cuda"][name] == pytest.approx(value, abs=0.01), name
