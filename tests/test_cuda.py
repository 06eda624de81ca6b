"""What only a GPU shows: its arithmetic, its precision, its queue and its memory.

Skipped where there is none. It takes about a minute, and no weights that are fetched.
"""

import copy
import itertools
import os

import pytest
import torch
import torch.nn.functional as F
from support.bounds import additions_of, rounding
from support.models import drawn
from torch import nn

from fmkit import runtime
from fmkit.adapt import frozen_outputs
from fmkit.augment import ViewConfig, mask_tokens, two_views
from fmkit.checkpoint import load_checkpoint, save_checkpoint
from fmkit.data.tokens import PADDING, windows
from fmkit.evaluate import token_nats
from fmkit.generate import generate
from fmkit.losses import (
    masked_token_loss,
    next_token_loss,
    nt_xent_loss,
    reconstruction_loss,
    simclr_loss,
    supcon_loss,
)
from fmkit.models.bert import Bert, BertConfig
from fmkit.models.efficientnet import EfficientNetLite0
from fmkit.models.resnet import ResNet, ResNetConfig
from fmkit.models.transformer import Transformer, TransformerConfig
from fmkit.muon import Muon
from fmkit.probe import logistic_objective, logistic_path
from fmkit.train import minibatches, train

if not torch.cuda.is_available():
    pytest.skip("no CUDA here", allow_module_level=True)

ON = runtime.pick_device("cuda")
os.environ.setdefault(runtime.WORKSPACE, ":4096:8")  # before cuBLAS looks for it
# cuDNN may take Winograd's transforms, whose rounding is several times that of the sum
# (Lavin and Gray 2016, who measured up to ten times on a network of 3 x 3 convolutions)
WINOGRAD = 10
COLOURS = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
SMALL_GPT = TransformerConfig(
    vocabulary=50, context=32, width=64, layers=2, heads=4, kv_heads=2, hidden=96
)


def generator(seed=0):
    """On the CPU, as chapters draw."""
    return torch.Generator().manual_seed(seed)


def images(count, size, *, channels=3):
    shape = (count, channels, size, size)
    return torch.randint(256, shape, generator=generator(), dtype=torch.uint8)


# Views


@pytest.mark.parametrize("size", [32, 224])
def test_views_are_those_of_the_cpu_inside_and_outside_autocast(size):
    """A pixel is between 0 and 1; in bfloat16 it would be off by .002 and its place
    by half a pixel."""
    config = ViewConfig(size=size, rotation=20.0, grey=0.2, **COLOURS)
    x = images(16, size)
    expected = two_views(x, config, generator=generator(1))
    x = x.to(ON)
    plain = two_views(x, config, generator=generator(1))
    with runtime.autocast(ON):
        inside = two_views(x, config, generator=generator(1))
    for views in (plain, inside):
        assert views.dtype == torch.float32
        # Of some 20 operations behind a place, each rounds a number of up to `size`
        # pixels, and the noise here changes by up to 1 from one pixel to the next; the
        # changes of colour multiply it by up to 1.4 three times
        error = 1.4**3 * rounding(20, size=size)
        torch.testing.assert_close(views.cpu(), expected, rtol=0, atol=error)


# Losses

B, T, V, M, TAU = 64, 16, 500, 128, 0.1
LABELS = torch.arange(2 * B) % 7
TOKENS = torch.randint(V, (B, T), generator=generator(2))
MASKED = torch.rand(B, T, generator=generator(3)) < 0.2
PIXELS = torch.rand(B, 3, 8, 8, generator=generator(4)).bfloat16()

LOSSES = {  # loss, shape of its input, additions behind a term, size of their sums
    "reconstruction": (
        lambda x: reconstruction_loss(x, PIXELS.to(x)).mean(),
        (B, 3, 8, 8),
        B * 3 * 8 * 8,
        1,
    ),
    "simclr": (lambda x: simclr_loss(*x.chunk(2)) / B, (2 * B, M), M + B, M**0.5 * 4),
    "nt_xent": (
        lambda x: nt_xent_loss(*x.chunk(2), tau=TAU),
        (2 * B, M),
        M + 2 * B,
        1 / TAU,
    ),
    "supcon": (
        lambda x: supcon_loss(x, LABELS.to(x.device), tau=TAU),
        (2 * B, M),
        M + 2 * B,
        1 / TAU,
    ),
    "next_token": (
        lambda x: next_token_loss(x, TOKENS.to(x.device)),
        (B, T, V),
        V + B * T,
        10,
    ),
    "masked_token": (
        lambda x: masked_token_loss(x, TOKENS.to(x.device), MASKED.to(x.device)),
        (B, T, V),
        V + B * T,
        10,
    ),
}


def value_and_gradient(loss_of, x, *, inside_autocast=False):
    x = x.detach().requires_grad_()
    with torch.autocast("cuda", torch.bfloat16, enabled=inside_autocast):
        loss = loss_of(x)
    loss.backward()
    return loss.detach().cpu().double(), x.grad.cpu().double()


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_in_float32(name):
    loss_of, shape, additions, size = LOSSES[name]
    x = torch.randn(shape, generator=generator(), dtype=torch.float64)
    expected, slope = value_and_gradient(loss_of, x)
    with runtime.exact():
        value, gradient = value_and_gradient(loss_of, x.float().to(ON))
    # A logit errs by that much, and a probability relatively by twice as much
    error = rounding(additions, size)
    assert abs(value - expected) < 2 * error
    assert (gradient - slope).norm() < 4 * error * slope.norm()


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_of_bfloat16_inside_autocast(name):
    """What a network hands to its loss in training; 8 bits are left of a gradient."""
    loss_of, shape, additions, size = LOSSES[name]
    x = torch.randn(shape, generator=generator()).bfloat16()
    expected, slope = value_and_gradient(loss_of, x.double())
    value, gradient = value_and_gradient(loss_of, x.to(ON), inside_autocast=True)
    assert abs(value - expected) < 2 * rounding(additions, size)
    assert (gradient - slope).norm() < 2e-2 * slope.norm()


# Models


def networks(name):
    """A network in eval mode, its input, and which rows of its output count."""
    runtime.seed_weights(0)
    if name == "resnet":
        model = ResNet(ResNetConfig(3, (64, 128, 256, 512), (2, 2, 2, 2), 1))
        return model.eval(), images(4, 32) / 255, None
    if name == "efficientnet":
        return EfficientNetLite0(size=96).eval(), images(4, 96) / 255, None
    if name == "transformer":
        return drawn(SMALL_GPT), torch.randint(50, (4, 32), generator=generator()), None
    config = BertConfig(
        vocabulary=100, context=24, types=2, width=64, layers=3, heads=4, hidden=128
    )
    rows = torch.randint(100, (4, 24), generator=generator())
    rows[1:, 15:] = PADDING
    return Bert(config).eval(), rows, rows != PADDING


@pytest.mark.parametrize("name", ["resnet", "efficientnet", "transformer", "bert"])
@torch.no_grad()
def test_models_are_those_of_the_cpu_in_exact_mode(name):
    model, x, counted = networks(name)
    forward = model.token_vectors if name == "bert" else model
    expected = forward(x)
    model.to(ON)
    with runtime.autocast(ON), runtime.exact():
        ours = forward(x.to(ON))
    assert ours.dtype == torch.float32
    error = rounding(additions_of(model), size=expected.abs().max().item())
    error *= WINOGRAD if x.dim() == 4 else 1
    ours = ours.cpu()
    if counted is not None:
        ours, expected = ours[counted], expected[counted]
    torch.testing.assert_close(ours, expected, rtol=0, atol=error)


def test_evaluation_is_that_of_the_cpu():
    """Records of a GPU and of a CPU differ by rounding only."""
    model, _, _ = networks("resnet")
    x = images(40, 32)
    expected = frozen_outputs(model, x, bar="")
    error = rounding(additions_of(model), size=expected.abs().max().item())
    ours = frozen_outputs(model.to(ON), x.to(ON), bar="")
    torch.testing.assert_close(ours.cpu(), expected, rtol=0, atol=WINOGRAD * error)
    lm, tokens, _ = networks("transformer")
    expected = token_nats(lm, [tokens], bar="")
    size = lm(tokens).abs().max().item()
    ours = token_nats(lm.to(ON), [tokens.to(ON)], bar="")
    error = 2 * rounding(additions_of(lm), size=size)
    torch.testing.assert_close(ours.cpu(), expected, rtol=0, atol=error)


def test_greedy_tokens_are_those_of_the_cpu():
    """Prompts of three lengths, so that padding, cache and steps of one token count."""
    model, here = drawn(SMALL_GPT), drawn(SMALL_GPT).to(ON)
    prompts = [[1, 2, 3, 4, 5, 6, 7], [8, 9], [10, 11, 12, 13]]
    expected = generate(model, prompts, new_tokens=20)
    with runtime.exact():
        assert generate(here, prompts, new_tokens=20) == expected


def test_the_probe_reaches_the_cpu_s_objective():
    x = torch.randn(400, 30, generator=generator())
    labels = (x @ torch.randn(30, 4, generator=generator(1))).argmax(dim=1)
    options = {"classes": 4, "lambdas": [1.0, 0.1, 0.001], "tolerance": 1e-8}
    paths = [logistic_path(x.to(d), labels.to(d), **options) for d in ("cpu", ON)]
    objectives = [
        [
            logistic_objective(x.double(), labels, w.cpu(), b.cpu(), lambda_=lambda_)
            for w, b, lambda_ in zip(p.weight, p.bias, p.lambdas, strict=True)
        ]
        for p in paths
    ]
    # A gradient of norm 1e-8 leaves the square of it over the curvature, 0.001 or more
    for ours, expected in zip(objectives[1], objectives[0], strict=True):
        assert abs(ours - expected) < 1e-12


# Training


def contrastive(*, loss=nt_xent_loss, widths=(16, 32)):
    """A run of SimCLR, as the chapter writes it."""
    runtime.seed_weights(0)
    phi = ResNet(ResNetConfig(3, widths, (1, 1), 1)).to(ON).train()
    x, y = images(64, 16).to(ON), (torch.arange(64) % 5).to(ON)
    config, pairs = ViewConfig(size=16, grey=0.2, **COLOURS), generator(1)

    def loss_of(rows):
        z = phi(two_views(x[rows], config, generator=pairs))
        if loss is supcon_loss:
            return loss(z, y[rows].repeat(2), tau=TAU)
        return loss(*z.chunk(2), tau=TAU)

    optimizer = torch.optim.SGD(phi.parameters(), lr=0.1, momentum=0.9)
    batches = minibatches(64, batch_size=32, generator=generator(2))
    return phi, optimizer, loss_of, batches, pairs


def language(*, masked=False, optimizer_of=None):
    """A run of a language model, autoregressive or masked."""
    runtime.seed_weights(0)
    config = copy.copy(SMALL_GPT)
    model = Transformer(TransformerConfig(**{**vars(config), "causal": not masked})).to(
        ON
    )
    sequence = torch.randint(49, (4000,), generator=generator()).to(ON)
    draws = generator(1)
    options = {"context": 31 if masked else 32, "batch_size": 8, "generator": draws}

    def loss_of(x):
        if not masked:
            return next_token_loss(model(x[:, :-1]), x[:, 1:])
        seen, hidden = mask_tokens(x, share=0.15, mask=49, generator=draws)
        return masked_token_loss(model(seen), x, hidden)

    if optimizer_of is None:
        fused = {"lr": 1e-3, "fused": runtime.fused(ON)}
        optimizer = torch.optim.AdamW(model.parameters(), **fused)
    else:
        optimizer = optimizer_of(model)
    return model, optimizer, loss_of, windows(sequence, **options), draws


RUNS = {
    "simclr": contrastive,
    "supcon": lambda: contrastive(loss=supcon_loss),
    "next token": language,
    "next token, Muon": lambda: language(optimizer_of=lambda m: Muon.of(m, lr=1e-3)),
    "masked token": lambda: language(masked=True),
}


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # is a prototype
@pytest.mark.parametrize("name", RUNS)
def test_between_two_looks_no_step_waits_for_the_gpu(name):
    model, optimizer, loss_of, batches, _ = RUNS[name]()
    assert runtime.look_every(ON) > 12
    records = train(loss_of, batches, optimizer, modules=[model], steps=20)
    taken = [next(records), next(records)]  # with what is allocated once
    torch.cuda.set_sync_debug_mode("error")
    try:
        taken += itertools.islice(records, 10)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(0 < record.loss < 10 for record in taken)


@pytest.mark.parametrize("name", ["simclr", "next token"])
def test_a_run_resumes_bit_for_bit_in_deterministic_mode(name, tmp_path):
    path = tmp_path / "checkpoint.pt"

    def go_on(*, first, last, resume=False):
        model, optimizer, loss_of, batches, draws = RUNS[name]()
        run = {"model": model, "optimizer": optimizer, "generators": {"draws": draws}}
        if resume:
            assert load_checkpoint(path, **run) == first
        if name == "simclr":
            batches = itertools.islice(batches, first, None)
        options = {"modules": [model], "steps": 8, "first_step": first}
        for record in train(loss_of, batches, optimizer, **options):
            if record.step + 1 == last:
                save_checkpoint(path, step=record.step, **run)
                break
        return {key: value.cpu() for key, value in model.state_dict().items()}

    with runtime.deterministic():
        whole = go_on(first=0, last=8)
        again = go_on(first=0, last=8)
        go_on(first=0, last=4)
        resumed = go_on(first=4, last=8, resume=True)
    for key, value in whole.items():
        assert torch.equal(again[key], value), f"{key} is not deterministic"
        assert torch.equal(resumed[key], value), key


def test_a_step_holds_the_weights_five_times():
    """Weights, gradients, two moments of AdamW, and the last good weights; inside
    autocast half of it again, in bfloat16. A second copy of weights shows."""
    runtime.seed_weights(0)
    model = nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(16)))
    x = torch.randn(4, 2048, generator=generator()).to(ON)
    with runtime.autocast(ON):
        x @ x.T  # cuBLAS takes its workspace
    base = torch.cuda.memory_allocated(ON)
    model = model.to(ON)
    weights = torch.cuda.memory_allocated(ON) - base
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    torch.cuda.reset_peak_memory_stats(ON)
    batches = itertools.repeat(x)
    records = train(
        lambda x: model(x).square().mean(), batches, optimizer, modules=[model], steps=3
    )
    assert all(record.loss > 0 for record in [*records])
    peak = runtime.peak_memory_mb(ON) * 1e6 - base
    assert peak < 5.9 * weights


@pytest.mark.filterwarnings("ignore")  # torch's compiler has many, and TF32 is off
@pytest.mark.parametrize("name", ["resnet", "transformer"])
def test_compiled_networks_compute_the_same(name):
    """The compiled network of the chapters, with its gradient."""
    model, x, _ = networks(name)
    model, x = model.to(ON).train(), x.to(ON)
    twin = runtime.compiled(copy.deepcopy(model))
    pairs = []
    with runtime.exact():
        for network in (model, twin):
            out = network(x)
            F.normalize(out.flatten(1), dim=1).square().sum(dim=0).max().backward()
            pairs.append((out.detach(), [p.grad for p in network.parameters()]))
    (ours, gradients), (compiled, others) = pairs
    error = rounding(additions_of(model), size=ours.abs().max().item())
    torch.testing.assert_close(compiled, ours, rtol=0, atol=WINOGRAD * error)
    both = zip(gradients, others, strict=True)
    differences = sum((a - b).square().sum() for a, b in both).sqrt()
    assert differences < 1e-3 * sum(g.square().sum() for g in gradients).sqrt()
