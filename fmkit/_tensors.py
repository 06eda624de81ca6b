"""Refuse tensors of the wrong shape, type or values, before they broadcast."""

import torch
from torch import Tensor

from fmkit._check import require


def require_shape(name: str, x: object, *shape: int | str) -> None:
    """Raise ``Refused`` unless `x` is a tensor of `shape`, where a letter is any size.

    Like all functions here that say nothing else, it never waits for a device.
    """
    require(isinstance(x, Tensor), name, "be a torch.Tensor", type(x).__name__)
    found = tuple(x.shape)
    same = len(found) == len(shape)
    for size, wanted in zip(found, shape, strict=False):
        same = same and (isinstance(wanted, str) or size == wanted)
    if not same:
        sizes = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        require(False, name, f"have the shape ({sizes})", found)


def require_integers(name: str, x: Tensor) -> None:
    """Raise ``Refused`` unless `x` holds integers of any type, or bools."""
    integral = not (x.is_floating_point() or x.is_complex())
    require(integral, name, "hold integers", x.dtype)


def require_bools(name: str, x: object, *shape: int | str) -> None:
    """Raise ``Refused`` unless `x` has the shape and holds bools.

    As an index other integers would select rows by number, and ``~`` gives -2 of 1.
    """
    require_shape(name, x, *shape)
    require(x.dtype == torch.bool, name, "hold bools", x.dtype)


def as_int64(name: str, x: object, *shape: int | str) -> Tensor:
    """Return labels or ids of any integer type as int64, if they have the shape.

    As an index torch takes uint8 for a mask, and losses refuse int32. Raises
    ``Refused`` for another shape and for floating point.
    """
    require_shape(name, x, *shape)
    require_integers(name, x)
    return x.long()


def require_below(name: str, x: Tensor, end: int) -> None:
    """Raise ``Refused`` unless all are from 0 to `end` - 1; it waits for a device."""
    for wrong in x[(x < 0) | (x >= end)][:1].tolist():
        require(False, name, f"be from 0 to {end - 1}", wrong)


def require_finite(name: str, x: Tensor) -> None:
    """Raise ``Refused`` with the number of values that are not finite; it waits."""
    wrong = int((~x.isfinite()).sum())
    require(wrong == 0, name, "hold neither NaN nor infinite values", wrong)
