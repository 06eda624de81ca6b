"""Checks of exercises: right answers, usual mistakes, and answers that are none."""

import pytest
import torch
from support import exercises_language as language
from support import exercises_vision as vision

from fmkit.book.exercises import CHECKS, check
from fmkit.book.exercises._compare import Look, compare
from fmkit.losses import simclr_loss

RIGHT = {**vision.RIGHT, **language.RIGHT}
WRONG = [*vision.WRONG, *language.WRONG]


@pytest.mark.parametrize("exercise", CHECKS)
def test_a_right_answer(exercise, capsys):
    check(exercise, RIGHT[exercise])
    assert capsys.readouterr().out == "Right.\n"


@pytest.mark.parametrize(("exercise", "answer", "hint"), WRONG)
def test_a_usual_mistake_is_shown_its_place(exercise, answer, hint, capsys):
    check(exercise, answer)
    message = capsys.readouterr().out
    assert message.startswith("Not yet. ")
    assert hint in message


@pytest.mark.parametrize("exercise", CHECKS)
def test_every_exercise_knows_a_mistake(exercise):
    assert any(exercise == name for name, _, _ in WRONG)


@pytest.mark.parametrize("exercise", CHECKS)
def test_nothing_written_yet(exercise, capsys):
    nothing = (lambda *_, **__: None) if callable(RIGHT[exercise]) else ...
    check(exercise, nothing)
    assert "Nothing comes out yet" in capsys.readouterr().out


def test_an_answer_that_stops(capsys):
    check("simclr", lambda a, b: a @ b)
    assert "It stops with RuntimeError: " in capsys.readouterr().out


def test_an_exercise_that_does_not_exist():
    with pytest.raises(
        ValueError, match=r"exercise must be one of .*simclr.*'simcrl'\.$"
    ):
        check("simcrl", simclr_loss)


@pytest.mark.parametrize(
    ("got", "message"),
    [
        (None, "Nothing comes out yet"),
        (..., "Nothing comes out yet"),
        ("two", "must be a tensor, and it is str"),
        (torch.ones(3), r"shape is \(3,\), and it must be \(2,\)"),
        (torch.tensor([1.0, torch.nan]), "not a finite number"),
        (torch.tensor([2.0, 1.0]), "^Look at the order"),
        (torch.tensor([1.0, 3.0]), "smallest case"),
    ],
)
def test_what_is_said_of_an_answer(got, message):
    correct = torch.tensor([1.0, 2.0])
    with pytest.raises(Look, match=message):
        compare(got, correct, {"Look at the order.": correct.flip(0)})


def test_an_answer_may_be_a_little_off():
    compare(1.00001, 1.0, {})
    with pytest.raises(Look):
        compare(1.001, 1.0, {})
