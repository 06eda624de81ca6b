"""Draw diagrams of what a chapter explains: stages, networks, data, caches, a circuit.

A diagram is at most 7.2 inches wide, so that its text is as large on a page as it says.
Blue is pretraining, green is a model, orange is the task.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from textwrap import shorten

import matplotlib.pyplot as plt
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle
from torch import Tensor

from fmkit._check import require
from fmkit.plot import plain

DATA, MODEL, TASK, TEST = "#dceaf5", "#d5efe5", "#fbe6d0", "#eeeeee"
CROSS = "#d55e00"
MIDDLE = {"ha": "center", "va": "center"}
TEXT = 9.5  # points
ADAPTS = "adaptation; cross-validation\namong these labels chooses λ"
Point = tuple[float, float]


def _canvas(width: float, height: float) -> Axes:
    """Return empty axes whose coordinates are inches from the lower left corner."""
    ax = plt.subplots(figsize=(width, height))[1]
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.set_axis_off()
    return ax


def _box(
    ax: Axes, corner: Point, size: Point, text: str, colour: str, *, line: str = "-"
) -> None:
    """Draw a box with a text in its middle; `corner` is the lower left one."""
    look = {"boxstyle": "round,pad=0,rounding_size=0.06", "ec": "black", "ls": line}
    ax.add_patch(FancyBboxPatch(corner, *size, fc=colour, **look))
    middle = corner[0] + size[0] / 2, corner[1] + size[1] / 2
    ax.text(*middle, text, fontsize=TEXT, **MIDDLE)


def _arrow(ax: Axes, start: Point, end: Point) -> None:
    """Draw an arrow."""
    look = {"arrowstyle": "-|>", "color": "black", "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", end, start, arrowprops=look)


def _image(ax: Axes, pixels: Tensor, corner: Point, side: float) -> None:
    """Draw an image, channels first, with values up to 255 or up to 1."""
    shown = pixels.permute(1, 2, 0).cpu().numpy()
    shown = shown[..., 0] if shown.shape[2] == 1 else shown
    most = 1 if pixels.is_floating_point() else 255
    extent = (corner[0], corner[0] + side, corner[1], corner[1] + side)
    ax.imshow(shown, cmap="gray", vmin=0, vmax=most, extent=extent, zorder=2)


def two_stages() -> Axes:
    """Draw the two stages of a foundation model (14.1): pretraining, then adaptation.

    In the notes: two stages.
    """
    ax = _canvas(7.2, 2.9)
    size = 1.75, 0.7
    left, middle, right = 0.05, 2.73, 5.4
    _box(ax, (left, 1.85), size, "unlabelled data\n$x^{(1)}, \\dots, x^{(n)}$", DATA)
    text = "pretraining\nminimize $L_{pre}(\\theta)$"
    _box(ax, (middle, 1.85), size, text, DATA)
    _box(ax, (right, 1.85), size, "pretrained model\n$\\phi_{\\hat\\theta}$", MODEL)
    _box(ax, (left, 0.2), size, "labelled task\n$n_{task}$ pairs $(x, y)$", TASK)
    _box(ax, (middle, 0.2), size, "adaptation\nprobe, finetune, prompt", TASK)
    _box(ax, (right, 0.2), size, "prediction\n$w^\\top \\phi(x)$", TASK)
    for y in (2.2, 0.55):
        _arrow(ax, (left + 1.8, y), (middle - 0.05, y))
        _arrow(ax, (middle + 1.8, y), (right - 0.05, y))
    _arrow(ax, (right + 0.5, 1.8), (middle + 1.4, 0.95))  # theta_hat is adapted
    ax.text(5.2, 1.15, "$\\hat\\theta$", fontsize=11)
    above = {2.68: "once, on a large unlabelled data set"}
    for y, text in (
        above | {1.03: "for each task, from few labelled examples"}
    ).items():
        ax.text(0, y, text, fontsize=TEXT, style="italic")
    return ax


def masked_pretraining(
    x: Float[Tensor, "c H W"],
    x_hidden: Float[Tensor, "c H W"],
    x_rebuilt: Float[Tensor, "c H W"],
) -> Axes:
    """Draw masked pretraining (14.1): an image, a part of it, phi, a decoder, the loss.

    The decoder is dashed, because only phi is kept. Pixels are numbers from 0 to 1.

    In the notes: self-supervised loss.
    """
    ax = _canvas(7.2, 2.2)
    y, side = 0.35, 0.9
    for pixels, left, text in (
        (x, 0.05, "image $x$"),
        (x_hidden, 1.5, "squares hidden"),
        (x_rebuilt, 6.2, "prediction"),
    ):
        _image(ax, pixels, (left, y), side)
        ax.text(left + side / 2, 0.15, text, fontsize=TEXT, **MIDDLE)
    _box(ax, (2.95, y + 0.1), (0.95, 0.7), "encoder\n$\\phi_\\theta$", MODEL)
    _box(ax, (4.95, y + 0.1), (0.9, 0.7), "a decoder", DATA, line="--")
    ax.text(4.42, y + 0.45, "$m$\nfeatures", fontsize=TEXT, **MIDDLE)
    ends = ((1.0, 1.45), (2.45, 2.9), (3.93, 4.1), (4.75, 4.92), (5.88, 6.15))
    for start, end in ends:
        _arrow(ax, (start, y + 0.45), (end, y + 0.45))
    text = "loss: squared error of each pixel"
    _box(ax, (2.35, 1.65), (2.6, 0.45), text, TEST)
    for left, end in ((0.5, 2.3), (6.65, 5.0)):
        ax.plot([left, left], [y + side + 0.05, 1.87], color="black", linewidth=1)
        _arrow(ax, (left, 1.87), (end, 1.87))
    ax.text(3.42, 0.15, "kept", fontsize=TEXT, style="italic", **MIDDLE)
    ax.text(5.4, 0.15, "thrown away", fontsize=TEXT, style="italic", **MIDDLE)
    return ax


def data_split(train: int, labelled: Sequence[int], test: int) -> Axes:
    """Draw which images pretraining, a task and its test use.

    `train` and `test` are numbers of images, `labelled` the numbers of labels that a
    task gets; labels are of train images.

    In the notes: pretraining data, downstream task.
    """
    rows = [
        (f"{train:,} train images, without labels", "pretraining: θ", DATA),
        (f"{_from_to(labelled)} of them, with labels", ADAPTS, TASK),
        (f"{test:,} test images, with labels", "accuracy of each adaptation", TEST),
    ]
    return _split(rows, parts={1})


def class_split(
    old: Sequence[str],
    new: Sequence[str],
    sizes: Mapping[str, int],
    labelled: Sequence[int],
) -> Axes:
    """Draw which images pretraining with labels and a task of new classes use.

    `old` and `new` are classes. `sizes` are numbers of images: ``old train``, ``old
    test``, ``new train`` and ``new test``. `labelled` are the numbers of labels that
    the task gets.
    """
    of_old, of_new = (shorten(", ".join(x), 38, placeholder=" …") for x in (old, new))
    n = {name: f"{size:,}" for name, size in sizes.items()}
    rows = [
        (
            f"{n['old train']} train images of old classes:\n{of_old}",
            "pretraining with all labels: θ and U",
            DATA,
        ),
        (f"{n['old test']} test images of old classes", "accuracy of U", TEST),
        (f"{n['new train']} train images of new classes:\n{of_new}", "", TASK),
        (f"{_from_to(labelled)} of them, with labels", ADAPTS, TASK),
        (f"{n['new test']} test images of new classes", "accuracy on the task", TEST),
    ]
    return _split(rows, parts={3})


def _from_to(labelled: Sequence[int]) -> str:
    """Write the numbers of labels of a task."""
    ends = sorted({min(labelled), max(labelled)})
    return " to ".join(f"{n:,}" for n in ends)


def _split(rows: Sequence[tuple[str, str, str]], *, parts: set[int]) -> Axes:
    """Draw a row for each (data, use, colour); rows of `parts` are of the row above."""
    step = 0.68
    ax = _canvas(7.2, step * len(rows))
    for i, (data, use, colour) in enumerate(rows):
        y = step * (len(rows) - 1 - i) + 0.08
        left = 0.6 if i in parts else 0.05
        _box(ax, (left, y), (3.75 - left, 0.52), plain(data), colour)
        if use:
            _box(ax, (4.5, y), (2.65, 0.52), use, colour)
            _arrow(ax, (3.8, y + 0.26), (4.45, y + 0.26))
        if i in parts:
            ax.plot([0.3, 0.3], [y + step, y + 0.26], color="black", linewidth=1)
            _arrow(ax, (0.3, y + 0.26), (left - 0.03, y + 0.26))
    return ax


def transformer(words: Sequence[str]) -> Axes:
    """Draw the Transformer of 14.3: for each word a vector goes in and logits come out.

    `words` are x_1 to x_T; the last logits predict the word that follows them. A line
    in the box joins each output with each input on which it may depend.

    In the notes: figure 14.1.
    """
    T = len(words)
    ax = plt.subplots(figsize=(1.35 * (T + 1) + 0.6, 3.4))[1]
    ax.set(xlim=(-0.75, T + 0.75), ylim=(0, 6.3))
    ax.set_axis_off()
    box = FancyBboxPatch(
        (-0.4, 2.6), T + 0.8, 1.0, boxstyle="round,pad=0.1", fc=MODEL, ec="black"
    )
    ax.add_patch(box)
    for s, t in combinations_with_replacement(range(T + 1), 2):
        ax.plot([s, t], [2.55, 3.7], color="#8fbfae", linewidth=1)  # u_{t+1} sees x_s
    label = {"facecolor": MODEL, "edgecolor": "none", "pad": 2}
    name = "Transformer $f_\\theta$"
    ax.text(T / 2, 3.1, name, fontsize=11, bbox=label, **MIDDLE)
    arrow = {"arrowstyle": "-|>", "color": "black"}
    shown = ["⊥", *map(plain, words)]
    for t, word in enumerate(shown):
        ax.text(t, 0.3, word, fontsize=10, style="italic", **MIDDLE)
        ax.text(t, 0.95, f"$x_{{{t}}}$", fontsize=10, **MIDDLE)
        ax.annotate("", (t, 1.55), (t, 1.15), arrowprops=arrow)
        ax.text(t, 1.8, f"$e_{{x_{{{t}}}}}$", fontsize=11, **MIDDLE)
        ax.annotate("", (t, 2.55), (t, 2.0), arrowprops=arrow)
        ax.annotate("", (t, 4.35), (t, 3.75), arrowprops=arrow)
        ax.text(t, 4.6, f"$u_{{{t + 1}}}$", fontsize=11, **MIDDLE)
        ax.annotate("", (t, 5.25), (t, 4.85), arrowprops=arrow)
        ax.text(t, 5.55, f"$p(x_{{{t + 1}}} \\mid \\cdot)$", fontsize=10, **MIDDLE)
        after = shown[t + 1] if t < T else "?"
        ax.text(t, 6.1, after, fontsize=10, style="italic", **MIDDLE)
    return ax


def last_layer() -> Axes:
    """Draw a network U phi(x) and what becomes of it: U is replaced by a new w.

    For a convolutional network, with shapes: phi(x) is the mean of the last feature map
    over its places. The old U is crossed out.

    In the notes: supervised pretraining, last layer.
    """
    ax = _canvas(7.2, 2.9)
    size = 1.0, 0.7
    for left, text, colour in (
        (0.05, "image $x$\n$c \\times H \\times W$", DATA),
        (1.3, "convolutions\nof all stages", MODEL),
        (2.55, "feature map\n$m \\times H' \\times W'$", MODEL),
        (3.9, "$\\phi_{\\hat\\theta}(x)$\n$m$ features", MODEL),
    ):
        _box(ax, (left, 1.1), size, text, colour)
    wide = 1.5, 0.7
    _box(ax, (5.65, 2.05), wide, "$U$: a row of $m$ for\neach old class", DATA)
    _box(ax, (5.65, 0.15), wide, "$w$: a row of $m$ for\neach new class", TASK)
    for start, end in (((1.08, 1.45), (1.27, 1.45)), ((2.33, 1.45), (2.52, 1.45))):
        _arrow(ax, start, end)
    _arrow(ax, (3.58, 1.45), (3.87, 1.45))
    _arrow(ax, (4.93, 1.6), (5.6, 2.3))
    _arrow(ax, (4.93, 1.3), (5.6, 0.6))
    for rise in ([1.97, 2.83], [2.83, 1.97]):
        ax.plot([5.55, 7.2], rise, color=CROSS, linewidth=2.5)
    look = {"fontsize": TEXT, **MIDDLE}
    ax.text(3.72, 2.1, "mean over\nplaces", **look)
    ax.text(4.7, 2.6, "pretraining,\nthen thrown away", style="italic", **look)
    ax.text(4.85, 0.55, "adaptation", style="italic", **look)
    return ax


def two_readings() -> Axes:
    """Draw two ways to read an answer from a language model without an example.

    The most probable of all words, or the most probable of some given answers.

    In the notes: zero-shot adaptation.
    """
    ax = _canvas(7.2, 2.5)
    text = "prompt $x_{task}$\n“The capital of\nFrance is”"
    _box(ax, (0.05, 0.85), (1.35, 0.85), text, TASK)
    _box(ax, (1.75, 0.95), (1.0, 0.65), "pretrained\nmodel $\\hat\\theta$", MODEL)
    text = "$p(x_{T+1} \\mid x_1, \\dots, x_T)$\nof all $V$ words"
    _box(ax, (3.1, 1.6), (1.8, 0.7), text, MODEL)
    text = "$\\log p(y \\mid x)$ of each\ngiven answer: the sum\nover its tokens"
    _box(ax, (3.1, 0.1), (1.8, 0.85), text, MODEL)
    text = "the most probable\nword of all"
    _box(ax, (5.4, 1.6), (1.75, 0.7), text, TASK)
    text = "the most probable\nof Paris, Lyon, …"
    _box(ax, (5.4, 0.17), (1.75, 0.7), text, TASK)
    for start, end in (
        ((1.43, 1.28), (1.72, 1.28)),
        ((2.78, 1.38), (3.07, 1.9)),
        ((2.78, 1.18), (3.07, 0.55)),
        ((4.93, 1.95), (5.37, 1.95)),
        ((4.93, 0.52), (5.37, 0.52)),
    ):
        _arrow(ax, start, end)
    look = {"fontsize": TEXT, "style": "italic", **MIDDLE}
    ax.text(6.27, 2.42, "greedy decoding", **look)
    ax.text(6.27, 1.02, "multiple choice", **look)
    return ax


def forked_caches(queries: Sequence[str], answers: Sequence[str]) -> Axes:
    """Draw how the answers to prompts with the same examples are scored.

    Keys and values of the examples are computed once and copied for each query; those
    of a query are copied for each of its answers.
    """
    Q, A = len(queries), len(answers)
    require(Q > 0 and A > 0, "queries and answers", "be some each", (Q, A))
    row = 0.42
    height = row * Q * A
    ax = _canvas(7.2, height + 0.75)
    centre = height / 2 + 0.05
    text = "$k$ examples,\nthe same for all\nprompts"
    _box(ax, (0.05, centre - 0.45), (1.5, 0.9), text, TASK)
    for i, query in enumerate(queries):
        y = height - row * A * (i + 0.5) + 0.05
        _box(ax, (2.4, y - 0.19), (2.1, 0.38), plain(query), MODEL)
        _arrow(ax, (1.58, centre), (2.37, y))
        for j, answer in enumerate(answers):
            z = height - row * (A * i + j + 0.5) + 0.05
            _box(ax, (5.35, z - 0.15), (1.8, 0.3), plain(answer), DATA)
            _arrow(ax, (4.53, y), (5.32, z))
    look = {"fontsize": TEXT, "style": "italic", **MIDDLE}
    for x, text in (
        (0.8, "computed once"),
        (3.45, "once for each prompt,\nfrom a copy of the cache"),
        (6.25, "once for each answer,\nfrom a copy of the cache"),
    ):
        ax.text(x, height + 0.45, text, **look)
    return ax


def induction_circuit(words: Sequence[str]) -> Axes:
    """Draw how two heads in two layers continue A B … A with B.

    `words` begin with A and B and end with A. The first head attends from B to the A
    before it, so that the vector of B holds which token came before. The second head
    attends from the last A to B, and its output makes B the prediction.
    """
    rule = "begin with two words and end with the first of them"
    require(len(words) > 2 and words[0] == words[-1], "words", rule, [*words])
    ax = _canvas(7.2, 3.0)
    step = 5.6 / (len(words) - 1)
    places = [1.25 + step * i for i in range(len(words))]
    low, middle, high = 0.55, 1.45, 2.35
    for y, text in ((1.0, "a layer"), (1.9, "a later\nlayer")):
        ax.text(0.4, y, text, fontsize=TEXT, style="italic", **MIDDLE)
    for x, word in zip(places, words, strict=True):
        ax.text(x, 0.2, plain(word), fontsize=11, style="italic", **MIDDLE)
        ax.plot([x, x], [low, high], color="#c0c0c0", linewidth=1, zorder=0)
        ax.plot([x] * 3, [low, middle, high], "o", color="#7f7f7f", markersize=6)
    a, b = plain(words[0]), plain(words[1])
    look = {"arrowstyle": "-|>", "linewidth": 2, "shrinkA": 4, "shrinkB": 4}
    first, second = look | {"color": "#0072b2"}, look | {"color": "#d55e00"}
    ax.annotate("", (places[1], middle), (places[0], low), arrowprops=first)
    ax.annotate("", (places[-1], high), (places[1], middle), arrowprops=second)
    last = look | {"color": "black"}
    ax.annotate("", (places[-1], 2.75), (places[-1], high), arrowprops=last)
    ax.text(places[-1], 2.85, b, fontsize=11, style="italic", **MIDDLE)
    note = {"fontsize": TEXT, "va": "center"}
    note["bbox"] = {"fc": "white", "ec": "none", "pad": 1.5}
    text = f"previous-token head: tells {b}\nthat it comes after {a}"
    ax.text(places[1] + 0.12, 0.98, text, color="#0072b2", **note)
    text = f"induction head: finds what\ncame after {a}, and copies it"
    ax.text(places[3] + 0.1, 1.4, text, color="#d55e00", **note)
    return ax


def second_networks() -> Axes:
    """Draw three kinds of pretraining with one network and a second one each.

    The second network is dashed, because it is thrown away.
    """
    ax = _canvas(7.2, 2.6)
    _box(ax, (2.55, 0.9), (1.1, 0.8), "encoder $\\phi_\\theta$,\nthe same", MODEL)
    rows = (
        ("image, some squares\nhidden or none", "a decoder", "the image"),
        ("image of\nanother class", "classifier $U$", "its class"),
        (
            "two views\nof an image",
            "projection head\n(or none)",
            "which views\nbelong together",
        ),
    )
    for i, (given, second, target) in enumerate(rows):
        y = 1.9 - 0.87 * i
        _box(ax, (0.05, y), (1.75, 0.6), given, DATA)
        _box(ax, (4.35, y), (1.2, 0.6), second, DATA, line="--")
        ax.text(6.5, y + 0.3, target, fontsize=TEXT, **MIDDLE)
        _arrow(ax, (1.83, y + 0.3), (2.5, 1.3 + 0.2 * (1 - i)))
        _arrow(ax, (3.68, 1.3 + 0.2 * (1 - i)), (4.32, y + 0.3))
        _arrow(ax, (5.58, y + 0.3), (5.85, y + 0.3))
    return ax


def trained_parts() -> Axes:
    """Draw which parts of a language model each adaptation trains: those in orange.

    In the notes: finetuning.
    """
    ax = _canvas(7.2, 3.0)
    parts = ["embedding", "block 1", "block 2", "last block", "$w$"]
    trains = {
        "probe": {"$w$"},
        "last block": {"$w$", "last block"},
        "LoRA": {"$w$"},
        "all weights, LP-FT": {*parts},
    }
    for i, (way, trained) in enumerate(trains.items()):
        left = 0.1 + 1.82 * i
        ax.text(left + 0.75, 2.85, way, fontsize=TEXT, **MIDDLE)
        for j, part in enumerate(parts):
            y = 0.08 + 0.53 * j
            colour = TASK if part in trained else TEST
            _box(ax, (left, y), (1.5, 0.38), part, colour)
            if way == "LoRA" and "block" in part:
                _box(ax, (left + 1.12, y + 0.05), (0.34, 0.28), "$BA$", TASK)
            if j:
                _arrow(ax, (left + 0.5, y - 0.15), (left + 0.5, y - 0.01))
    return ax


def contrastive_pipeline(
    x: UInt8[Tensor, "B c H W"],
    x_hat: UInt8[Tensor, "B c H W"],
    x_tilde: UInt8[Tensor, "B c H W"],
) -> Axes:
    """Draw contrastive learning (14.2): images, two views of each, phi, g, z, the loss.

    The loss is drawn as its B by B table of similarities, with the positive pairs on
    the diagonal. The head g is dashed, because the loss of the notes has none.

    In the notes: positive pair, SimCLR loss.
    """
    B = len(x)
    height = 2 * B + 0.8
    ax = plt.subplots(figsize=(7.2, 7.2 * height / 18))[1]
    ax.set(xlim=(0, 18), ylim=(-1, height - 1))
    ax.set_axis_off()
    look = {"fontsize": TEXT, **MIDDLE}

    for i in range(B):
        y, above, below = 2 * (B - i) - 1.5, 2.0 * B - i - 1, float(B - i - 1)
        _image(ax, x[i], (0.6, y - 0.45), 0.9)
        ax.text(0.1, y, f"$x^{{({i + 1})}}$", **look)
        for views, mark, place in ((x_hat, "hat", above), (x_tilde, "tilde", below)):
            _image(ax, views[i], (4.0, place - 0.45), 0.9)
            text = f"$\\{mark}{{x}}^{{({i + 1})}}$"
            ax.text(5.4, place, text, **look)
            _arrow(ax, (1.6, y), (3.9, place))
    _box(ax, (6.4, B - 1.5), (1.9, 2.0), "encoder\n$\\phi_\\theta$", MODEL)
    _box(ax, (8.9, B - 1.5), (2.1, 2.0), "head $g$\n(NT-Xent)", DATA, line="--")
    for start, end in ((5.9, 6.3), (8.4, 8.8), (11.1, 11.4), (12.1, 12.4)):
        _arrow(ax, (start, B - 0.5), (end, B - 0.5))
    ax.text(11.75, B - 0.5, "$z$", fontsize=12, **MIDDLE)
    side = 3.4 / B  # of a square of the table
    for i in range(B):
        y = B - 0.5 + 1.7 - (i + 0.5) * side
        ax.text(13.0, y, f"$\\hat{{z}}^{{({i + 1})}}$", **look)
        left = 13.6 + i * side
        name = f"$\\tilde{{z}}^{{({i + 1})}}$"
        ax.text(left + side / 2, B + 1.6, name, **look)
        for j in range(B):
            colour = "#009e73" if i == j else "#e8e8e8"
            corner = (13.6 + j * side, y - side / 2)
            ax.add_patch(Rectangle(corner, side, side, fc=colour, ec="white"))
    text = "loss: in each row, pick\nthe positive pair (green)"
    ax.text(15.3, B - 2.8, text, **look)
    text = f"the augmented batch: 2B = {2 * B} views"
    ax.text(4.5, -0.75, text, **look)
    return ax
