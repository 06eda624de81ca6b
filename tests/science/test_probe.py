"""Linear probes: equal to another solver and to closed forms, as precise as stated."""

import math
import re

import pytest
import torch
from reference import notes as reference
from sklearn.linear_model import LogisticRegression
from support.bounds import rounding
from torch import Tensor

from fmkit import _logistic
from fmkit.probe import (
    LAMBDA_GRID,
    _held_out,
    least_squares_probe,
    linear_probe,
    logistic_objective,
    logistic_path,
)


def task(rng, *, n, m, k, gap=1.0, dtype=torch.float64):
    """Features around a random mean of their class, with a common mean far from 0."""
    labels = torch.arange(n) % k
    means = gap * torch.randn(k, m, generator=rng, dtype=torch.float64)
    noise = torch.randn(n, m, generator=rng, dtype=torch.float64)
    return (3 + means[labels] + noise).to(dtype), labels


def stated_gradient_norm(x: Tensor, labels, weight, bias, lambda_) -> float:
    """By autograd, for centred features of mean square 1."""
    centred = x.double() - x.double().mean(dim=0)
    size = centred.square().mean()
    scaled = (weight * size.sqrt()).requires_grad_()
    moved = (bias + weight @ x.double().mean(dim=0)).detach().requires_grad_()
    loss = logistic_objective(
        centred / size.sqrt(), labels, scaled, moved, lambda_=lambda_ / size.item()
    )
    slopes = torch.autograd.grad(loss, (scaled, moved))
    return math.sqrt(sum(slope.square().sum().item() for slope in slopes))


def test_the_objective_is_the_loop(rng):
    """In the notes: (14.1)."""
    x, labels = task(rng, n=7, m=3, k=4)
    W = torch.randn(4, 3, generator=rng, dtype=torch.float64)
    b = torch.randn(4, generator=rng, dtype=torch.float64)
    ours = logistic_objective(x, labels, W, b, lambda_=0.3).item()
    arguments = (x.tolist(), labels.tolist(), W.tolist(), b.tolist())
    expected = reference.mean_cross_entropy(*arguments, 0.3)
    assert ours == pytest.approx(expected, rel=1e-12)
    arguments = (W.requires_grad_(), b.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda W, b: logistic_objective(x, labels, W, b, lambda_=0.3), arguments
    )


SHAPES = pytest.mark.parametrize(
    ("n", "m", "gap"),
    [(60, 5, 0.5), (12, 40, 0.5), (40, 6, 10.0)],
    ids=["tall", "wide", "separable"],
)


@SHAPES
def test_solutions_are_those_of_another_solver(rng, n, m, gap):
    """In the notes: linear probe."""
    x, labels = task(rng, n=n, m=m, k=3, gap=gap)
    path = logistic_path(
        x, labels, classes=3, lambdas=[1e-4, 1.0, 0.01], tolerance=1e-9
    )
    assert path.lambdas == (1, 0.01, 1e-4)
    for lambda_, W, b in zip(path.lambdas, path.weight, path.bias, strict=True):
        peer = LogisticRegression(
            C=1 / (n * lambda_), tol=1e-10, max_iter=1000, solver="newton-cg"
        ).fit(x.numpy(), labels.numpy())
        torch.testing.assert_close(W, torch.tensor(peer.coef_), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            b, torch.tensor(peer.intercept_), rtol=1e-4, atol=1e-5
        )


@SHAPES
@pytest.mark.parametrize("tolerance", [1e-2, 1e-6, 1e-11])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_stated_gradient_norm_holds(rng, n, m, gap, tolerance, dtype):
    x, labels = task(rng, n=n, m=m, k=3, gap=gap, dtype=dtype)
    path = logistic_path(
        x, labels, classes=3, lambdas=[1.0, 1e-3, 1e-6], tolerance=tolerance
    )
    for lambda_, W, b in zip(path.lambdas, path.weight, path.bias, strict=True):
        norm = stated_gradient_norm(x, labels, W, b, lambda_)
        # The rounding of autograd's norm comes on top of a tolerance of 1e-11
        assert 0 < norm <= 1.001 * tolerance + 1e-13


def test_a_tolerance_below_rounding_is_an_error_soon(rng, monkeypatch):
    """When the norm stands still, tens of steps follow, not thousands."""
    x, labels = task(rng, n=60, m=5, k=3)
    gradient, counted = _logistic.Problem.gradient, []

    def counting(*arguments):
        counted.append(1)
        return gradient(*arguments)

    monkeypatch.setattr(_logistic.Problem, "gradient", counting)
    message = r"the gradient norm stays at .*, above the tolerance 1.0e-25"
    with pytest.raises(RuntimeError, match=message):
        logistic_path(x, labels, classes=3, lambdas=[1.0], tolerance=1e-25)
    assert len(counted) < 2 * (20 + _logistic.MAX_IDLE_STEPS)


def test_a_norm_that_falls_late_is_waited_for(rng, monkeypatch):
    """Fewer idle steps than these runs need are an error; the steps allowed are not."""
    x, labels = task(rng, n=40, m=6, k=3, gap=10.0)
    arguments = {"classes": 3, "lambdas": [1e-8], "tolerance": 1e-10}
    monkeypatch.setattr(_logistic, "MAX_IDLE_STEPS", 12)
    logistic_path(x, labels, **arguments)  # takes more steps than 12
    monkeypatch.setattr(_logistic, "MAX_IDLE_STEPS", 1)
    with pytest.raises(RuntimeError, match="the gradient norm stays"):
        logistic_path(x, labels, **arguments)


def test_a_path_equals_separate_solutions(rng):
    x, labels = task(rng, n=50, m=80, k=4)
    lambdas = [10.0, 0.5, 1e-3]
    together = logistic_path(x, labels, classes=4, lambdas=lambdas, tolerance=1e-10)
    for i, lambda_ in enumerate(lambdas):
        alone = logistic_path(x, labels, classes=4, lambdas=[lambda_], tolerance=1e-10)
        torch.testing.assert_close(
            together.weight[i], alone.weight[0], rtol=1e-6, atol=1e-8
        )


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
def test_weights_and_biases_sum_to_0_over_classes(rng, tolerance):
    """Whatever the tolerance: a sum belongs to no class."""
    x, labels = task(rng, n=30, m=50, k=4)
    path = logistic_path(x, labels, classes=4, lambdas=[1e-3], tolerance=tolerance)
    for w in (path.weight[0], path.bias[0]):
        bound = 4 * rounding(4, w.abs().max().item(), dtype=torch.float64)
        torch.testing.assert_close(w.sum(dim=0), 0 * w[0], rtol=0, atol=bound)


def test_under_the_largest_lambda_only_the_frequencies_are_learnt(rng):
    x, _ = task(rng, n=10, m=4, k=2)
    labels = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    path = logistic_path(x, labels, classes=3, lambdas=[1e12], tolerance=1e-9)
    torch.testing.assert_close(path.weight, torch.zeros(1, 3, 4).double())
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    torch.testing.assert_close(path.bias[0].softmax(0), p)
    entropy = -(p * p.log()).sum()
    loss = logistic_objective(x, labels, path.weight[0], path.bias[0], lambda_=1e12)
    torch.testing.assert_close(loss, entropy)


@pytest.mark.parametrize("n", [9, 60], ids=["wide", "tall"])
def test_shift_rotation_and_scale_of_the_features_change_nothing(rng, n):
    x, labels = task(rng, n=n, m=12, k=3)
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=rng).double())[0]
    turned = 100 * (x @ rotation) - 7
    before = logistic_path(x, labels, classes=3, lambdas=[0.1, 0.01], tolerance=1e-10)
    after = logistic_path(
        turned, labels, classes=3, lambdas=[1e3, 1e2], tolerance=1e-10
    )
    for i in range(2):
        torch.testing.assert_close(
            turned @ after.weight[i].T + after.bias[i],
            x @ before.weight[i].T + before.bias[i],
            rtol=1e-7,
            atol=1e-7,
        )
    chosen = [
        linear_probe(f, labels, classes=3, generator=torch.Generator().manual_seed(1))
        for f in (x, turned)
    ]
    assert chosen[1].lambda_ == pytest.approx(1e4 * chosen[0].lambda_)


@pytest.mark.parametrize("size", [1e-20, 1e20])
def test_extreme_sizes_of_features(rng, size):
    x, labels = task(rng, n=60, m=5, k=3, gap=5.0, dtype=torch.float32)
    probe = linear_probe(size * x, labels, classes=3, generator=rng)
    assert (probe.logits(size * x).argmax(dim=1) == labels).float().mean() > 0.95


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(rng, dtype):
    x, labels = task(rng, n=60, m=5, k=3)
    x = x.to(dtype)
    same = [torch.Generator().manual_seed(1) for _ in range(2)]
    half = linear_probe(x, labels, classes=3, generator=same[0])
    full = linear_probe(x.double(), labels, classes=3, generator=same[1])
    assert half.weight.dtype == half.logits(x).dtype == torch.float32
    torch.testing.assert_close(half.weight.double(), full.weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("value", [0.0, 0.1, -3e8])
@pytest.mark.parametrize("n", [6, 3000])
def test_features_all_equal(rng, value, n):
    x, labels = torch.full((n, 4), value), torch.arange(n) % 3
    probe = linear_probe(x, labels, classes=3, generator=rng)
    torch.testing.assert_close(probe.weight, torch.zeros(3, 4))
    torch.testing.assert_close(probe.bias, torch.zeros(3))


def test_a_constant_feature_has_no_weight(rng):
    x, labels = task(rng, n=60, m=5, k=3)
    x[:, 2] = 0.1
    probe = linear_probe(x, labels, classes=3, generator=rng)
    assert probe.weight[:, 2].abs().max() < 1e-12 < probe.weight.abs().max()


@pytest.mark.parametrize(
    ("counts", "folds"),
    [
        ([10, 10, 10], 5),
        ([2, 2, 2], 2),
        ([1, 7, 4], 4),
        ([1, 1, 2], 2),
        ([500, 3, 1], 3),
        ([1, 1, 1], 0),
    ],
)
def test_folds(rng, counts, folds):
    labels = torch.arange(3).repeat_interleave(torch.tensor(counts))
    held_out = _held_out(labels, 5, rng)
    assert held_out.shape == (folds, sum(counts))
    several = torch.tensor(counts)[labels] >= 2
    assert folds == 0 or torch.equal(held_out.sum(dim=0), several.long())
    for fold in held_out:
        assert set(labels[~fold].tolist()) == {0, 1, 2}
    for c in range(3):
        of_class = held_out[:, labels == c].sum(dim=1)
        assert folds == 0 or of_class.max() - of_class.min() <= 1


def test_folds_are_drawn_at_random():
    labels = torch.arange(300) % 3
    draws = [_held_out(labels, 5, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    # Two random draws agree on 1 in 5 labels: 60 of 300, with a deviation of 7
    assert 25 < (draws[0] & draws[2]).sum() < 95


@pytest.mark.parametrize(("n", "m"), [(60, 8), (18, 30)])
def test_cross_validation_by_hand(n, m):
    """In the notes: linear probe."""
    x, labels = task(torch.Generator().manual_seed(3), n=n, m=m, k=3, gap=0.5)
    size = (x - x.mean(dim=0)).square().mean().item()
    lambdas = [size * value for value in reversed(LAMBDA_GRID)]
    probe = linear_probe(
        x,
        labels,
        classes=3,
        tolerance=1e-8,
        generator=torch.Generator().manual_seed(5),
    )
    held_out = _held_out(labels, 5, torch.Generator().manual_seed(5))
    correct = torch.zeros(len(lambdas))
    for out in held_out:
        rest = logistic_path(
            x[~out], labels[~out], classes=3, lambdas=lambdas, tolerance=1e-8
        )
        u = x[out] @ rest.weight.mT + rest.bias[:, None]
        correct += (u.argmax(dim=-1) == labels[out]).sum(dim=1)
    expected = (correct / n).tolist()
    assert [*probe.accuracy] == pytest.approx(lambdas)
    assert [*probe.accuracy.values()] == pytest.approx(expected)
    assert len(set(expected)) > 1
    assert probe.lambda_ == pytest.approx(lambdas[expected.index(max(expected))])
    everything = logistic_path(
        x, labels, classes=3, lambdas=[probe.lambda_], tolerance=1e-8
    )
    torch.testing.assert_close(probe.weight, everything.weight[0], rtol=1e-5, atol=1e-7)
    norm = stated_gradient_norm(x, labels, probe.weight, probe.bias, probe.lambda_)
    assert norm <= 1e-8


def test_of_equals_the_largest_lambda_is_taken(rng):
    x, labels = task(rng, n=40, m=6, k=2, gap=50.0)
    probe = linear_probe(x, labels, classes=2, generator=rng)
    assert {*probe.accuracy.values()} == {1.0}
    assert len(probe.accuracy) == len(LAMBDA_GRID)
    assert probe.lambda_ == max(probe.accuracy)


def test_one_label_a_class_leaves_nothing_to_compare(rng):
    x, labels = task(rng, n=3, m=6, k=3, gap=5.0, dtype=torch.float32)
    probe = linear_probe(x, labels, classes=3, generator=rng)
    assert probe.accuracy == {}
    mean_square = (x - x.mean(dim=0)).square().mean().item()
    assert probe.lambda_ == pytest.approx(max(LAMBDA_GRID) * mean_square)
    assert probe.logits(x).argmax(dim=1).tolist() == [0, 1, 2]


NAN = torch.tensor([[0.0, math.nan], [math.inf, 1.0], [1.0, 1.0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"features": NAN},
            "features must hold neither NaN nor infinite values, got 2.",
        ),
        ({"labels": torch.tensor([0, 1, 2])}, "labels must be from 0 to 1, got 2."),
        ({"labels": torch.tensor([0, -1, 1])}, "labels must be from 0 to 1, got -1."),
        ({"labels": torch.tensor([1, 1, 1])}, "labels: class 0 has no example, "),
        (
            {"features": torch.ones(0, 2), "labels": torch.ones(0).long()},
            "features must have at least 1 row, got 0.",
        ),
        ({"classes": 1}, "classes must be at least 2, got 1."),
        ({"lambdas": []}, "lambdas must be at least one, got []."),
        (
            {"lambdas": [1.0, 0.0]},
            "lambdas must be finite and above 0, got [1.0, 0.0].",
        ),
        ({"lambdas": [-1.0]}, "lambdas must be finite and above 0, got [-1.0]."),
        ({"lambdas": [math.inf]}, "lambdas must be finite and above 0, got [inf]."),
        ({"tolerance": 0.0}, "tolerance must be above 0 and at most 1, got 0.0."),
    ],
)
def test_wrong_arguments(rng, change, message):
    arguments = {"features": torch.eye(3, 2), "labels": torch.tensor([0, 1, 1])}
    arguments |= {"classes": 2, "lambdas": [1.0], **change}
    features, labels = arguments.pop("features"), arguments.pop("labels")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        logistic_path(features, labels, **arguments)
    if "lambdas" not in change:
        del arguments["lambdas"]
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            linear_probe(features, labels, generator=rng, **arguments)


def regression(rng, *, n, m):
    x = torch.randn(n, m, generator=rng, dtype=torch.float64) + 1
    y = x @ torch.randn(m, generator=rng, dtype=torch.float64)
    return x, y + 2 + torch.randn(n, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize(("n", "m"), [(4, 9), (30, 5)])
def test_least_norm_is_the_pseudoinverse_s(rng, n, m):
    x, y = regression(rng, n=n, m=m)
    x[:, 1] = x[:, 0]  # singular, tall or wide
    x[:, 2] *= 1e-5  # small, yet no rounding
    w, b = least_squares_probe(x, y)
    torch.testing.assert_close(w, torch.linalg.pinv(x) @ y, rtol=1e-6, atol=1e-6)
    assert b == 0


def test_gradient_descent_from_zero_reaches_the_least_norm(rng):
    """In the notes: squared error."""
    x, y = regression(rng, n=3, m=6)
    w, _ = least_squares_probe(x, y)
    descended = reference.gradient_descent_on_squared_error(
        x.tolist(), y.tolist(), rate=0.1, steps=2000
    )
    assert w.tolist() == pytest.approx(descended, rel=1e-8)
    torch.testing.assert_close(x @ w, y)
    # Another w fits as well, so that the norm decides
    null = torch.linalg.svd(x)[2][-1]
    torch.testing.assert_close(x @ (w + null), y)
    assert (w + null).norm() > w.norm()


@pytest.mark.parametrize(("n", "m"), [(4, 9), (30, 5)])
@pytest.mark.parametrize("bias", [False, True])
def test_ridge_has_its_closed_form_and_is_the_least_of_the_loop(rng, n, m, bias):
    """In the notes: (14.1), squared error."""
    x, y = regression(rng, n=n, m=m)
    w, b = least_squares_probe(x, y, ridge=0.3, bias=bias)
    x_mean, y_mean = (x.mean(dim=0), y.mean()) if bias else (torch.zeros(m), 0.0)
    centred = x - x_mean
    gram = centred.T @ centred + n * 0.3 * torch.eye(m, dtype=torch.float64)
    expected = torch.linalg.solve(gram, centred.T @ (y - y_mean))
    torch.testing.assert_close(w, expected)
    assert (b != 0) == bias

    def loss(w, b):
        arguments = (x.tolist(), y.tolist(), w.tolist(), float(b), 0.3)
        return reference.mean_squared_error(*arguments)

    least = loss(w, b)
    for _ in range(20):
        step = 1e-3 * torch.randn(m + 1, generator=rng, dtype=torch.float64)
        assert loss(w + step[:m], b + step[m] * bias) > least


def test_a_feature_s_shift_changes_nothing_beside_a_bias(rng):
    x, y = regression(rng, n=30, m=5)
    w, b = least_squares_probe(x, y, bias=True)
    shifted, c = least_squares_probe(x - 5, y + 1, bias=True)
    torch.testing.assert_close(shifted, w)
    torch.testing.assert_close(c, b + 1 + 5 * w.sum())


@pytest.mark.parametrize("offset", [2.0**7, 2.0**20, 2.0**33])
@pytest.mark.parametrize(
    ("n", "m"), [(12, 60), (40, 60), (60, 60), (40, 5)], ids=["12", "40", "60", "tall"]
)
@pytest.mark.parametrize("equal", ["nothing", "rows", "columns", "one column"])
def test_features_far_from_0_have_no_other_directions(rng, n, m, offset, equal):
    """Features and shift are multiples of 1/64 below 2^34, so their sums are exact."""
    x = torch.randint(-128, 128, (n, m), generator=rng).double() / 64
    y = torch.randn(n, generator=rng, dtype=torch.float64)
    if equal == "rows":
        x[1], x[2] = x[0], x[3]
    elif equal == "columns":
        x[:, m // 2 :] = x[:, : m - m // 2]
    elif equal == "one column":
        x[:, 1] = 0
    w, b = least_squares_probe(x, y, bias=True)
    far, c = least_squares_probe(x + offset, y, bias=True)
    centred = x - x.mean(dim=0)
    s = torch.linalg.svdvals(centred)
    condition = (s[0] / s[s > 1e-9 * s[0]][-1]).item()
    # Each of the n + m additions of a product may round, and w by the condition more
    size = condition**2 * w.abs().max().item()
    bound = rounding(n + m, size, dtype=torch.float64)
    torch.testing.assert_close(far, w, rtol=0, atol=bound)
    # The bias is of the size of offset times w
    bound *= offset * m
    torch.testing.assert_close(c + offset * far.sum(), b, rtol=0, atol=bound)


def test_least_squares_of_constant_features(rng):
    w, b = least_squares_probe(torch.ones(4, 2), torch.arange(4.0), bias=True)
    assert w.tolist() == [0, 0]
    assert b == 1.5


@pytest.mark.parametrize(
    ("features", "targets", "ridge", "message"),
    [
        (NAN, torch.ones(3), 0.0, "features must hold neither NaN nor infinite "),
        (
            torch.ones(3, 2),
            NAN[:, 1],
            0.0,
            "targets must hold neither NaN nor infinite",
        ),
        (
            torch.ones(0, 2),
            torch.ones(0),
            0.0,
            "features must have at least 1 row, got",
        ),
        (
            torch.ones(3, 2),
            torch.ones(3),
            -1.0,
            "ridge must be finite and at least 0, ",
        ),
    ],
)
def test_wrong_arguments_of_least_squares(features, targets, ridge, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        least_squares_probe(features, targets, ridge=ridge)
