"""Numbers about predictions."""

import pytest
import torch

from fmkit.evaluate import accuracy, mean_interval


def test_accuracy_counts_the_largest_logit():
    logits = torch.tensor([[2.0, 1, 0], [0, 3, 1], [-3, -2, -1], [5, 6, 0]])
    assert accuracy(logits, torch.tensor([0, 1, 2, 0])) == 0.75


def test_accuracy_of_guessing(rng):
    n, k = 20_000, 4
    guess = torch.randn(n, k, generator=rng)
    labels = torch.randint(k, (n,), generator=rng)
    # Four deviations of a share of 1/4 among 20,000 are .012
    assert accuracy(guess, labels) == pytest.approx(1 / k, abs=0.012)


def test_accuracy_needs_an_example():
    with pytest.raises(ValueError, match="labels must hold at least 1 example, got 0"):
        accuracy(torch.ones(0, 3), torch.ones(0, dtype=torch.long))


def test_mean_interval_of_one_and_of_equal_values(rng):
    assert mean_interval([0.25], generator=rng) == (0.25, 0.25, 0.25)
    assert mean_interval([0.5] * 4, generator=rng) == (0.5, 0.5, 0.5)


def test_mean_interval_of_many_values_is_the_normal_one(rng):
    values = torch.randn(400, generator=rng, dtype=torch.float64)
    mean, low, high = mean_interval(values.tolist(), generator=rng)
    deviation = values.std(correction=0).item() / len(values) ** 0.5
    assert mean == pytest.approx(values.mean().item())
    # The bootstrap's own error at 10,000 resamples is about 2 % of the deviation
    assert low == pytest.approx(mean - 1.96 * deviation, abs=0.1 * deviation)
    assert high == pytest.approx(mean + 1.96 * deviation, abs=0.1 * deviation)


def test_mean_interval_covers_the_mean_as_often_as_it_says(rng):
    covered = 0
    for _ in range(200):
        values = torch.randn(30, generator=rng).tolist()
        _, low, high = mean_interval(values, generator=rng, level=0.8)
        covered += low <= 0 <= high
    # 80 % of 200 with a deviation of 5.7, less a little: the bootstrap is narrow
    assert 135 <= covered <= 180


def test_mean_interval_belongs_to_the_generator():
    def ends(seed):
        generator = torch.Generator().manual_seed(seed)
        return mean_interval([0.1, 0.5, 0.7, 0.2, 0.9], generator=generator)

    assert ends(3) == ends(3)


@pytest.mark.parametrize(
    ("values", "level", "message"),
    [
        ([], 0.95, r"values must be at least 1, got \[\]"),
        ([1.0], 1.0, "level must be between 0 and 1, got 1.0"),
        ([1.0], 0.0, "level must be between 0 and 1, got 0.0"),
    ],
)
def test_wrong_arguments(rng, values, level, message):
    with pytest.raises(ValueError, match=message):
        mean_interval(values, generator=rng, level=level)
