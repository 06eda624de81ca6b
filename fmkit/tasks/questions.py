"""Question-and-answer tasks: pairs (x, y), from a file of this book or your own.

Each file of ``TASKS`` was written for this book: no item is copied from a benchmark.
"""

import os
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from tokenizers import Tokenizer

from fmkit._check import Refused, one_line, require
from fmkit._reading import read_text
from fmkit.tasks._pairs import SUFFIXES, read_pairs

FOLDER = Path(__file__).parent
TASKS = tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


class TaskError(Refused):
    """A task cannot be used: one sentence that says why."""


@dataclass(frozen=True)
class Task:
    """Pairs (x, y), and the words in which a model can be asked for y.

    Only the pairs are needed: ``Task([("one", "1"), ("two", "2")])``. Raises
    ``TaskError`` if there are fewer than 2 items, if an item is not two texts, if an x
    or y is empty or begins or ends with white space, if an x occurs twice, if a y is
    not one of `answers`, if the cloze does not have one {x} and then one {y}, and if
    the distractors of an x are not different wrong answers, equally many for each x.
    """

    items: Sequence  # pairs (x, y) of texts
    answers: Sequence[str] = ()  # all possible answers; empty if each item has its own
    name: str = "own"
    title: str = ""  # the name, if it is empty
    origin: str = "origin not stated"
    licence: str = "licence not stated"
    instruction: str = ""  # one sentence: what to do with x
    cloze: str = "{x} {y}"  # or "The capital of {x} is {y}."
    # Wrong answers that are hard to exclude, of some of the x; the same number of each
    distractors: Mapping[str, Sequence[str]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.title:
            object.__setattr__(self, "title", self.name)
        object.__setattr__(self, "items", tuple(map(_pair, self.items)))
        object.__setattr__(self, "answers", tuple(self.answers))
        _check_items(self)


def load_task(task: str | Path) -> Task:
    """Load one of ``TASKS`` by its name, or the task in the file at a path.

    A CSV or JSONL file has nothing but pairs: two columns, or two texts a line, which
    may be named x and y, question and answer, or the like. Any other file is TOML: its
    fields are those of :class:`Task`, and `items` alone must be there. The task's name
    is that of the file if it gives no other. Raises ``TaskError`` if `task` is neither
    a name nor a file, if the file cannot be read or has an unknown field, and if
    :class:`Task` refuses what it holds.
    """
    path = FOLDER / f"{task}.toml" if task in TASKS else Path(os.path.expanduser(task))
    if not os.path.isfile(path):
        known = ", ".join(TASKS)
        raise TaskError(f"task must be one of {known}, or a file, got {str(task)!r}.")
    try:
        pairs = path.suffix.lower() in SUFFIXES
        content = {"items": read_pairs(path)} if pairs else _of_toml(path)
    except Refused as error:
        raise TaskError(str(error)) from error
    names = [field.name for field in fields(Task)]
    for name in content:
        if name not in names:
            rule = f"have no field except {', '.join(names)}"
            raise TaskError(f"{path} must {rule}, got {name}.")
    try:
        _check_types(content)
        return Task(**{"items": (), "name": path.stem} | content)
    except TaskError as error:
        raise TaskError(f"{path}: {error}") from error


def _of_toml(path: Path) -> dict[str, object]:
    """Read a TOML file, with or without a byte order mark."""
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        pairs = f"the name of a file of pairs ends in {', '.join(SUFFIXES)}"
        reason = f"{one_line(error)}; {pairs}"
        raise Refused(f"{path} cannot be read as TOML ({reason}).") from error


def candidates(
    task: Task, i: int, *, count: int, generator: torch.Generator
) -> list[str]:
    """Return `count` different answers to item `i`: the correct one, then random ones.

    The others are answers of the task. Because the correct answer is first, a choice
    that takes the first of equal scores would be correct too often. Raises ValueError
    if there is no item `i`, and if `count` is less than 2 or more than there are
    answers.
    """
    n = len(task.items)
    require(0 <= i < n, "i", f"be from 0 to {n - 1}, an item of {task.name}", i)
    correct = task.items[i][1]
    pool = task.answers or dict.fromkeys(y for _, y in task.items)
    others = [y for y in pool if y != correct]
    rule = f"be from 2 to the answers of {task.name} ({len(others) + 1})"
    require(2 <= count <= len(others) + 1, "count", rule, count)
    drawn = torch.randperm(len(others), generator=generator)[: count - 1]
    return [correct, *(others[j] for j in drawn.tolist())]


def require_tokens(task: Task, tokenizer: Tokenizer) -> None:
    """Raise ``TaskError`` if `tokenizer` encodes an answer of `task` as no token.

    The probability of no tokens is 1, so such an answer would always win.
    """
    for y in dict.fromkeys((*task.answers, *(y for _, y in task.items))):
        if not tokenizer.encode(f" {y}", add_special_tokens=False).ids:
            raise TaskError(f"{task.name}: the answer {y!r} must have a token, got 0.")


def _check_types(content: dict) -> None:
    """Raise ``TaskError`` if a field of a file has the wrong type or is blank."""
    for name, value in content.items():
        if name in ("items", "answers"):
            what = {"items": "pairs", "answers": "texts"}[name]
            texts = isinstance(value, list) and all(isinstance(y, str) for y in value)
            if not (texts or (name == "items" and isinstance(value, list))):
                raise TaskError(f"{name} must be {what}, got {value!r}.")
        elif name == "distractors":
            several = isinstance(value, dict) and all(
                isinstance(wrong, list) and all(isinstance(y, str) for y in wrong)
                for wrong in value.values()
            )
            if not several:
                raise TaskError(f"distractors must be lists of texts, got {value!r}.")
        elif not isinstance(value, str) or not value.strip():
            raise TaskError(f"{name} must be text that is not empty, got {value!r}.")


def _pair(item: object) -> tuple[str, str]:
    """Return an item as a tuple. Raises ``TaskError`` if it is not two texts."""
    several = isinstance(item, Sequence) and not isinstance(item, str)  # no table
    if not several or len(item) != 2 or not all(isinstance(y, str) for y in item):
        raise TaskError(f"an item must be two texts, got {item!r}.")
    return tuple(item)


def _check_items(task: Task) -> None:
    """Raise ``TaskError`` if the cloze, the items or the answers break a rule."""
    if len(task.items) < 2:
        raise TaskError(f"items must be at least 2 pairs, got {len(task.items)}.")
    cloze = task.cloze
    one_each = cloze.count("{x}") == cloze.count("{y}") == 1
    if not one_each or cloze.index("{x}") > cloze.index("{y}"):
        rule = "cloze must have one {x}, and one {y} after it"
        raise TaskError(f"{rule}, got {cloze!r}.")
    xs = [x for x, _ in task.items]
    for what, texts in {"x": xs, "answer": [y for _, y in task.items]}.items():
        for text in texts:
            if not text or text != text.strip():
                rule = "must be text without white space around it"
                raise TaskError(f"an {what} {rule}, got {text!r}.")
    for what, texts in {"x": xs, "answer of answers": task.answers}.items():
        for text, times in Counter(texts).items():
            if times > 1:
                rule = f"an {what} must occur once"
                raise TaskError(f"{rule}, got {text!r} {times} times.")
    _check_distractors(task, dict(task.items))
    if task.answers:
        for x, y in task.items:
            if y not in task.answers:
                rule = f"the answer of {x!r} must be one of answers"
                raise TaskError(f"{rule}, got {y!r}.")


def _check_distractors(task: Task, correct: Mapping[str, str]) -> None:
    """Raise ``TaskError`` if distractors are not equally many wrong answers."""
    sizes = {len(wrong) for wrong in task.distractors.values()}
    if len(sizes) > 1 or 0 in sizes:
        rule = "distractors must be equally many for each x, at least one"
        raise TaskError(f"{rule}, got {sorted(sizes)}.")
    for x, wrong in task.distractors.items():
        if x not in correct:
            raise TaskError(f"distractors must belong to an x, got {x!r}.")
        bad = len({*wrong}) < len(wrong) or correct[x] in wrong
        if bad or any(not y or y != y.strip() for y in wrong):
            rule = f"the distractors of {x!r} must be different wrong answers"
            raise TaskError(f"{rule}, got {[*wrong]}.")
