"""Files of models are described before they are read, or refused in one sentence."""

import pytest
import torch
from safetensors.torch import save_file

from fmkit._check import Refused
from fmkit._reading import check_tensors, open_tensors, read_object


def test_json_that_is_no_object_is_named(tmp_path):
    path = tmp_path / "a.json"
    for text, reason in [("[1]", "got list"), ("{", "cannot be read"), ("", "read")]:
        path.write_text(text, encoding="utf-8")
        with pytest.raises(Refused, match=rf"^{path} .*{reason}"):
            read_object(path)
    path.write_text("[" * 10**5, encoding="utf-8")
    with pytest.raises(Refused, match=rf"^{path} cannot be read \("):
        read_object(path)


def test_tensors_are_described_before_they_are_read(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"W": torch.ones(2, 3), "b": torch.zeros(2).half(), "i": torch.arange(3)}
    save_file(tensors, path)
    with pytest.raises(Refused, match=rf"^{path}: i .* got I64\.$"):
        open_tensors(path)
    stored = open_tensors(path, unused={"i"})
    assert {name: t.shape for name, t in stored.items()} == {"W": (2, 3), "b": (2,)}
    assert torch.equal(stored["b"].read(), tensors["b"])
    shapes = {"W": (2, 3), "b": (2,)}
    check_tensors(path, stored, shapes, source="x")
    for change, words in [
        ({"W": (3, 2)}, r": W must have shape \(3, 2\), by x, got \(2, 3\)"),
        ({"c": (1,), "d": (1,)}, r" .* by x, but lacks c and 1 more"),
    ]:
        with pytest.raises(Refused, match=rf"^{path}{words}\.$"):
            check_tensors(path, stored, shapes | change, source="x")
    with pytest.raises(Refused, match=r"by x, but also has W\.$"):
        check_tensors(path, stored, {"b": (2,)}, source="x")
