"""How an answer is compared: with what is right, then with what is often written."""

import torch
from torch import Tensor

Mistakes = dict[str, Tensor | float]  # what to look at, where the answer is this


class Look(Exception):
    """An answer is not right: what to look at, in one or two sentences."""


def compare(
    got: object, right: Tensor | float, mistakes: Mistakes, *, rel: float = 1e-4
) -> None:
    """Raise ``Look`` unless `got` equals `right` up to the relative error `rel`.

    Nothing, another type and another shape are said first. Then comes the hint of the
    first of `mistakes` that `got` equals.
    """
    if got is None or got is ...:
        raise Look("Nothing comes out yet: write the answer in the place of the dots.")
    wanted = torch.as_tensor(right, dtype=torch.float64)
    try:
        given = torch.as_tensor(got, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        kind = "a number" if wanted.ndim == 0 else "a tensor"
        raise Look(f"It must be {kind}, and it is {type(got).__name__}.") from None
    if given.shape != wanted.shape:
        raise Look(f"Its shape is {_shape(given)}, and it must be {_shape(wanted)}.")
    if not given.isfinite().all() and wanted.isfinite().all():
        raise Look(
            "Some of it is no finite number: look for log 0, 0/0 or a large exp."
        )
    if _alike(given, wanted, rel):
        return
    for hint, mistake in mistakes.items():
        wrong = torch.as_tensor(mistake, dtype=torch.float64)
        if wrong.shape == given.shape and _alike(given, wrong, rel):
            raise Look(hint)
    raise Look(
        "The shape is right and the numbers are not. Take the smallest case that you "
        "can work out by hand, and compare."
    )


def _alike(a: Tensor, b: Tensor, rel: float) -> bool:
    return torch.allclose(a, b, rtol=rel, atol=rel * float(b.abs().max()))


def _shape(value: Tensor) -> str:
    return str(tuple(value.shape))
