"""Several models in one parameter: their names, and what is refused."""

import pytest
from support.refusals import refused

from fmkit.models.named import by_name

COMMIT = "1f2e3d4c" * 5
ASSET = "smollm2-135m-instruct-q4"


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("", []),
        ([], []),
        (ASSET, ["SmolLM2, instruction-tuned, 4 bits"]),
        ([ASSET], ["SmolLM2, instruction-tuned, 4 bits"]),
        ("HuggingFaceTB/SmolLM2-360M", ["SmolLM2-360M"]),
        (["a/x", "b/x", "b/y"], ["a-x", "b-x", "y"]),
        (["a/b/x", "c/b/x", "b/x"], ["a-b-x", "c-b-x", "b-x"]),
        ([f"a/x@{COMMIT}", "a/x@main"], ["x@1f2e3d4", "x@main"]),
        ([f"{a}/x@{COMMIT}/w.gguf" for a in "ab"], ["a-x@1f2e3d4-w", "b-x@1f2e3d4-w"]),
        (["/data/llama/", "/data/Llama-Q4_1.gguf"], ["llama", "Llama-Q4_1"]),
        (f"/c/models--a--x/snapshots/{COMMIT}", ["x"]),
        (
            [f"/c/models--{a}--x/snapshots/{COMMIT}/w.gguf" for a in "ab"],
            ["a-x-w", "b-x-w"],
        ),
    ],
)
def test_a_model_has_the_shortest_name_of_its_own(given, names):
    found = by_name(given)
    assert [*found] == names
    models = [given] if isinstance(given, str) else given
    assert [*found.values()] == [model for model in models if model]


def test_a_folder_is_called_what_it_is_called(tmp_path, monkeypatch):
    (tmp_path / "blob").mkdir()
    (tmp_path / "shown").symlink_to(tmp_path / "blob")
    monkeypatch.chdir(tmp_path / "blob")
    assert [*by_name(".")] == ["blob"]
    assert [*by_name(["../shown"])] == ["shown"]


def test_lists_that_are_refused(tmp_path):
    (tmp_path / "x").mkdir()
    twice = [str(tmp_path / "x"), f"{tmp_path}/y/../x/"]
    (tmp_path / "y").mkdir()
    for given in (twice, ["a/b", "a/b"]):
        message = refused(by_name, given)
        assert "pretrained" in message
        assert given[1] in message
    assert "''" in refused(by_name, ["a", ""])
    assert "'a-b'" in refused(by_name, ["a/b", "c/b", "x/a-b"])
