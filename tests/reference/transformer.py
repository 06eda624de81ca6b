"""The Transformer of 14.3 as loops over Python floats: slow, and easy to check.

`weights` maps the names of fmkit's parameters to nested lists of floats, `config` is
that of the model; hidden states are lists of rows, one for each token.
"""

import math
import struct

from reference.notes import dot


def product(matrix, x, bias=None):
    bias = bias or [0.0] * len(matrix)
    return [dot(row, x) + b for row, b in zip(matrix, bias, strict=True)]


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


def rotated(x, t, base, divisors):
    """Equation 13 of Su et al. 2021 for one head, but pairing i with i + w/2.

    Divisors slow the rotations, each its own: equation 4 of Chen et al. 2023.
    """
    w, y = len(x), [*x]
    for i in range(w // 2):
        angle = t * base ** (-2 * i / w) / (divisors[i] if divisors else 1)
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


def attention(rows, weights, config, layer):
    """Of every token over those it may see: query head j has key head j // (h / k)."""
    h, k = config.heads, config.kv_heads
    w = config.own_head_width or config.width // config.heads
    bias = weights.get("qkv.bias")
    qkv = [product(weights["qkv.weight"], row, bias) for row in rows]
    mixed = [[] for _ in rows]

    def placed(t, head, norm):
        """A query or key of token t, normalized and rotated where the model does so."""
        x = of_head(qkv[t], head, w)
        if norm in weights:
            x = rms_norm(x, weights[norm], config.norm_epsilon)
        if layer in config.unrotated:
            return x
        return rotated(x, t, config.rope_base, config.rope_divisors)

    for j in range(h):
        group = j // (h // k)
        queries = [placed(t, j, "norm_q.weight") for t in range(len(rows))]
        keys = [placed(t, h + group, "norm_k.weight") for t in range(len(rows))]
        values = [of_head(row, h + k + group, w) for row in qkv]
        for t in range(len(rows)):
            seen = range(t + 1) if config.causal else range(len(rows))
            p = softmax([dot(queries[t], keys[s]) / math.sqrt(w) for s in seen])
            mixed[t] += [sum(p[s] * values[s][i] for s in seen) for i in range(w)]
    bias = weights.get("out.bias")
    return [product(weights["out.weight"], row, bias) for row in mixed]


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


def block(rows, weights, config, layer):
    def norm(x, which):
        return rms_norm(x, weights[f"norm_{which}.weight"], config.norm_epsilon)

    normal = [norm(x, 1) for x in rows]
    after = attention(normal, inside(weights, "attention."), config, layer)
    rows = [plus(x, y) for x, y in zip(rows, after, strict=True)]
    of_mlp = inside(weights, "mlp.")
    return [plus(x, mlp(norm(x, 2), of_mlp, config.hidden)) for x in rows]


def transformer(tokens, weights, config):
    """u of every token of one sequence."""
    rows = [weights["embedding.weight"][token] for token in tokens]
    for layer in range(config.layers):
        rows = block(rows, inside(weights, f"blocks.{layer}."), config, layer)
    last = "embedding.weight" if config.tied else "unembedding.weight"
    return [
        product(weights[last], rms_norm(x, weights["norm.weight"], config.norm_epsilon))
        for x in rows
    ]
