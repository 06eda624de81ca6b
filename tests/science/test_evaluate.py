"""Numbers about predictions and representations."""

import math
from itertools import pairwise

import pytest
import torch
from reference import notes as reference

from fmkit.data.tokens import consecutive
from fmkit.evaluate import (
    accuracy,
    alignment,
    bits_per_byte,
    brier_score,
    crossed_interval,
    differences,
    each_in_points,
    in_points,
    knn_votes,
    learning_curve,
    mean_interval,
    planar_maps,
    reliability,
    strided_nats,
    token_nats,
    uniformity,
    wilson,
)


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
    with pytest.raises(ValueError, match=r"labels .*1.* 0\."):
        accuracy(torch.ones(0, 3), torch.ones(0, dtype=torch.long))


def test_brier_score_is_the_loop(rng):
    p = torch.rand(7, 3, generator=rng, dtype=torch.float64)
    p /= p.sum(dim=1, keepdim=True)
    labels = torch.randint(3, (7,), generator=rng)
    slow = reference.brier(p.tolist(), labels.tolist())
    assert brier_score(p, labels) == pytest.approx(slow, rel=1e-12)


def test_brier_score_of_certainty_and_of_ignorance():
    sure, labels = torch.eye(4), torch.arange(4)
    assert brier_score(sure, labels) == 0
    assert brier_score(sure, labels.roll(1)) == 2
    assert brier_score(torch.full((4, 4), 0.25), labels) == pytest.approx(1 - 1 / 4)


def test_brier_score_is_least_in_expectation_at_the_truth():
    truth = torch.tensor([0.7, 0.3], dtype=torch.float64)

    def expected(q):
        p = torch.tensor([[q, 1 - q]], dtype=torch.float64)
        of = [brier_score(p, torch.tensor([label])) for label in (0, 1)]
        return truth[0] * of[0] + truth[1] * of[1]

    assert min(torch.linspace(0, 1, 101).tolist(), key=expected) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("p", "message"),
    [
        (torch.empty(0, 2), r"labels .*1.* 0\."),
        (torch.tensor([[0.5, 0.4]]), r"p .*1.* 0\.9\."),
    ],
)
def test_brier_score_says_what_is_wrong(p, message):
    with pytest.raises(ValueError, match=message):
        brier_score(p, torch.zeros(len(p), dtype=torch.long))


def test_reliability_groups_by_confidence():
    confidence = torch.tensor([0.9, 0.1, 0.8, 0.2, 0.5])
    right = torch.tensor([True, False, False, False, True])
    low, high = reliability(confidence, right, bins=2)
    assert low == pytest.approx((0.8 / 3, 1 / 3, 3))
    assert high == pytest.approx((0.85, 0.5, 2))


def test_reliability_of_a_model_that_knows_what_it_knows(rng):
    confidence = torch.rand(40_000, generator=rng)
    right = torch.rand(40_000, generator=rng) < confidence
    for mean, share, count in reliability(confidence, right, bins=8):
        # Four deviations of a share among 5,000 are at most .028
        assert share == pytest.approx(mean, abs=0.028)
        assert count == 5000


@pytest.mark.parametrize("bins", [0, 3])
def test_reliability_says_what_is_wrong(bins):
    with pytest.raises(ValueError, match=rf"bins .*2.* {bins}\."):
        reliability(torch.ones(2), torch.ones(2, dtype=torch.bool), bins=bins)


def test_crossed_interval_of_one_row_or_column_is_the_plain_one(rng):
    values = torch.rand(300, generator=rng, dtype=torch.float64)
    plain = mean_interval(values.tolist(), generator=rng)
    for table in (values[None], values[:, None]):
        crossed = crossed_interval(table, generator=rng)
        assert crossed == pytest.approx(plain, abs=0.002)


def test_crossed_interval_is_the_loop(rng):
    table = torch.rand(3, 4, generator=rng, dtype=torch.float64)
    fast = crossed_interval(table, generator=torch.Generator().manual_seed(5))
    draws = torch.Generator().manual_seed(5)
    rows = torch.randint(3, (10_000, 3), generator=draws).tolist()
    columns = torch.randint(4, (10_000, 4), generator=draws).tolist()
    slow = reference.crossed_means(table.tolist(), rows, columns)
    tail = torch.tensor([0.025, 0.975], dtype=torch.float64)
    ends = torch.tensor(slow, dtype=torch.float64).quantile(tail).tolist()
    assert fast == pytest.approx((table.mean().item(), *ends), rel=1e-12)


def test_crossed_interval_is_wider_than_if_all_cells_were_apart(rng):
    """Where each column has a level of its own, many rows do not make it certain."""
    table = torch.randn(50, generator=rng).expand(20, 50)
    _, low, high = crossed_interval(table, generator=rng)
    deviation = table[0].std(correction=0).item() / 50**0.5
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.05)


def test_crossed_interval_says_what_is_wrong(rng):
    with pytest.raises(ValueError, match=r"values .*1.* \(0, 3\)"):
        crossed_interval(torch.empty(0, 3), generator=rng)


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
        _, low, high = mean_interval(values, generator=rng)
        covered += low <= 0 <= high
    # 95 % of 200 with a deviation of 3.1, less a little: the bootstrap is narrow
    assert 175 <= covered <= 199


def test_mean_interval_belongs_to_the_generator():
    def ends(seed):
        generator = torch.Generator().manual_seed(seed)
        return mean_interval([0.1, 0.5, 0.7, 0.2, 0.9], generator=generator)

    assert ends(3) == ends(3)


def test_mean_interval_needs_a_value(rng):
    with pytest.raises(ValueError, match=r"values .*1.* \[\]"):
        mean_interval([], generator=rng)


@pytest.fixture
def phi(rng):
    return torch.randn(60, 5, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("tau", [0.001, 0.1, 10.0])
def test_knn_is_the_loop(phi, rng, tau, monkeypatch):
    monkeypatch.setattr("fmkit.evaluate.QUERIES_AT_ONCE", 7)  # several blocks
    labels = torch.randint(3, (40,), generator=rng)
    bank, queries = phi[:40], phi[40:]
    votes = knn_votes(bank, labels, queries, classes=3, neighbours=9, tau=tau)
    for q in range(len(queries)):
        expected = reference.knn_votes(
            bank.tolist(), labels.tolist(), queries[q].tolist(), 3, 9, tau
        )
        # The votes' common factor is free: exp(1 / tau) may not be a number
        total = sum(expected)
        shares = [vote / total for vote in expected]
        found = (votes[q] / votes[q].sum()).tolist()
        assert found == pytest.approx(shares, rel=1e-3, abs=1e-6)


def test_an_image_is_its_own_nearest_neighbour(phi):
    labels = torch.arange(60)
    votes = knn_votes(phi, labels, phi, classes=60, neighbours=1, tau=0.1)
    assert accuracy(votes, labels) == 1
    # A length says nothing, and neither does a class without an example
    votes = knn_votes(phi, labels, 3 * phi, classes=99, neighbours=1, tau=0.1)
    assert torch.equal(votes.argmax(dim=1), labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neighbours": 61}, "neighbours must be from 1 to 60, got 61"),
        ({"neighbours": 0}, "neighbours must be from 1 to 60, got 0"),
        ({"tau": 0.0}, "tau must be above 0, got 0.0"),
    ],
)
def test_wrong_knn(phi, options, message):
    options = {"classes": 60, "neighbours": 1, "tau": 0.1, **options}
    with pytest.raises(ValueError, match=message):
        knn_votes(phi, torch.arange(60), phi, **options)


def test_alignment_and_uniformity_are_the_loops(phi):
    hat, tilde = phi[:30], phi[30:]
    expected = reference.alignment(hat.tolist(), tilde.tolist())
    assert alignment(hat, tilde) == pytest.approx(expected, rel=1e-12)
    expected = reference.uniformity(phi.tolist())
    assert uniformity(phi) == pytest.approx(expected, rel=1e-12)


def test_alignment_and_uniformity_have_closed_forms(phi):
    assert alignment(phi, 2 * phi) == pytest.approx(0, abs=1e-12)
    assert alignment(phi, -phi) == pytest.approx(4)
    assert uniformity(phi[:1].expand(10, -1)) == pytest.approx(0)
    poles = torch.tensor([[1.0, 0], [-1, 0]])
    assert uniformity(poles) == pytest.approx(-8)
    # On the circle: the mean of exp(4 cos t - 4) is the Bessel function I_0(4) e^-4
    angle = torch.arange(400) * 2 * math.pi / 400
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    bessel = torch.special.i0e(torch.tensor(4.0)).item()
    assert math.exp(uniformity(circle)) == pytest.approx(bessel, rel=0.02)
    with pytest.raises(ValueError, match=r"phi .*2.* 1\."):
        uniformity(poles[:1])


SCORES = {
    ("ours", "probe", 10, "test"): [0.5, 0.7],
    ("ours", "probe", 100, "test"): [0.8, 0.9],
    ("ours", "probe", 10, "rotate"): [0.1, 0.1],
    ("ours", "finetune", 10, "test"): [0.2, 0.2],
    ("pixels", "probe", 10, "test"): [0.4, 0.4],
    ("pixels", "probe", 100, "test"): [0.4],
}


def test_learning_curve_takes_its_own_points_in_order():
    curve = learning_curve(SCORES, "ours", "probe")
    assert curve == [(10, [0.5, 0.7]), (100, [0.8, 0.9])]


def test_differences_are_taken_draw_by_draw():
    ours, pixels = ("ours", "probe", 10), ("pixels", "probe", 10)
    gains = differences(SCORES, ours, pixels)
    assert gains == pytest.approx([0.1, 0.3])
    assert each_in_points(gains) == "+10.0, +30.0"
    assert differences(SCORES, ours, pixels, "rotate") == []  # not measured
    assert each_in_points([]) == ""
    with pytest.raises(ValueError, match=r"worse .*2.* 1\."):
        differences(SCORES, ours, ("pixels", "probe", 100))


def test_an_interval_in_points():
    assert in_points(0.2, 0.1, 0.3) == "+20.0 (+10.0 to +30.0)"


def test_no_other_turn_brings_a_planar_map_nearer_to_the_next(rng):
    series = torch.randn(2, 50, 3, generator=rng, dtype=torch.float64)
    series[:, :, 2] += 100  # the axes of the two are different ones
    series[1] += 0.7 * series[0]
    first, second = planar_maps([*series])
    distance = (first - second).norm()
    for angle in torch.linspace(0, 2 * math.pi, 60, dtype=torch.float64)[1:-1]:
        c, s = angle.cos(), angle.sin()
        turn = torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
        mirror = turn * torch.tensor([1.0, -1.0])
        assert (first @ turn - second).norm() > distance
        assert (first @ mirror - second).norm() > distance


def test_planar_maps_keep_distances_and_follow_each_other(rng):
    plane = torch.randn(50, 2, generator=rng, dtype=torch.float64)
    far = torch.cat([plane, torch.full((50, 1), 100.0)], dim=1)  # nearly flat up there
    turned = far @ torch.linalg.qr(torch.randn(3, 3, generator=rng).double())[0]
    first, second = planar_maps([turned, far])
    torch.testing.assert_close(first, second, rtol=0, atol=1e-9)
    expected = torch.cdist(plane, plane) / 100
    torch.testing.assert_close(
        torch.cdist(first, first), expected, rtol=0.01, atol=1e-4
    )


class Bigrams(torch.nn.Module):
    """Logits that depend on the last token alone; wrong ones while it trains."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, x):
        return self.table[x] if not self.training else 0 * self.table[x]


def test_token_nats_are_those_of_the_loop(rng):
    """In the notes: (14.5)."""
    table = torch.randn(4, 4, generator=rng)
    windows = [torch.randint(4, (3, 6), generator=rng), torch.tensor([[1, 2, 0]])]
    model = Bigrams(table).train()
    found = token_nats(model, windows)
    rows = [row for window in windows for row in window.tolist()]
    expected = [
        -math.log(reference.softmax(table[before].tolist())[x])
        for row in rows
        for before, x in pairwise(row)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert model.training


class Longest(torch.nn.Module):
    """Logits that tell how many tokens a position sees, and which."""

    def forward(self, ids):
        seen = (ids + 1).cumsum(dim=1)
        return torch.stack([(seen * (i + 1)).sin() for i in range(5)], dim=2)


@pytest.mark.parametrize("n", [7, 8, 9, 12, 20, 21])
@pytest.mark.parametrize("stride", [1, 2, 3, 6])
def test_strided_nats_are_those_of_the_loop(n, stride, rng):
    T, model = 6, Longest()
    x = torch.randint(5, (n,), generator=rng)
    expected = []
    for t in range(1, n):
        starts = [s for s in range(0, n - T, stride) if s <= t - 1 and t <= s + T]
        start = min(starts) if starts else n - 1 - T
        u = model(x[None, start:t])[0, -1]
        expected.append(math.log(u.exp().sum()) - u[x[t]].item())
    found = strided_nats(model, x, context=T, stride=stride, batch_size=2)
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    if stride == T and (n - 1) % T == 0:
        cold = token_nats(model, consecutive(x, context=T, batch_size=4))
        assert torch.equal(found, cold)


def test_bits_per_byte_do_not_depend_on_how_a_text_is_cut():
    text = "déjà vu"  # 7 characters, 9 bytes
    as_bytes = bits_per_byte(math.log(256), tokens=9, text=text)
    assert as_bytes == pytest.approx(8)
    # The same probability of the whole text, as 3 tokens
    assert bits_per_byte(3 * math.log(256), tokens=3, text=text) == pytest.approx(8)
    with pytest.raises(ValueError, match=r"text .*1.* ''\."):
        bits_per_byte(1.0, tokens=1, text="")


def test_nats_are_not_rounded_to_bfloat16(rng):
    torch.manual_seed(0)
    layers = torch.nn.Embedding(9, 8), torch.nn.Linear(8, 9)
    model, windows = torch.nn.Sequential(*layers), [torch.arange(9)[None]]
    expected = token_nats(model, windows)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(windows[0]).dtype == torch.bfloat16
        assert torch.equal(token_nats(model, windows), expected)


def test_votes_are_not_rounded_to_bfloat16(phi):
    labels = torch.arange(60) % 3
    options = {"classes": 3, "neighbours": 9, "tau": 0.1}
    expected = knn_votes(phi, labels, phi, **options)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(knn_votes(phi, labels, phi, **options), expected)


def test_wilson_solves_its_equation():
    """The ends are the shares q of which p is z deviations away (Wilson 1927)."""
    for correct in ([1, 0, 0, 1, 1], [1] * 40, [0] * 7, [0.25, 1, 0.5]):
        p, low, high = wilson(correct)
        assert p == pytest.approx(sum(correct) / len(correct))
        assert 0 <= low <= p <= high <= 1
        for q in (low, high):
            deviations = abs(p - q) / math.sqrt(q * (1 - q) / len(correct) or 1)
            assert deviations == pytest.approx(1.959964, abs=1e-5) or q in (0, 1)


def test_wilson_has_a_width_where_all_are_right():
    assert wilson([1] * 40) == (1, pytest.approx(0.9124, abs=1e-4), 1)
    assert wilson([0] * 40) == (0, 0, pytest.approx(0.0876, abs=1e-4))


@pytest.mark.parametrize("wrong", [[], [1.5], [-1, 1], [float("nan")]])
def test_wilson_of_what_is_no_share(wrong):
    with pytest.raises(ValueError, match="correct"):
        wilson(wrong)
