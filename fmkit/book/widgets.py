"""The pictures of a page that answer the hand: their data, from records, and a still.

Each is a script of ours in the folder ``widgets``. The build puts the script and its
data into one piece of HTML, for the page to include, and draws what stands in its place
in print and where no script runs.
"""

import base64
import json
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from fmkit import plot, plot_text
from fmkit.book.palette import COLOURS
from fmkit.data.animals import ANIMALS
from fmkit.data.docstrings import LIBRARIES
from fmkit.runs.record import committed, results, scores_of
from fmkit.tasks.questions import TASKS, load_task

FOLDER = "widgets"
ENCODERS = ("pixels", "untrained", "reconstruction", "simclr", "imagenet")
MODELS = ("words", "untrained", "decoder", "masked", "minilm", "smollm2")
ADAPTATIONS = ("probe", "finetune", "lp-ft", "last-block", "lora", "all", "scratch")
SPLITS = ("test", "rotate", "thicken", "invert")
TAU = 0.1  # as in the chapter
NOTE = "Points are means of three seeds, bars reach from the lowest to the highest."
Tree = dict[str, list]  # of next tokens: [probability, what follows, if recorded]


def write(folder: Path) -> None:
    """Write ``<name>.html`` and ``<name>.png`` beside each script in `folder`."""
    helper = (folder / "elements.js").read_text()
    for name, (data, draw) in WIDGETS.items():
        numbers = data()
        script = (folder / f"{name}.js").read_text()
        (folder / f"{name}.html").write_text(_fragment(name, numbers, helper + script))
        plot.use_style()
        draw(numbers)
        plt.savefig(folder / f"{name}.png")
        plt.close("all")


def _fragment(name: str, data: object, script: str) -> str:
    """A div that fills itself; the data lie in it, since a page may not read files."""
    text = json.dumps(data, ensure_ascii=False).replace("</", "<\\/")
    return (
        f'<div class="widget" id="widget-{name}">\n'
        f'<script type="application/json">{text}</script>\n<script>(() => {{\n'
        "const root = document.currentScript.parentElement;\n"
        'const data = JSON.parse(root.querySelector("script").textContent);\n'
        f'{script}root.classList.add("alive");\n}})();</script>\n</div>\n'
    )


def of_loss() -> dict[str, object]:
    """Cosines between the views of eight pictures, before and after pretraining."""
    metrics = committed(FOLDER)["similarities"]["metrics"]
    views = (results(FOLDER) / "views.png").read_bytes()
    classes = list(dict.fromkeys(name.split("/")[1] for name in metrics))
    cosines = {
        state: [
            [round(metrics[f"{state}/{a}/{b}"], 4) for b in classes] for a in classes
        ]
        for state in ("untrained", "trained")
    }
    source = f"data:image/png;base64,{base64.b64encode(views).decode()}"
    return {"classes": classes, **cosines, "views": source}


def of_words() -> dict[str, Tree]:
    """For each prompt its recorded places, as a tree of next tokens."""
    trees: dict[str, Tree] = {}
    for name, p in committed(FOLDER)["next_words"]["metrics"].items():
        prompt, *before, token = name.split("\t")
        here = trees.setdefault(prompt, {})
        for earlier in before:
            here = here[earlier][1]
        here[token] = [round(p, 5), {}]
    return {prompt: _pruned(tree) for prompt, tree in trees.items()}


def _pruned(tree: Tree) -> Tree | None:
    """A tree whose places that were not recorded are None rather than empty."""
    return {token: [p, _pruned(after)] for token, (p, after) in tree.items()} or None


def of_accuracy() -> dict[str, object]:
    """Three families of lines; each has its x, two things to switch, one to choose."""
    animals = _lines("contrastive_learning", "animals", of=ENCODERS)
    animals |= _lines("pretraining_and_adaptation", "finetuning", of=ENCODERS)
    texts = {}
    for runs in ("smollm2", "minilm", "small"):  # the last has all labels of "words"
        texts |= _lines("finetuning_language_models", runs, of=MODELS)
    return {
        "animals, with labels": _family(
            animals,
            xlabel="labels, in all",
            switched={
                "encoder": ("pixels", "simclr", "imagenet"),
                "adaptation": ("probe",),
            },
            chosen="test pictures",
            chance={"": 1 / len(ANIMALS)},
            note="An untrained network finetuned is training from scratch.",
        ),
        "docstrings, with labels": _family(
            texts,
            xlabel="labels, in all",
            switched={
                "model": ("words", "decoder", "minilm"),
                "adaptation": ("probe",),
            },
            chosen="texts",
            chance={"": 1 / len(LIBRARIES)},
            note="Which library is a text from? The model “words” counts them.",
        ),
        "SmolLM2, with examples": _family(
            _prompt_lines(),
            xlabel="examples in the prompt",
            switched={"format": ("bare", "cloze")},
            chosen="task",
            chance={name: 1 / n for name, n in _answers().items() if n},
            note="Where a task has few answers, the most probable of them counts.",
        ),
    }


def _lines(
    chapter: str, runs: str, *, of: tuple[str, ...]
) -> dict[tuple[str, ...], list[list[float]]]:
    """Points of each (test set, encoder, adaptation)."""
    lines: dict[tuple[str, ...], list[list[float]]] = {}
    for (encoder, adaptation, labels, split), values in _scores(chapter, runs).items():
        if encoder in of and adaptation in ADAPTATIONS and split in SPLITS:
            point = _point(labels, values)
            lines.setdefault((split, encoder, adaptation), []).append(point)
    return lines


def _prompt_lines() -> dict[tuple[str, ...], list[list[float]]]:
    """Points of each (task, format) of SmolLM2."""
    answers, scores = _answers(), _scores("in_context_learning", "kshot")
    lines: dict[tuple[str, ...], list[list[float]]] = {}
    for (what, how, k, _), values in scores.items():
        task, form = what.rsplit("-", 1)
        if how == ("choice" if answers[task] else "greedy"):
            lines.setdefault((task, form), []).append(_point(k, values))
    return lines


def _scores(chapter: str, runs: str) -> dict[tuple[str, str, int, str], list[float]]:
    """What the runs of a chapter gave that are called `runs` and a seed."""
    named = committed(chapter).items()
    return scores_of(of for name, of in named if name.startswith(f"{runs}_seed"))


def _answers() -> dict[str, int]:
    """How many answers each task has; 0 where an item has its own."""
    return {name: len(load_task(name).answers) for name in TASKS}


def _point(x: int, values: list[float]) -> list[float]:
    """x, mean, lowest, highest."""
    numbers = (sum(values) / len(values), min(values), max(values))
    return [x, *(round(number, 4) for number in numbers)]


def _family(
    lines: dict[tuple[str, ...], list[list[float]]],
    *,
    xlabel: str,
    switched: dict[str, tuple[str, ...]],
    chosen: str,
    chance: dict[str, float],
    note: str,
) -> dict[str, object]:
    """Lines by (chosen, switched …); `switched` says which are on at first."""
    values = [list(dict.fromkeys(column)) for column in zip(*lines, strict=True)]
    return {
        "xlabel": xlabel,
        "x": sorted({point[0] for points in lines.values() for point in points}),
        "colours": dict(zip(values[1], _colours(values[1]), strict=True)),
        "one": {"name": chosen, "values": values[0]},
        "many": [
            {"name": name, "values": of, "first": first}
            for (name, first), of in zip(switched.items(), values[1:], strict=True)
        ],
        "chance": chance,
        "note": f"{NOTE} {note}",
        "lines": [
            {"one": one, "of": of, "points": sorted(points)}
            for (one, *of), points in lines.items()
        ],
    }


def _colours(names: list[str]) -> list[str]:
    """The book's colour of each name, else one that no other has."""
    free = iter([c for c in plot.FREE if c not in map(COLOURS.get, names)])
    return [COLOURS.get(name) or next(free) for name in names]


def _draw_loss(data: dict) -> None:
    """The softmax of the first picture's similarities at τ = .1, before and after."""
    _, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
    for ax, state in zip(axes, ("untrained", "trained"), strict=True):
        s = torch.tensor(data[state][0])
        ax.barh(data["classes"], (s / TAU).softmax(0).tolist(), color="#0072b2")
        loss = -(s / TAU).log_softmax(0)[0]
        title = f"{state}: loss of the {data['classes'][0]} {loss:.3f} nats"
        ax.set(xlim=(0, 1), title=title, xlabel=f"softmax of the cosines over {TAU}")
    axes[0].invert_yaxis()


def _draw_words(data: dict) -> None:
    """The first prompt, with the most probable token chosen twice."""
    text, tree, panels = next(iter(data)), next(iter(data.values())), {}
    for _ in range(3):
        bars = [(token, p) for token, (p, _) in tree.items()]
        panels[f"{text} …"] = bars
        text, tree = text + bars[0][0], tree[bars[0][0]][1]
    plot_text.next_words(panels)


def _draw_accuracy(data: dict) -> None:
    """Probes of all encoders on the animals, as they are."""
    family = next(iter(data.values()))
    lines = {
        line["of"][0]: [(*point,) for point in line["points"]]
        for line in family["lines"]
        if (line["one"], line["of"][1]) == ("test", "probe")
    }
    text = {"xlabel": family["xlabel"], "ylabel": "accuracy on test"}
    plot.curves(lines, chance=family["chance"][""], colours=COLOURS, **text)


WIDGETS = {  # by the name of the script: data, and what draws the still of them
    "loss": (of_loss, _draw_loss),
    "words": (of_words, _draw_words),
    "accuracy": (of_accuracy, _draw_accuracy),
}
