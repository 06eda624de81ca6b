"""Compare an answer with the correct result, then with those of common mistakes."""

import torch
from torch import Tensor

Mistakes = dict[str, Tensor | float]  # a hint: the result of the mistake it is for


class Look(Exception):
    """Say in one or two sentences where to look, because an answer is not correct."""


def compare(
    got: object, correct: Tensor | float, mistakes: Mistakes, *, rel: float = 1e-4
) -> None:
    """Raise ``Look`` unless `got` equals `correct` up to the relative error `rel`.

    A missing answer, a wrong type and a wrong shape are reported first. Otherwise the
    hint is that of the first of `mistakes` that `got` equals.
    """
    if got is None or got is ...:
        raise Look("Nothing comes out yet: replace the dots by your answer.")
    wanted = torch.as_tensor(correct, dtype=torch.float64)
    try:
        given = torch.as_tensor(got, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        kind = "a number" if wanted.ndim == 0 else "a tensor"
        raise Look(f"It must be {kind}, and it is {type(got).__name__}.") from None
    if given.shape != wanted.shape:
        raise Look(f"Its shape is {_shape(given)}, and it must be {_shape(wanted)}.")
    if not given.isfinite().all() and wanted.isfinite().all():
        raise Look(
            "Some of it is not a finite number: look for log 0, 0/0 or a large exp."
        )
    if _close(given, wanted, rel):
        return
    for hint, mistake in mistakes.items():
        wrong = torch.as_tensor(mistake, dtype=torch.float64)
        if wrong.shape == given.shape and _close(given, wrong, rel):
            raise Look(hint)
    raise Look(
        "The shape is correct, the values are not. Take the smallest case that you can "
        "work out by hand, and compare."
    )


def _close(a: Tensor, b: Tensor, rel: float) -> bool:
    """Tell whether two tensors are equal up to a relative error."""
    return torch.allclose(a, b, rtol=rel, atol=rel * float(b.abs().max()))


def _shape(value: Tensor) -> str:
    """Format the shape of a tensor: (2, 3)."""
    return str(tuple(value.shape))
