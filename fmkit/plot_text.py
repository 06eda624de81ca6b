"""Figures of texts and of the models that read them; each function returns its Axes."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from fmkit._check import require

SHOWN = {" ": "␣", "\n": "↵", "\t": "→"}  # in place of what one cannot see


def visible(piece: str) -> str:
    """A piece of text as it is shown: spaces and line ends can be seen."""
    return "".join(SHOWN.get(character, character) for character in piece)


def transformer(words: Sequence[str]) -> Axes:
    """The Transformer of 14.3 as a drawing: a vector a word in, logits a word out.

    `words` are x_1 .. x_T; the last thing that comes out is for the word after them.

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
    ax.text(T / 2, 3.1, "Transformer $f_\\theta$", fontsize=11, **middle)
    arrow = {"arrowstyle": "-|>", "color": "black"}
    for t, word in enumerate(["⊥", *words]):
        ax.text(t, 0.3, word, fontsize=10, style="italic", **middle)
        ax.text(t, 0.95, f"$x_{{{t}}}$", fontsize=10, **middle)
        ax.annotate("", (t, 1.55), (t, 1.15), arrowprops=arrow)
        ax.text(t, 1.8, f"$e_{{x_{{{t}}}}}$", fontsize=11, **middle)
        ax.annotate("", (t, 2.55), (t, 2.0), arrowprops=arrow)
        ax.annotate("", (t, 4.35), (t, 3.75), arrowprops=arrow)
        ax.text(t, 4.6, f"$u_{{{t + 1}}}$", fontsize=11, **middle)
        ax.annotate("", (t, 5.25), (t, 4.85), arrowprops=arrow)
        ax.text(t, 5.55, f"$p(x_{{{t + 1}}} \\mid \\cdot)$", fontsize=10, **middle)
        after = words[t] if t < T else "?"
        ax.text(t, 6.1, after, fontsize=10, style="italic", **middle)
    return ax


def influence(panels: dict[str, Float[Tensor, "T S"]]) -> Axes:
    """How strongly each input (columns) moves each output (rows), a panel a model.

    White is exactly 0; all else is shaded by its logarithm.
    """
    _, axes = plt.subplots(
        1, len(panels), figsize=(4 * len(panels), 3.6), squeeze=False
    )
    for ax, (title, size) in zip(axes[0], panels.items(), strict=True):
        values = size.detach().cpu().double().numpy()
        with np.errstate(divide="ignore"):
            shade = np.where(values == 0, np.nan, np.log10(values))
        ax.imshow(shade, cmap="viridis", interpolation="nearest")
        ax.set(title=title, xlabel="input $e_{x_t}$, t", ylabel="output $u_t$, t")
        ax.set_xticks(range(values.shape[1]))
        ax.set_yticks(range(len(values)), range(1, len(values) + 1))
        ax.grid(False)
    return axes[0, 0]


def surprise(
    pieces: Sequence[str], nats: Sequence[float], *, columns: int = 16
) -> Axes:
    """A text, token by token, each shaded by how little it was expected.

    `nats` are -log p of each; white is 0, certain beforehand.
    """
    require(len(pieces) == len(nats), "nats", f"be {len(pieces)} numbers", len(nats))
    rows = -(-len(pieces) // columns)
    ax = plt.subplots(figsize=(10, 0.62 * rows + 0.3))[1]
    shade, most = plt.get_cmap("OrRd"), 10.0
    for i, (piece, size) in enumerate(zip(pieces, nats, strict=True)):
        row, column = divmod(i, columns)
        ax.add_patch(
            plt.Rectangle(
                (column, -row), 0.96, 0.9, color=shade(0.75 * min(size, most) / most)
            )
        )
        middle = {"ha": "center", "va": "center"}
        ax.text(column + 0.48, -row + 0.6, visible(piece), fontsize=8, **middle)
        ax.text(column + 0.48, -row + 0.2, f"{size:.1f}", fontsize=7, **middle)
    ax.set(xlim=(0, columns), ylim=(1 - rows, 1))
    ax.set_axis_off()
    return ax


def next_words(panels: dict[str, Sequence[tuple[str, float]]]) -> Axes:
    """The most probable next tokens after each text, as bars of their probability."""
    most = max(len(bars) for bars in panels.values())
    _, axes = plt.subplots(
        1, len(panels), figsize=(10, 0.3 * most + 1), sharex=True, squeeze=False
    )
    for ax, (title, bars) in zip(axes[0], panels.items(), strict=True):
        ax.barh(range(len(bars)), [p for _, p in bars], color="#0072b2")
        ax.set_yticks(range(len(bars)), [visible(piece) for piece, _ in bars])
        ax.invert_yaxis()
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("probability")
    return axes[0, 0]
