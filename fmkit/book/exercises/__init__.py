"""Answers to the book's exercises, checked: what is right, and what to look at.

A check compares an answer with what fmkit gives and with what common mistakes give, and
says where to look. It never says what to write.
"""

from collections.abc import Callable

from fmkit._check import require
from fmkit.book.exercises._compare import Look
from fmkit.book.exercises.language import LANGUAGE
from fmkit.book.exercises.vision import VISION

CHECKS: dict[str, Callable[[object], None]] = VISION | LANGUAGE


def check(exercise: str, answer: object) -> None:
    """Print whether `answer`, a function or a number, solves `exercise`.

    What the answer itself raises is reported too, so that a notebook runs on. Raises
    ``ValueError`` for an exercise that does not exist.
    """
    known = ", ".join(CHECKS)
    require(exercise in CHECKS, "exercise", f"be one of {known}", exercise)
    try:
        CHECKS[exercise](answer)
    except Look as look:
        print(f"Not yet. {look}")
    except Exception as error:
        said = " ".join(str(error).split())
        print(f"Not yet. It stops with {type(error).__name__}: {said}")
    else:
        print("Right.")
