"""Tasks of question and answer, as files one can read: what a prompt is made of.

Each file of ``TASKS`` was written for this book: no item is copied from a benchmark.
"""

import tomllib
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from tokenizers import Tokenizer

from fmkit._check import Refused, require

FOLDER = Path(__file__).parent
TASKS = tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


class TaskError(Refused):
    """A file of a task cannot be used: one sentence that says why."""


@dataclass(frozen=True)
class Task:
    """Pairs of (x, y), and the words in which a model can be asked for y."""

    name: str
    title: str
    origin: str
    licence: str
    instruction: str  # one sentence that says what to do with x
    cloze: str  # "The capital of {x} is {y}."
    items: tuple[tuple[str, str], ...]
    answers: tuple[str, ...] = ()  # all there are; () where each item has its own


def load_task(name: str) -> Task:
    """The task called `name`, one of ``TASKS``, or the one in the file at that path.

    Raises ``TaskError`` for what is neither, for a file that cannot be read, lacks a
    field or has an unknown one, for a cloze without {x} and then {y}, for fewer than 2
    items, for an x or y that is empty or begins or ends with white space, for an x that
    comes twice, and for a y that is none of `answers`.
    """
    path = FOLDER / f"{name}.toml" if name in TASKS else Path(name).expanduser()
    if not path.is_file():
        known = ", ".join(TASKS)
        raise TaskError(f"name must be one of {known}, or a file, got {name!r}.")
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskError(f"{path} cannot be read ({error}).") from error
    _check_fields(path, said)
    items = tuple((x, y) for x, y in said.pop("items"))
    answers = tuple(said.pop("answers", ()))
    task = Task(**said, items=items, answers=answers)
    _check_items(path, task)
    return task


def candidates(
    task: Task, i: int, *, count: int, generator: torch.Generator
) -> list[str]:
    """`count` different answers to item `i`: the right one first, others at random.

    The others are answers of the task. As the right one is first, a choice that takes
    the first of equals would be right too often. Raises ``ValueError`` for fewer than 2
    and for more than there are.
    """
    right = task.items[i][1]
    pool = task.answers or dict.fromkeys(y for _, y in task.items)
    others = [y for y in pool if y != right]
    rule = f"be from 2 to the answers of {task.name} ({len(others) + 1})"
    require(2 <= count <= len(others) + 1, "count", rule, count)
    drawn = torch.randperm(len(others), generator=generator)[: count - 1]
    return [right, *(others[j] for j in drawn.tolist())]


def require_tokens(task: Task, tokenizer: Tokenizer) -> None:
    """Raise ``TaskError`` for an answer of which `tokenizer` leaves nothing.

    Its probability would be that of no tokens, which is 1.
    """
    for y in dict.fromkeys((*task.answers, *(y for _, y in task.items))):
        if not tokenizer.encode(f" {y}", add_special_tokens=False).ids:
            raise TaskError(f"{task.name}: the answer {y!r} must have a token, got 0.")


def _check_fields(path: Path, said: dict) -> None:
    names = [field.name for field in fields(Task)]
    for name in said:
        if name not in names:
            known = ", ".join(names)
            raise TaskError(f"{path} must have no field but {known}, got {name}.")
    for name in names:
        value = said.get(name)
        if name in ("items", "answers"):
            continue
        if not isinstance(value, str) or not value.strip():
            rule = f"{path}: {name} must be text that is not empty"
            raise TaskError(f"{rule}, got {value!r}.")
    items, answers = said.get("items"), said.get("answers", [])
    if not isinstance(items, list) or len(items) < 2:
        got = len(items) if isinstance(items, list) else repr(items)
        raise TaskError(f"{path}: items must be at least 2 pairs, got {got}.")
    for item in items:
        texts = isinstance(item, list) and all(isinstance(t, str) for t in item)
        if not texts or len(item) != 2:
            raise TaskError(f"{path}: an item must be two texts, got {item}.")
    if not isinstance(answers, list) or not all(isinstance(y, str) for y in answers):
        raise TaskError(f"{path}: answers must be texts, got {answers}.")


def _check_items(path: Path, task: Task) -> None:
    cloze = task.cloze
    one_each = cloze.count("{x}") == cloze.count("{y}") == 1
    if not one_each or cloze.index("{x}") > cloze.index("{y}"):
        rule = f"{path}: cloze must have one {{x}}, and one {{y}} after it"
        raise TaskError(f"{rule}, got {cloze!r}.")
    xs = [x for x, _ in task.items]
    for what, texts in {"x": xs, "answer": [y for _, y in task.items]}.items():
        for text in texts:
            if not text or text != text.strip():
                rule = "must be text without white space around it"
                raise TaskError(f"{path}: an {what} {rule}, got {text!r}.")
    for what, texts in {"x": xs, "answer of answers": task.answers}.items():
        for text, times in Counter(texts).items():
            if times > 1:
                rule = f"an {what} must stand there once"
                raise TaskError(f"{path}: {rule}, got {text!r} {times} times.")
    if task.answers:
        for x, y in task.items:
            if y not in task.answers:
                rule = f"the answer of {x!r} must be one of answers"
                raise TaskError(f"{path}: {rule}, got {y!r}.")
