"""Check answers to the exercises of this book.

A check compares an answer with the correct result and with the results of common
mistakes, and says where to look. It never says what to write.
"""

from collections.abc import Callable

from fmkit._check import require
from fmkit.book.exercises._compare import Look
from fmkit.book.exercises.language import LANGUAGE
from fmkit.book.exercises.vision import VISION

CHECKS: dict[str, Callable[[object], None]] = VISION | LANGUAGE


def check(exercise: str, answer: object) -> None:
    """Print whether `answer`, a function or a number, solves `exercise`.

    An error that the answer raises is printed too, so that the notebook continues.
    Raises ``ValueError`` if there is no such exercise.
    """
    known = ", ".join(CHECKS)
    require(exercise in CHECKS, "exercise", f"be one of {known}", exercise)
    try:
        CHECKS[exercise](answer)
    except Look as look:
        print(f"Not yet. {look}")
    except Exception as error:
        message = " ".join(str(error).split())
        print(f"Not yet. It stops with {type(error).__name__}: {message}")
    else:
        print("Right.")
