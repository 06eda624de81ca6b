"""What a step of training does on a GPU: texts, regression, cuDNN, fused optimizers.

The steps of the other chapters are in ``test_steps.py``.
"""

import pytest
import torch
from torch import nn

from fmkit import runtime
from fmkit.adapt import Predictor, finetuning
from fmkit.data.tokens import padded
from fmkit.lora import with_low_rank
from fmkit.models.bert import Bert, BertConfig
from fmkit.models.pooling import Pooled, first_token, last_token, mean_of_tokens
from fmkit.models.transformer import Transformer, TransformerConfig
from fmkit.muon import Muon
from fmkit.tasks.regression import draw_regressions, transformer_predictions
from fmkit.train import train

ON = torch.device("cuda")
STEPS = 5


def transformer(**options):
    shape = {"width": 8, "layers": 2, "heads": 2, "kv_heads": 1, "hidden": 16}
    shape |= {"vocabulary": 20, "context": 12} | options
    return Transformer(TransformerConfig(**shape)).to(ON)


def of_texts(pool, *, bert=False, low_rank=False):
    """Finetuning, as in the chapter on it."""
    encoder = transformer()
    if bert:
        shape = {"width": 8, "layers": 1, "heads": 2, "hidden": 16, "types": 2}
        encoder = Bert(BertConfig(vocabulary=20, context=12, **shape)).to(ON)
    phi = Pooled(encoder, pool)
    if low_rank:
        phi = with_low_rank(phi, ["qkv"], rank=2, alpha=4.0)
    texts = padded([[1, 2, 3], [4, 5], [6, 7, 8, 9]], limit=9).to(ON)
    labels = torch.tensor([0, 1, 0]).to(ON)
    model = Predictor(phi, nn.Linear(8, 2)).to(ON)
    options = {"steps": STEPS, "batch_size": 2, "learning_rate": 1e-3}
    generator = torch.Generator().manual_seed(0)
    return finetuning(model, texts, labels, generator=generator, **options)


def of_regressions():
    """As in the chapter on where in-context learning comes from: drawn in the loss."""
    model = transformer(vocabulary=5, context=7, tied=False)

    def loss_of(draws):
        options = {"examples": 7, "sigma": 0.5, "generator": draws}
        of = draw_regressions(4, scales=torch.ones(2), **options)
        x, y = runtime.sent(of.x, ON), runtime.sent(of.y, ON)
        return (transformer_predictions(model, x, y) - y).square().mean()

    batches = [torch.Generator().manual_seed(1)] * STEPS
    optimizer = Muon.of(model, lr=1e-3)
    return train(loss_of, batches, optimizer, modules=[model], steps=STEPS)


STEPS_OF = {
    "regression": of_regressions,
    "finetuning": lambda: of_texts(last_token),
    "finetuning by LoRA": lambda: of_texts(mean_of_tokens, low_rank=True),
    "finetuning BERT": lambda: of_texts(first_token, bert=True),
}


@pytest.mark.parametrize("kind", STEPS_OF)
def test_between_two_looks_the_host_never_waits(gpu, kind):
    """The first step makes the optimizer's state, and the last looks."""
    for record in STEPS_OF[kind]():
        if record.step == 0:
            gpu.clear()
        if record.step == STEPS - 2:
            waits = [*gpu.waits]
    assert waits == []
    assert record.loss > 0


def test_batches_come_to_the_device_and_cudnn_times_inside_a_step_only(gpu):
    """What a caller does between two steps has other shapes."""
    model, seen = nn.Linear(4, 1).to(ON), []

    def loss_of(batch):
        seen.append((batch.device.type, torch.backends.cudnn.benchmark))
        return model(batch).square().mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [torch.ones(2, 4)] * STEPS
    for _ in train(loss_of, batches, optimizer, modules=[model], steps=STEPS):
        assert not torch.backends.cudnn.benchmark
    assert seen == [("cuda", True)] * STEPS


def test_dropout_draws_from_the_generator_of_the_device(gpu):
    generator = runtime.global_generator(ON)
    assert generator.device.type == "cuda"
    before, x = generator.get_state(), torch.ones(100, device=ON)
    first = nn.functional.dropout(x)
    assert not torch.equal(nn.functional.dropout(x), first)
    generator.set_state(before)
    assert torch.equal(nn.functional.dropout(x), first)
