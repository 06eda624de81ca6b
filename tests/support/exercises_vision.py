"""Answers to the exercises on 14.1 and 14.2: correct ones, and mistakes with a hint."""

import math

import torch
import torch.nn.functional as F

from fmkit.losses import nt_xent_loss, simclr_loss
from fmkit.probe import logistic_objective

B = 128


def probe_loss(phi_x, y, w, b, lambda_):
    return logistic_objective(phi_x, y, w, b, lambda_=lambda_)


def least_norm(phi_x, y):
    return phi_x.T @ torch.linalg.solve(phi_x @ phi_x.T, y)


def centres(phi_x, y, k):
    return torch.stack([phi_x[y == c].mean(dim=0) for c in range(k)])


def nearest_mean(phi_x, y, phi_new, k):
    return -((phi_new[:, None] - centres(phi_x, y, k)) ** 2).sum(dim=2)


def sums(phi_x, y, phi_new, k):
    totals = F.one_hot(y, k).T.float() @ phi_x
    return -((phi_new[:, None] - totals) ** 2).sum(dim=2)


def paired_gain(better, worse):
    less = better - worse
    return less.mean(), less.std() / math.sqrt(len(less))


def nt_xent(phi_hat, phi_tilde, tau):
    return nt_xent_loss(phi_hat, phi_tilde, tau=tau)


def nt_xent_of(phi_hat, phi_tilde, *, with_self=False, unit=True, scale=2.0, rows=None):
    """NT-Xent as loops, with what may go wrong in it; scale is 1 / tau."""
    z = torch.cat([phi_hat, phi_tilde])
    z = F.normalize(z) if unit else z
    n = len(z)
    terms = []
    for i in range(rows or n):
        scores = [
            (scale * (z[i] @ z[j])).exp() for j in range(n) if with_self or j != i
        ]
        positive = (scale * (z[i] @ z[(i + n // 2) % n])).exp()
        terms.append(-(positive / sum(scores)).log())
    return sum(terms) / len(terms)


def other_side_only(phi_hat, phi_tilde, tau):
    scores = F.normalize(phi_hat) @ F.normalize(phi_tilde).T / tau
    partner = torch.arange(len(scores))
    return (F.cross_entropy(scores, partner) + F.cross_entropy(scores.T, partner)) / 2


RIGHT = {
    "probe-loss": probe_loss,
    "least-norm": least_norm,
    "nearest-mean": nearest_mean,
    "paired-gain": paired_gain,
    "alike": [B * math.log(B), math.log(2 * B - 1), math.log(2 * B - 1)],
    "simclr": simclr_loss,
    "nt-xent": nt_xent,
}
WRONG = [
    (
        "probe-loss",
        lambda x, y, w, b, s: (
            F.cross_entropy(x @ w.T + b, y, reduction="sum") + s / 2 * (w**2).sum()
        ),
        "Give every example twice",
    ),
    (
        "probe-loss",
        lambda x, y, w, b, s: F.cross_entropy(x @ w.T + b, y),
        "depend on it",
    ),
    (
        "probe-loss",
        lambda x, y, w, b, s: F.cross_entropy(x @ w.T + b, y) + s * (w**2).sum(),
        "is its factor that",
    ),
    (
        "probe-loss",
        lambda x, y, w, b, s: F.cross_entropy(x @ w.T + b, y) + s / 2 * w.norm(),
        "if w is doubled",
    ),
    (
        "probe-loss",
        lambda x, y, w, b, s: (
            probe_loss(x, y, w, b, s) + s / 2 * torch.linalg.norm(b) ** 2
        ),
        "which parameters",
    ),
    ("probe-loss", lambda x, y, w, b, s: probe_loss(x, y, w, 0 * b, s), "all zeros"),
    (
        "probe-loss",
        lambda x, y, w, b, s: (
            F.cross_entropy(F.softmax(x @ w.T + b, dim=-1), y) + s / 2 * (w**2).sum()
        ),
        "logits, or probabilities",
    ),
    ("least-norm", lambda x, y: x.T @ y, "not orthogonal"),
    ("least-norm", lambda x, y: least_norm(x, y - y.mean()), "Look at y"),
    (
        "least-norm",
        lambda x, y: torch.cat([torch.linalg.solve(x[:, :4], y), torch.zeros(3)]),
        "Look at the length of w",
    ),
    (
        "least-norm",
        lambda x, y: x.T @ torch.linalg.solve(x @ x.T + torch.eye(4), y),
        "beside y",
    ),
    ("least-norm", lambda x, y: torch.linalg.solve(x @ x.T, y), "Its shape is (4,)"),
    ("nearest-mean", lambda *a: -nearest_mean(*a), "near, or far"),
    (
        "nearest-mean",
        lambda x, y, new, k: -torch.cdist(new, centres(x, y, k)),
        "formula of the distance",
    ),
    ("nearest-mean", lambda *a: nearest_mean(*a) / 5, "divided by anything"),
    ("nearest-mean", sums, "must not move"),
    (
        "nearest-mean",
        lambda x, y, new, k: nearest_mean(F.normalize(x), y, F.normalize(new), k),
        "changed before",
    ),
    ("paired-gain", lambda a, b: paired_gain(b, a), "the order"),
    (
        "paired-gain",
        lambda a, b: (a.mean() - b.mean(), (a.var() / 5 + b.var() / 5).sqrt()),
        "Add 0.1 to both",
    ),
    ("paired-gain", lambda a, b: ((a - b).mean(), (a - b).std()), "a thousand draws"),
    ("paired-gain", lambda a, b: ((a - b).mean(), (a - b).var() / 5), "the unit"),
    (
        "paired-gain",
        lambda a, b: ((a - b).mean(), (a - b).std(correction=0) / 5**0.5),
        "divided by",
    ),
    ("alike", [math.log(B), math.log(255), math.log(255)], "do the notes put"),
    ("alike", [B * math.log(B - 1), math.log(255), math.log(255)], "The first: count"),
    ("alike", [B * math.log(B), math.log(256), math.log(256)], "The second: count"),
    ("alike", [B * math.log(B), math.log(B), math.log(255)], "from both sides"),
    ("alike", [B * math.log(B), 256 * math.log(255), 0.0], "before the sum"),
    ("alike", [B * math.log(B), math.log(255), math.log(256)], "The third: count"),
    (
        "alike",
        [B * math.log(B), math.log(255), math.log(10)],
        "what can a label change",
    ),
    ("alike", [..., ..., ...], "Nothing comes out yet"),
    ("alike", [1.0, 2.0], "Its shape is (2,)"),
    ("simclr", lambda a, b: -simclr_loss(a, b), "the sign"),
    ("simclr", lambda a, b: simclr_loss(a, b) / len(a), "divided by anything"),
    ("simclr", lambda a, b: simclr_loss(b, a), "over which argument"),
    (
        "simclr",
        lambda a, b: simclr_loss(F.normalize(a), F.normalize(b)),
        "product in the notes",
    ),
    (
        "simclr",
        lambda a, b: sum(
            (a[i] @ torch.cat((b[:i], b[i + 1 :])).T).logsumexp(0) - a[i] @ b[i]
            for i in range(len(a))
        ),
        "is j = i in its sum",
    ),
    ("nt-xent", lambda a, b, tau: nt_xent_of(a, b, unit=False), "twice as long"),
    (
        "nt-xent",
        lambda a, b, tau: nt_xent_of(a, b, with_self=True),
        "is a view compared",
    ),
    ("nt-xent", lambda a, b, tau: nt_xent_of(a, b, scale=tau), "more, or less"),
    ("nt-xent", lambda a, b, tau: nt_xent_of(a, b, scale=1.0), "Look for tau"),
    ("nt-xent", lambda a, b, tau: nt_xent_of(a, b, rows=5), "outer sum: which"),
    ("nt-xent", lambda a, b, tau: 10 * nt_xent(a, b, tau), "in front of the outer"),
    ("nt-xent", other_side_only, "Count the terms of a denominator"),
]
