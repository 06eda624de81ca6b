"""The equations of the notes as loops over Python floats: slow, and easy to check.

Arguments are nested lists of floats (``tensor.tolist()``); results are floats.
"""

import math


def dot(a, b):
    return sum(a[j] * b[j] for j in range(len(a)))


def mean_cross_entropy(phi, labels, W, b, lambda_):
    """(14.1): l_task is -log p(y | x), a softmax of W phi(x) + b, plus a ridge."""
    total = 0.0
    for i in range(len(phi)):
        u = [dot(W[j], phi[i]) + b[j] for j in range(len(W))]
        total -= math.log(math.exp(u[labels[i]]) / sum(math.exp(u_j) for u_j in u))
    ridge = sum(w**2 for row in W for w in row)
    return total / len(phi) + lambda_ / 2 * ridge


def mean_squared_error(phi, targets, w, b, ridge):
    """(14.1) with (y - w . phi(x) - b)^2 as l_task, plus a ridge."""
    total = 0.0
    for i in range(len(phi)):
        total += (targets[i] - dot(w, phi[i]) - b) ** 2
    return total / len(phi) + ridge * dot(w, w)


def gradient_descent_on_squared_error(phi, targets, *, rate, steps):
    """w of (14.1) with squared loss, from w = 0, without a ridge and without a bias."""
    m = len(phi[0])
    w = [0.0] * m
    for _ in range(steps):
        slope = [0.0] * m
        for i in range(len(phi)):
            error = dot(w, phi[i]) - targets[i]
            for j in range(m):
                slope[j] += 2 * error * phi[i][j] / len(phi)
        w = [w[j] - rate * slope[j] for j in range(m)]
    return w
