"""Check the exercises on 14.1 and 14.2.

Axes: B batch, m representation, n labelled and q new examples, k classes, r draws.
"""

import math

import torch
import torch.nn.functional as F

from fmkit.book.exercises._compare import compare
from fmkit.losses import nt_xent_loss, simclr_loss
from fmkit.probe import least_squares_probe, logistic_objective


def _probe_loss(answer):
    """Check equation (14.1) with cross-entropy, bias and ridge.

    ``answer(phi_x, y, w, b, lambda_)`` gets the shapes n m, n, k m, k and a number.
    """
    rng = torch.Generator().manual_seed(0)
    phi_x = torch.randn(6, 4, generator=rng)
    w, b = torch.randn(3, 4, generator=rng), torch.randn(3, generator=rng)
    y, lambda_ = torch.tensor([0, 1, 2, 2, 1, 0]), 0.3
    correct = logistic_objective(phi_x, y, w, b, lambda_=lambda_)
    u, penalty = phi_x @ w.T + b, lambda_ / 2 * w.square().sum()
    loss = F.cross_entropy(u, y)
    compare(
        answer(phi_x, y, w, b, lambda_),
        correct,
        {
            "Give every example twice: does the answer change? It should not.": (
                6 * loss + penalty
            ),
            "Look at lambda_: does the answer depend on it?": loss,
            "Look at the penalty: is its factor that of the chapter?": loss
            + 2 * penalty,
            "Look at the penalty: what happens to it if w is doubled?": (
                loss + lambda_ / 2 * w.norm()
            ),
            "Look at the penalty: which parameters are in it?": (
                loss + penalty + lambda_ / 2 * b.square().sum()
            ),
            "Look at an image whose representation is all zeros: what is its u?": (
                F.cross_entropy(phi_x @ w.T, y) + penalty
            ),
            "Look at what each function expects: logits, or probabilities?": (
                F.cross_entropy(u.softmax(dim=1), y) + penalty
            ),
        },
    )


def _least_norm(answer):
    """Check the shortest w that fits n < m labels: ``answer(phi_x, y)``, n m and n."""
    rng = torch.Generator().manual_seed(0)
    phi_x = torch.randn(4, 7, generator=rng, dtype=torch.float64)
    y = torch.randn(4, generator=rng, dtype=torch.float64)
    correct, _ = least_squares_probe(phi_x, y)
    got = answer(phi_x, y)
    mistakes = {
        "Try it on two examples that are not orthogonal: are both labels fitted?": (
            phi_x.T @ y
        ),
        "Look at y: the labels that you fit differ from the given ones.": (
            phi_x.T @ torch.linalg.solve(phi_x @ phi_x.T, y - y.mean())
        ),
    }
    if isinstance(got, torch.Tensor) and got.shape == correct.shape:
        given = got.detach().double()
        across = given - torch.linalg.pinv(phi_x) @ (phi_x @ given)
        if torch.allclose(phi_x @ given, y, rtol=1e-4, atol=1e-4):
            mistakes[
                "Every label is fitted. Look at the length of w: is it needed?"
            ] = given
        elif across.norm() < 1e-4 * given.norm():
            hint = "w is a sum of representations. Look at phi_x @ w beside y."
            mistakes[hint] = given
    compare(got, correct, mistakes)


def _nearest_mean(answer):
    """Check logits from class means: ``answer(phi_x, y, phi_new, k)``.

    The shapes are n m, n and q m, of the result q k. Classes differ in size.
    """
    rng = torch.Generator().manual_seed(0)
    phi_x, phi_new = torch.randn(9, 5, generator=rng), torch.randn(4, 5, generator=rng)
    y, k = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2]), 3

    def logits(x, new, total=torch.mean):
        centres = torch.stack([total(x[y == c], dim=0) for c in range(k)])
        return -torch.cdist(new, centres).square()

    correct = logits(phi_x, phi_new)
    compare(
        answer(phi_x, y, phi_new, k),
        correct,
        {
            "Look at the largest logit of a row: is its class near, or far?": -correct,
            "The order of classes is correct. Look at the formula of the distance.": (
                -(-correct).sqrt()
            ),
            "Look at the sum over the m features: is it divided by anything?": correct
            / 5,
            "Give every labelled image twice: the centres must not move.": (
                logits(phi_x, phi_new, torch.sum)
            ),
            "Look at the comparison: are representations changed before it?": (
                logits(F.normalize(phi_x), F.normalize(phi_new))
            ),
        },
    )


def _paired_gain(answer):
    """Check the mean of a difference and its standard error: ``answer(better, worse)``.

    Both have the shape r, an accuracy for each draw; the result has the shape 2.
    """
    better = torch.tensor([0.71, 0.78, 0.69, 0.83, 0.75], dtype=torch.float64)
    worse = torch.tensor([0.66, 0.74, 0.60, 0.80, 0.67], dtype=torch.float64)
    less, r = better - worse, len(better)
    mean, deviation = less.mean(), less.std()
    both = (better.var() + worse.var()).sqrt()

    def with_error(error):
        return torch.stack([mean, torch.as_tensor(error, dtype=mean.dtype)])

    compare(
        answer(better, worse),
        with_error(deviation / r**0.5),
        {
            "Look at the order: is the mean positive where `better` is?": (
                torch.stack([-mean, deviation / r**0.5])
            ),
            "Add 0.1 to both in one draw: the second number must stay what it is.": (
                with_error(both / r**0.5)
            ),
            "Look at the second number: what happens to it with a thousand draws?": (
                with_error(deviation)
            ),
            "Look at the unit of the second number: is it that of an accuracy?": (
                with_error(less.var() / r)
            ),
            "Look at the variance of the draws: what is its sum divided by?": (
                with_error(less.std(correction=0) / r**0.5)
            ),
        },
    )


def _equal_views(answer):
    """Check three losses if all views are represented equally, for B = 128.

    They are the SimCLR loss of the notes, NT-Xent, and SupCon of the 2B views.
    """
    B = 128
    n = 2 * B
    correct = torch.tensor([B * math.log(B), math.log(n - 1), math.log(n - 1)])
    if not isinstance(answer, list | tuple) or len(answer) != 3:
        compare(answer, correct, {})
    of_each = (
        {
            "The first: B terms are equal. How do the notes put them together?": (
                math.log(B)
            ),
            "The first: count the exponentials in one denominator.": (
                B * math.log(B - 1)
            ),
        },
        {
            "The second: count the views in one denominator.": math.log(n),
            "The second: from both sides, or from one, do its views come?": math.log(B),
            "The second: look at what stands before the sum.": n * math.log(n - 1),
        },
        {
            "The third: count the views in one denominator.": math.log(n),
            "The third: what can a label change if all cosines are equal?": math.log(
                10
            ),
        },
    )
    for got, value, mistakes in zip(answer, correct, of_each, strict=True):
        compare(got, value, mistakes)


def _simclr(answer):
    """Check the SimCLR loss of the notes: ``answer(phi_hat, phi_tilde)``, both B m."""
    rng = torch.Generator().manual_seed(0)
    phi_hat, phi_tilde = torch.randn(2, 5, 3, generator=rng)
    scores = phi_hat @ phi_tilde.T  # (B, B)
    without = scores.masked_fill(torch.eye(5).bool(), -torch.inf).logsumexp(1)
    unit = F.normalize(phi_hat) @ F.normalize(phi_tilde).T
    partner = torch.arange(5)
    correct = simclr_loss(phi_hat, phi_tilde)
    compare(
        answer(phi_hat, phi_tilde),
        correct,
        {
            "Look at the sign: a loss of -log p is never negative.": -correct,
            "Look at the sum of the notes: is it divided by anything?": correct / 5,
            "Look at the denominator: is j = i in its sum?": (
                without - scores.diagonal()
            ).sum(),
            "Look at the denominator: over which argument does j run?": (
                F.cross_entropy(scores.T, partner, reduction="sum")
            ),
            "Look at the product in the notes: are the vectors changed before it?": (
                F.cross_entropy(unit, partner, reduction="sum")
            ),
        },
    )


def _nt_xent(answer):
    """Check NT-Xent: ``answer(phi_hat, phi_tilde, tau)``, both B m, to a number."""
    rng = torch.Generator().manual_seed(0)
    phi_hat, phi_tilde = torch.randn(2, 5, 3, generator=rng)
    B, tau = 5, 0.5
    views = torch.cat([phi_hat, phi_tilde])
    z = F.normalize(views)
    partner = torch.arange(2 * B).roll(B)
    alone = torch.eye(2 * B).bool()

    def loss(similarity, rows=2 * B):
        return F.cross_entropy(similarity[:rows], partner[:rows])

    def others(similarity):
        return similarity.masked_fill(alone, -torch.inf)

    cosine = others(z @ z.T)
    correct = nt_xent_loss(phi_hat, phi_tilde, tau=tau)
    across = z[:B] @ z[B:].T / tau
    both = [F.cross_entropy(s, torch.arange(B)) for s in (across, across.T)]
    compare(
        answer(phi_hat, phi_tilde, tau),
        correct,
        {
            "Make phi_hat twice as long: does the answer change? It should not.": loss(
                others(views @ views.T) / tau
            ),
            "Look at the denominator: with which views is a view compared?": loss(
                z @ z.T / tau
            ),
            "Look at tau: does a small one make differences count more, or less?": loss(
                cosine * tau
            ),
            "Look for tau: does the answer depend on it?": loss(cosine),
            "Count the terms of the outer sum: which views have a term?": loss(
                cosine / tau, B
            ),
            "Look at what stands in front of the outer sum.": 2 * B * correct,
            "Count the terms of a denominator: for B = 2 there are three.": sum(both)
            / 2,
        },
    )


VISION = {
    "probe-loss": _probe_loss,
    "least-norm": _least_norm,
    "nearest-mean": _nearest_mean,
    "paired-gain": _paired_gain,
    "alike": _equal_views,
    "simclr": _simclr,
    "nt-xent": _nt_xent,
}
