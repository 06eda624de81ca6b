"""Decoding as loops: no cache, one prompt at a time, probabilities as Python floats."""

import math

import torch


def greedy(model, prompt, new_tokens):
    """The whole text through the model once more for every token."""
    tokens = [*prompt]
    for _ in range(new_tokens):
        u = model(torch.tensor([tokens]))[0, -1].tolist()
        tokens.append(max(range(len(u)), key=lambda x: u[x]))
    return tokens[len(prompt) :]


def probabilities(u, *, temperature=1.0, top_p=1.0):
    """What a sampler draws from: divided, cut to k, then to the nucleus, normalized."""
    powers = [math.exp(score / temperature) for score in u]
    order = sorted(range(len(u)), key=lambda x: -powers[x])
    total, nucleus, so_far = sum(powers), [], 0.0
    for x in order:
        if so_far >= top_p:
            break
        nucleus.append(x)
        so_far += powers[x] / total
    total = sum(powers[x] for x in nucleus)
    return [powers[x] / total if x in nucleus else 0.0 for x in range(len(u))]
