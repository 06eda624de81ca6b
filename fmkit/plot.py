"""Draw figures from plain numbers, in one style; each function returns its Axes.

A series has the colour that its caller gives it, else the next one of FREE. These are
the colours of Okabe and Ito, which people with any colour vision can tell apart.
"""

import contextlib
import io
import itertools
import math
import os
import string
import textwrap
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence, Sized
from functools import cache
from typing import TypeVar

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import font_manager
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image
from torch import Tensor

from fmkit._check import require
from fmkit._tensors import require_finite, require_shape
from fmkit.evaluate import Interval

FREE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "osD^vP*X"
STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,  # inches; a title is not on the axes above
    "figure.constrained_layout.w_pad": 0.08,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.prop_cycle": plt.cycler(color=FREE),  # of a series without a colour
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.hashsalt": "fmkit",  # or two files of one figure would differ
}
KEPT = "kept"
SMOOTHED = 10  # steps in the running mean of a loss
APART = 0.12  # of a logarithmic axis lie between two labelled ticks, at the least
BESIDE = 0.07  # of the axis of sizes lie between the letters of two models, and
WRITTEN = 0.2  # between two sizes in digits, at the least
ASIDE = 0.012  # of it lie between the points of two series for one model
KEY_COLUMNS = 26  # of a legend, for the name of a model
FRAME_SECONDS = 0.8  # of a moving map; its last frame stays three times as long
GIF_COLOURS = 48  # of all frames together
NOTO = {"CJK": "Noto Sans CJK (Debian's package fonts-noto-cjk)"}
NOTO["SYMBOL"] = "Noto Sans Symbols or Noto Emoji"
WARNED: set[str] = set()  # scripts of which this process has warned
Number = int | float
T = TypeVar("T")
Point = tuple[Number, Sequence[Number]]  # the x coordinate; one value or several


def use_style() -> None:
    """Set the style of this book for all later figures of the process.

    If ``FMKIT_FIGURES`` is ``svg``, a notebook then shows figures as SVG also.
    """
    plt.rcParams.update(STYLE)
    if os.environ.get("FMKIT_FIGURES") == "svg":
        Figure._repr_svg_ = svg  # which IPython calls


def svg(figure: Figure) -> str:
    """Return a figure as SVG, on no ground, its images in their own pixels.

    What is drawn on an image is in a group whose id begins with ``kept``: its colours
    were chosen for those of the image.
    """
    file = io.StringIO()
    with contextlib.ExitStack() as restored:
        for ax in figure.axes:
            restored.callback(ax.set_in_layout, ax.get_in_layout())
            for kind in ("active", "original"):  # which drawing moves a little
                place = ax.get_position(original=kind == "original").frozen()
                restored.callback(ax.set_position, place, kind)
        figure.draw_without_rendering()  # now everything has its place
        for ax in figure.axes:
            for image in ax.images:
                restored.callback(image.set_interpolation, image.get_interpolation())
                image.set_interpolation("none")
            for i, artist in enumerate(_on_images(ax)):
                restored.callback(artist.set_gid, artist.get_gid())
                artist.set_gid(f"{KEPT}-{i}")
        restored.enter_context(plt.rc_context({"image.composite_image": False}))
        look = {"format": "svg", "bbox_inches": "tight", "transparent": True}
        figure.savefig(file, **look, metadata={"Date": None})
    return file.getvalue()


def _on_images(ax: Axes) -> list[Artist]:
    """Return the texts and shapes whose middle lies on an image of the axes."""
    boxes = [image.get_window_extent() for image in ax.images]
    found = []
    for artist in [*ax.texts, *ax.lines, *ax.patches, *ax.collections]:
        (left, bottom), (right, top) = artist.get_window_extent().get_points()
        if np.isfinite([left, bottom, right, top]).all():  # else nothing is drawn
            middle = (left + right) / 2, (bottom + top) / 2
            found += [artist] if any(box.contains(*middle) for box in boxes) else []
    return found


def plain(text: str) -> str:
    """Return text of data so that a figure shows it as it is.

    Dollars would start mathematics, so they are escaped. Characters that the font lacks
    would be boxes, so an installed font that has them is added to the fonts of all
    later texts. If there is none, warns once for each script and names a font.
    """
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate has no glyph
    _find_font({c for c in text if ord(c) > 127 and not c.isspace()})
    return text.replace("$", r"\$")


def _find_font(lacking: set[str]) -> None:
    """Add installed fonts to those of later texts until none is `lacking`."""
    for family in plt.rcParams["font.family"]:
        prop = font_manager.FontProperties(family=[family])  # a text is a pattern
        lacking = lacking - _characters(font_manager.findfont(prop))
    if not lacking:
        return
    best, most = "", set()
    for font in sorted(font_manager.fontManager.ttflist, key=lambda font: font.name):
        has = lacking & _characters(font.fname)
        if len(has) > len(most) and not font.name.startswith("Last Resort"):
            best, most = font.name, has
    if most:
        plt.rcParams["font.family"] = [*plt.rcParams["font.family"], best]
        _find_font(lacking - most)
        return
    warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from font")  # said here
    for script in sorted({_script(c) for c in lacking} - WARNED):
        WARNED.add(script)
        example = min(c for c in lacking if _script(c) == script)
        text = f"no installed font has {example!r}, so figures show a box in its place"
        name = NOTO.get(script, f"Noto Sans {script.title()}")
        warnings.warn(f"{text}; {name} has it, for example.", stacklevel=4)


@cache
def _characters(path: str) -> frozenset[str]:
    """Return the characters of a font; none if it cannot be read."""
    try:
        return frozenset(map(chr, font_manager.get_font(path).get_charmap()))
    except (RuntimeError, OSError):  # for example, a font of coloured bitmaps
        return frozenset()


def _script(character: str) -> str:
    """Return the script of a letter by its name in Unicode, or ``SYMBOL``.

    The punctuation of Chinese and Japanese, and letters as wide as theirs, are in fonts
    for these.
    """
    if "\u3000" <= character <= "\u303f" or "\uff00" <= character <= "\uffef":
        return "CJK"
    if unicodedata.category(character)[0] not in "LM":
        return "SYMBOL"
    first = unicodedata.name(character, "SYMBOL").split()[0]
    return "CJK" if first in ("HIRAGANA", "KATAKANA", "HANGUL") else first


def images(
    rows: Mapping[str, UInt8[Tensor, "n c H W"]],
    *,
    height: float = 0.8,
    math: bool = False,
) -> Axes:
    """Draw rows of images, the name of each row to its left.

    `height` is the height of a row in inches. Names are text of data; with `math`, a
    name may have mathematics between dollars. Raises ``ValueError`` if there is no row,
    or no image in any row.
    """
    _require_some("rows", rows, "row")
    longest = max(len(images) for images in rows.values())
    require(longest > 0, "rows", "have at least 1 image", [*rows])
    _, axes = plt.subplots(
        len(rows),
        longest,
        figsize=(height * longest + 1.2, height * len(rows)),
        squeeze=False,
        layout=ConstrainedLayoutEngine(h_pad=0.04, w_pad=0.04),
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
        name = name if math else plain(name)
        line[0].text(
            -0.15, 0.5, name, ha="right", va="center", transform=line[0].transAxes
        )
    return axes[0, 0]


def curves(
    series: Mapping[str, Sequence[Point]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    chance: float | None = None,
    colours: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a line through the means of each series, on a logarithmic x axis.

    Points are (x, values); several values, of draws or seeds, are dots around the mean.
    `colours` are by the names of series. Raises ``ValueError`` if there is no series,
    if one has no point, if a point has no value, and if an x is not above 0.
    """
    _require_some("series", series)
    for name, points in series.items():
        _require_some(name, points, "point")
        for x, values in points:
            require(x > 0, f"an x of {name}", "be above 0 on a logarithmic axis", x)
            _require_some(f"{name} at {x}", values, "value")
    ax = ax or plt.subplots(figsize=(6.4, 4))[1]
    for i, (name, points) in enumerate(series.items()):
        colour, marker = _colour(name, i, colours), MARKERS[i % len(MARKERS)]
        means = [sum(values) / len(values) for _, values in points]
        x, look = [x for x, _ in points], {"color": colour, "marker": marker}
        ax.plot(x, means, label=plain(name), **look)
        dots = [(x, y) for x, values in points if len(values) > 1 for y in values]
        if dots:
            ax.scatter(*zip(*dots, strict=True), s=8, color=colour, alpha=0.5)
    if chance is not None:
        ax.axhline(chance, color="black", linestyle=":", linewidth=1, label="chance")
    ax.set(xscale="log", xlabel=xlabel, ylabel=ylabel, title=title)
    ticks = _labelled({point[0] for points in series.values() for point in points})
    ax.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    ax.minorticks_off()
    ax.legend()
    return ax


def _require_some(name: str, values: Sized, what: str = "series") -> None:
    """Raise ``ValueError`` if there is nothing to draw."""
    require(len(values) > 0, name, f"have at least 1 {what}", values)


def _colour(name: str, i: int, colours: Mapping[str, str] | None) -> str:
    """Return the colour of series i, which is called `name`."""
    return (colours or {}).get(name, f"C{i}")


def _labelled(ticks: set) -> list:
    """Leave out ticks whose labels would overlap on a logarithmic axis."""
    smallest, largest = min(ticks), max(ticks)
    factor = (largest / smallest) ** APART
    kept = [smallest]
    for tick in sorted(ticks - {smallest}):
        if tick >= kept[-1] * factor:
            kept.append(tick)
    return kept


def by_size(
    panels: Mapping[str, Mapping[str, Mapping[str, Interval]]],
    parameters: Mapping[str, int],
    *,
    ylabel: str,
    titles: Mapping[str, str] | None = None,
    chance: Mapping[str, float] | None = None,
    columns: int = 3,
) -> Axes:
    """Draw a line with error bars for each series of a panel, against a model's size.

    ``panels[panel][series][model]`` is a mean with the ends of its interval.
    `parameters` are the sizes of the models by name, on a logarithmic axis; a letter
    stands for each model, and the legend has its name. Models of nearly the same size,
    and the points of the series for one model, are set a little apart. `titles` and
    `chance` are by the names of series; chance is a dotted line of the series' colour.
    Raises ``ValueError`` if there is no panel, if a panel has no series, if a series
    has no model or one that is not among `parameters`, and if a size is less than 1.
    """
    _require_some("panels", panels, "panel")
    for panel, series in panels.items():
        _require_some(panel, series)
        for name, points in series.items():
            _require_some(f"{name} in {panel}", points, "model")
            unknown = [model for model in points if model not in parameters]
            rule = "have the size of each model"
            require(not unknown, "parameters", rule, f"none of {', '.join(unknown)}")
    for model, n in parameters.items():
        require(n >= 1, f"the parameters of {model}", "be at least 1", n)
    rows = -(-len(panels) // columns)
    shape = {"figsize": (2.8 * columns + 2, 3 * rows), "squeeze": False}
    _, axes = plt.subplots(rows, columns, sharey=True, **shape)
    place = _beside({name: math.log10(n) for name, n in parameters.items()})
    span = max(place.values()) - min(place.values())
    ticks, written = [], -math.inf
    letters = dict(zip(place, itertools.cycle(string.ascii_uppercase), strict=False))
    for name, x in place.items():
        is_far = x - written >= WRITTEN * span
        written = x if is_far else written
        ticks.append(f"{letters[name]}\n{_short(parameters[name]) if is_far else ''}")
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    for ax, (panel, series) in zip(axes.flat, panels.items(), strict=False):
        for i, (name, points) in enumerate(series.items()):
            models = [model for model in place if model in points]
            mean, low, high = np.array([points[model] for model in models]).T
            aside = ASIDE * span * (i - (len(series) - 1) / 2)
            ax.errorbar(
                [10 ** (place[model] + aside) for model in models],
                mean,
                yerr=np.maximum([mean - low, high - mean], 0),
                label=plain((titles or {}).get(name, name)),
                color=f"C{i}",
                marker=MARKERS[i % len(MARKERS)],
                capsize=2,
            )
            if name in (chance or {}):
                ax.axhline(chance[name], color=f"C{i}", linestyle=":", linewidth=1)
        ax.set(xscale="log", xlabel="parameters", title=plain(panel))
        ax.set_xticks([10**x for x in place.values()], ticks)
        ax.minorticks_off()
        ax.margins(x=0.12)  # for sizes in digits at both ends
    for ax in axes[:, 0]:
        ax.set_ylabel(ylabel)
    key, names = axes[0, 0].get_legend_handles_labels()
    for name, letter in letters.items():
        look = {"marker": rf"$\mathrm{{{letter}}}$", "linestyle": ""}
        key.append(plt.Line2D([], [], color="black", **look))
        text = textwrap.fill(f"{name}, {_short(parameters[name])}", KEY_COLUMNS)
        names.append(plain(text))
    axes[0, -1].legend(key, names, loc="upper left", bbox_to_anchor=(1, 1.05))
    return axes[0, 0]


def _beside(logarithms: Mapping[str, float]) -> dict[str, float]:
    """Order models by size, and set apart those whose letters would overlap."""
    span = max(logarithms.values()) - min(logarithms.values())
    place: dict[str, float] = {}
    for name in sorted(logarithms, key=logarithms.__getitem__):
        least = max(place.values(), default=-math.inf) + BESIDE * (span or 1)
        place[name] = max(logarithms[name], least)
    return place


def _short(n: int) -> str:
    """Write a number of parameters as people say it: 135 M, 1.71 B."""
    for unit, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if n >= 0.9995 * unit:
            return f"{n / unit:.3g}{name}"
    return f"{n}"


def losses(
    histories: Mapping[str, Iterable[float]],
    *,
    ylabel: str,
    colours: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the loss of each run against the step: each step faint, a running mean bold.

    The mean is that of a step and the nine before it. `colours` are by the names of
    runs. Raises ``ValueError`` if there is no run, and if one has no step.
    """
    _require_some("histories", histories, "run")
    histories = {name: [*history] for name, history in histories.items()}
    for name, history in histories.items():
        _require_some(name, history, "step")
    ax = ax or plt.subplots(figsize=(6.4, 3.6))[1]
    for i, (name, history) in enumerate(histories.items()):
        y = np.array(history)
        colour = _colour(name, i, colours)
        width = min(SMOOTHED, len(y))
        mean = np.convolve(y, np.ones(width) / width, mode="valid")
        ax.plot(y, color=colour, alpha=0.25, linewidth=1)
        ax.plot(np.arange(width - 1, len(y)), mean, color=colour, label=plain(name))
    ax.set(xlabel="step", ylabel=ylabel)
    ax.legend()
    return ax


def intervals(
    rows: Mapping[str, Interval],
    *,
    xlabel: str,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw a dot and its interval for each row (mean, low, high), the first on top.

    Raises ``ValueError`` if there is no row.
    """
    _require_some("rows", rows, "row")
    ax = ax or plt.subplots(figsize=(6.4, 0.4 * len(rows) + 1))[1]
    mean, low, high = np.array([*rows.values()]).T
    ends = np.maximum([mean - low, high - mean], 0)
    ax.errorbar(mean, range(len(rows)), xerr=ends, fmt="o", capsize=3)
    ax.set_yticks(range(len(rows)), [plain(name) for name in rows])
    ax.set(xlabel=xlabel, title=title, ylim=(len(rows) - 0.5, -0.5))
    return ax


def dots(
    rows: Mapping[str, Sequence[Number]],
    *,
    xlabel: str,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw each row's values as dots and their mean as a line, the first row on top.

    Raises ``ValueError`` if there is no row, and if one has no value.
    """
    _require_some("rows", rows, "row")
    for name, values in rows.items():
        _require_some(name, values, "value")
    ax = ax or plt.subplots(figsize=(6.4, 0.4 * len(rows) + 1))[1]
    means = [sum(values) / len(values) for values in rows.values()]
    ax.scatter(means, range(len(rows)), marker="|", s=180, color="black")
    for i, values in enumerate(rows.values()):
        ax.scatter(values, [i] * len(values), s=14, color="C0", alpha=0.7)
    ax.set_yticks(range(len(rows)), [plain(name) for name in rows])
    ax.set(xlabel=xlabel, title=title, ylim=(len(rows) - 0.5, -0.5))
    return ax


def moving_map(
    frames: Mapping[str, Float[Tensor, "n 2"]], groups: Sequence[str]
) -> bytes:
    """Draw an animated GIF: in each frame a point for each example.

    `frames` maps the title of a frame to its points, `groups` are the groups of the
    examples, each of which has a colour. The GIF plays without a kernel or a script.
    Raises ``ValueError`` if there is no frame or no example, and if a frame has another
    number of points than there are groups, or one that is not finite.
    """
    _require_some("frames", frames, "frame")
    _require_some("groups", groups, "example")
    for title, points in frames.items():
        rule = f"have a point for each of {len(groups)} groups"
        require(len(points) == len(groups), f"the frame {title!r}", rule, len(points))
        require_finite(f"the frame {title!r}", points)
    names = list(dict.fromkeys(groups))
    shown = {name: plain(name) for name in names}  # before any text is made: fonts
    everywhere = np.concatenate([points.cpu().numpy() for points in frames.values()])
    lowest, highest = everywhere.min(axis=0), everywhere.max(axis=0)
    margin = 0.03 * (highest - lowest)  # or points at the edge would be cut
    (left, bottom), (right, top) = lowest - margin, highest + margin
    figure, ax = plt.subplots(figsize=(4.8, 3.6), dpi=80)
    drawn = []
    for title, points in frames.items():
        ax.clear()
        for i, name in enumerate(names):
            x, y = points.cpu().numpy()[[group == name for group in groups]].T
            marker = MARKERS[i % len(MARKERS)]
            ax.scatter(x, y, s=9, color=f"C{i}", marker=marker, label=f"{i}")
        ax.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
        ax.set_title(plain(title))
        legend = ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        for text, name in zip(legend.get_texts(), names, strict=True):
            text.set_text(shown[name])  # as a label, _a would be left out of a legend
        figure.canvas.draw()
        drawn.append(np.array(figure.canvas.buffer_rgba())[..., :3])
    plt.close(figure)
    # One palette for all frames, so that a group keeps its colour
    palette = Image.fromarray(np.concatenate(drawn)).quantize(GIF_COLOURS)
    exact = {"palette": palette, "dither": Image.Dither.NONE}
    drawn = [Image.fromarray(pixels).quantize(**exact) for pixels in drawn]
    milliseconds = [int(1000 * FRAME_SECONDS)] * len(drawn)
    milliseconds[-1] *= 3
    file = io.BytesIO()
    drawn[0].save(
        file,
        "gif",
        save_all=True,
        append_images=drawn[1:],
        duration=milliseconds,
        loop=0,
        optimize=True,
    )
    return file.getvalue()


def similarities(
    panels: Mapping[str, Float[Tensor, "n n"]], groups: Sequence[str]
) -> Axes:
    """Draw a heat map of the cosines of n examples for each panel, all on one scale.

    The scale goes from 0 to 1; smaller cosines look like 0. `groups` names the group of
    each example, and examples of a group follow one another. Raises ``ValueError`` if
    there is no panel or no example, and if a panel has another number of examples than
    `groups`.
    """
    _require_some("panels", panels, "panel")
    _require_some("groups", groups, "example")
    for title, cosines in panels.items():
        require_shape(title, cosines, len(groups), len(groups))
    size = (2.7 * len(panels) + 1.6, 3.2)
    _, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False)
    for ax, (title, cosines) in zip(axes[0], panels.items(), strict=True):
        shown = ax.imshow(cosines.float().cpu().numpy(), vmin=0, vmax=1, cmap="viridis")
        ax.set(title=title, xticks=[], yticks=[])
        ax.grid(False)
    names = list(dict.fromkeys(groups))
    rows = [[i for i, group in enumerate(groups) if group == name] for name in names]
    middles = [sum(i) / len(i) for i in rows]
    axes[0, 0].set_yticks(middles, [plain(name) for name in names])
    axes[0, 0].figure.colorbar(shown, ax=axes, label="cosine")
    return axes[0, 0]


def grouped_intervals(
    rows: Mapping[str, Mapping[str, Interval]],
    *,
    xlabel: str,
    marks: Mapping[str, Mapping[str, float]] | None = None,
    title: str = "",
    legend: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw the intervals of several series in each row, the first row on top.

    ``rows[row][series]`` is a mean with the ends of its interval. A series has one
    colour and marker in all rows, and its place within a row; it may be absent from
    some. ``marks[name][row]`` are values without an interval, such as chance: a short
    line across the row, in black, of one style for each name. The legend is to the
    right. Raises ``ValueError`` if there is no row, and if one has no series.
    """
    series = _side_by_side(rows)
    ax = ax or plt.subplots(figsize=(8, 0.6 * len(rows) + 1))[1]
    for j, (name, places) in enumerate(series.items()):
        mean, low, high = np.array([*places.values()]).T
        ax.errorbar(
            mean,
            [*places],
            xerr=np.maximum([mean - low, high - mean], 0),
            label=plain(name),
            color=f"C{j}",
            fmt=MARKERS[j % len(MARKERS)],
            capsize=2,
        )
    styles = itertools.cycle([":", "-"])
    for (name, values), style in zip((marks or {}).items(), styles, strict=False):
        for i, row in enumerate(rows):
            if row in values:
                text = plain(name) if row == next(iter(values)) else None
                ends = i - 0.45, i + 0.45
                ax.vlines(values[row], *ends, "black", style, linewidth=1, label=text)
    _separate(ax, [*rows])
    ax.set(xlabel=xlabel, title=plain(title))
    if legend:
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def heat_maps(
    panels: Mapping[str, Mapping[str, Mapping[str, float]]],
    *,
    label: str,
    limits: tuple[float, float] = (0, 1),
) -> Axes:
    """Draw a table of values as colours and digits in each panel, side by side.

    ``panels[panel][row][column]`` is a value from 0 to 1, written as .73. Panels have
    the same rows and columns; the names of rows are beside the first one. `label` is
    that of the colour bar, whose ends are `limits`. Raises ``ValueError`` if there is
    no panel, or if the first one has no row or no column.
    """
    _require_some("panels", panels, "panel")
    first = next(iter(panels.values()))
    _require_some("the first panel", first, "row")
    _require_some("its first row", next(iter(first.values())), "column")
    columns = [*next(iter(first.values()))]
    width = 0.42 * len(columns) * len(panels) + 2.6
    figure, axes = plt.subplots(
        1,
        len(panels),
        sharey=True,
        squeeze=False,
        figsize=(width, 0.36 * len(first) + 1.6),
        layout="constrained",
    )
    for ax, (panel, rows) in zip(axes[0], panels.items(), strict=True):
        values = np.array([[row[name] for name in columns] for row in rows.values()])
        span = {"vmin": limits[0], "vmax": limits[1]}
        drawn = ax.imshow(values, cmap="cividis", aspect="auto", **span)
        for (i, j), value in np.ndenumerate(values):
            dark = value < sum(limits) / 2
            text = f"{value:.2f}".removeprefix("0")
            look = {"ha": "center", "va": "center", "fontsize": 8}
            ax.text(j, i, text, color="white" if dark else "black", **look)
        ax.set_xticks(range(len(columns)), [plain(c) for c in columns], rotation=90)
        ax.set_yticks(range(len(rows)), [plain(name) for name in rows])
        ax.set_title(plain(panel), fontsize=10)
        ax.grid(visible=False)
    figure.colorbar(drawn, ax=axes[0, -1], label=plain(label))
    return axes[0, 0]


def grouped_dots(
    rows: Mapping[str, Mapping[str, Sequence[Number]]],
    *,
    xlabel: str,
    colours: Mapping[str, str] | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw the values of several series in each row as dots, the first row on top.

    ``rows[row][series]`` are values, one for each seed or draw: small dots, with a
    large marker at their mean. A series has one colour and marker in all rows, and its
    place within a row; it may be absent from some. `colours` are by the names of
    series. The legend is to the right. Raises ``ValueError`` if there is no row, if one
    has no series, and if a series of one has no value.
    """
    series = _side_by_side(rows)
    for row, of_row in rows.items():
        for name, values in of_row.items():
            _require_some(f"{name} of {row}", values, "value")
    ax = ax or plt.subplots(figsize=(8, 0.6 * len(rows) + 1))[1]
    for j, (name, places) in enumerate(series.items()):
        look = {"color": _colour(name, j, colours), "marker": MARKERS[j % len(MARKERS)]}
        means = [sum(values) / len(values) for values in places.values()]
        ax.plot(means, [*places], linestyle="", label=plain(name), **look)
        x = [value for values in places.values() for value in values]
        y = [place for place, values in places.items() for _ in values]
        ax.scatter(x, y, s=8, color=look["color"], alpha=0.5)
    _separate(ax, [*rows])
    ax.set(xlabel=xlabel, title=plain(title))
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def _separate(ax: Axes, rows: Sequence[str]) -> None:
    """Name rows of several series, the first on top, with a line between two rows."""
    ax.set_yticks(range(len(rows)), [plain(name) for name in rows])
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    for i in range(1, len(rows)):
        ax.axhline(i - 0.5, color="#c0c0c0", linewidth=0.8, zorder=0)
    ax.set_ylim(len(rows) - 0.5, -0.5)


def _side_by_side(rows: Mapping[str, Mapping[str, T]]) -> dict[str, dict[float, T]]:
    """Return what each series has, by its place on an axis of rows.

    Raises ``ValueError`` if there is no row, and if one has no series.
    """
    _require_some("rows", rows, "row")
    for name, of_row in rows.items():
        _require_some(name, of_row)
    series = [*dict.fromkeys(name for of_row in rows.values() for name in of_row)]
    step = 0.8 / len(series)
    shift = {n: step * (j - (len(series) - 1) / 2) for j, n in enumerate(series)}
    return {
        n: {i + shift[n]: row[n] for i, row in enumerate(rows.values()) if n in row}
        for n in series
    }
