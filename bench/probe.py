"""The whole regularization path of a linear probe against scikit-learn's, on the CPU.

45 values of lambda from 1e-6 to 1e2 times the mean squared feature; 8,000 examples of
512 features in 10 classes. scikit-learn solves each from zero (cold) or from the last
solution (warm).
"""

import warnings
from functools import partial

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from bench import compared, report, timed
from fmkit.probe import logistic_objective, logistic_path

N, M, CLASSES, LAMBDAS = 8_000, 512, 10, 45
WORSE = 1e-6  # how much higher, relatively, an objective of ours may be


def task() -> tuple[torch.Tensor, torch.Tensor]:
    """Independent features of one size, and labels drawn from a linear model."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(N, M, generator=rng)
    u = x @ torch.randn(M, CLASSES, generator=rng) * 2 / M**0.5
    gumbel = -torch.rand(N, CLASSES, generator=rng).log().neg().log()
    return x, (u + gumbel).argmax(dim=1)


def peer_path(
    x: np.ndarray, labels: np.ndarray, lambdas: list[float], *, warm: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    """scikit-learn's weights and biases, from the largest lambda to the smallest."""
    model = LogisticRegression(tol=1e-8, max_iter=10_000, warm_start=warm)
    solutions = []
    for lambda_ in lambdas:
        model.set_params(C=1 / (len(x) * lambda_)).fit(x, labels)
        solutions.append((model.coef_.copy(), model.intercept_.copy()))
    return solutions


def main() -> None:
    x, labels = task()
    size = (x - x.mean(dim=0)).square().mean().item()
    lambdas = (np.logspace(2, -6, LAMBDAS) * size).tolist()
    arrays = x.numpy().astype(np.float64), labels.numpy()

    def ours():
        return logistic_path(
            x, labels, classes=CLASSES, lambdas=lambdas, tolerance=1e-6
        )

    def objective(weight, bias, lambda_):
        weight, bias = torch.as_tensor(weight), torch.as_tensor(bias)
        value = logistic_objective(x.double(), labels, weight, bias, lambda_=lambda_)
        return value.item()

    def objectives(weights, biases):
        solutions = zip(weights, biases, lambdas, strict=True)
        return np.array([objective(*solution) for solution in solutions])

    path = ours()
    own, cases, worst = objectives(path.weight, path.bias), [], -np.inf
    for warm in (False, True):
        # A peer's path takes minutes: it runs once, between two of ours
        before, _ = timed(ours)
        theirs, peers = timed(partial(peer_path, *arrays, lambdas, warm=warm))
        after, _ = timed(ours)
        value = objectives(*zip(*peers, strict=True))
        worst = max(worst, ((own - value) / value).max())
        label = f"{LAMBDAS} lambdas, peer {'warm' if warm else 'cold'}"
        cases.append(compared([(before, theirs), (after, theirs)], label=label))
    print(f"objective at most {worst:.1e} above scikit-learn's, relatively")
    smallest = min(cases, key=lambda case: case["ratio"])
    cpu = torch.device("cpu")
    report("probe", smallest, equal=bool(worst <= WORSE), device=cpu)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        main()
