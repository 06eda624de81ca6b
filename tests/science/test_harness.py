"""The harness: our models and its own side by side, on tasks that lie in a folder."""

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from support.bounds import additions_of, rounding
from support.models import drawn
from support.refusals import refused
from tokenizers import Tokenizer, decoders, models, processors, trainers
from tokenizers import pre_tokenizers as pre

from fmkit.data.tokens import utf8_bytes
from fmkit.models.language_model import LanguageModel
from fmkit.models.pretrained import load_llama
from fmkit.models.transformer import TransformerConfig

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
pytest.importorskip("lm_eval", reason='needs lm-eval: pip install "fmkit[harness]"')

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from fmkit import harness
from fmkit.harness import HarnessModel

ROOT = Path(__file__).resolve().parents[2]
V, CONTEXT = 300, 48
START, END = "<|bos|>", "<|end|>"
TEXT = "Question: is the capital of France Paris or New York? Answer: it is Paris.\n"
# Contexts and answers: a context that is too long, or empty, or ends in white space, or
# in the first token of the answer; one to four answers, of one token or of many
ASKED = [
    (TEXT * 4 + "Answer:", [" Paris", " New York", " it", " of the capital of"]),
    ("", ["Paris", "the capital"]),
    ("The capital of France is ", ["Paris", "of New York", "x"]),
    ("Is it Par", ["is", "is or is it not"]),
    ("Question: one", [" answer"]),
    (f"{START}Answer:", [" Paris", " it is Paris"]),
]
LONG = [TEXT * 8, "it", TEXT[:90], "Paris or " * 30, ""]


@pytest.fixture(scope="module", params=["added", "not-added", "sentencepiece"])
def folder(request, tmp_path_factory):
    """A random Llama, with a tokenizer that adds the start symbol, or does not."""
    return saved(tmp_path_factory.mktemp(request.param), request.param)


def saved(made, kind):
    import transformers

    if kind == "sentencepiece":
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre.Metaspace()
        parts = [decoders.ByteFallback(), decoders.Metaspace()]
        tokenizer.decoder = decoders.Sequence(parts)
        alphabet = []
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=V,
        initial_alphabet=alphabet,
        special_tokens=["<unk>", START, END],
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    if kind != "not-added":
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{START} $A", special_tokens=[(START, 1)]
        )
    config = transformers.LlamaConfig(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(made)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=START, eos_token=END, unk_token="<unk>"
    ).save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder with three tasks, as a reader would write them."""
    made = tmp_path_factory.mktemp("tasks")
    cases = {
        "choices": [
            {"asked": text, "given": answers, "right": len(answers) - 1}
            for text, answers in ASKED
        ],
        "rolling": [{"text": text} for text in LONG],
        # Not of nothing, which "hf" cannot continue without a start symbol
        "written": [{"asked": text} for text, _ in ASKED if text],
    }
    of_kind = {
        "choices": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{asked}}",
            "doc_to_choice": "{{given}}",
            "doc_to_target": "right",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        "rolling": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "byte_perplexity"}],
        },
        "written": {
            "output_type": "generate_until",
            "doc_to_text": "{{asked}}",
            "doc_to_target": "Paris",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12},
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    for name, rows in cases.items():
        lines = "\n".join(map(json.dumps, rows))
        (made / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        task = {
            "task": f"tiny_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(made / f"{name}.jsonl")},
                "cache_dir": str(made / "cache"),
            },
            "test_split": "test",
            **of_kind[name],
        }
        (made / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return made


def evaluated(model, tasks, names, **given):
    """What a model answers to each request of tasks, and the results of its answers."""
    found = simple_evaluate(
        model,
        tasks=[f"tiny_{name}" for name in names],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        **given,
    )
    samples = [found["samples"][f"tiny_{name}"] for name in names]
    answers = [[sample["filtered_resps"] for sample in some] for some in samples]
    return *answers, found["results"]


def peer_of(folder, tasks, names, *, add, **given):
    # One at a time: in a batch, "hf" looks for a start symbol in the first text alone
    arguments = {"pretrained": str(folder), "dtype": "float32", "batch_size": 1}
    arguments["add_bos_token"] = add
    return evaluated("hf", tasks, names, model_args=arguments, device="cpu", **given)


def error_of(lm, tokens, nats):
    """How far rounding brings log p of so many tokens: of its logits, and of sums."""
    with torch.no_grad():
        largest = lm.model(torch.arange(V).split(CONTEXT)[0][None]).abs().max().item()
    of_one = rounding(additions_of(lm.model) + V, size=largest)
    return tokens**0.5 * of_one + rounding(tokens, size=nats)


@pytest.mark.parametrize("add", [True, False], ids=["start", "no-start"])
def test_ours_and_hf_side_by_side(folder, tasks, add):
    """Log-likelihoods to 1e-5 of themselves, the same choices, the same texts."""
    lm = load_llama(folder)
    ours = HarnessModel(lm, add_bos_token=add, batch_size=3, device="cpu")
    names = ["choices", "rolling", "written"]
    choices, rolling, written, results = evaluated(ours, tasks, names)
    expected, of_texts, texts, theirs = peer_of(folder, tasks, names, add=add)
    for (asked, answers), row, of_peer in zip(ASKED, choices, expected, strict=True):
        assert len(row) == len(answers)
        for answer, (log_p, greedy), (nats, best) in zip(
            answers, row, of_peer, strict=True
        ):
            tokens = len(lm.encode(asked + answer))
            error = error_of(lm, min(tokens, CONTEXT), -nats)
            assert error < 1e-5 * max(-nats, CONTEXT)
            assert log_p == pytest.approx(nats, abs=error)
            assert greedy == best
    assert written == texts
    assert len({text for [text] in texts}) > 3
    for name in ("choices", "written"):
        metrics = theirs[f"tiny_{name}"]
        assert results[f"tiny_{name}"] == pytest.approx(metrics, abs=1e-12)
    # Where "hf" adds the start symbol, it also scores it, after another one
    if add:
        asked = requests("loglikelihood_rolling", *[(text,) for text in LONG])
        alone = HarnessModel(lm, add_bos_token=False, device="cpu")
        assert alone.loglikelihood_rolling(asked) == [log_p for [log_p] in rolling]
        return
    for text, [log_p], [nats] in zip(LONG, rolling, of_texts, strict=True):
        error = error_of(lm, len(lm.encode(text)), -nats)
        assert error < 1e-5 * max(-nats, CONTEXT)
        assert log_p == pytest.approx(nats, abs=error)
    assert len(lm.encode(LONG[0])) > 2 * CONTEXT
    assert rolling[-1] == [0.0]


def test_strings_end_the_texts_of_both(folder, tasks):
    """Strings of several tokens, taken from the middle of texts that go on."""
    ours = HarnessModel(load_llama(folder), batch_size=4, device="cpu")
    whole = [text for [text] in evaluated(ours, tasks, ["written"])[0]]
    until = [text[5:9] for text in whole if text[5:9]]
    given = {"gen_kwargs": {"until": until}}
    [found, _] = evaluated(ours, tasks, ["written"], **given)
    [expected, _] = peer_of(folder, tasks, ["written"], add=True, **given)
    assert found == expected
    cut = [len(text) < len(long) for [text], long in zip(found, whole, strict=True)]
    assert sum(cut) >= len(until) > 3


def requests(kind, *arguments):
    return [Instance(kind, {}, given, i) for i, given in enumerate(arguments)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model whose tokens are the bytes of a text."""
    config = TransformerConfig(
        vocabulary=257,
        context=CONTEXT,
        width=16,
        layers=2,
        heads=4,
        kv_heads=2,
        hidden=12,
    )
    return LanguageModel(drawn(config), utf8_bytes(), start=0, ends=(5,))


def test_draws_are_those_of_the_harness_s_seed(tiny):
    model = HarnessModel(tiny, device="cpu")

    def texts(seed, **options):
        torch.manual_seed(seed)  # as simple_evaluate does
        asked = ("a", {"max_gen_toks": 20, **options})
        return model.generate_until(requests("generate_until", asked))

    sampled = {"do_sample": True, "temperature": 2.0, "top_p": 0.9}
    assert texts(1, **sampled) == texts(1, **sampled)
    assert texts(1, **sampled) != texts(2, **sampled)
    greedy = texts(1)
    assert greedy == texts(2, do_sample=False, temperature=0.7, num_beams=1)
    assert greedy == texts(2, do_sample=True, temperature=0.0)
    assert greedy != texts(1, **sampled)


def test_no_text_and_an_empty_stop_string(tiny):
    """The harness itself ignores an empty one."""
    model = HarnessModel(tiny, device="cpu")
    assert model.generate_until([]) == []
    plain, empty = (
        model.generate_until(
            requests("generate_until", ("a", {"max_gen_toks": 8, "until": until}))
        )
        for until in (["no such"], ["no such", ""])
    )
    assert plain == empty


def test_texts_keep_their_order_in_batches(tiny):
    asked = [(text, {"max_gen_toks": 4 + i % 2}) for i, text in enumerate("dabcefg")]
    asked[3] = ("c" * 60, asked[3][1])
    found = [
        HarnessModel(tiny, batch_size=size, device="cpu").generate_until(
            requests("generate_until", *asked)
        )
        for size in (1, 2, "7")
    ]
    assert found[0] == found[1] == found[2]
    assert len({*found[0]}) > 3


def test_answers_of_one_context_need_not_be_neighbours(tiny):
    model = HarnessModel(tiny, device="cpu")
    asked = [("a", "b"), ("c", "bb"), ("a", "d"), ("c", "b"), ("", "b")]
    found = model.loglikelihood(requests("loglikelihood", *asked))
    for pair, (log_p, greedy) in zip(asked, found, strict=True):
        [alone] = model.loglikelihood(requests("loglikelihood", pair))
        error = error_of(tiny, 2, -alone[0])
        assert (log_p, greedy) == (pytest.approx(alone[0], abs=error), alone[1])
    assert len({*found}) == len(asked)
    assert model.loglikelihood([]) == []


CHAT = """
{%- for message in messages -%}
{{ bos_token if loop.first }}<{{ message.role }}>{{ message.content }}{{ eos_token }}
{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""


def test_chats_are_those_of_hf(tmp_path, tasks):
    folder = saved(tmp_path, "added")
    (folder / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    how = {"apply_chat_template": True, "fewshot_as_multiturn": False}
    how["system_instruction"] = "Be brief."
    *peers, _ = peer_of(folder, tasks, ["choices", "written"], add=True, **how)
    ours = HarnessModel(str(folder), device="cpu")
    *found, _ = evaluated(ours, tasks, ["choices", "written"], **how)
    error = error_of(ours._lm, CONTEXT, 500.0)
    for row, theirs in zip(found[0], peers[0], strict=True):
        for (log_p, greedy), (expected, best) in zip(row, theirs, strict=True):
            assert (log_p, greedy) == (pytest.approx(expected, abs=error), best)
    assert found[1] == peers[1]
    from transformers import AutoTokenizer

    begun = [{"role": "user", "content": "Is it?"}]
    begun += [{"role": "assistant", "content": "It is"}]
    assert ours.apply_chat_template(begun, add_generation_prompt=False) == (
        AutoTokenizer.from_pretrained(folder).apply_chat_template(
            begun, tokenize=False, continue_final_message=True
        )
    )
    assert ours.chat_template(True) == CHAT
    message = "apply_chat_template must be without a name, got 'tools'."
    assert refused(ours.chat_template, "tools") == message


def test_chats_that_are_refused(tiny):
    said = [{"role": "assistant", "content": "It is"}]
    for template, message in ((None, "lm.template"), ("x", "the chat template must k")):
        model = HarnessModel(replace(tiny, template=template), device="cpu")
        assert refused(model.apply_chat_template, said, False).startswith(message)


def test_a_line_says_what_is_cut(tiny, caplog):
    model = HarnessModel(tiny, device="cpu")
    asked = [("a" * n, "b") for n in (3, CONTEXT - 1, CONTEXT, CONTEXT + 1)]
    found = model.loglikelihood(requests("loglikelihood", *asked))
    assert "2 of 4 texts are cut to 49 tokens" in caplog.text
    assert found[2] == found[3] != found[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": "auto"}, "batch_size must be a whole number above 0, got "),
        ({"batch_size": 0}, "batch_size must be a whole number above 0, got 0."),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, got "),
        ({"device": "cuda:1"}, "device must be one of "),
        ({"ends": (), "start": None}, "pretrained must have a start or an end symbol"),
        ({"pretrained": ""}, "pretrained must name a model, got ''."),
        ({"trust_remote_code": True}, "an argument of fmkit must be pretrained"),
    ],
)
def test_models_that_are_refused(tiny, options, message):
    lm = replace(tiny, **{k: options.pop(k) for k in ("ends", "start") if k in options})
    options = {"pretrained": lm} | options
    assert refused(lambda: HarnessModel(**options)).startswith(message)


@pytest.mark.parametrize(
    ("kind", "asked", "message"),
    [
        ("loglikelihood", ("a", ""), "a continuation must have a token after its con"),
        ("loglikelihood", ("", ""), "a continuation must have a token after its con"),
        ("loglikelihood", ("a", "b" * 49), "a continuation must have at most as many "),
        ("generate_until", ("a", {"top_k": 5}), "generation_kwargs must be until, "),
        ("generate_until", ("a", {"num_beams": 3}), "num_beams must be 1, got 3."),
        ("generate_until", ("a", {"max_gen_toks": 48}), "max_gen_toks must be from 1 "),
    ],
)
def test_requests_that_are_refused(tiny, kind, asked, message):
    ask = getattr(HarnessModel(tiny, device="cpu"), kind)
    assert refused(ask, requests(kind, asked)).startswith(message)


def test_the_command_of_the_how_to_page(tmp_path, monkeypatch, capsys):
    saved(tmp_path / "FOLDER", "added")
    page = (ROOT / "chapters" / "howto.md").read_text(encoding="utf-8")
    page = page[page.index("## Tasks of lm-evaluation-harness") :]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    Path("TASKS").mkdir()
    for kind, name in (("json", "colours.jsonl"), ("yaml", "colours.yaml")):
        block = re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL)[1]
        Path("TASKS", name).write_text(block, encoding="utf-8")
    line = next(
        line.split()
        for line in page.replace("\\\n", " ").splitlines()
        if line.startswith("python") and "TASKS" in line
    )
    given = ["--output_path", "out.json", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["lm-eval", *line[3:], *given])
    harness.main()
    assert "colours" in capsys.readouterr().out
    [path] = Path().glob("out*.json")
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["n-samples"]["colours"]["effective"] == 2


def test_a_refusal_of_the_command_is_one_sentence(tiny, monkeypatch):
    monkeypatch.setattr(harness, "cli_evaluate", lambda: HarnessModel("nowhere"))
    with pytest.raises(SystemExit, match=r"^fmkit: name must be .* got .nowhere"):
        harness.main()
