"""Regression in a context: what is drawn, its best predictor, what a model reads."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from fmkit.models.transformer import Transformer, TransformerConfig
from fmkit.tasks.regression import (
    draw_regressions,
    ridge_predictions,
    selecting_predictions,
    skewed_scales,
    transformer_predictions,
)

D = 5


def regressions(rng, *, count=6, examples=9, sigma=0.5, scales=None):
    scales = torch.ones(D) if scales is None else scales
    return draw_regressions(
        count, examples=examples, scales=scales, sigma=sigma, generator=rng
    )


def small_model():
    torch.manual_seed(0)
    shape = {"context": 20, "width": 8, "layers": 2, "heads": 2, "kv_heads": 1}
    config = TransformerConfig(vocabulary=2 * D + 1, hidden=16, **shape)
    return Transformer(config).double()


# What is drawn


def test_what_is_drawn_has_the_moments_it_says(rng):
    scales = torch.tensor([0.5, 1.0, 3.0])
    of = draw_regressions(20_000, examples=3, scales=scales, sigma=0.5, generator=rng)
    x, noise = of.x.flatten(0, 1), (of.y - (of.x @ of.w[..., None])[..., 0]).flatten()
    torch.testing.assert_close(x.T.cov(), scales.square().diag(), rtol=0.03, atol=0.05)
    torch.testing.assert_close(of.w.T.cov(), torch.eye(3), rtol=0.03, atol=0.03)
    assert noise.std().item() == pytest.approx(0.5, rel=0.01)
    assert abs(noise.mean()) < 0.01
    columns = torch.cat([x[::3], of.w, noise[::3, None], noise[1::3, None]], dim=1)
    correlation = columns.T.corrcoef() - torch.eye(8)
    assert correlation.abs().max() < 0.03  # sd of each: 0.007


def test_tasks_are_all_that_is_drawn_and_equally_often(rng):
    tasks = torch.randn(3, D, generator=rng)
    options = {"examples": 2, "scales": torch.ones(D), "sigma": 0.0, "generator": rng}
    of = draw_regressions(6000, tasks=tasks, **options)
    which = (of.w[:, None] == tasks).all(dim=2)
    assert (which.sum(dim=1) == 1).all()
    shares = which.double().mean(dim=0)
    assert (shares - 1 / 3).abs().max() < 0.03  # sd of each: 0.006
    expected = (of.x * of.w[:, None]).sum(dim=2)
    torch.testing.assert_close(of.y, expected)
    assert of.x.std().item() == pytest.approx(1, rel=0.02)


def test_a_generator_s_sequences_are_its_own():
    one, same, other = (
        regressions(torch.Generator().manual_seed(i)) for i in (0, 0, 1)
    )
    assert torch.equal(one.y, same.y)
    assert not torch.equal(one.y, other.y)


def test_skewed_scales_keep_the_size():
    variances = skewed_scales(4).square()
    assert variances.sum().item() == pytest.approx(4, rel=1e-6)
    torch.testing.assert_close(variances[0] / variances, torch.tensor([1.0, 4, 9, 16]))


def test_excess_is_over_sigma_squared(rng):
    of = regressions(rng, count=50_000, examples=1)
    y_hat = of.x.sum(dim=2)
    over = (y_hat - of.y).square().mean() - 0.25
    assert of.excess(y_hat).mean().item() == pytest.approx(over.item(), abs=0.15)
    assert of.excess(y_hat)[3, 0] == pytest.approx(
        (y_hat[3, 0] - of.x[3, 0] @ of.w[3]).item() ** 2
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": 0}, "examples must be at least 1, got 0."),
        ({"sigma": -0.5}, "sigma must be finite and at least 0, got -0.5."),
    ],
)
def test_wrong_draws_are_refused(rng, options, message):
    with pytest.raises(ValueError, match=message):
        regressions(rng, **options)


# The best predictor


def ridge_by_hand(x, y, lambda_):
    """Normal equations in plain numpy, for one sequence, after each number of pairs."""
    predictions = []
    for k in range(len(x)):
        gram = np.zeros((D, D))
        moment = np.zeros(D)
        for i in range(k):
            gram += np.outer(x[i], x[i])
            moment += x[i] * y[i]
        w = np.linalg.solve(gram + lambda_ * np.eye(D), moment)
        predictions.append(float(w @ x[k]))
    return predictions


def test_ridge_equals_a_loop(rng):
    of = regressions(rng)
    found = ridge_predictions(of.x, of.y, lambda_=0.3)
    for i in range(len(of.x)):
        expected = ridge_by_hand(
            of.x[i].double().numpy(), of.y[i].double().numpy(), 0.3
        )
        assert found[i].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def selecting_by_hand(x, y, tasks, sigma):
    """Bayes' rule over a list of weight vectors, for one sequence, in plain numpy."""
    predictions = []
    for k in range(len(x)):
        likelihood = np.ones(len(tasks))
        for m, w in enumerate(tasks):
            for i in range(k):
                likelihood[m] *= np.exp(-((y[i] - w @ x[i]) ** 2) / (2 * sigma**2))
        p = likelihood / likelihood.sum()
        predictions.append(float(sum(p[m] * (w @ x[k]) for m, w in enumerate(tasks))))
    return predictions


def test_selecting_equals_a_loop(rng):
    tasks = torch.randn(4, D, generator=rng)
    options = {"examples": 5, "scales": torch.ones(D), "sigma": 0.7, "generator": rng}
    of = draw_regressions(6, tasks=tasks, **options)
    found = selecting_predictions(of.x, of.y, tasks=tasks, sigma=0.7)
    for i in range(len(of.x)):
        sequence = (z[i].double().numpy() for z in (of.x, of.y))
        expected = selecting_by_hand(*sequence, tasks.double().numpy(), 0.7)
        assert found[i].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_selecting_is_best_on_its_tasks_and_ridge_on_new_ones(rng):
    tasks = torch.randn(4, D, generator=rng)
    options = {"examples": 6, "scales": torch.ones(D), "sigma": 0.5, "generator": rng}
    for drawn, best in ((tasks, "selecting"), (None, "ridge")):
        of = draw_regressions(2000, tasks=drawn, **options)
        found = {
            "selecting": selecting_predictions(of.x, of.y, tasks=tasks, sigma=0.5),
            "ridge": ridge_predictions(of.x, of.y, lambda_=0.25),
        }
        errors = {name: of.excess(p.float())[:, 5].mean() for name, p in found.items()}
        assert min(errors, key=errors.get) == best


def test_many_tasks_are_as_good_as_any(rng):
    tasks = torch.randn(20_000, D, generator=rng)
    of = regressions(rng, count=200, examples=4)
    found = selecting_predictions(of.x, of.y, tasks=tasks, sigma=0.5)
    ridge = ridge_predictions(of.x, of.y, lambda_=0.25)
    assert (found - ridge).square().mean() < 0.02 * ridge.square().mean()


def test_ridge_sums_squares_as_scikit_learn_does(rng):
    of = regressions(rng, count=1)
    x, y = of.x[0].double().numpy(), of.y[0].double().numpy()
    theirs = Ridge(alpha=0.25, fit_intercept=False).fit(x[:8], y[:8])
    found = ridge_predictions(of.x, of.y, lambda_=0.25)
    assert found[0, 8].item() == pytest.approx(theirs.predict(x[8:])[0], rel=1e-9)


def test_least_squares_is_the_limit_and_of_least_norm(rng):
    of = regressions(rng)
    found = ridge_predictions(of.x, of.y, lambda_=0.0)
    for k in range(of.x.shape[1]):
        w = torch.linalg.lstsq(
            of.x[:, :k].double(), of.y[:, :k, None].double(), driver="gelsd"
        )
        expected = (w.solution[..., 0] * of.x[:, k]).sum(dim=1)
        torch.testing.assert_close(found[:, k], expected, rtol=1e-7, atol=1e-7)
    near = ridge_predictions(of.x, of.y, lambda_=1e-7)
    torch.testing.assert_close(found[:, [2, 8]], near[:, [2, 8]], rtol=1e-3, atol=1e-3)


def test_nothing_is_known_without_a_pair(rng):
    of = regressions(rng)
    for lambda_ in (0.0, 0.25):
        assert (ridge_predictions(of.x, of.y, lambda_=lambda_)[:, 0] == 0).all()


def test_without_noise_as_many_pairs_as_numbers_are_enough(rng):
    of = regressions(rng, sigma=0.0)
    error = of.excess(ridge_predictions(of.x, of.y, lambda_=0.0).float())
    assert (error[:, D:] < 1e-4).all()
    assert (error[:, : D - 1].mean(dim=0) > 1e-2).all()


def test_ridge_at_sigma_squared_is_best(rng):
    of = regressions(rng, count=20_000, examples=4)

    def error(lambda_):
        return of.excess(ridge_predictions(of.x, of.y, lambda_=lambda_)).mean(dim=0)

    best = error(0.25)
    for other in (0.05, 0.8):  # for 4 examples they are 2 to 9 per cent worse
        assert (error(other)[1:] > best[1:]).all()
    # The posterior's variance: after one pair x, d - |x|^2 / (|x|^2 + sigma^2) remain
    size = of.x[:, 0].square().sum(dim=1)
    remaining = (D - size / (size + 0.25)).mean().item()
    assert best[1].item() == pytest.approx(remaining, rel=0.05)


def test_a_negative_lambda_is_refused(rng):
    of = regressions(rng)
    with pytest.raises(
        ValueError, match="lambda_ must be finite and at least 0, got -1"
    ):
        ridge_predictions(of.x, of.y, lambda_=-1.0)


# What a model reads


def test_a_model_reads_a_pair_and_a_question_at_a_time(rng):
    of, model = regressions(rng), small_model()
    x, y = of.x.double(), of.y.double()
    found = transformer_predictions(model, x, y)
    e = model.embedding.weight
    for k in range(4):
        vectors = []
        for i in range(k + 1):
            before = (x[:, i - 1], y[:, i - 1]) if i else (0 * x[:, 0], 0 * y[:, 0])
            numbers = [*before[0].T, before[1], *x[:, i].T]
            each = zip(numbers, e, strict=True)
            vectors.append(sum(number[:, None] * e_v for number, e_v in each))
        c = model.contextualize(torch.stack(vectors, dim=1))
        expected = model.logits(c[:, -1])[:, D]
        torch.testing.assert_close(found[:, k], expected, rtol=1e-9, atol=1e-12)


def test_no_answer_reaches_its_own_prediction(rng):
    of, model = regressions(rng), small_model()
    x, y = of.x.double(), of.y.double()
    changed = y.clone()
    changed[:, 3] += 1
    before, after = (transformer_predictions(model, x, t) for t in (y, changed))
    torch.testing.assert_close(after[:, :4], before[:, :4], rtol=0, atol=0)
    assert (after[:, 4:] != before[:, 4:]).all()


def test_a_model_of_other_numbers_is_refused(rng):
    of = regressions(rng, scales=torch.ones(4))
    with pytest.raises(ValueError, match=r"vocabulary of 2d \+ 1 \(9\), got 11"):
        transformer_predictions(small_model(), of.x.double(), of.y.double())


def test_coordinates_are_not_rounded_to_bfloat16(rng, monkeypatch):
    """Every block adds to these vectors, so all later sums would be rounded too."""
    model, of, read = small_model().float(), regressions(rng), []
    inside = model.contextualize
    monkeypatch.setattr(
        model, "contextualize", lambda vectors: read.append(vectors) or inside(vectors)
    )
    transformer_predictions(model, of.x, of.y)
    with torch.autocast("cpu", torch.bfloat16):
        transformer_predictions(model, of.x, of.y)
    assert torch.equal(*read)
