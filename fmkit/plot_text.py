"""Figures of texts and of the models that read them; each function returns its Axes."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from fmkit._check import require

SHOWN = {" ": "␣", "\n": "↵", "\t": "→"}  # in place of what one cannot see


def visible(piece: str) -> str:
    """A piece of text as it is shown: spaces and line ends can be seen."""
    return "".join(SHOWN.get(character, character) for character in piece)


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
