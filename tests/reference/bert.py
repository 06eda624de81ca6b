"""BERT as loops over Python floats: slow, and easy to check.

Devlin et al. 2019 with the layers of Vaswani et al. 2017. `weights` maps the names of
fmkit's parameters to nested lists of floats; hidden states are lists of rows.
"""

import math

from reference.notes import dot


def linear(x, weight, bias):
    return [dot(weight[j], x) + bias[j] for j in range(len(weight))]


def layer_norm(x, weight, bias, epsilon):
    mean = sum(x) / len(x)
    variance = sum((x_j - mean) ** 2 for x_j in x) / len(x)
    scale = 1 / math.sqrt(variance + epsilon)
    return [(x[j] - mean) * scale * weight[j] + bias[j] for j in range(len(x))]


def gelu(x):
    """x times the probability that a standard normal number is below it."""
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def plus(a, b):
    return [a_j + b_j for a_j, b_j in zip(a, b, strict=True)]


def part(weights, name):
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def attention(x, mask, weights, heads):
    """Of every token over the real ones, `heads` times on a slice of the vectors."""
    queries, keys, values = (
        [linear(row, *part(weights, name)) for row in x]
        for name in ("query", "key", "value")
    )
    width, mixed = len(x[0]) // heads, [[] for _ in x]
    for head in range(heads):
        of_head = slice(head * width, (head + 1) * width)
        for t in range(len(x)):
            scores = [
                math.exp(dot(queries[t][of_head], keys[s][of_head]) / math.sqrt(width))
                if mask[s]
                else 0.0
                for s in range(len(x))
            ]
            for j in range(width):
                value = sum(
                    scores[s] * values[s][head * width + j] for s in range(len(x))
                )
                mixed[t].append(value / sum(scores))
    return [linear(row, *part(weights, "out")) for row in mixed]


def layer(x, mask, weights, heads, epsilon):
    inner = {
        name.removeprefix("attention."): value
        for name, value in weights.items()
        if name.startswith("attention.")
    }
    out = []
    for row, looked in zip(x, attention(x, mask, inner, heads), strict=True):
        row = layer_norm(plus(row, looked), *part(weights, "norm_1"), epsilon)
        thought = [gelu(u) for u in linear(row, *part(weights, "up"))]
        thought = linear(thought, *part(weights, "down"))
        out.append(layer_norm(plus(row, thought), *part(weights, "norm_2"), epsilon))
    return out


def bert(tokens, mask, weights, layers, heads, epsilon):
    """Hidden states of one text: `tokens` and `mask` are lists of equal length."""
    x = []
    for position, token in enumerate(tokens):
        row = plus(
            plus(weights["words.weight"][token], weights["positions.weight"][position]),
            weights["types.weight"][0],
        )
        x.append(layer_norm(row, *part(weights, "norm"), epsilon))
    for i in range(layers):
        prefix = f"layers.{i}."
        own = {
            name.removeprefix(prefix): value
            for name, value in weights.items()
            if name.startswith(prefix)
        }
        x = layer(x, mask, own, heads, epsilon)
    return x


def sentence_embedding(hidden, mask):
    """The mean over the real tokens, of length 1."""
    real = [row for row, is_real in zip(hidden, mask, strict=True) if is_real]
    mean = [sum(row[j] for row in real) / len(real) for j in range(len(real[0]))]
    length = math.sqrt(dot(mean, mean))
    return [x / length for x in mean]
