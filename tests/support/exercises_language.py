"""Answers to the exercises on 14.3: correct ones, and mistakes of learners.

Each mistake comes with a piece of its hint.
"""

import math

import torch
import torch.nn.functional as F

from fmkit.models.pooling import last_token
from fmkit.tasks.operators import ANSWERS, KNOWN


def next_token(u, x):
    return F.cross_entropy(u[:, :-1].mT, x[:, 1:])


def bits_per_byte(nats, tokens, text):
    return nats * tokens / len(text.encode()) / math.log(2)


def lora_count(shapes, rank):
    return sum(rank * (e + d) for e, d in shapes)


def lora_merge(W, A, B, alpha):
    return W + alpha / len(A) * B @ A


def answer_log_p(u, x, T):
    log_p = u.log_softmax(dim=1)
    return sum(log_p[t - 1, x[t]] for t in range(T, len(x)))


def ties(scores):
    best = (scores == scores.max(dim=1, keepdim=True).values).double()
    return (best[:, 0] / best.sum(dim=1)).mean()


def _first_guess(operators=KNOWN):
    """By counting, one pair of operands after the other."""
    total = 0.0
    for a in range(20):
        for b in range(20):
            values = [int(ANSWERS[o, a, b]) for o in range(operators)]
            total += max(map(values.count, values)) / operators
    return total / 400


def doubting(agrees, epsilon):
    likelihood = torch.where(agrees, 1 - epsilon, epsilon / 39)
    return likelihood.prod(dim=1) / likelihood.prod(dim=1).sum()


def ridge(x, y, query, sigma):
    A = x.T @ x + sigma**2 * torch.eye(x.shape[1])
    return torch.linalg.solve(A, x.T @ y) @ query


def _ridge(penalty):
    def answer(x, y, query, sigma):
        A = x.T @ x + penalty(sigma, len(x)) * torch.eye(x.shape[1])
        return torch.linalg.solve(A, x.T @ y) @ query

    return answer


def _normalized(p):
    return p / p.sum()


RIGHT = {
    "unigram-cost": 0.5 * math.log(2) + 0.5 * math.log(52),
    "next-token": next_token,
    "bits-per-byte": bits_per_byte,
    "lora-merge": lora_merge,
    "lora-count": lora_count,
    "last-token": last_token,
    "answer-log-p": answer_log_p,
    "ties": ties,
    "first-guess": _first_guess(),
    "doubting": doubting,
    "ridge": ridge,
}
WRONG = [
    ("unigram-cost", 0.5 * math.log2(2) + 0.5 * math.log2(52), "to which logarithm"),
    ("unigram-cost", math.exp(0.5 * math.log(2) + 0.5 * math.log(52)), "number of eq"),
    ("unigram-cost", math.log(27), "the space: is it"),
    ("unigram-cost", 0.5 * math.log(26), "does it cost nothing"),
    ("unigram-cost", 0.5 * math.log(2) + 0.5 * math.log(26), "all 27 sum to"),
    ("unigram-cost", -math.log(0.5 * 0.5 + 0.5 / 52), "logarithm or the mean"),
    ("next-token", lambda u, x: -next_token(u, x), "the sign"),
    ("next-token", lambda u, x: F.cross_entropy(u.mT, x), "what has u[:, t] seen"),
    (
        "next-token",
        lambda u, x: F.cross_entropy(u[:, 1:].mT, x[:, :-1]),
        "which token is never predicted",
    ),
    (
        "next-token",
        lambda u, x: F.cross_entropy(u.mT, torch.roll(x, -1, dims=1)),
        "go on from its beginning",
    ),
    (
        "next-token",
        lambda u, x: F.cross_entropy(u[:, :-1].mT, x[:, 1:], reduction="sum"),
        "before the sum in (14.8)",
    ),
    (
        "next-token",
        lambda u, x: (
            F.cross_entropy(u[:, :-1].mT, x[:, 1:], reduction="none").sum(1).mean()
        ),
        "the rows of the batch",
    ),
    (
        "next-token",
        lambda u, x: -u.log_softmax(1)[:, :-1].gather(2, x[:, 1:, None]).mean(),
        "over which axis",
    ),
    (
        "next-token",
        lambda u, x: -u.softmax(2)[:, :-1].gather(2, x[:, 1:, None]).mean().log(),
        "logarithm or the mean",
    ),
    ("bits-per-byte", lambda n, t, s: n * t / len(s) / math.log(2), "its characters"),
    ("bits-per-byte", lambda n, t, s: n * t / len(s.encode()), "nats or bits"),
    (
        "bits-per-byte",
        lambda n, t, s: n * t / len(s.encode()) * math.log(2),
        "more than a nat",
    ),
    ("bits-per-byte", lambda n, t, s: n / math.log(2), "of a token, or of a byte"),
    (
        "bits-per-byte",
        lambda n, t, s: n / len(s.encode()) / math.log(2),
        "how much of the text",
    ),
    (
        "bits-per-byte",
        lambda n, t, s: n * len(s.encode()) / t / math.log(2),
        "whose tokens have many bytes",
    ),
    ("lora-merge", lambda W, A, B, a: a / len(A) * B @ A, "what is left of it"),
    ("lora-merge", lambda W, A, B, a: W + B @ A, "where is alpha"),
    ("lora-merge", lambda W, A, B, a: W + a * B @ A, "at another rank"),
    ("lora-merge", lambda W, A, B, a: W + a / A.shape[1] * B @ A, "which side of A"),
    ("lora-merge", lambda W, A, B, a: W + a / len(A) * (B @ A).T, "which row of B"),
    ("lora-merge", lambda W, A, B, a: W + A @ B, "RuntimeError"),
    ("lora-count", lambda s, r: sum(r * e * d for e, d in s), "does either have"),
    ("lora-count", lambda s, r: sum(r * d for e, d in s), "is A the"),
    ("lora-count", lambda s, r: sum(r * e for e, d in s), "is B the"),
    ("lora-count", lambda s, r: sum(e + d for e, d in s), "the rank"),
    ("lora-count", lambda s, r: sum(e * d + r * (e + d) for e, d in s), "frozen"),
    ("lora-count", lambda s, r: sum(2 * r * d for e, d in s), "not square"),
    ("last-token", lambda c, real: c[:, -1], "in its last column"),
    (
        "last-token",
        lambda c, real: c[range(4), real.sum(1).clamp(max=c.shape[1] - 1)],
        "in which column",
    ),
    ("last-token", lambda c, real: c[range(4), real.sum(1) - 2], "has seen both"),
    ("last-token", lambda c, real: c[:, 0], "which one has seen all"),
    (
        "last-token",
        lambda c, real: (c * real[..., None]).sum(1) / real.sum(1)[:, None],
        "or a mixture",
    ),
    ("last-token", lambda c, real: c.mean(dim=1), "padding: do they"),
    ("last-token", lambda c, real: c[:, -1:], r"shape is (4, 1, 3)"),
    (
        "answer-log-p",
        lambda u, x, T: u.log_softmax(1)[range(T, len(x)), x[T:]].sum(),
        "made before it",
    ),
    (
        "answer-log-p",
        lambda u, x, T: answer_log_p(u, x, T) / (len(x) - T),
        "a product of p",
    ),
    ("answer-log-p", lambda u, x, T: answer_log_p(u, x, T + 1), "the first token"),
    (
        "answer-log-p",
        lambda u, x, T: answer_log_p(u[:-1], x[:-1], T),
        "the last token of the answer",
    ),
    ("answer-log-p", lambda u, x, T: answer_log_p(u, x, 1), "the prompt"),
    (
        "answer-log-p",
        lambda u, x, T: u[range(T - 1, len(x) - 1), x[T:]].sum(),
        "logarithms of probabilities",
    ),
    (
        "answer-log-p",
        lambda u, x, T: u.log_softmax(0)[range(T - 1, len(x) - 1), x[T:]].sum(),
        "over which axis",
    ),
    ("answer-log-p", lambda u, x, T: answer_log_p(u, x, T).exp(), "p, or its log"),
    ("answer-log-p", lambda u, x, T: -answer_log_p(u, x, T), "the sign"),
    ("ties", lambda s: (s.argmax(1) == 0).double().mean(), "gain by the place"),
    (
        "ties",
        lambda s: (s[:, :1] > s[:, 1:]).all(1).double().mean(),
        "is it never correct",
    ),
    (
        "ties",
        lambda s: torch.where(
            (s == s.amax(1, keepdim=True)).sum(1) > 1,
            (s[:, 0] == s.amax(1)) / 4,
            (s.argmax(1) == 0).double(),
        ).mean(),
        "share the lead",
    ),
    ("ties", lambda s: (1 / (s == s[:, :1]).sum(1)).mean(), "is behind"),
    ("ties", lambda s: ties(s) * len(s), "a share of the items"),
    ("first-guess", 1 / KNOWN, "no two of them"),
    (
        "first-guess",
        sum(
            1 / len({int(y) for y in ANSWERS[:KNOWN, a, b]})
            for a in range(20)
            for b in range(20)
        )
        / 400,
        "the operators?",
    ),
    (
        "first-guess",
        sum(
            sum((values == y).sum().item() / KNOWN for y in values) / KNOWN
            for a in range(20)
            for b in range(20)
            for values in [ANSWERS[:KNOWN, a, b]]
        )
        / 400,
        "take the likeliest",
    ),
    ("first-guess", _first_guess(KNOWN + 1), "training never had"),
    ("first-guess", 1 / 40, "all numbers equally"),
    ("first-guess", 8 * _first_guess(), "a share, or a count"),
    (
        "doubting",
        lambda agrees, e: torch.where(agrees, 1 - e, e / 39).prod(1),
        "is it 1",
    ),
    (
        "doubting",
        lambda agrees, e: _normalized(torch.where(agrees, 1 - e, e).prod(1)),
        "how many numbers",
    ),
    (
        "doubting",
        lambda agrees, e: _normalized(torch.where(agrees, 1 - e, e / 40).prod(1)),
        "is the correct one among",
    ),
    ("doubting", lambda agrees, e: _normalized(agrees.sum(1).double()), "independent"),
    (
        "doubting",
        lambda agrees, e: _normalized(torch.where(agrees, 1 - e, e / 39)[:, -1]),
        "earlier examples",
    ),
    ("doubting", lambda agrees, e: doubting(agrees, e).log(), "its logarithm"),
    (
        "doubting",
        lambda agrees, e: _normalized(agrees.all(1).double()),
        "not a finite number",
    ),
    ("ridge", _ridge(lambda sigma, k: 1.0), "with little noise"),
    ("ridge", _ridge(lambda sigma, k: 0.0), "is there one"),
    ("ridge", _ridge(lambda sigma, k: sigma), "or their roots"),
    ("ridge", _ridge(lambda sigma, k: k * sigma**2), "average them"),
    ("ridge", _ridge(lambda sigma, k: sigma**-2), "more trust"),
    (
        "ridge",
        lambda x, y, query, sigma: torch.linalg.solve(
            x.T @ x + sigma**2 * torch.eye(3), x.T @ y
        ),
        "must be ()",
    ),
]
