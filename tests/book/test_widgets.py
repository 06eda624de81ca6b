"""The interactive figures show the numbers of the records, and react."""

import json
import math
import re
import shutil
import statistics
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.notebooks import book

from fmkit import plot
from fmkit.book import widgets
from fmkit.book.palette import COLOURS, NAMES
from fmkit.cli import main
from fmkit.runs import record as records
from fmkit.runs.record import read_record
from tools import widget_records

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
SCRIPTS = sorted((ROOT / "widgets").glob("*.js"))
MOST = 30_000  # bytes of a script


def numbers_on(page, name):
    """Return the data that the figure called `name` reads."""
    # What is in a script is not escaped
    pattern = rf'id="widget-{name}">\s*<script type="application/json">(.*?)</script>'
    return json.loads(re.search(pattern, page, re.DOTALL)[1])


@pytest.fixture(scope="module")
def page(site):
    return (site / "chapters" / "interactive_figures.html").read_text(encoding="utf-8")


def metrics(chapter, name):
    return read_record(RESULTS / chapter / f"{name}.json")["metrics"]


def test_the_colours_are_those_that_all_can_tell_apart():
    assert set(COLOURS.values()) <= {*plot.FREE, "#7f7f7f"}


def test_scripts_are_small_and_plain():
    parts = {*widgets.HELPERS}.union(*widgets.PARTS.values())
    assert {path.stem for path in SCRIPTS} == {*widgets.WIDGETS, *parts}
    for path in SCRIPTS:
        assert path.stat().st_size <= MOST
        assert not re.search(
            r"https?:(?!//www\.w3\.org/2000/svg)", path.read_text(encoding="utf-8")
        )


def test_the_cosines_are_those_of_the_record(page):
    shown, recorded = numbers_on(page, "loss"), metrics("widgets", "similarities")
    read = {
        f"{state}/{a}/{b}": shown[state][i][j]
        for state in ("trained", "untrained")
        for i, a in enumerate(shown["classes"])
        for j, b in enumerate(shown["classes"])
    }
    assert read == pytest.approx(recorded, abs=5e-5)


def test_the_probabilities_are_those_of_the_record(page):
    recorded = metrics("widgets", "next_words")
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
            assert shown == pytest.approx(expected, abs=6e-5)
            compared += 1
    assert compared > 50


@pytest.fixture
def tab(site, browser):
    """The page of the figures in a browser without a network, on a touch screen."""
    context = browser.new_context(offline=True, has_touch=True)
    tab = context.new_page()
    tab.goto((site / "chapters" / "interactive_figures.html").as_uri())
    yield tab
    context.close()


def test_the_loss_is_the_cross_entropy_of_what_is_set(tab, rng):
    root = tab.locator("#widget-loss")
    sliders = root.locator("tbody input").all()
    root.get_by_label("image").select_option(label="dog")
    for tau in (0.05, 0.3, 1.5):
        s = 2 * torch.rand(len(sliders), generator=rng) - 1
        for slider, value in zip(sliders, s.tolist(), strict=True):
            slider.fill(f"{value:.2f}")
        root.get_by_label("temperature tau").fill(f"{math.log(tau):.2f}")
        # What is set is rounded to a slider's steps
        s = torch.tensor([float(slider.input_value()) for slider in sliders])
        tau = math.exp(float(root.get_by_label("temperature tau").input_value()))
        s = s.requires_grad_()
        dog = torch.tensor(root_classes(root).index("dog"))
        loss = F.cross_entropy(s / tau, dog)
        loss.backward()
        assert float(root.locator(".loss").inner_text()) == pytest.approx(
            loss.item(), abs=6e-4
        )
        shares = [float(x) for x in root.locator(".bars output").all_inner_texts()]
        assert shares == pytest.approx((s / tau).softmax(0).tolist(), abs=6e-4)
        pulls = [
            float(x.split(", ")[1]) * (1 if "closer" in x else -1)
            for x in root.locator(".pull").all_inner_texts()
        ]
        assert pulls == pytest.approx((-s.grad).tolist(), abs=6e-3)


def root_classes(root):
    return root.get_by_label("image").locator("option").all_inner_texts()


def test_the_loss_answers_keys_and_fingers(tab):
    root = tab.locator("#widget-loss")
    loss = root.locator(".loss")
    root.get_by_label("similarities").select_option(label="before training")
    before = float(loss.inner_text())
    assert before == pytest.approx(math.log(8), abs=0.1)
    root.get_by_role("button").tap()
    after = float(loss.inner_text())
    assert after < before
    root.get_by_label("temperature tau").press("ArrowLeft")
    assert float(loss.inner_text()) != after
    assert root.get_by_label("similarities").input_value() == "hand"


def test_tokens_are_opened_one_by_one(tab, page):
    root = tab.locator("#widget-words")
    [prompt, tree], p = next(iter(numbers_on(page, "words").items())), 1.0
    for _ in range(3):
        share, tree = max(tree.values(), key=lambda value: value[0])
        p *= share
        root.locator(".tokens button").first.tap()
        shown = root.locator(".tokens .number").all_inner_texts()
        assert sum(map(float, shown)) == pytest.approx(1, abs=0.004)
    message = root.locator(".said").inner_text()
    assert message.startswith(f"3 tokens chosen, together with probability {p:.3f}")
    assert f"{-math.log(p):.2f} nats" in message
    assert root.locator(".prompt").inner_text() == prompt


def test_tokens_answer_the_keyboard_until_the_record_ends(tab):
    root = tab.locator("#widget-words")
    root.locator(".tokens button").last.focus()
    for _ in range(30):
        tab.keyboard.press("Enter")
        if "goes no farther" in root.locator(".said").inner_text():
            break
    else:
        pytest.fail("the record has no end")
    tab.keyboard.press("Enter")  # "start again" has the focus then
    assert root.locator(".text button").count() == 0
    assert root.locator(".tokens button").count() == 5


def test_lines_are_where_their_numbers_are(tab, page):
    root = tab.locator("#widget-accuracy")
    families = numbers_on(page, "accuracy")
    for name, family in families.items():
        root.locator("select").first.select_option(name)
        first = [kind["first"] for kind in family["many"]]
        for box in root.locator("input[type=checkbox]").all():
            box.check()
        lines = [
            line
            for line in family["lines"]
            if line["one"] == family["one"]["values"][0]
        ]
        drawn = root.locator("svg[role=img] path").all()
        assert len(drawn) == len(lines) > len(first)
        top, bottom = (
            float(root.locator(".grid").nth(i).get_attribute("y1")) for i in (4, 0)
        )
        for line, path in zip(lines, drawn, strict=True):
            places = re.findall(r"[ML][\d.]+ ([\d.]+)", path.get_attribute("d"))
            values = [(bottom - float(y)) / (bottom - top) for y in places]
            assert values == pytest.approx([mean for _, mean, *_ in line["points"]])


def test_lines_are_called_in_words(tab, page):
    root = tab.locator("#widget-accuracy")
    for name, family in numbers_on(page, "accuracy").items():
        root.locator("select").first.select_option(name)
        labels = {text.strip() for text in root.locator("label").all_inner_texts()}
        keys = {*NAMES} - {*NAMES.values()} - {"masked"}
        assert not labels & keys
        for kind in family["many"]:
            assert {family["words"][key] for key in kind["values"]} <= labels
        assert not re.search(r"\w_\w", root.inner_text())


def test_lines_are_switched_by_keys(tab):
    root = tab.locator("#widget-accuracy")
    lines = root.locator("svg[role=img] path")
    before, text = (
        lines.count(),
        root.locator("svg[role=img]").get_attribute("aria-label"),
    )
    root.get_by_label("finetune").press("Space")
    assert lines.count() > before
    assert root.locator("svg[role=img]").get_attribute("aria-label") != text
    for box in root.locator("fieldset").first.locator("input").all():
        box.uncheck()
    assert lines.count() == 0
    assert "No line is switched on" in root.locator(".said").inner_text()


def test_a_still_stands_there_without_scripts_and_in_print(site, browser, tab):
    names = [*widgets.WIDGETS]
    context = browser.new_context(offline=True, java_script_enabled=False)
    plain = context.new_page()
    plain.goto((site / "chapters" / "interactive_figures.html").as_uri())
    stills = plain.locator("figure.still")
    assert [still.is_visible() for still in stills.all()] == [True] * len(names)
    context.close()
    stills, alive = tab.locator("figure.still"), tab.locator(".widget")
    assert [still.is_visible() for still in stills.all()] == [False] * len(names)
    tab.emulate_media(media="print")
    assert [still.is_visible() for still in stills.all()] == [True] * len(names)
    assert [figure.is_visible() for figure in alive.all()] == [False] * len(names)


def test_a_damaged_record_stops_the_pages_with_a_sentence(
    tmp_path, monkeypatch, capsys
):
    """As a reader sees it who builds the book."""
    book(tmp_path)
    shutil.copytree(ROOT / "widgets", tmp_path / "widgets")
    shutil.copytree(RESULTS / "widgets", tmp_path / "results" / "widgets")
    (tmp_path / "results" / "widgets" / "similarities.json").write_text(
        '{"schema": 2}', encoding="utf-8"
    )
    monkeypatch.setattr(records, "PACKAGE", tmp_path / "fmkit")
    monkeypatch.chdir(tmp_path)
    assert main(["html"]) == 1
    message = capsys.readouterr().err
    assert message.endswith("similarities.json must have schema 1, got 2.\n")
    assert message.count("\n") == 1


def test_the_tool_makes_a_record_of_its_parameters(tmp_path, monkeypatch):
    monkeypatch.setenv("FMKIT_RECORD", "")  # the tool sets it
    path = tmp_path / "similarities.json"
    names = []

    def work(run, folder, **parameters):
        run.metric("trained/cat/dog", 0.5)
        names.extend((folder, *parameters))

    widget_records._record(path, work, steps=3, seed=0)
    record = read_record(path)
    assert record["parameters"] == {"steps": 3, "seed": 0, "device": "cpu"}
    assert record["metrics"] == {"trained/cat/dog": 0.5}
    assert record["status"] == "finished"
    assert names == [tmp_path, "steps", "seed", "device"]
