"""Evaluation and decoding on a GPU and on a Mac: the CPU's numbers, and few waits."""

import pytest
import torch
from support.bounds import additions_of, rounding
from support.models import drawn
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from fmkit import evaluate, runtime
from fmkit.adapt import frozen_outputs
from fmkit.generate import generate, greedy, sampler, stream
from fmkit.models.language_model import LanguageModel
from fmkit.models.resnet import ResNet, ResNetConfig
from fmkit.models.transformer import TransformerConfig
from fmkit.probe import least_squares_probe, linear_probe, logistic_path
from fmkit.prompt import choice_accuracy, score_answers
from fmkit.tasks.regression import ridge_predictions

TINY = TransformerConfig(
    vocabulary=23, context=24, width=16, layers=2, heads=4, kv_heads=2, hidden=12
)
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]


# A Mac has no float64


@pytest.fixture
def unsaid():
    """As in a process that has not said yet where float64 is computed."""
    runtime._say_that_float64_is_on_the_cpu.cache_clear()


def test_float64_is_on_the_cpu_of_a_mac_and_this_is_said_once(mac, unsaid, capsys):
    x = torch.tensor([0.1, -2.0], device="mps")
    with pytest.raises(TypeError, match="float64"):
        x.double()
    assert runtime.float64(x.cpu()).dtype == torch.float64
    assert capsys.readouterr().out == ""
    for value in (x, x > 0):
        exact = runtime.float64(value)
        assert (exact.dtype, exact.device.type) == (torch.float64, "cpu")
        assert exact.tolist() == value.cpu().double().tolist()
    assert capsys.readouterr().out.count("\n") == 1


def test_a_gpu_computes_float64_itself(gpu, capsys):
    assert runtime.float64(torch.ones(2, device="cuda")).device.type == "cuda"
    assert capsys.readouterr().out == ""


def metrics(on):
    """Each metric of tensors on a device, from the same numbers."""
    rng = torch.Generator().manual_seed(0)
    phi, u = torch.randn(12, 4, generator=rng), torch.randn(12, 3, generator=rng)
    labels, right = torch.arange(12) % 3, u[:, 0] > 0
    phi, u, labels, right = (x.to(on) for x in (phi, u, labels, right))
    maps = evaluate.planar_maps([phi, 2 * phi + 1])
    votes = evaluate.knn_votes(phi, labels, phi, classes=3, neighbours=5, tau=0.1)
    return {
        "accuracy": evaluate.accuracy(u, labels),
        "Brier score": evaluate.brier_score(u.softmax(dim=1), labels),
        "reliability": evaluate.reliability(u[:, 0].sigmoid(), right, bins=3),
        "kNN": evaluate.accuracy(votes, labels),
        "alignment": evaluate.alignment(phi, phi.flip(0)),
        "uniformity": evaluate.uniformity(phi),
        "maps": torch.stack(maps).tolist(),
        "interval": evaluate.crossed_interval(u, generator=rng),
        "choice": choice_accuracy(u).tolist(),
        "ridge": ridge_predictions(phi[None], u[None, :, 0], lambda_=0.1).tolist(),
    }


def probes(on):
    """Each probe of features on a device."""
    rng = torch.Generator().manual_seed(0)
    phi, labels = torch.randn(30, 4, generator=rng), torch.arange(30) % 3
    x, y = phi.to(on), labels.to(on)
    probe = linear_probe(x, y, classes=3, generator=rng)
    path = logistic_path(x, y, classes=3, lambdas=[1.0, 0.1])
    w, b = least_squares_probe(x, x[:, 0], ridge=0.1, bias=True)
    assert probe.weight.device == probe.bias.device == x.device
    return {
        "probe": probe.logits(x).tolist(),
        "its grid": [*probe.accuracy.items()],
        "path": path.weight.tolist(),
        "its bias": path.bias.tolist(),
        "least squares": [*w.tolist(), b.item()],
    }


@pytest.mark.parametrize("numbers", [metrics, probes])
def test_a_mac_has_the_numbers_of_the_cpu(mac, numbers):
    expected, found = numbers("cpu"), numbers("mps")
    for name, value in expected.items():
        assert found[name] == value, name


# Precision


def test_a_gpu_s_features_are_not_rounded_to_bfloat16(gpu, rng):
    torch.manual_seed(0)
    phi = ResNet(ResNetConfig(widths=(4, 6), blocks=(1, 1)))
    images = torch.randint(256, (5, 1, 12, 12), generator=rng, dtype=torch.uint8)
    expected, there = frozen_outputs(phi, images), images.to("cuda")
    phi.to("cuda")
    with runtime.autocast(there.device):
        found = frozen_outputs(phi, there)
        rounded = phi.eval()(phi.prepare(there)).float()
    assert torch.equal(found.cpu(), expected)
    assert not torch.equal(rounded.cpu(), expected)


# Language models


@pytest.mark.parametrize("device", ["gpu", "mac"])
def test_a_device_has_the_scores_of_the_cpu(device, request):
    """Answers of one and several tokens, padded, after a cached beginning."""
    words = WordLevel({f"w{i}": i for i in range(TINY.vocabulary)}, unk_token="w0")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = WhitespaceSplit()
    asked = ["w1 w2 w3", "w1 w2 w4"], [[" w5", " w6 w7 w8", " w9 w1"]] * 2

    def scores(on):
        lm = LanguageModel(drawn(TINY).to(on), tokenizer, 0)
        return score_answers(lm, *asked, bar="").log_p

    expected = scores("cpu")
    on = request.getfixturevalue(device).device
    error = rounding(additions_of(drawn(TINY)), size=-expected.min().item())
    torch.testing.assert_close(scores(on), expected, rtol=0, atol=error)


def test_a_gpu_writes_the_tokens_of_the_cpu(gpu):
    model = drawn(TINY)
    longest = generate(model, PROMPTS, new_tokens=12)
    options = {"new_tokens": 12, "eos": longest[0][5]}  # one row ends before others
    expected = generate(model, PROMPTS, **options)
    assert len({*map(len, expected)}) > 1
    assert generate(drawn(TINY).to("cuda"), PROMPTS, **options) == expected


def test_a_gpu_is_asked_for_the_next_token_before_one_is_read(gpu, monkeypatch):
    asked, model = [], drawn(TINY).to("cuda")
    inside = model.contextualize
    monkeypatch.setattr(
        model, "contextualize", lambda *a: asked.append(len(asked)) or inside(*a)
    )
    tokens = stream(model, PROMPTS[:1], new_tokens=4)
    counts = [len(asked) for _ in tokens]
    assert counts == [2, 3, 4, 4]


@pytest.mark.parametrize("draws", [False, True], ids=["greedy", "sampler"])
def test_a_step_of_decoding_waits_for_the_step_before_alone(gpu, draws):
    model, choose = drawn(TINY).to("cuda"), greedy
    if draws:
        choose = sampler(generator=torch.Generator("cuda").manual_seed(0), top_p=0.9)
    steps = stream(model, PROMPTS[:2], new_tokens=6, choose=choose)
    next(steps), next(steps)
    gpu.clear()
    assert len([*steps]) == 4
    assert [wait.partition(" ")[0] for wait in gpu.waits] == ["event"] * 4
