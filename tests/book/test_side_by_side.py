"""Chapters that show several pretrained models of different sizes side by side."""

import os
import re
import weakref

import pytest
from support.pretend.chapter import ROOT, execute, smallest
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from tokenizers import pre_tokenizers as pre

from fmkit._check import Refused
from fmkit.models import language_model, pretrained
from fmkit.runs.parameters import read_notebook, tags_of
from fmkit.runs.record import read_record
from fmkit.runs.rerun import rerun

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
TEXT = [
    "the capital of France is Paris",
    "Input: go\nOutput: went",
    "positive, negative",
]
BYTES = [f"<0x{i:02X}>" for i in range(256)]
# The smallest that has each cell, in which both models are asked more than one thing
GIVEN = {
    "zero_shot": {"tasks": ["capitals", "sentiment"]},
    "in_context_learning": {"tasks": ["capitals", "sentiment"], "driven": []},
}
AFTER = {"zero_shot": "zs-40", "in_context_learning": "icl-cot"}  # the last figure


def qwen3():
    """Llama's layout with Qwen3's norms, and a tokenizer of bytes without a start."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = {"initial_alphabet": sorted(pre.ByteLevel.alphabet())}
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, **alphabet)
    made.train_from_iterator(TEXT, trainer)
    made.add_special_tokens(["<|endoftext|>"])
    end = made.token_to_id("<|endoftext|>")
    symbols = {"bos_token_id": None, "eos_token_id": end, "head_dim": 8}
    return made, Qwen3Config, Qwen3ForCausalLM, {"hidden_size": 16, **symbols}


def sentencepiece():
    """A Llama 2: a space before each text, bytes for what it lacks, a start symbol."""
    from transformers import LlamaConfig, LlamaForCausalLM

    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>", *BYTES]
    made.train_from_iterator(
        [word for text in TEXT for word in re.findall(r"\s?\S+", text)],
        trainers.BpeTrainer(
            vocab_size=360, special_tokens=special, show_progress=False
        ),
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    symbols = {"bos_token_id": 1, "eos_token_id": 2}
    return made, LlamaConfig, LlamaForCausalLM, {"hidden_size": 32, **symbols}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folders of a Qwen3-like and of a SentencePiece model, both random."""
    import torch

    paths = {}
    for make in (qwen3, sentencepiece):
        tokenizer, config, model, changes = make()
        shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}
        shape |= {"num_key_value_heads": 1, "intermediate_size": 32}
        shape |= {"vocab_size": tokenizer.get_vocab_size(), "initializer_range": 0.2}
        torch.manual_seed(1)
        folder = tmp_path_factory.mktemp("models") / make.__name__
        model(config(max_position_embeddings=2048, **shape | changes)).save_pretrained(
            folder
        )
        tokenizer.save(str(folder / "tokenizer.json"))
        paths[make.__name__] = str(folder)
    return paths


def given(name, folders, **others):
    """The parameters of a chapter with all `folders` in a list."""
    return smallest(name) | GIVEN[name] | {"pretrained": [*folders.values()]} | others


@pytest.mark.parametrize("name", GIVEN)
def test_a_chapter_shows_sizes_side_by_side(name, folders, tmp_path):
    """Each model's numbers are in the record by its name, and a figure has them."""
    if name == "in_context_learning":  # each is once the model of the whole chapter
        folders = dict(reversed(folders.items()))
    path = ROOT / "chapters" / f"{name}.ipynb"
    rerun(path, tmp_path / "out", given=given(name, folders))
    metrics = read_record(tmp_path / "out" / "record.json")["metrics"]
    sizes = {of: metrics[f"{of}/parameters/0/model"] for of in folders}
    assert 0 < sizes["qwen3"] < sizes["sentencepiece"]
    first, other = folders
    own = {
        key.replace("/cloze-sum/", "/cloze-choice/"): value
        for key, value in metrics.items()
        if key.startswith(("model/cloze-sum", "capitals-", "sentiment-"))
    }
    assert len(own) >= 2
    for key, value in own.items():
        start = f"{first}/" if name == "zero_shot" else f"{first}: "
        key = key.removeprefix("model/")
        assert metrics[f"{start}{key}"] == value
        assert 0 <= metrics[start.replace(first, other) + key] <= 1
    executed = read_notebook(tmp_path / "out" / path.name)
    [cell] = [cell for cell in executed.cells if "optional-figure" in tags_of(cell)]
    assert [o for o in cell.outputs if "image/png" in o.get("data", {})]


@pytest.fixture
def in_chapters(monkeypatch):
    """Where a chapter starts, and what ``fmkit rerun`` sets."""
    monkeypatch.setenv("FMKIT_FINDINGS", "report")
    monkeypatch.delenv("FMKIT_RECORD", raising=False)
    monkeypatch.chdir(ROOT / "chapters")


@pytest.mark.parametrize("name", GIVEN)
def test_memory_holds_one_model_at_a_time(
    name, folders, monkeypatch, in_chapters, closed_figures
):
    alive, loaded = weakref.WeakSet(), []
    load, pack = pretrained.load_pretrained, language_model.packed

    def loading(model, **options):
        assert len(alive) == 0
        lm = load(model, **options)
        alive.add(lm.model)
        loaded.append(model)
        return lm

    def packing(model):
        twin = pack(model)
        alive.add(twin)
        return twin

    monkeypatch.setattr(pretrained, "load_pretrained", loading)
    monkeypatch.setattr(language_model, "packed", packing)
    fewer = {"n_task": []} if name == "in_context_learning" else {}
    parameters = given(name, folders, device="cpu", tasks=["capitals"], **fewer)
    execute(name, parameters, before=AFTER[name])
    one, other = folders.values()
    assert loaded == [other, one, other]


def test_a_list_of_none(closed_figures, in_chapters):
    name = "in_context_learning"
    execute(name, given(name, {}, device="cpu"), before=AFTER[name])
    with pytest.raises(Refused, match=r"pretrained .* \[\]\."):
        execute("zero_shot", given("zero_shot", {}, device="cpu"))


@pytest.mark.parametrize("name", GIVEN)
def test_lists_that_are_refused(name, folders, in_chapters):
    """At the first model that is read, and in one sentence."""
    one = folders["qwen3"]
    for wrong, said in (([one, one], one), ([one, ""], "''"), ([one, "no/x/y"], "no")):
        parameters = given(name, folders, device="cpu") | {"pretrained": wrong}
        with pytest.raises(Refused, match=re.escape(said)):
            execute(name, parameters)
