"""The pictures that answer the hand: their numbers are the records'; they answer."""

import json
import re
import statistics
from pathlib import Path

import pytest

from fmkit import pictures
from fmkit.records import read_record

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
SCRIPTS = sorted((ROOT / "pictures").glob("*.js"))
MOST = 30_000  # bytes of a script


def numbers_on(page, name):
    """The data that the page's picture called `name` reads."""
    # What is in a script is not escaped
    pattern = rf'id="picture-{name}">\s*<script type="application/json">(.*?)</script>'
    return json.loads(re.search(pattern, page, re.DOTALL)[1])


@pytest.fixture(scope="module")
def page(site):
    return (site / "chapters" / "pictures.html").read_text()


def metrics(chapter, name):
    return read_record(RESULTS / chapter / f"{name}.json")["metrics"]


def test_scripts_are_small_and_plain():
    assert [path.stem for path in SCRIPTS if path.stem != "elements"] == sorted(
        pictures.PICTURES
    )
    for path in SCRIPTS:
        assert path.stat().st_size <= MOST
        assert not re.search(r"https?:(?!//www\.w3\.org/2000/svg)", path.read_text())


def test_the_cosines_are_those_of_the_record(page):
    found, recorded = numbers_on(page, "loss"), metrics("pictures", "similarities")
    read = {
        f"{state}/{a}/{b}": found[state][i][j]
        for state in ("trained", "untrained")
        for i, a in enumerate(found["classes"])
        for j, b in enumerate(found["classes"])
    }
    assert read == pytest.approx(recorded, abs=5e-5)


def test_the_probabilities_are_those_of_the_record(page):
    recorded = metrics("pictures", "next_words")
    pending = [((prompt,), tree) for prompt, tree in numbers_on(page, "words").items()]
    read = {}
    while pending:
        before, tree = pending.pop()
        for token, (p, after) in (tree or {}).items():
            read["\t".join((*before, token))] = p
            pending.append(((*before, token), after))
    assert read == pytest.approx(recorded, abs=5e-6)


def of_labels(line, x):
    return f"{line['of'][0]}/{line['of'][1]}/{x}/{line['one']}"


def of_examples(line, x):
    closed = line["one"] in ("continents", "sentiment", "statements")
    how = "choice" if closed else "greedy"
    return f"{line['one']}-{line['of'][0]}/{how}/{x}/test"


SOURCES = {  # of the lines: chapter, how its records begin, what its metrics are called
    "animals, with labels": ("pretraining_and_adaptation", "finetuning", of_labels),
    "docstrings, with labels": ("finetuning_language_models", "small", of_labels),
    "SmolLM2, with examples": ("in_context_learning", "kshot", of_examples),
}
ELSEWHERE = {  # of lines whose encoder has runs of its own
    "simclr": ("contrastive_learning", "animals"),
    "minilm": ("finetuning_language_models", "minilm"),
    "smollm2": ("finetuning_language_models", "smollm2"),
}


@pytest.mark.parametrize("family", SOURCES)
def test_the_accuracies_are_those_of_the_records(page, family):
    *usual, called = SOURCES[family]
    lines, compared = numbers_on(page, "accuracy")[family]["lines"], 0
    for line in lines:
        chapter, runs = ELSEWHERE.get(line["of"][0], usual)
        seeds = [metrics(chapter, f"{runs}_seed{seed}") for seed in (0, 1, 2)]
        for x, *shown in line["points"]:
            values = [of_seed[called(line, x)] for of_seed in seeds]
            expected = [statistics.mean(values), min(values), max(values)]
            assert shown == pytest.approx(expected, abs=5e-5)
            compared += 1
    assert compared > 50
