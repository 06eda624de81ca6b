"""The Transformer of 14.3 as loops over Python floats: slow, and easy to check.

`weights` maps the names of fmkit's parameters to nested lists of floats, `config` is
that of the model; hidden states are lists of rows, one for each token.
"""

import math
import struct

from reference.notes import dot


def product(matrix, x):
    return [dot(row, x) for row in matrix]


def plus(a, b):
    return [a_j + b_j for a_j, b_j in zip(a, b, strict=True)]


def rms_norm(x, weight, epsilon):
    """Equation 4 of Zhang and Sennrich 2019, with an epsilon under the root."""
    scale = 1 / math.sqrt(dot(x, x) / len(x) + epsilon)
    return [x[j] * scale * weight[j] for j in range(len(x))]


def in_float32(number):
    """The nearest number in 32 bits: fmkit keeps its cosines so."""
    [rounded] = struct.unpack("f", struct.pack("f", number))
    return rounded


def rotated(x, t, base):
    """Equation 13 of Su et al. 2021 for one head, but pairing i with i + w/2."""
    w, y = len(x), [*x]
    for i in range(w // 2):
        angle = t * base ** (-2 * i / w)
        cos, sin = in_float32(math.cos(angle)), in_float32(math.sin(angle))
        a, b = x[i], x[i + w // 2]
        y[i], y[i + w // 2] = a * cos - b * sin, a * sin + b * cos
    return y


def softmax(scores):
    largest = max(scores)
    powers = [math.exp(score - largest) for score in scores]
    return [power / sum(powers) for power in powers]


def of_head(x, head, w):
    return x[head * w : (head + 1) * w]


def attention(rows, weights, config):
    """Of every token over those it may see: query head j has key head j // (h / k)."""
    h, k, w = config.heads, config.kv_heads, config.width // config.heads
    qkv = [product(weights["qkv.weight"], row) for row in rows]
    mixed = [[] for _ in rows]
    for j in range(h):
        group = j // (h // k)
        queries = [
            rotated(of_head(qkv[t], j, w), t, config.rope_base)
            for t in range(len(rows))
        ]
        keys = [
            rotated(of_head(qkv[t], h + group, w), t, config.rope_base)
            for t in range(len(rows))
        ]
        values = [of_head(row, h + k + group, w) for row in qkv]
        for t in range(len(rows)):
            seen = range(t + 1) if config.causal else range(len(rows))
            p = softmax([dot(queries[t], keys[s]) / math.sqrt(w) for s in seen])
            mixed[t] += [sum(p[s] * values[s][i] for s in seen) for i in range(w)]
    return [product(weights["out.weight"], row) for row in mixed]


def mlp(x, weights, hidden):
    """Shazeer 2020, SwiGLU: the rows of the gate come before those of `up`."""
    both = product(weights["gate_up.weight"], x)
    inner = [
        both[j] / (1 + math.exp(-both[j])) * both[hidden + j] for j in range(hidden)
    ]
    return product(weights["down.weight"], inner)


def inside(weights, prefix):
    return {
        name.removeprefix(prefix): weight
        for name, weight in weights.items()
        if name.startswith(prefix)
    }


def block(rows, weights, config):
    def norm(x, which):
        return rms_norm(x, weights[f"norm_{which}.weight"], config.norm_epsilon)

    normal = [norm(x, 1) for x in rows]
    after = attention(normal, inside(weights, "attention."), config)
    rows = [plus(x, y) for x, y in zip(rows, after, strict=True)]
    of_mlp = inside(weights, "mlp.")
    return [plus(x, mlp(norm(x, 2), of_mlp, config.hidden)) for x in rows]


def transformer(tokens, weights, config):
    """u of every token of one sequence."""
    rows = [weights["embedding.weight"][token] for token in tokens]
    for layer in range(config.layers):
        rows = block(rows, inside(weights, f"blocks.{layer}."), config)
    last = "embedding.weight" if config.tied else "unembedding.weight"
    return [
        product(weights[last], rms_norm(x, weights["norm.weight"], config.norm_epsilon))
        for x in rows
    ]
