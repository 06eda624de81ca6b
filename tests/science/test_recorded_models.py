"""The small models that were trained to learn in context: they load, and answer."""

import pytest
import torch

from fmkit.models.saved import load_trained
from fmkit.runs.record import results
from fmkit.tasks.operators import (
    answer_scores,
    draw_documents,
    operand_pairs,
    symbol_pairs,
    to_tokens,
)
from fmkit.tasks.regression import (
    draw_regressions,
    ridge_predictions,
    transformer_predictions,
)


def recorded(name):
    path = results("origins_of_in_context_learning") / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"there is no recorded model of {name}")
    assert path.stat().st_size < 3_000_000
    return load_trained(path).model


def test_the_recorded_model_identifies_operators(rng):
    model = recorded("operators")
    documents = draw_documents(
        400,
        symbols=torch.tensor([[0, 0]]),  # ~ for a + b
        operands=operand_pairs(seen=False),
        examples=9,
        generator=rng,
    )
    assert [0, 0] in symbol_pairs(seen=False).tolist()
    x = to_tokens(documents)
    with torch.no_grad():
        right = answer_scores(model(x), x)[1].double().mean(dim=0)
    assert right[8] > 0.95 > 0.2 > right[0]


def test_the_recorded_model_does_regression(rng):
    model = recorded("regression")
    of = draw_regressions(
        2000, examples=11, scales=torch.ones(5), sigma=0.5, generator=rng
    )
    with torch.no_grad():
        ours = of.excess(transformer_predictions(model, of.x, of.y))[:, 10].mean()
    best = of.excess(ridge_predictions(of.x, of.y, lambda_=0.25).float())[:, 10].mean()
    assert best < ours < 1.3 * best
