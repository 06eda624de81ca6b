"""Draw texts and how models read them; each function returns its Axes."""

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from fmkit._check import require
from fmkit.plot import KEPT, plain

SHOWN = {chr(i): f"\\x{i:02x}" for i in (*range(32), 127)}  # control characters
SHOWN |= {" ": "␣", "\n": "↵", "\t": "→"}  # in place of other invisible characters


def visible(piece: str) -> str:
    """Replace spaces, line breaks, tabs and control characters by visible ones."""
    return "".join(SHOWN.get(character, character) for character in piece)


def influence(panels: dict[str, Float[Tensor, "T S"]]) -> Axes:
    """Draw how strongly each input (columns) changes each output (rows).

    Each model has a panel. A value that is exactly 0 is white; other values are shaded
    by their logarithms, on the scale of the colour bar.
    """
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(4 * len(panels) + 0.6, 3.4),
        squeeze=False,
        layout="constrained",
    )
    sizes = [x for size in panels.values() for x in size.flatten().tolist() if x]
    span = math.log10(min(sizes)), math.log10(max(sizes))
    for ax, (title, size) in zip(axes[0], panels.items(), strict=True):
        values = size.detach().cpu().double().numpy()
        with np.errstate(divide="ignore"):
            shade = np.where(values == 0, np.nan, np.log10(values))
        options = {"cmap": "viridis", "interpolation": "nearest"}
        drawn = ax.imshow(shade, vmin=span[0], vmax=span[1], **options)
        ax.set_title(plain(title))
        ax.set(xlabel="input $e_{x_s}$, s", ylabel="output $u_t$, t")
        ax.set_xticks(range(values.shape[1]))
        ax.set_yticks(range(len(values)), range(1, len(values) + 1))
        ax.grid(False)
    figure.colorbar(drawn, ax=axes, label="logarithm to base 10")
    return axes[0, 0]


def surprise(
    pieces: Sequence[str], nats: Sequence[float], *, columns: int = 16
) -> Axes:
    """Draw a text token by token, each shaded by its surprise.

    `nats` are -log p of the tokens. A white token has 0 nats: the model was certain of
    it. Raises ``ValueError`` if there is not one number for each token.
    """
    require(len(pieces) == len(nats), "nats", f"be {len(pieces)} numbers", len(nats))
    rows = math.ceil(len(pieces) / columns)
    ax = plt.subplots(figsize=(10, 0.62 * rows + 0.3))[1]
    shade = plt.get_cmap("OrRd")
    darkest = 10.0  # nats
    for i, (piece, size) in enumerate(zip(pieces, nats, strict=True)):
        row, column = divmod(i, columns)
        ax.add_patch(
            plt.Rectangle(
                (column, -row),
                0.96,
                0.9,
                color=shade(0.75 * min(size, darkest) / darkest),
                gid=f"{KEPT}-{i}-shade",
            )
        )
        middle = {"ha": "center", "va": "center"}
        texts = (0.6, plain(visible(piece)), 8), (0.2, f"{size:.1f}", 7)
        for height, text, points in texts:  # black in the dark too, on their shade
            options = {"fontsize": points, "gid": f"{KEPT}-{i}-{points}", **middle}
            ax.text(column + 0.48, -row + height, text, **options)
    ax.set(xlim=(0, columns), ylim=(1 - rows, 1))
    ax.set_axis_off()
    return ax


def next_words(panels: dict[str, Sequence[tuple[str, float]]]) -> Axes:
    """Draw the probabilities of the likeliest next tokens, a panel for each text."""
    longest = max(len(bars) for bars in panels.values())
    _, axes = plt.subplots(
        1, len(panels), figsize=(10, 0.3 * longest + 1), sharex=True, squeeze=False
    )
    for ax, (title, bars) in zip(axes[0], panels.items(), strict=True):
        ax.barh(range(len(bars)), [p for _, p in bars], color="#0072b2")
        ax.set_yticks(range(len(bars)), [plain(visible(piece)) for piece, _ in bars])
        ax.invert_yaxis()
        ax.set_title(plain(title), fontsize=9)
        ax.set_xlabel("probability")
    return axes[0, 0]
