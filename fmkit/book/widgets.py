"""Make the interactive figures: their data, from records, and a still image of each.

Each figure is a script in the folder ``widgets``. The build joins the script and its
data to one script, which ``_static/widgets.js`` loads when the figure comes near the
screen, and draws the still image that replaces the figure in print and where no script
runs. Any page can show a figure: see :func:`embed`.
"""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import torch
import torch.nn.functional as F
from torch import Tensor

from fmkit import plot, plot_text
from fmkit.book import drawing, live
from fmkit.book.contents import BookError
from fmkit.book.palette import ANIMAL_COLOURS, COLOURS, NAMES, NAMES_OF_TEXTS
from fmkit.data.animals import ANIMALS
from fmkit.data.docstrings import LIBRARIES
from fmkit.data.tokens import pieces
from fmkit.losses import nt_xent_loss, simclr_loss
from fmkit.runs.parameters import read_notebook
from fmkit.runs.record import committed, results, scores_of
from fmkit.tasks.questions import TASKS, load_task

FOLDER = "widgets"
ENCODERS = ("pixels", "untrained", "reconstruction", "simclr", "imagenet")
MODELS = ("words", "untrained", "decoder", "masked", "minilm", "smollm2")
ADAPTATIONS = ("probe", "finetune", "lp-ft", "last-block", "lora", "all", "scratch")
SPLITS = ("test", "rotate", "thicken", "invert")
NOTE = "Points are means of three seeds, bars reach from the lowest to the highest."
HELPERS = ("elements",)  # scripts that every figure begins with
PARTS = {"write_on": ("packed", "decoder"), "draw": ("packed", "encoder")}  # besides
SITE = "vendor/live"  # Sphinx copies what is in vendor to the top of the site
PLACE = re.compile(r"^<!-- interactive: (\w+) -->$", re.MULTILINE)
Tree = dict[str, list]  # next token → [probability, its own tree or None]

# The batch of the figure of the loss. In views.png the images are in this order
VIEWS = ("bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "zebra")
BATCH = ("cat", "elephant", "giraffe", "horse")
START = (27, 81, 117, 153, 99, 135, 45, 63)  # degrees: of first, then of second views
TAU = 0.5
RATES = {"notes": 0.1, "ntXent": 1.0}  # of NT-Xent times τ, so that no vector jumps


@dataclass(frozen=True)
class Widget:
    """An interactive figure: how its data and its still image are made, and its texts.

    `caption` and `alt` describe the still image, `label` marks the place of the figure
    on the page of all figures. `heights` are those of the figure, on a desk and on a
    phone, in rem: nothing moves when it is loaded.
    """

    data: Callable[[], dict]
    draw: Callable[[dict], None]
    title: str
    label: str
    heights: tuple[float, float]
    caption: str
    alt: str


def write(folder: Path) -> None:
    """Write ``<name>.html`` and ``<name>.png`` beside each script in `folder`.

    What a page loads later is written for the top of the site.
    """
    site = folder.parent / SITE
    site.mkdir(parents=True, exist_ok=True)
    for name, widget in WIDGETS.items():
        data = widget.data()
        parts = [*HELPERS, *PARTS.get(name, ()), name]
        paths = [folder / f"{part}.js" for part in parts]
        code = "".join(path.read_text(encoding="utf-8") for path in paths)
        (site / f"{name}.js").write_text(_script(name, data, code), encoding="utf-8")
        (folder / f"{name}.html").write_text(_fragment(name), encoding="utf-8")
        plot.use_style()
        widget.draw(data)
        plt.savefig(folder / f"{name}.png")
        plt.close("all")
    (site / live.FILE).write_bytes(live.packed())
    (site / drawing.FILE).write_bytes(drawing.script())


def _script(name: str, data: dict, code: str) -> str:
    """Return a script that adds a function to ``fmkitFigures``, which fills a div."""
    return (
        f"(globalThis.fmkitFigures ??= {{}}).{name} = async (root, load) => {{\n"
        f"const data = {json.dumps(data, ensure_ascii=False)};\n{code}}};\n"
    )


def _fragment(name: str) -> str:
    """Return an empty div, which ``_static/widgets.js`` fills."""
    on_desk, on_phone = WIDGETS[name].heights
    return (
        f'<div class="widget" data-figure="{name}" role="group" '
        f'aria-label="{WIDGETS[name].title}" '
        f'style="--on-desk: {on_desk}rem; --on-phone: {on_phone}rem">\n'
        '<script>document.currentScript.parentElement.classList.add("alive")</script>\n'
        "</div>\n"
    )


def embed(source: Path) -> None:
    """Put the figures into the pages in the folder `source`.

    In Markdown a figure replaces a line ``<!-- interactive: loss -->``, in a notebook
    the text of a cell with ``{"fmkit": {"widget": "loss"}}`` in its metadata. That text
    leads to the figure from programs that show notebooks without it. Raises
    :class:`~fmkit.book.contents.BookError` if no figure has the name.
    """
    for page in sorted((source / "chapters").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        page.write_text(
            PLACE.sub(lambda match, page=page: _place(page, match[1]), text),
            encoding="utf-8",
        )
    for page in sorted((source / "chapters").glob("*.ipynb")):
        notebook = read_notebook(page)
        for cell in notebook.cells:
            name = cell.metadata.get("fmkit", {}).get("widget")
            if name is not None:
                cell.source = _place(page, name, more=True)
        nbformat.write(notebook, page)


def _place(page: Path, name: str, *, more: bool = False) -> str:
    """Return a figure and its still image in MyST, if need be with a link to more."""
    if name not in WIDGETS:
        known = ", ".join(WIDGETS)
        raise BookError(
            f"{page.name} shows the figure {name}, which is not in {known}."
        )
    widget = WIDGETS[name]
    link = f" {{ref}}`Things to try <{widget.label}>`." if more else ""
    return (
        f"```{{raw}} html\n:file: ../{FOLDER}/{name}.html\n```\n\n"
        f"```{{figure}} ../{FOLDER}/{name}.png\n:figclass: still\n"
        f":alt: {widget.alt}\n\n{widget.caption}{link}\n```"
    )


def loss_data() -> dict[str, object]:
    """Return a batch of images, two views of each, and where their vectors start."""
    views = (results(FOLDER) / "views.png").read_bytes()
    return {
        "images": BATCH,
        "columns": [VIEWS.index(name) for name in BATCH],
        "across": len(VIEWS),
        "views": f"data:image/png;base64,{base64.b64encode(views).decode()}",
        "colours": plot.FREE[: len(BATCH)],
        "start": START,
        "tau": TAU,
        "rates": RATES,
    }


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
            words=NAMES | {"test": "unchanged"},
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
            note="Which library is a text from? The bag of words counts words.",
            words=NAMES_OF_TEXTS,
        ),
        "SmolLM2, with examples": _family(
            _prompt_lines(),
            xlabel="examples in the prompt",
            switched={"format": ("bare", "cloze")},
            chosen="task",
            chance={name: 1 / n for name, n in _answers().items() if n},
            note="Where a task has few answers, the most probable of them counts.",
            words={name: load_task(name).title for name in TASKS},
        ),
    }


def write_on_data() -> dict[str, object]:
    """Return where the decoder is, its size and its errors, and beginnings of texts."""
    lm = live.trained()
    return {
        "file": live.FILE,
        "size": f"{len(live.packed()) / 1e6:.1f}",
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
    words: dict[str, str],
) -> dict[str, object]:
    """Return a family of lines, whose keys are (chosen, switched, …).

    `switched` names the lines that are on at first; `words` are shown for keys.
    """
    values = [list(dict.fromkeys(column)) for column in zip(*lines, strict=True)]
    return {
        "xlabel": xlabel,
        "x": sorted({point[0] for points in lines.values() for point in points}),
        "colours": dict(zip(values[1], _colours(values[1], words), strict=True)),
        "words": {key: words.get(key, key) for column in values for key in column},
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


def _colours(keys: list[str], words: dict[str, str]) -> list[str]:
    """Return the colour of each key's words, or one that no other key has."""
    names = [words.get(key, key) for key in keys]
    free = iter([c for c in plot.FREE if c not in map(COLOURS.get, names)])
    return [COLOURS.get(name) or next(free) for name in names]


def _draw_loss(data: dict) -> None:
    """Draw how 100 steps down each loss move the vectors of the batch."""
    notes, tau = data["rates"]["notes"], data["tau"]
    angles = torch.deg2rad(torch.tensor(data["start"]).float())
    start = torch.stack([angles.cos(), angles.sin()], dim=1)
    panels = {
        "loss of the notes": _path(start, simclr_loss, rate=notes),
        f"NT-Xent, τ = {tau}": _path(
            start,
            lambda hat, tilde: nt_xent_loss(hat, tilde, tau=tau),
            rate=data["rates"]["ntXent"] * tau,
            onto=lambda v: F.normalize(v, dim=1),
        ),
    }
    _, axes = plt.subplots(1, 2, figsize=(9, 4.4))
    for ax, (title, path) in zip(axes, panels.items(), strict=True):
        ax.add_patch(plt.Circle((0, 0), 1, fill=False, color="#bbbbbb"))
        for i in range(path.shape[1]):
            colour = data["colours"][i % len(BATCH)]
            marker = "o" if i < len(BATCH) else "s"
            ax.plot(*path[:, i].T, color=colour, linewidth=1)
            ax.plot(*path[0, i], marker, color=colour, markerfacecolor="white")
            name = data["images"][i] if i < len(BATCH) else None
            ax.plot(*path[-1, i], marker, color=colour, label=name)
        ax.set(title=title, aspect="equal")
        ax.axis("off")
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))


def _path(
    start: Tensor,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    *,
    rate: float,
    onto: Callable[[Tensor], Tensor] = lambda v: v,
    steps: int = 100,
) -> Tensor:
    """Return the vectors (steps + 1, 2B, 2) on their way down the gradient of a loss.

    `onto` is applied after each step. The first half of the vectors are first views.
    """
    path = [start]
    for _ in range(steps):
        v = path[-1].clone().requires_grad_()
        [gradient] = torch.autograd.grad(loss_of(*v.chunk(2)), v)
        path.append(onto(path[-1] - rate * gradient))
    return torch.stack(path)


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
        family["words"][line["of"][0]]: [(x, [mean]) for x, mean, *_ in line["points"]]
        for line in family["lines"]
        if (line["one"], line["of"][1]) == ("test", "probe")
    }
    text = {"xlabel": family["xlabel"], "ylabel": "accuracy on test"}
    ax = plot.curves(lines, chance=family["chance"][""], colours=COLOURS, **text)
    ax.legend(loc="lower right", bbox_to_anchor=(1, 0.05))  # above the line of chance


WIDGETS = {  # by the name of the script
    "loss": Widget(
        loss_data,
        _draw_loss,
        title="A batch in your hand",
        label="interactive-loss",
        heights=(49.9, 91.9),
        caption="Two views each of four images, as vectors in the plane. Both losses "
        "pull the two views of an image together and push different images apart. The "
        "loss of the notes also makes the vectors longer; NT-Xent compares directions "
        "only, and divides by the temperature τ.",
        alt="Two planes with a circle, in which eight vectors start close together. "
        "After 100 steps down the loss of the notes the vectors of four images point "
        "in four directions and are more than twice as long. After 100 steps down "
        "NT-Xent they still end on the circle, a quarter turn apart, and the two views "
        "of each image have met.",
    ),
    "words": Widget(
        words_data,
        _draw_words,
        title="The next word",
        label="interactive-next-word",
        heights=(22.3, 28.0),
        caption="The most probable next tokens of SmolLM2 after a prompt, and after "
        "each token that is chosen.",
        alt="Three panels of bars: the five most probable tokens after “The capital of "
        "France is”, then after Paris was chosen, then after a full stop.",
    ),
    "write_on": Widget(
        write_on_data,
        _draw_write_on,
        title="Write on",
        label="interactive-write-on",
        heights=(74.4, 107.8),
        caption="The most probable next tokens of the decoder after the beginning of a "
        "text. A low temperature favours the most probable token, a high one makes all "
        "more alike.",
        alt="Three panels of bars, the seven most probable next tokens after the "
        "beginning of a docstring at temperatures 1, one half and 2; the first bar is "
        "longest at one half and nearly as short as the others at 2.",
    ),
    "draw": Widget(
        draw_data,
        _draw_draw,
        title="Draw an animal",
        label="interactive-draw",
        heights=(70.1, 92.5),
        caption="A drawing, or an image of the test set, and its six nearest training "
        "silhouettes by the encoder and by raw pixels.",
        alt="Two rows of seven silhouettes, which begin with the same horse. The six "
        "nearest by the encoder are horses that face either way. The six nearest by "
        "raw pixels all stand as the first horse does, and one of them is a zebra.",
    ),
    "accuracy": Widget(
        accuracy_data,
        _draw_accuracy,
        title="What labels and examples are worth",
        label="interactive-accuracy",
        heights=(42.3, 38.9),
        caption="Accuracy against the number of labels: means of three seeds, bars "
        "from the lowest to the highest.",
        alt="Accuracy of linear probes on five representations of the animals against "
        "the number of labels. NT-Xent is highest at 10 labels, and the ImageNet "
        "network from 50 on; then come masked pretraining and raw pixels. From 50 "
        "labels on the untrained network is lowest.",
    ),
}
