"""Make the interactive figures: their data, from records, and a still image of each.

Each figure is a script in the folder ``widgets``. The build joins the script and its
data to one piece of HTML, which the page includes, and draws the still image that
replaces the figure in print and where no script runs.
"""

import base64
import json
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from fmkit import plot, plot_text
from fmkit.book import drawing, live
from fmkit.book.palette import ANIMAL_COLOURS, COLOURS
from fmkit.data.animals import ANIMALS
from fmkit.data.docstrings import LIBRARIES
from fmkit.data.tokens import pieces
from fmkit.runs.record import committed, results, scores_of
from fmkit.tasks.questions import TASKS, load_task

FOLDER = "widgets"
ENCODERS = ("pixels", "untrained", "reconstruction", "simclr", "imagenet")
MODELS = ("words", "untrained", "decoder", "masked", "minilm", "smollm2")
ADAPTATIONS = ("probe", "finetune", "lp-ft", "last-block", "lora", "all", "scratch")
SPLITS = ("test", "rotate", "thicken", "invert")
TAU = 0.1  # temperature, as in the chapter on contrastive learning
NOTE = "Points are means of three seeds, bars reach from the lowest to the highest."
HELPERS = ("elements",)  # scripts that every figure begins with
PARTS = {"write_on": ("packed", "decoder"), "draw": ("packed", "encoder")}  # besides
SITE = "vendor/live"  # Sphinx copies what is in vendor to the top of the site
Tree = dict[str, list]  # next token → [probability, its own tree or None]


def write(folder: Path) -> None:
    """Write ``<name>.html`` and ``<name>.png`` beside each script in `folder`.

    What a script loads later is written for the top of the site.
    """
    for name, (data, draw) in WIDGETS.items():
        numbers = data()
        parts = [*HELPERS, *PARTS.get(name, ()), name]
        paths = [folder / f"{part}.js" for part in parts]
        script = "".join(path.read_text(encoding="utf-8") for path in paths)
        fragment = _fragment(name, numbers, script)
        (folder / f"{name}.html").write_text(fragment, encoding="utf-8")
        plot.use_style()
        draw(numbers)
        plt.savefig(folder / f"{name}.png")
        plt.close("all")
    live.write(folder.parent / SITE)
    drawing.write(folder.parent / SITE)


def _fragment(name: str, data: object, script: str) -> str:
    """Return a div that fills itself.

    It contains its data, because a page opened as a file may not read other files.
    """
    text = json.dumps(data, ensure_ascii=False).replace("</", "<\\/")
    return (
        f'<div class="widget" id="widget-{name}">\n'
        f'<script type="application/json">{text}</script>\n<script>(() => {{\n'
        "const root = document.currentScript.parentElement;\n"
        'const data = JSON.parse(root.querySelector("script").textContent);\n'
        f'{script}root.classList.add("alive");\n}})();</script>\n</div>\n'
    )


def loss_data() -> dict[str, object]:
    """Return cosines between views of eight images, before and after pretraining."""
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


def words_data() -> dict[str, Tree]:
    """Return for each prompt a tree of its recorded next tokens."""
    trees: dict[str, Tree] = {}
    for name, p in committed(FOLDER)["next_words"]["metrics"].items():
        prompt, *before, token = name.split("\t")
        branch = trees.setdefault(prompt, {})
        for earlier in before:
            branch = branch[earlier][1]
        branch[token] = [round(p, 5), {}]
    return {prompt: _pruned(tree) for prompt, tree in trees.items()}


def _pruned(tree: Tree) -> Tree | None:
    """Replace the empty trees inside a tree, which were not recorded, by None."""
    return {token: [p, _pruned(after)] for token, (p, after) in tree.items()} or None


def accuracy_data() -> dict[str, object]:
    """Return three families of lines.

    A family has its x axis, two properties that switch lines on and off, and one
    property with a menu.
    """
    animals = _lines("contrastive_learning", "animals", encoders=ENCODERS)
    animals |= _lines("pretraining_and_adaptation", "finetuning", encoders=ENCODERS)
    texts = {}
    for runs in ("smollm2", "minilm", "small"):  # "small" has more labels for "words"
        texts |= _lines("finetuning_language_models", runs, encoders=MODELS)
    return {
        "animals, with labels": _family(
            animals,
            xlabel="labels, in all",
            switched={
                "encoder": ("pixels", "simclr", "imagenet"),
                "adaptation": ("probe",),
            },
            chosen="test images",
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


def write_on_data() -> dict[str, object]:
    """Return where the decoder is, its size and its errors, and beginnings of texts."""
    lm = live.trained()
    return {
        "file": f"live/{live.FILE}",
        "size": f"{len(live.script(lm)) / 1e6:.1f}",
        "errors": live.errors(lm),
        "starts": live.STARTS,
        "layers": lm.model.config.layers,
        "heads": lm.model.config.heads,
    }


def draw_data() -> dict[str, object]:
    """Return where the encoder is, its size and errors, and the classes."""
    metrics = committed(FOLDER)["drawing"]["metrics"]
    return {
        "file": drawing.FILE,
        "size": f"{len(drawing.script()) / 1e6:.1f}",
        "errors": {name: metrics[f"rounded/{name}"] for name in drawing.ERRORS},
        "classes": ANIMALS,
        "colours": ANIMAL_COLOURS,
        "first": ANIMALS.index("horse"),
        "nearest": drawing.NEAREST,
    }


def _lines(
    chapter: str, runs: str, *, encoders: tuple[str, ...]
) -> dict[tuple[str, ...], list[list[float]]]:
    """Return the points of each (test set, encoder, adaptation)."""
    lines: dict[tuple[str, ...], list[list[float]]] = {}
    for (encoder, adaptation, labels, split), values in _scores(chapter, runs).items():
        if encoder in encoders and adaptation in ADAPTATIONS and split in SPLITS:
            point = _point(labels, values)
            lines.setdefault((split, encoder, adaptation), []).append(point)
    return lines


def _prompt_lines() -> dict[tuple[str, ...], list[list[float]]]:
    """Return the points of each (task, format) of SmolLM2."""
    answers = _answers()
    scores = _scores("in_context_learning", "kshot")
    lines: dict[tuple[str, ...], list[list[float]]] = {}
    for (what, how, k, _), values in scores.items():
        task, form = what.rsplit("-", 1)
        if how == ("choice" if answers[task] else "greedy"):
            lines.setdefault((task, form), []).append(_point(k, values))
    return lines


def _scores(chapter: str, runs: str) -> dict[tuple[str, str, int, str], list[float]]:
    """Return the scores of the recorded runs ``<runs>_seed0``, ``<runs>_seed1`` …"""
    records = committed(chapter)
    return scores_of(records[x] for x in records if x.startswith(f"{runs}_seed"))


def _answers() -> dict[str, int]:
    """Return how many answers each task has; 0 if each item has its own."""
    return {name: len(load_task(name).answers) for name in TASKS}


def _point(x: int, values: list[float]) -> list[float]:
    """Return x, then mean, minimum and maximum of the values."""
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
    """Return a family of lines, whose keys are (chosen, switched, …).

    `switched` names the lines that are on at first.
    """
    values = [list(dict.fromkeys(column)) for column in zip(*lines, strict=True)]
    return {
        "xlabel": xlabel,
        "x": sorted({point[0] for points in lines.values() for point in points}),
        "colours": dict(zip(values[1], _colours(values[1]), strict=True)),
        "one": {"name": chosen, "values": values[0]},
        "many": [
            {"name": name, "values": all_values, "first": first}
            for (name, first), all_values in zip(
                switched.items(), values[1:], strict=True
            )
        ],
        "chance": chance,
        "note": f"{NOTE} {note}",
        "lines": [
            {"one": one, "of": of, "points": sorted(points)}
            for (one, *of), points in lines.items()
        ],
    }


def _colours(names: list[str]) -> list[str]:
    """Return the colour of each name in the palette, or one that no other name has."""
    free = iter([c for c in plot.FREE if c not in map(COLOURS.get, names)])
    return [COLOURS.get(name) or next(free) for name in names]


def _draw_loss(data: dict) -> None:
    """Draw the softmax of the first image's similarities, before and after training."""
    _, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
    for ax, state in zip(axes, ("untrained", "trained"), strict=True):
        s = torch.tensor(data[state][0])
        ax.barh(data["classes"], (s / TAU).softmax(0).tolist(), color="#0072b2")
        loss = -(s / TAU).log_softmax(0)[0]
        title = f"{state}: loss of the {data['classes'][0]} {loss:.3f} nats"
        ax.set(xlim=(0, 1), title=title, xlabel=f"softmax of the cosines over {TAU}")
    axes[0].invert_yaxis()


def _draw_words(data: dict) -> None:
    """Draw the first prompt, continued twice by its most probable token."""
    text, tree = next(iter(data.items()))
    panels = {}
    for _ in range(3):
        bars = [(token, p) for token, (p, _) in tree.items()]
        panels[f"{text} …"] = bars
        text, tree = text + bars[0][0], tree[bars[0][0]][1]
    plot_text.next_words(panels)


def _draw_write_on(data: dict) -> None:
    """Draw the next tokens after the first beginning at three temperatures."""
    lm = live.rounded(live.trained())
    text = data["starts"][0]
    with torch.no_grad():
        u = lm.model(torch.tensor([lm.encode(text)]))[0, -1]
    panels = {}
    for temperature in (1.0, 0.5, 2.0):
        p, ids = (u / temperature).softmax(0).topk(7)
        names = pieces(lm.tokenizer, ids.tolist())
        bars = [*zip(names, p.tolist(), strict=True)]
        panels[f"temperature {temperature:g}"] = bars
    plot_text.next_words(panels)


def _draw_draw(data: dict) -> None:
    """Draw the first test image with those that the encoder and pixels find."""
    known, (examples, _) = drawing.of_page(), drawing.read_sheet()
    image = examples[[data["first"]]]
    rows = {
        name: torch.cat([image, known.images[cosines[0].topk(data["nearest"]).indices]])
        for name, cosines in known.cosines(image).items()
    }
    plot.images({"the encoder": rows["encoder"], "raw pixels": rows["pixels"]})


def _draw_accuracy(data: dict) -> None:
    """Draw the probes of all encoders on the unchanged test images of the animals."""
    family = next(iter(data.values()))
    lines = {
        line["of"][0]: [(x, [mean]) for x, mean, *_ in line["points"]]
        for line in family["lines"]
        if (line["one"], line["of"][1]) == ("test", "probe")
    }
    text = {"xlabel": family["xlabel"], "ylabel": "accuracy on test"}
    plot.curves(lines, chance=family["chance"][""], colours=COLOURS, **text)


WIDGETS = {  # name of the script: its data, and the function that draws the still image
    "loss": (loss_data, _draw_loss),
    "words": (words_data, _draw_words),
    "write_on": (write_on_data, _draw_write_on),
    "draw": (draw_data, _draw_draw),
    "accuracy": (accuracy_data, _draw_accuracy),
}
