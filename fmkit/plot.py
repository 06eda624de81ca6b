"""Figures from plain numbers, in one style; each function returns its Axes.

Colours are those of Okabe and Ito, told apart with any colour vision.
"""

import io
from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

from fmkit._check import require

COLOURS = {
    "pixels": "#7f7f7f",
    "untrained": "#e69f00",
    "scratch": "#000000",
    "reconstruction": "#0072b2",
    "simclr": "#d55e00",
    "simclr-head": "#cc79a7",
    "imagenet": "#009e73",
    "SGD": "#56b4e9",
    "Adam": "#0072b2",
    "probe": "#0072b2",
    "finetune": "#d55e00",
    "lp-ft": "#cc79a7",
}
FREE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "osD^vP*X"
STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.prop_cycle": plt.cycler(color=FREE),  # what a series without a name gets
    "grid.alpha": 0.3,
    "legend.frameon": False,
}
# A point's place on the x axis, its mean, and the two ends of its interval
Point = tuple[int | float, int | float, int | float, int | float]


def use_style() -> None:
    """Give this process's figures the look of the book."""
    plt.rcParams.update(STYLE)


def images(
    rows: Mapping[str, UInt8[Tensor, "n c H W"]], *, height: float = 0.8
) -> Axes:
    """Rows of pictures with the name of each to its left; `height` in inches a row."""
    longest = max(len(images) for images in rows.values())
    _, axes = plt.subplots(
        len(rows),
        longest,
        figsize=(height * longest + 1.2, height * len(rows)),
        squeeze=False,
    )
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for ax in line:
            ax.set_axis_off()
        for ax, image in zip(line, images, strict=False):
            channels_last = image.permute(1, 2, 0).cpu().numpy()
            grey = channels_last.shape[2] == 1
            ax.imshow(
                channels_last[..., 0] if grey else channels_last,
                cmap="gray" if grey else None,
                vmin=0,
                vmax=255,
                interpolation="nearest",
            )
        line[0].text(
            -0.15, 0.5, name, ha="right", va="center", transform=line[0].transAxes
        )
    return axes[0, 0]


def representations(
    images: UInt8[Tensor, "n c H W"], phi_x: Float[Tensor, "n m"]
) -> Axes:
    """Each picture above the numbers that represent it, all on one scale."""
    _, axes = plt.subplots(
        2,
        len(images),
        figsize=(2 * len(images), 2.6),
        height_ratios=(1.3, 1),
        sharey="row",
        squeeze=False,
    )
    for above, below, image, numbers in zip(*axes, images, phi_x, strict=True):
        above.imshow(image[0].cpu().numpy(), cmap="gray", vmin=0, vmax=255)
        above.set_axis_off()
        below.bar(range(len(numbers)), numbers.cpu().numpy(), width=1)
        below.set_xlabel("number")
    axes[1, 0].set_ylabel("$\\phi(x)$")
    return axes[0, 0]


def curves(
    series: Mapping[str, Sequence[Point]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    chance: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A line with error bars for each series, on a logarithmic x axis.

    Points are (x, mean, low, high); what their interval is of belongs in the caption.
    """
    ax = ax or plt.subplots(figsize=(6.4, 4))[1]
    for i, (name, points) in enumerate(series.items()):
        require(len(points) > 0, name, "have at least 1 point", points)
        x, mean, low, high = np.array(points).T
        ax.errorbar(
            x,
            mean,
            # A bootstrap's interval of few values may miss their mean by a rounding
            yerr=np.maximum([mean - low, high - mean], 0),
            label=name,
            color=COLOURS.get(name, f"C{i}"),
            marker=MARKERS[i % len(MARKERS)],
            capsize=3,
        )
    if chance is not None:
        ax.axhline(chance, color="black", linestyle=":", linewidth=1, label="chance")
    ax.set(xscale="log", xlabel=xlabel, ylabel=ylabel, title=title)
    ticks = _apart({point[0] for points in series.values() for point in points})
    ax.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    ax.minorticks_off()
    ax.legend()
    return ax


def _apart(ticks: set, part: float = 0.12) -> list:
    """Those at least that part of a logarithmic axis apart, for labels one can read."""
    smallest, *others = sorted(ticks)
    kept = [smallest]
    for tick in others:
        if tick >= kept[-1] * (max(others) / smallest) ** part:
            kept.append(tick)
    return kept


def losses(
    histories: Mapping[str, Iterable[float]],
    *,
    ylabel: str,
    smooth: int = 10,
    ax: Axes | None = None,
) -> Axes:
    """The loss against the step for each run: every step faint, its running mean bold.

    `smooth` is the number of steps in the mean.
    """
    ax = ax or plt.subplots(figsize=(6.4, 3.6))[1]
    for i, (name, history) in enumerate(histories.items()):
        y, colour = np.array(list(history)), COLOURS.get(name, f"C{i}")
        width = min(smooth, len(y))
        mean = np.convolve(y, np.ones(width) / width, mode="valid")
        ax.plot(y, color=colour, alpha=0.25, linewidth=1)
        ax.plot(np.arange(width - 1, len(y)), mean, color=colour, label=name)
    ax.set(xlabel="step", ylabel=ylabel)
    ax.legend()
    return ax


def intervals(
    rows: Mapping[str, tuple[float, float, float]],
    *,
    xlabel: str,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """A dot and its interval for each row: (mean, low, high), the first row on top."""
    ax = ax or plt.subplots(figsize=(6.4, 0.4 * len(rows) + 1))[1]
    mean, low, high = np.array([*rows.values()]).T
    ends = np.maximum([mean - low, high - mean], 0)
    ax.errorbar(mean, range(len(rows)), xerr=ends, fmt="o", capsize=3)
    ax.set_yticks(range(len(rows)), [*rows])
    ax.set(xlabel=xlabel, title=title, ylim=(len(rows) - 0.5, -0.5))
    return ax


def moving_map(
    frames: Mapping[str, Float[Tensor, "n 2"]],
    groups: Sequence[str],
    *,
    seconds: float = 0.8,
) -> bytes:
    """An animated GIF: a point for each example, coloured by its group, frame by frame.

    It plays without a kernel or a script. `frames` maps a title to where points are
    then; `seconds` is for each, and the last stays for three times as long.
    """
    names = list(dict.fromkeys(groups))
    both = np.concatenate([points.cpu().numpy() for points in frames.values()])
    (left, bottom), (right, top) = both.min(axis=0), both.max(axis=0)
    figure, ax = plt.subplots(figsize=(4.8, 3.6), dpi=80)
    pictures = []
    for title, points in frames.items():
        ax.clear()
        for i, name in enumerate(names):
            x, y = points.cpu().numpy()[[group == name for group in groups]].T
            ax.scatter(x, y, s=9, color=f"C{i}", marker=MARKERS[i], label=name)
        ax.set(
            xlim=(left, right), ylim=(bottom, top), title=title, xticks=[], yticks=[]
        )
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        figure.canvas.draw()
        pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
        pictures.append(Image.fromarray(pixels).quantize(16))
    plt.close(figure)
    shown = [int(1000 * seconds)] * (len(pictures) - 1) + [int(3000 * seconds)]
    file = io.BytesIO()
    options = {"save_all": True, "append_images": pictures[1:], "loop": 0}
    pictures[0].save(file, "gif", duration=shown, optimize=True, **options)
    return file.getvalue()
