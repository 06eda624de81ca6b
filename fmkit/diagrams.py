"""Draw diagrams: the two stages, a last layer replaced, views, a Transformer."""

from collections.abc import Sequence
from itertools import combinations_with_replacement

import matplotlib.pyplot as plt
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle
from torch import Tensor

from fmkit.plot import plain


def two_stages() -> Axes:
    """Draw the two stages of a foundation model (14.1): pretraining, then adaptation.

    In the notes: two stages.
    """
    ax = plt.subplots(figsize=(8, 3.2))[1]
    ax.set(xlim=(0, 16), ylim=(0, 6.4))
    ax.set_axis_off()

    def box(x: float, y: float, text: str, colour: str) -> None:
        patch = FancyBboxPatch(
            (x, y), 3.4, 1.5, boxstyle="round,pad=0.1", fc=colour, ec="black"
        )
        ax.add_patch(patch)
        ax.text(x + 1.7, y + 0.75, text, ha="center", va="center", fontsize=9)

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "black"})

    data, model, task = "#dceaf5", "#d5efe5", "#fbe6d0"
    box(0.2, 4.2, "unlabelled data\n$x^{(1)}, \\dots, x^{(n)}$", data)
    box(6.0, 4.2, "pretraining\nminimize $L_{pre}(\\theta)$", data)
    box(11.8, 4.2, "pretrained model\n$\\phi_{\\hat\\theta}$", model)
    box(0.2, 0.6, "labelled task\n$n_{task}$ pairs $(x, y)$", task)
    box(6.0, 0.6, "adaptation\nprobe, finetune, prompt", task)
    box(11.8, 0.6, "prediction\n$w^\\top \\phi(x)$", task)
    for y in (4.95, 1.35):
        arrow((3.8, y), (5.85, y))
        arrow((9.6, y), (11.65, y))
    arrow((12.6, 4.05), (9.3, 2.3))  # theta_hat enters the adaptation
    ax.text(11.2, 2.75, "$\\hat\\theta$", fontsize=11)
    above = {6.1: "once, on a large unlabelled data set"}
    for y, text in (above | {2.5: "for each task, from few labelled examples"}).items():
        ax.text(0.1, y, text, fontsize=9, style="italic")
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
        (-0.4, 2.6), T + 0.8, 1.0, boxstyle="round,pad=0.1", fc="#d5efe5", ec="black"
    )
    ax.add_patch(box)
    middle = {"ha": "center", "va": "center"}
    for s, t in combinations_with_replacement(range(T + 1), 2):
        ax.plot([s, t], [2.55, 3.7], color="#8fbfae", linewidth=1)  # u_{t+1} sees x_s
    label = {"facecolor": "#d5efe5", "edgecolor": "none", "pad": 2}
    name = "Transformer $f_\\theta$"
    ax.text(T / 2, 3.1, name, fontsize=11, bbox=label, **middle)
    arrow = {"arrowstyle": "-|>", "color": "black"}
    shown = ["⊥", *map(plain, words)]
    for t, word in enumerate(shown):
        ax.text(t, 0.3, word, fontsize=10, style="italic", **middle)
        ax.text(t, 0.95, f"$x_{{{t}}}$", fontsize=10, **middle)
        ax.annotate("", (t, 1.55), (t, 1.15), arrowprops=arrow)
        ax.text(t, 1.8, f"$e_{{x_{{{t}}}}}$", fontsize=11, **middle)
        ax.annotate("", (t, 2.55), (t, 2.0), arrowprops=arrow)
        ax.annotate("", (t, 4.35), (t, 3.75), arrowprops=arrow)
        ax.text(t, 4.6, f"$u_{{{t + 1}}}$", fontsize=11, **middle)
        ax.annotate("", (t, 5.25), (t, 4.85), arrowprops=arrow)
        ax.text(t, 5.55, f"$p(x_{{{t + 1}}} \\mid \\cdot)$", fontsize=10, **middle)
        after = shown[t + 1] if t < T else "?"
        ax.text(t, 6.1, after, fontsize=10, style="italic", **middle)
    return ax


def last_layer() -> Axes:
    """Draw a network U phi(x) and what becomes of it: U is replaced by a new w.

    For a convolutional network, with shapes: phi(x) is the mean of the last feature map
    over its places. The old U is crossed out.

    In the notes: supervised pretraining, last layer.
    """
    ax = plt.subplots(figsize=(8, 3.4))[1]
    ax.set(xlim=(-0.2, 16.3), ylim=(0, 6.8))
    ax.set_axis_off()
    data, model, task = "#dceaf5", "#d5efe5", "#fbe6d0"
    middle = {"ha": "center", "va": "center", "fontsize": 9}
    boxes = [
        (0.1, 2.6, "image $x$\n$c \\times H \\times W$", data),
        (3.1, 2.6, "convolutions\nof all stages", model),
        (6.1, 2.6, "feature map\n$m \\times H' \\times W'$", model),
        (9.1, 2.6, "$\\phi_{\\hat\\theta}(x)$\n$m$ features", model),
        (12.9, 4.7, "$U$: a row of $m$ for\neach old class", data),
        (12.9, 0.5, "$w$: a row of $m$ for\neach new class", task),
    ]
    for x, y, text, colour in boxes:
        width = 3.0 if x > 12 else 2.3
        box = FancyBboxPatch(
            (x, y), width, 1.5, boxstyle="round,pad=0.1", fc=colour, ec="black"
        )
        ax.add_patch(box)
        ax.text(x + width / 2, y + 0.75, text, **middle)
    ends = [((x, 3.35), (x + 0.5, 3.35)) for x in (2.5, 5.5, 8.5)]
    ends += [((11.5, 3.7), (12.75, 5.3)), ((11.5, 3.0), (12.75, 1.4))]
    for start, end in ends:
        ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "black"})
    for rise in ([4.5, 6.4], [6.4, 4.5]):
        ax.plot([12.7, 16.1], rise, color="#d55e00", linewidth=2.5)
    ax.text(8.75, 4.7, "mean over\nplaces", **middle)
    ax.text(11.0, 5.9, "pretraining,\nthen thrown away", style="italic", **middle)
    ax.text(11.0, 0.8, "adaptation", style="italic", **middle)
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
    ax = plt.subplots(figsize=(9, 9 * height / 18))[1]
    ax.set(xlim=(0, 18), ylim=(-1, height - 1))
    ax.set_axis_off()
    middle = {"ha": "center", "va": "center"}
    line = {"arrowstyle": "-|>", "color": "black", "linewidth": 0.8}

    def image(pixels: UInt8[Tensor, "c H W"], left: float, y: float) -> None:
        shown = pixels.permute(1, 2, 0).cpu().numpy()
        shown = shown[..., 0] if shown.shape[2] == 1 else shown
        extent = (left, left + 0.9, y - 0.45, y + 0.45)
        ax.imshow(shown, cmap="gray", vmin=0, vmax=255, extent=extent, zorder=2)

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        ax.annotate("", end, start, arrowprops=line)

    def box(left: float, text: str, colour: str, style: str = "-") -> None:
        look = {"boxstyle": "round,pad=0.1", "fc": colour, "ec": "black", "ls": style}
        ax.add_patch(FancyBboxPatch((left, B - 1.5), 1.7, 2, **look))
        ax.text(left + 0.85, B - 0.5, text, fontsize=9, **middle)

    for i in range(B):
        y, above, below = 2 * (B - i) - 1.5, 2.0 * B - i - 1, float(B - i - 1)
        image(x[i], 0.6, y)
        ax.text(0.3, y, f"$x^{{({i + 1})}}$", fontsize=9, **middle)
        for views, mark, place in ((x_hat, "hat", above), (x_tilde, "tilde", below)):
            image(views[i], 4.0, place)
            text = f"$\\{mark}{{x}}^{{({i + 1})}}$"
            ax.text(5.2, place, text, fontsize=9, **middle)
            arrow((1.6, y), (3.9, place))
    box(6.3, "encoder\n$\\phi_\\theta$", "#dceaf5")
    box(9.0, "head $g$\n(NT-Xent)", "#fbe6d0", "--")
    for start, end in ((5.6, 6.1), (8.2, 8.8), (10.9, 11.4)):
        arrow((start, B - 0.5), (end, B - 0.5))
    ax.text(11.75, B - 0.5, "$z$", fontsize=12, **middle)
    arrow((12.1, B - 0.5), (12.7, B - 0.5))
    side = 3.4 / B  # of a square of the table
    for i in range(B):
        y = B - 0.5 + 1.7 - (i + 0.5) * side
        ax.text(13.2, y, f"$\\hat{{z}}^{{({i + 1})}}$", fontsize=8, **middle)
        left = 13.6 + i * side
        name = f"$\\tilde{{z}}^{{({i + 1})}}$"
        ax.text(left + side / 2, B + 1.5, name, fontsize=8, **middle)
        for j in range(B):
            colour = "#009e73" if i == j else "#e8e8e8"
            corner = (13.6 + j * side, y - side / 2)
            ax.add_patch(Rectangle(corner, side, side, fc=colour, ec="white"))
    text = "loss: in each row, pick\nthe positive pair (green)"
    ax.text(15.3, B - 2.7, text, fontsize=9, **middle)
    text = f"the augmented batch: 2B = {2 * B} views"
    ax.text(4.5, -0.75, text, fontsize=9, **middle)
    return ax
