"""Counting in plain Python: n-grams from their formula, shingles as tuples of words.

Tokens are lists of integers; results are floats.
"""


def runs(tokens, k):
    return [tuple(tokens[i : i + k]) for i in range(len(tokens) - k + 1)]


def counts(tokens, k, order):
    """c of each k-gram: how often, or below the order how many tokens stand before."""
    if k == order:
        found = runs(tokens, k)
        return {run: found.count(run) for run in found}
    before = {run: set() for run in runs(tokens, k)}
    for run in runs(tokens, k + 1):
        before[run[1:]].add(run[0])
    return {run: len(those) for run, those in before.items()}


def discount(c, found):
    """D(c) of Chen and Goodman 1998, each n_j one larger, none below 0.05."""
    if c == 0:
        return 0.0
    n = {j: 1 + sum(1 for other in found.values() if other == j) for j in range(1, 5)}
    j = min(c, 3)
    return max(0.05, j - (j + 1) * n[1] / (n[1] + 2 * n[2]) * n[j + 1] / n[j])


class KneserNey:
    def __init__(self, tokens, V, order):
        self.V, self.order = V, order
        self.c = {k: counts(tokens, k, order) for k in range(1, order + 1)}

    def p(self, w, h):
        """p of token w after the tokens h, of which the last order - 1 count."""
        return self.p_k(min(self.order, len(h) + 1), w, tuple(h))

    def p_k(self, k, w, h):
        if k == 0:
            return 1 / self.V
        near = h[len(h) - (k - 1) :]
        lower = self.p_k(k - 1, w, h)
        after = [self.c[k].get((*near, v), 0) for v in range(self.V)]
        if sum(after) == 0:
            return lower
        taken = [discount(c, self.c[k]) for c in after]
        return (after[w] - taken[w] + sum(taken) * lower) / sum(after)


def shingles(text):
    words = text.split()
    if len(words) < 13:
        return [tuple(words)]
    return [tuple(words[i : i + 13]) for i in range(len(words) - 12)]


def without_near_duplicates(texts):
    """Positions of the texts that are kept."""
    kept, seen = [], set()
    for i in range(len(texts)):
        found = shingles(texts[i])
        if sum(1 for s in found if s in seen) / len(found) <= 0.2:
            seen.update(found)
            kept.append(i)
    return kept


def leakage(train, held_out):
    known = {s for text in train for s in shingles(text)}
    found = [s for text in held_out for s in shingles(text)]
    return sum(1 for s in found if s in known) / len(found)
