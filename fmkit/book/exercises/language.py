"""Check the exercises on 14.3.

Axes: B batch, T tokens, V vocabulary, d width, k examples, o operators, n items, a
answers to each; e and r as in :mod:`fmkit.lora`.
"""

from math import exp, log

import torch

from fmkit.book.exercises._compare import compare
from fmkit.evaluate import bits_per_byte
from fmkit.losses import next_token_loss
from fmkit.models.pooling import first_token, last_token, mean_of_tokens
from fmkit.tasks.operators import ANSWERS, KNOWN, NUMBERS
from fmkit.tasks.regression import ridge_predictions


def _unigram_cost(answer):
    """Check nats a token of the best unigram: half spaces, half random letters."""
    correct = log(2) + log(26) / 2
    compare(
        answer,
        correct,
        {
            "Look at the unit: to which logarithm does a nat belong?": correct / log(2),
            "Look at the unit: nats, or the number of equally likely words?": (
                exp(correct)
            ),
            "Look at the space: is it as likely as any other token?": log(27),
            "Look at a space: does it cost nothing, as if it were certain?": (
                log(26) / 2
            ),
            "Look at a letter: what do the probabilities of all 27 sum to?": (
                log(2) / 2 + log(26) / 2
            ),
            "Look at the order: which comes first, the logarithm or the mean?": (
                -log(1 / 4 + 1 / 104)
            ),
        },
    )


def _next_token(answer):
    """Check (14.8): ``answer(u, x)``, u B T V made from x B T, which begins x_0."""
    rng = torch.Generator().manual_seed(0)
    u = torch.randn(2, 5, 7, generator=rng)
    x = torch.randint(7, (2, 5), generator=rng)
    correct = next_token_loss(u[:, :-1], x[:, 1:])
    p = u.softmax(dim=2)[:, :-1].gather(2, x[:, 1:, None])
    over_places = u.log_softmax(dim=1)[:, :-1].gather(2, x[:, 1:, None])
    compare(
        answer(u, x),
        correct,
        {
            "Look at the sign: a loss of -log p is never negative.": -correct,
            "Look at one place t: what has u[:, t] seen, and what does it predict?": (
                next_token_loss(u, x)
            ),
            "Look at the two ends: which token is never predicted, and which logits "
            "predict a token that does not exist?": (
                next_token_loss(u[:, 1:], x[:, :-1])
            ),
            "Look at the last place: does a row end, or go on from its beginning?": (
                next_token_loss(u, x.roll(-1, dims=1))
            ),
            "Look at what stands before the sum in (14.8).": correct * 8,
            "Look at the divisor: the rows of the batch, or the terms of the sum?": (
                correct * 4
            ),
            "Look at the softmax: over which axis does it sum to 1?": (
                -over_places.mean()
            ),
            "Look at the order: which comes first, the logarithm or the mean?": (
                -p.mean().log()
            ),
        },
    )


def _bits_per_byte(answer):
    """Check ``answer(nats, tokens, text)``: mean nats and number of the tokens."""
    text = "Über 3 Größen ≤ π"
    nats, tokens, size = 2.5, 9, len(text.encode())
    correct = bits_per_byte(nats, tokens=tokens, text=text)
    compare(
        answer(nats, tokens, text),
        correct,
        {
            "Look at the text: does each of its characters have one byte?": (
                correct * size / len(text)
            ),
            "Look at the unit: nats or bits?": correct * log(2),
            "Look at the unit: is a bit more than a nat, or less?": correct
            * log(2) ** 2,
            "Look at the divisor: is the result that of a token, or of a byte?": (
                nats / log(2)
            ),
            "Look at `nats`: to how much of the text does it belong?": nats
            / log(2)
            / size,
            "Take a text whose tokens have many bytes: should the result be large?": (
                nats * size / tokens / log(2)
            ),
        },
    )


def _lora_count(answer):
    """Count the trained parameters: ``answer(shapes, rank)``, shapes (e, d)."""
    shapes, r = [(12, 5), (5, 7), (30, 6)], 3
    compare(
        answer(shapes, r),
        sum(r * (e + d) for e, d in shapes),
        {
            "Look at the shapes of A and B: does either have e rows and d columns?": (
                sum(r * e * d for e, d in shapes)
            ),
            "Look at the formula: is A the only new matrix?": sum(
                r * d for _, d in shapes
            ),
            "Look at the formula: is B the only new matrix?": sum(
                r * e for e, _ in shapes
            ),
            "Look at the rank: would a higher one train as many?": (
                sum(e + d for e, d in shapes)
            ),
            "Look at the frozen parameters: are they in your number?": (
                sum(e * d + r * (e + d) for e, d in shapes)
            ),
            "Take a matrix that is not square: is each of its sides in the number?": (
                sum(2 * r * d for _, d in shapes)
            ),
        },
    )


def _lora_merge(answer):
    """Check the merged matrix e d: ``answer(W, A, B, alpha)``; A r d, B e r."""
    rng = torch.Generator().manual_seed(0)
    W, A = torch.randn(4, 4, generator=rng), torch.randn(2, 4, generator=rng)
    B, alpha = torch.randn(4, 2, generator=rng), 3.0
    BA = B @ A
    compare(
        answer(W, A, B, alpha),
        W + alpha / 2 * BA,
        {
            "Look at the original matrix: what is left of it?": (alpha / 2 * BA),
            "Look at the scale: where is alpha?": W + BA,
            "Look at the scale: would it stay the same at another rank?": (
                W + alpha * BA
            ),
            "Look at the scale: by which side of A is alpha divided?": (
                W + alpha / 4 * BA
            ),
            "Look at one entry: which row of B and which column of A belong to it?": (
                W + alpha / 2 * BA.T
            ),
        },
    )


def _last_token(answer):
    """Check c_{T+1} of texts: ``answer(c, real)``, B T d and B T, false for padding."""
    rng = torch.Generator().manual_seed(0)
    c = torch.randn(4, 5, 3, generator=rng)
    lengths, rows = torch.tensor([2, 5, 1, 4]), torch.arange(4)
    real = torch.arange(5) < lengths[:, None]
    compare(
        answer(c, real),
        last_token(c, real),
        {
            "Look at the shortest text: what is in its last column?": c[:, -1],
            "Look at a text of one token: in which column is it?": (
                c[rows, lengths.clamp(max=4)]
            ),
            "Look at a text of two tokens: which of them has seen both?": (
                c[rows, lengths - 2]
            ),
            "Look at what a causal vector has seen: which one has seen all tokens?": (
                first_token(c, real)
            ),
            "Look at the question: does it want one vector, or a mixture?": (
                mean_of_tokens(c, real)
            ),
            "Look at the columns that are padding: do they take part?": c.mean(dim=1),
        },
    )


def _answer_log_p(answer):
    """Check log p of x[T:] after x[:T]: ``answer(u, x, T)``, u[t] predicts x[t + 1]."""
    rng = torch.Generator().manual_seed(0)
    u, x = torch.randn(7, 6, generator=rng), torch.randint(6, (7,), generator=rng)
    T, places = 4, torch.arange(6)
    each = u.log_softmax(dim=1)[places, x[1:]]  # of x[1] .. x[6]
    correct = each[T - 1 :].sum()
    compare(
        answer(u, x, T),
        correct,
        {
            "Look at a token of the answer: which row of u was made before it?": (
                u.log_softmax(dim=1)[torch.arange(T, 7), x[T:]].sum()
            ),
            "Look at how the tokens are combined: is it a product of p?": (
                each[T - 1 :].mean()
            ),
            "Look at the first token of the answer: is it counted?": each[T:].sum(),
            "Look at the last token of the answer: is it counted?": (
                each[T - 1 : -1].sum()
            ),
            "Look at the prompt: is it scored too?": each.sum(),
            "Look at u: are these logarithms of probabilities already?": (
                u[places, x[1:]][T - 1 :].sum()
            ),
            "Look at the softmax: over which axis does it sum to 1?": (
                u.log_softmax(dim=0)[places, x[1:]][T - 1 :].sum()
            ),
            "Look at the question: does it want p, or its logarithm?": correct.exp(),
            "Look at the sign: what sign does the logarithm of p have?": -correct,
        },
    )


def _ties(answer):
    """Check accuracy: ``answer(scores)``, n a; the correct one is first, ties count."""
    rng = torch.Generator().manual_seed(1)
    scores = torch.randint(3, (40, 4), generator=rng).double()
    best = scores == scores.amax(dim=1, keepdim=True)
    first, many = best[:, 0].double(), best.sum(dim=1)
    correct = (first / many).mean()
    several = (scores == scores[:, :1]).sum(dim=1)
    compare(
        answer(scores),
        correct,
        {
            "Look at a row whose scores are all equal: what does it gain by the place "
            "of the correct answer?": first.mean(),
            "Look at a row whose scores are all equal: is it never correct?": (
                (first * (many == 1)).mean()
            ),
            "Look at a row in which two of four share the lead: how often is a random "
            "choice among them correct?": torch.where(
                many > 1, first / 4, first
            ).mean(),
            "Look at a row whose correct answer is behind: does a tie help it?": (
                (1 / several.double()).mean()
            ),
            "Look at the result: is it a share of the items?": (first / many).sum(),
        },
    )


def _first_guess(answer):
    """Check the best accuracy at k = 0 of a reader who knows the operators."""
    votes = _votes(KNOWN)  # (o, a, b)
    best = votes.amax(dim=0)
    p = votes / KNOWN
    different = (1 / votes).sum(dim=0)  # answers at a pair of operands
    compare(
        answer,
        (best / KNOWN).mean(),
        {
            "Look at the operators: do no two of them give the same answer?": 1 / KNOWN,
            "Look at what is known: are answers equally likely, or the operators?": (
                (1 / different).mean()
            ),
            "Look at how the reader answers: does it draw, or take the likeliest?": (
                p.mean()
            ),
            "Look at the operators: does the reader know the one that training never "
            "had?": (_votes(KNOWN + 1).amax(dim=0) / (KNOWN + 1)).mean(),
            "Look at the answers: are all numbers equally likely?": 1 / NUMBERS,
            "Look at the question: is the result a share, or a count?": best.mean(),
        },
        rel=1e-3,
    )


def _votes(count):
    """Count for each of the first operators those that answer as it does: o a b."""
    known = ANSWERS[:count]
    return (known[:, None] == known[None]).sum(dim=1).double()


def _doubting(answer):
    """Check p of operators: ``answer(agrees, epsilon)``, o k; examples may be wrong."""
    agrees = torch.tensor(
        [[1, 1, 0, 1], [1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 0]]
    ).bool()
    epsilon, others = 0.3, NUMBERS - 1
    correct, count = agrees.sum(dim=1).double(), agrees.shape[1]

    def likelihood(of_wrong):
        return (1 - epsilon) ** correct * of_wrong ** (count - correct)

    p = likelihood(epsilon / others)
    as_often = likelihood(epsilon)
    last = torch.where(agrees[:, -1], 1 - epsilon, epsilon / others)
    every = likelihood(epsilon / NUMBERS)
    compare(
        answer(agrees, epsilon),
        p / p.sum(),
        {
            "Look at the sum over the operators: is it 1?": p,
            "Look at an example that does not agree: how many numbers can it show?": (
                as_often / as_often.sum()
            ),
            "Look at the numbers that a wrong answer can be: is the correct one among "
            "them?": every / every.sum(),
            "Look at several examples: how does one combine independent ones?": (
                correct / correct.sum()
            ),
            "Look at the earlier examples: do they still count?": last / last.sum(),
            "Look at the question: does it want p, or its logarithm?": (
                p / p.sum()
            ).log(),
        },
    )


def _ridge(answer):
    """Check the best y: ``answer(x, y, query, sigma)``; x k d, y k, query d."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(1, 5, 3, generator=rng), torch.randn(1, 5, generator=rng)
    sigma = 0.7

    def at(lambda_):
        return ridge_predictions(x, y, lambda_=lambda_)[0, -1]

    compare(
        answer(x[0, :-1], y[0, :-1], x[0, -1], sigma),
        at(sigma**2),
        {
            "Look at the penalty: with little noise, should it stay?": at(1.0),
            "Look at the penalty: is there one?": at(0.0),
            "Look at the penalty: variances, or their roots?": at(sigma),
            "Look at the squares: does the formula average them over the pairs?": (
                at(4 * sigma**2)
            ),
            "Look at the noise: does more of it call for more trust in the pairs?": (
                at(sigma**-2)
            ),
        },
    )


LANGUAGE = {
    "unigram-cost": _unigram_cost,
    "next-token": _next_token,
    "bits-per-byte": _bits_per_byte,
    "lora-merge": _lora_merge,
    "lora-count": _lora_count,
    "last-token": _last_token,
    "answer-log-p": _answer_log_p,
    "ties": _ties,
    "first-guess": _first_guess,
    "doubting": _doubting,
    "ridge": _ridge,
}
