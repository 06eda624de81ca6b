"""What git leaves in place of a large file is never taken for the file."""

import json
import zipfile

import pytest
from PIL import Image
from support.llamas import random_model, write_folder
from torch import nn

from fmkit._check import Refused
from fmkit.data.folders import read_folder, read_unlabelled
from fmkit.data.text import load_corpus
from fmkit.lora import load_low_rank
from fmkit.models.bert import load_minilm
from fmkit.models.pretrained import load_pretrained
from fmkit.models.saved import load_trained
from fmkit.tasks.questions import load_task

POINTER = f"""version https://git-lfs.github.com/spec/v1
oid sha256:{"4d7a" * 16}
size 271097600
"""
MINILM = ("config.json", "model.safetensors", "tokenizer.json")


def in_minilm(path):
    files = {name: path.parent / name for name in MINILM}
    entries = {"vocab_size": 9, "max_position_embeddings": 9, "type_vocab_size": 2}
    entries |= {"hidden_size": 8, "num_hidden_layers": 0, "num_attention_heads": 2}
    entries |= {"intermediate_size": 8, "layer_norm_eps": 1e-9}
    if path.name != "config.json":
        files["config.json"].write_text(json.dumps(entries), encoding="utf-8")
    load_minilm(files)


def in_folder(path):
    load_pretrained(path.parent)


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("config.json", in_folder),
        ("tokenizer.json", in_folder),
        ("model.safetensors", in_folder),
        ("model.safetensors.index.json", in_folder),
        ("x.gguf", load_pretrained),
        ("config.json", in_minilm),
        (
            "adapter_config.json",
            lambda path: load_low_rank(path.parent, nn.ReLU()),
        ),
        ("trained.safetensors", load_trained),
        ("pairs.csv", load_task),
        ("pairs.jsonl", load_task),
        ("task.toml", load_task),
        ("book.txt", load_corpus),
        ("images.zip", read_folder),
        ("images.zip", read_unlabelled),
    ],
)
def test_a_pointer_of_git_lfs_is_named(tmp_path, name, load):
    if load is in_folder:
        write_folder(tmp_path, random_model())
    if name.endswith("index.json"):
        (tmp_path / "model.safetensors").unlink()
    path = tmp_path / name
    path.write_text(POINTER, encoding="utf-8")
    with pytest.raises(Refused) as error:
        load(path)
    message = str(error.value)
    assert str(path) in message
    assert "git lfs pull" in message
    assert message.count(".") == 1 + str(path).count(".")


def test_an_image_that_is_a_pointer_is_named(tmp_path):
    for kind in "ab":
        (tmp_path / "train" / kind).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / "train" / kind / "0.png")
    path = tmp_path / "train" / "b" / "1.png"
    path.write_text(POINTER, encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for file in (tmp_path / "train").rglob("*.png"):
            archive.write(file, file.relative_to(tmp_path))
    for source in (tmp_path, tmp_path / "images.zip"):
        with pytest.raises(Refused, match=r"'train/b/1\.png' \(.* git lfs pull "):
            read_folder(source)
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("a text", encoding="utf-8")
    (texts / "b.txt").write_text(POINTER, encoding="utf-8")
    with pytest.raises(Refused, match=r"b\.txt .* git lfs pull "):
        load_corpus(texts)
