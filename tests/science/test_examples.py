"""The three scripts that the reference shows run as they stand, and are short."""

import ast
import math
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SCRIPTS = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.py"))
MOST = 20  # lines of code, imports not counted


def lines_of_code(source):
    """Count the lines that are neither import nor docstring nor blank."""
    statements = [
        node
        for node in ast.parse(source).body
        if not isinstance(node, ast.Import | ast.ImportFrom)
    ][1:]  # without the docstring
    lines = source.splitlines()
    spans = [lines[node.lineno - 1 : node.end_lineno] for node in statements]
    return sum(bool(line.strip()) for span in spans for line in span)


def printed(name, arguments, monkeypatch, capsys):
    """Run a script as the command does; return what it prints."""
    [path] = [path for path in SCRIPTS if path.stem == name]
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
    torch.manual_seed(0)
    runpy.run_path(str(path), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def accuracy_in(line):
    return float(re.match(r"accuracy (\d\.\d+)", line)[1])


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A tiny random Llama and a tokenizer of bytes, saved by transformers."""
    folder = tmp_path_factory.mktemp("llama")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0} | {piece: i for i, piece in enumerate(alphabet, start=1)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2},
        vocab_size=len(vocabulary),
        max_position_embeddings=512,
        bos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_short(path):
    assert 0 < lines_of_code(path.read_text(encoding="utf-8")) <= MOST


def test_lines_are_counted_without_imports():
    source = '"""Text.\n\nMore."""\n\nimport a\n\nx = [\n    1,\n]\n\n\nprint(x)\n'
    assert lines_of_code(source) == 4


def test_simclr_on_images_without_labels(tmp_path, monkeypatch, capsys):
    """Noise and stripes: the probe of the pretrained network tells them apart."""
    rng = torch.Generator().manual_seed(0)
    stripes = 255 * (torch.arange(32) // 4 % 2).expand(32, 32)
    for i in range(40):
        noise = torch.randint(256, (32, 32), generator=rng)
        for name, pixels in {
            "noise": noise,
            "stripes": (stripes + noise // 8) % 256,
        }.items():
            part = "test" if i % 4 == 0 else "train"
            for path in (f"all/{name}{i}.png", f"{part}/{name}/{i}.png"):
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.byte().numpy()).save(tmp_path / path)
    labelled = tmp_path / "labelled"
    labelled.mkdir()
    for part in ("train", "test"):
        (tmp_path / part).rename(labelled / part)
    arguments = tmp_path / "all", labelled, 8
    *steps, last = printed("simclr", arguments, monkeypatch, capsys)
    losses = [float(re.search(r": (\S+) nats", line)[1]) for line in steps]
    assert len(losses) == 8
    assert losses[0] == pytest.approx(math.log(2 * 80 - 1), abs=1.5)
    assert losses[-1] < losses[0]
    assert accuracy_in(last) > 0.9


def test_lora_on_labelled_texts(model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = {"good": "a fine and lovely film", "bad": "dull, slow, boring"}
    lines = [f"{name}\t{text} {i}" for i in range(30) for name, text in words.items()]
    (tmp_path / "texts.tsv").write_text("\n".join(lines), encoding="utf-8")
    arguments = model_folder, "texts.tsv", 30
    *steps, last = printed("lora", arguments, monkeypatch, capsys)
    losses = [float(re.search(r": (\S+) nats", line)[1]) for line in steps]
    assert losses[0] == pytest.approx(math.log(2), abs=1)  # a random head
    assert losses[-1] < 0.2 * losses[0]
    assert accuracy_in(last) == 1
    files = {path.name for path in (tmp_path / "lora").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "head.pt"}


def test_few_shot_from_pairs(model_folder, tmp_path, monkeypatch, capsys):
    pairs = [f"text {i}\t{('good', 'bad')[i % 2]}" for i in range(40)]
    (tmp_path / "pairs.tsv").write_text("\n".join(pairs), encoding="utf-8")
    arguments = model_folder, tmp_path / "pairs.tsv"
    [line] = printed("few_shot", arguments, monkeypatch, capsys)
    mean, low, high = map(float, re.findall(r"\d\.\d+", line))
    assert 0 <= low <= mean <= high <= 1
