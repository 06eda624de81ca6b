"""Figures show the numbers they are given."""

import io
from itertools import combinations

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.colors import to_hex
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.text import Annotation
from PIL import Image

from fmkit import diagrams, plot, plot_text
from fmkit._check import Refused

matplotlib.use("agg")


pytestmark = pytest.mark.usefixtures("closed_figures")


def test_curves_show_means_values_and_names():
    series = {"pixels": [(10, [0.2, 0.4]), (100, [0.6])], "new": [(10, [1])]}
    text = {"xlabel": "n", "ylabel": "accuracy", "title": "t"}
    ax = plot.curves(series, chance=0.1, colours={"new": "#123456"}, **text)
    first, second = ax.lines[:2]
    x, y = map(np.asarray, first.get_data())
    assert (x.tolist(), y.tolist()) == ([10, 100], [pytest.approx(0.3), 0.6])
    [dots] = ax.collections  # a single value is the mean
    assert dots.get_offsets().tolist() == [[10, 0.2], [10, 0.4]]
    assert (first.get_color(), second.get_color()) == ("C0", "#123456")
    assert second.get_marker() != first.get_marker()
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(names) == ["chance", "new", "pixels"]
    labels = (ax.get_xlabel(), ax.get_ylabel(), ax.get_title(), ax.get_xscale())
    assert labels == ("n", "accuracy", "t", "log")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["10", "100"]


def test_curves_draw_into_given_axes():
    ax = matplotlib.pyplot.figure().subplots()
    assert plot.curves({"a": [(1, [1])]}, xlabel="", ylabel="", ax=ax) is ax


AXES = {"xlabel": "", "ylabel": ""}
ONE = {"accuracy": {"small": (0.5, 0.4, 0.6)}}


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot.curves({}, **AXES), r"^series .* 1 series, got \{\}\.$"),
        (lambda: plot.curves({"pixels": []}, **AXES), r"^pixels .* 1 point, got \[\]"),
        (lambda: plot.curves({"a": [(3, [])]}, **AXES), r"^a at 3 .* 1 value, got"),
        (lambda: plot.curves({"a": [(0, [1])]}, **AXES), r"^an x of a .* 0 .* got 0"),
        (lambda: plot.dots({}, xlabel=""), r"^rows must have at least 1 row"),
        (lambda: plot.dots({"a": []}, xlabel=""), r"^a must have at least 1 value"),
        (lambda: plot.intervals({}, xlabel=""), r"^rows must have at least 1 row"),
        (lambda: plot.losses({}, ylabel=""), r"^histories must have at least 1 run"),
        (lambda: plot.losses({"a": []}, ylabel=""), r"^a must have at least 1 step"),
        (lambda: plot.images({}), r"^rows must have at least 1 row, got \{\}"),
        (
            lambda: plot.images({"a": torch.zeros(0, 1, 4, 4, dtype=torch.uint8)}),
            r"^rows must have at least 1 image, got \['a'\]",
        ),
        (lambda: plot.moving_map({}, ["a"]), r"^frames must have at least 1 frame"),
        (
            lambda: plot.moving_map({"t": torch.zeros(0, 2)}, []),
            r"^groups must have at least 1 example",
        ),
        (
            lambda: plot.moving_map({"t": torch.zeros(3, 2)}, ["a", "b"]),
            r"^the frame 't' must have a point for each of 2 groups, got 3",
        ),
        (
            lambda: plot.moving_map({"t": torch.tensor([[0.0, torch.nan]])}, ["a"]),
            r"^the frame 't' must hold neither NaN nor infinite values, got 1",
        ),
        (lambda: plot.by_size({}, {"small": 9}, ylabel=""), r"^panels .* 1 panel, got"),
        (lambda: plot.by_size({"A": {}}, {"small": 9}, ylabel=""), r"^A .* 1 series"),
        (
            lambda: plot.by_size({"A": {"zero-shot": {}}}, {"small": 9}, ylabel=""),
            r"^zero-shot in A must have at least 1 model, got \{\}\.$",
        ),
        (lambda: plot.by_size({"A": ONE}, {}, ylabel=""), r"^parameters .* of small'"),
        (
            lambda: plot.by_size({"A": ONE}, {"small": 0}, ylabel=""),
            r"^the parameters of small must be at least 1, got 0\.$",
        ),
        (lambda: plot.similarities({}, ["cat"]), "panels must have at least 1 panel"),
        (lambda: plot.similarities({"a": torch.eye(0)}, []), "groups must have"),
        (lambda: plot.grouped_intervals({}, xlabel="x"), "rows must have at least 1"),
        (lambda: plot.grouped_intervals({"r": {}}, xlabel="x"), "r must have at least"),
        (lambda: plot.grouped_dots({}, xlabel="x"), "rows must have at least 1"),
        (lambda: plot.grouped_dots({"r": {}}, xlabel="x"), "r must have at least"),
        (lambda: plot.grouped_dots({"r": {"a": []}}, xlabel="x"), "a of r must have"),
        (lambda: plot.heat_maps({}, label="x"), "panels must have at least 1 panel"),
        (lambda: plot.heat_maps({"p": {}}, label="x"), "first panel must have"),
        (lambda: plot.heat_maps({"p": {"r": {}}}, label="x"), "first row must have"),
    ],
)
def test_nothing_to_draw_is_named(draw, message):
    with pytest.raises(Refused, match=message):
        draw()
    assert plt.get_fignums() == []


def test_losses_show_every_step_and_the_running_mean():
    history = [float(i * i) for i in range(20)]
    ax = plot.losses({"Adam": history}, ylabel="loss", colours={"Adam": "#123456"})
    every, mean = ax.lines
    assert every.get_ydata().tolist() == history
    expected = [sum(history[i - 9 : i + 1]) / 10 for i in range(9, 20)]
    assert mean.get_ydata().tolist() == pytest.approx(expected)
    assert mean.get_xdata().tolist() == [*range(9, 20)]
    assert {every.get_color(), mean.get_color()} == {"#123456"}


def test_losses_of_few_steps():
    ax = plot.losses({"Adam": [3.0, 1.0]}, ylabel="loss")
    assert ax.lines[1].get_ydata().tolist() == [2.0]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_shown_in_their_rows(channels, rng):
    shape = (3, channels, 4, 5)
    images = torch.randint(256, shape, generator=rng, dtype=torch.uint8)
    ax = plot.images({"cat": images, "dog": images[:2]})
    axes = ax.figure.axes
    assert len(axes) == 6
    shown = torch.tensor(axes[1].images[0].get_array())
    expected = images[1].permute(1, 2, 0)
    assert torch.equal(shown, expected[..., 0] if channels == 1 else expected)
    assert axes[1].images[0].get_clim() == (0, 255)  # not stretched to its own range
    assert [len(ax.images) for ax in axes] == [1, 1, 1, 1, 1, 0]
    assert [axes[i].texts[0].get_text() for i in (0, 3)] == ["cat", "dog"]


def test_the_two_stages_name_what_the_notes_name():
    """In the notes: two stages."""
    ax = diagrams.two_stages()
    said = " ".join(text.get_text() for text in ax.texts)
    for word in ("pretraining", "adaptation", "n_{task}", "\\hat\\theta", "L_{pre}"):
        assert word in said


def test_the_last_layer_is_crossed_out_and_replaced():
    """In the notes: supervised pretraining, last layer."""
    ax = diagrams.last_layer()
    said = " ".join(text.get_text() for text in ax.texts)
    for word in ("$U$", "$w$", "\\phi_{\\hat\\theta}(x)", "mean over\nplaces"):
        assert word in said
    [old] = [t for t in ax.texts if t.get_text().startswith("$U$")]
    x, y = old.get_position()
    for line in ax.lines:  # both strokes of the cross go through the box of U
        assert min(line.get_xdata()) < x < max(line.get_xdata())
        assert min(line.get_ydata()) < y < max(line.get_ydata())
    assert len(ax.lines) == 2


def texts_of(ax):
    return " ".join(text.get_text() for text in ax.texts)


def boxes_of(ax):
    """The texts of boxes, with colour, line and the lower left corner of their box."""
    boxes = [patch for patch in ax.patches if isinstance(patch, FancyBboxPatch)]
    found = {}
    for box in boxes:
        x, y = box.get_x() + box.get_width() / 2, box.get_y() + box.get_height() / 2
        [text] = [t.get_text() for t in ax.texts if t.get_position() == (x, y)]
        corner = (round(box.get_x(), 2), round(box.get_y(), 2))
        found.setdefault(text, []).append(
            (to_hex(box.get_facecolor()), box.get_linestyle(), *corner)
        )
    return found


def ends_of(ax):
    """Start and end of each arrow."""
    return [(note.xyann, note.xy) for note in ax.texts if isinstance(note, Annotation)]


def test_diagrams_fit_a_page_and_their_texts_into_it(rng):
    """At most 7.2 inches, no text under 9 points, none outside, none over another."""
    images = torch.rand(3, 1, 8, 8, generator=rng)
    views = [(255 * images).byte()] * 3
    sizes = dict.fromkeys(("old train", "old test", "new train", "new test"), 99_999)
    names = [f"class {i}" for i in range(40)]
    for draw in (
        diagrams.two_stages,
        diagrams.last_layer,
        diagrams.two_readings,
        diagrams.second_networks,
        diagrams.trained_parts,
        lambda: diagrams.transformer(["the", "cat", "sat"]),
        lambda: diagrams.masked_pretraining(*images),
        lambda: diagrams.contrastive_pipeline(*views),
        lambda: diagrams.data_split(99_999, [10, 5000], 99_999),
        lambda: diagrams.class_split(names, names, sizes, [8, 400]),
        lambda: diagrams.forked_caches(["Input: Peru"] * 2, [" Lima"] * 3),
        lambda: diagrams.induction_circuit(["grey", "cat", "saw", "the", "grey"]),
    ):
        ax = draw()
        figure = ax.figure
        figure.canvas.draw()
        assert figure.get_figwidth() <= 7.2
        page = figure.bbox.padded(2)
        shown = [t for t in ax.texts if t.get_text()]
        assert min(text.get_fontsize() for text in shown) >= 9
        places = [text.get_window_extent() for text in shown]
        for text, place in zip(shown, places, strict=True):
            assert page.contains(*place.min), text
            assert page.contains(*place.max), text
        for one, other in combinations(places, 2):
            assert not one.padded(-1).overlaps(other.padded(-1))


def test_masked_pretraining_shows_its_images_and_drops_the_decoder(rng):
    """In the notes: self-supervised loss."""
    x, x_hidden, x_rebuilt = torch.rand(3, 1, 8, 8, generator=rng)
    ax = diagrams.masked_pretraining(x, x_hidden, x_rebuilt)
    shown = [torch.tensor(image.get_array()) for image in ax.images]
    for image, pixels in zip(shown, (x, x_hidden, x_rebuilt), strict=True):
        assert torch.equal(image, pixels[0])
    boxes = boxes_of(ax)
    assert boxes["a decoder"][0][1] == "--"
    assert boxes["encoder\n$\\phi_\\theta$"][0][1] == "-"
    assert "squared error" in texts_of(ax)


def test_a_split_says_what_each_part_is_for():
    """In the notes: pretraining data, downstream task."""
    ax = diagrams.data_split(7711, [200, 10, 500], 1926)
    data, part, _ = boxes = [*boxes_of(ax)][::2]
    assert [text.split()[0] for text in boxes] == ["7,711", "10", "1,926"]
    assert part.startswith("10 to 500 of them")
    assert boxes_of(ax)[part][0][2] > boxes_of(ax)[data][0][2]  # it is a part of these
    assert "λ" in [*boxes_of(ax)][3]


def test_a_split_of_classes_keeps_old_and_new_apart():
    sizes = {"old train": 4587, "old test": 11, "new train": 3124, "new test": 78}
    ax = diagrams.class_split(["bird", "cat"], ["$bear"], sizes, [8])
    rows = {}
    for text, [(colour, _, x, y)] in boxes_of(ax).items():
        rows.setdefault(y, []).append((x, text, colour))
    rows = [sorted(rows[y]) for y in sorted(rows, reverse=True)]
    said = [[text for _, text, _ in row] for row in rows]
    assert said[0][0] == "4,587 train images of old classes:\nbird, cat"
    assert "θ and U" in said[0][1]
    assert said[2] == ["3,124 train images of new classes:\n\\$bear"]
    assert said[3][0].startswith("8 of them")
    assert said[1] == ["11 test images of old classes", "accuracy of U"]
    assert said[4] == ["78 test images of new classes", "accuracy on the task"]
    colours = [{colour for *_, colour in row} for row in rows]
    assert colours[1] == colours[4]
    assert colours[2] == colours[3]


def test_caches_fork_at_queries_and_at_answers():
    ax = diagrams.forked_caches(["$a", "b"], [" x", " y", " z"])
    boxes = boxes_of(ax)
    assert len(boxes.pop("\\$a")) == len(boxes.pop("b")) == 1
    assert [len(boxes[text]) for text in (" x", " y", " z")] == [2, 2, 2]
    assert len(ends_of(ax)) == 2 + 6
    with pytest.raises(Refused, match="queries and answers must be some each"):
        diagrams.forked_caches([], ["x"])


def test_the_circuit_leads_from_the_first_word_to_the_last():
    ax = diagrams.induction_circuit(["A", "B", "c", "d", "A"])
    first, second, last = ends_of(ax)
    place = {t.get_text(): t.get_position() for t in ax.texts if t.get_text() in "ABcd"}
    words = [t for t in ax.texts if t.get_text() in {*"ABcd"}]
    x = [t.get_position()[0] for t in words if t.get_position()[1] < 1]
    assert (first[0][0], first[1][0]) == (x[0], x[1])  # B attends to A
    assert (second[0], second[1][0]) == (first[1], x[-1])  # the last A to B, later
    assert last[0] == second[1]
    assert place["B"] == (x[-1], last[1][1] + 0.1)  # and B is predicted
    for words in (["A", "B", "c"], ["A", "A"], []):
        with pytest.raises(Refused, match="words must begin with two words"):
            diagrams.induction_circuit(words)


def test_each_pretraining_has_a_network_that_is_thrown_away():
    boxes = boxes_of(diagrams.second_networks())
    dashed = {text for text, [(_, line, *_)] in boxes.items() if line == "--"}
    assert {"a decoder", "classifier $U$"} < dashed
    assert len(dashed) == 3


def test_what_an_adaptation_trains_is_orange():
    """In the notes: finetuning."""
    boxes = boxes_of(diagrams.trained_parts())
    orange = {
        text: [colour == diagrams.TASK for colour, *_ in sorted(of, key=lambda x: x[2])]
        for text, of in boxes.items()
    }
    assert orange["$w$"] == [True] * 4
    assert orange["last block"] == [False, True, False, True]
    assert orange["block 1"] == orange["embedding"] == [False, False, False, True]
    assert orange["$BA$"] == [True] * 3


def test_an_answer_is_read_in_two_ways():
    """In the notes: zero-shot adaptation."""
    said = texts_of(diagrams.two_readings())
    for word in ("greedy decoding", "multiple choice", "p(x_{T+1}", "\\hat\\theta"):
        assert word in said


def test_the_pipeline_shows_a_batch_and_its_positive_pairs(rng):
    images = torch.randint(256, (3, 2, 1, 8, 8), generator=rng, dtype=torch.uint8)
    ax = diagrams.contrastive_pipeline(*images)
    shown = [image.get_array().tolist() for image in ax.images]
    views = [part[i, 0].tolist() for i in range(2) for part in images]
    assert shown == views  # x, x_hat and x_tilde of the first image, then of the second
    texts = " ".join(text.get_text() for text in ax.texts)
    for word in ("x^{(2)}", "\\hat{x}^{(1)}", "\\tilde{x}^{(2)}", "2B = 4", "$z$"):
        assert word in texts
    squares = [p for p in ax.patches if isinstance(p, Rectangle)]
    green = [p.get_xy() for p in squares if p.get_facecolor()[0] == 0]
    assert (len(squares), len(green)) == (4, 2)
    assert green[0][0] < green[1][0]  # to the right and down: the diagonal
    assert green[0][1] > green[1][1]


def test_the_style_keeps_files_small():
    plot.use_style()
    assert matplotlib.rcParams["savefig.dpi"] <= 100


def test_intervals_stand_in_their_rows():
    rows = {"first": (0.5, 0.4, 0.7), "second": (0.2, 0.2, 0.2)}
    ax = plot.intervals(rows, xlabel="accuracy", title="t")
    [bars] = ax.containers
    x, y = bars.lines[0].get_data()
    assert (x.tolist(), [*y]) == ([0.5, 0.2], [0, 1])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["first", "second"]
    bottom, top = ax.get_ylim()
    assert bottom > top  # the first row is on top
    ends = [segment.tolist() for segment in bars.lines[2][0].get_segments()]
    assert ends[0] == [[pytest.approx(0.4), 0], [pytest.approx(0.7), 0]]


SIZES = {"big": 1_711_376_384, "$mall": 134_515_008, "tuned": 134_515_008}
OF_TASK = {"tuned": (0.5, 0.4, 0.7), "big": (0.8, 0.7, 0.9), "$mall": (0.3, 0.3, 0.3)}


def test_accuracy_is_drawn_against_the_size_of_a_model():
    panels = {
        f"k = {k}": {"a": OF_TASK, "b": {"big": (1.0, 1.0, 1.0)}} for k in (0, 1, 8)
    }
    names = {"titles": {"a": "Task $a$"}, "chance": {"a": 0.25}}
    ax = plot.by_size(panels, SIZES, ylabel="accuracy", columns=2, **names)
    axes = ax.figure.axes
    assert [ax.get_title() for ax in axes] == ["k = 0", "k = 1", "k = 8", ""]
    assert [ax.axison for ax in axes] == [True] * 3 + [False]
    labels = (ax.get_xlabel(), ax.get_ylabel(), ax.get_xscale())
    assert labels == ("parameters", "accuracy", "log")
    first, second = ax.containers
    x, y = first.lines[0].get_data()
    assert y.tolist() == [0.3, 0.5, 0.8]  # in the order of sizes
    ticks = ax.get_xticks()
    assert ticks[0] == pytest.approx(SIZES["$mall"])
    assert ticks[2] == pytest.approx(SIZES["big"])
    assert ticks[1] > 1.1 * ticks[0]  # so that two letters can be read
    assert x == pytest.approx(ticks, rel=0.05)
    assert second.lines[0].get_xdata() == pytest.approx(ticks[2:], rel=0.05)
    assert second.lines[0].get_xdata() > x[2]
    ends = first.lines[2][0].get_segments()[1]
    assert ends[:, 1] == pytest.approx([0.4, 0.7])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [
        "A\n135 M",
        "B\n",
        "C\n1.71 B",
    ]
    [dotted] = [line for line in ax.lines if line.get_linestyle() == ":"]
    assert set(dotted.get_ydata()) == {0.25}
    assert dotted.get_color() == first.lines[0].get_color()
    drawn()
    legend = [seen(text) for text in axes[1].get_legend().get_texts()]
    assert legend == [
        ("Task $a$", False),
        ("b", False),
        ("$mall, 135 M", False),
        ("tuned, 135 M", False),
        ("big, 1.71 B", False),
    ]


@pytest.mark.parametrize(
    ("n", "text"),
    [(999, "999"), (12_345, "12.3 k"), (999_600, "1 M"), (7_241_732_096, "7.24 B")],
)
def test_a_size_is_written_as_people_say_it(n, text):
    ax = plot.by_size(
        {"": {"a": {"x": (1.0, 1.0, 1.0)}}}, {"x": n}, ylabel="", columns=1
    )
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [f"A\n{text}"]
    drawn()


def test_moving_map_is_an_animation():
    places = torch.tensor([[0.0, 0], [1, 1], [0, 1]])
    frames = {"step 0": places, "step 5": places.flip(0), "step 9": places}
    film = plot.moving_map(frames, ["a", "b", "a"])
    with Image.open(io.BytesIO(film)) as opened:
        assert (opened.format, opened.n_frames) == ("GIF", 3)
        pixels, durations = [], []
        for i in range(3):
            opened.seek(i)
            durations.append(opened.info["duration"])
            pixels.append(opened.convert("RGB").tobytes())
    assert durations == [800, 800, 2400]
    assert pixels[0] != pixels[1]
    assert matplotlib.pyplot.get_fignums() == []  # nothing is left to be shown


def test_dots_stand_in_their_rows():
    ax = plot.dots({"one": [0.1, 0.3], "two": [0.5]}, xlabel="accuracy", title="t")
    means, *rows = (of.get_offsets().tolist() for of in ax.collections)
    assert means == [[pytest.approx(0.2), 0], [0.5, 1]]
    assert rows == [[[0.1, 0], [0.3, 0]], [[0.5, 1]]]
    assert ax.yaxis_inverted()
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["one", "two"]
    assert (ax.get_xlabel(), ax.get_title()) == ("accuracy", "t")


def test_a_group_has_one_colour_in_all_frames_of_a_moving_map(rng):
    """Ten groups that a palette of each frame made alike, two by two."""
    groups = [f"group {i % 10}" for i in range(200)]
    frames = {f"step {i}": torch.randn(200, 2, generator=rng) for i in range(4)}
    frames["apart"] = torch.arange(200)[:, None] % 10 + 0.1 * frames["step 0"]
    with Image.open(io.BytesIO(plot.moving_map(frames, groups))) as opened:
        legends = []
        for i in range(opened.n_frames):
            opened.seek(i)
            legend = np.asarray(opened.convert("RGB"))[:, 300:].reshape(-1, 3)
            colours, counts = np.unique(legend, axis=0, return_counts=True)
            saturated = (np.ptp(colours.astype(int), axis=1) > 60) & (counts >= 4)
            legends.append({*map(tuple, colours[saturated].tolist())})
    assert len(legends[0]) >= 6  # black is grey, and edges are blends
    assert all(legend == legends[0] for legend in legends)


def test_series_without_a_colour_have_those_that_all_can_tell_apart():
    plot.use_style()
    [line] = plt.subplots()[1].plot([1, 2])
    assert line.get_color() == plot.FREE[0]


def test_a_map_may_have_more_groups_than_there_are_markers():
    groups = [f"{i}" for i in range(len(plot.MARKERS) + 1)]
    places = torch.arange(2 * len(groups)).view(-1, 2).float()
    assert plot.moving_map({"step 0": places}, groups).startswith(b"GIF")


def test_labels_of_ticks_do_not_overlap():
    points = [(x, [1]) for x in (10, 11, 20, 100)]
    ax = plot.curves({"a": points}, xlabel="", ylabel="")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["10", "20", "100"]


# Text of data is shown as it is


ODD = [
    "$$",
    "$x_$",
    "$x$",
    "a $5 or $6",
    r"\$",
    r"\frac{",
    "_x",
    "^",
    "*a* `b` [c](d)",
    "%",
]


def drawn(figure=None):
    """Draw a figure, with every warning an error, as pytest has them."""
    (figure or plt.gcf()).savefig(io.BytesIO())


def seen(text):
    """The text that matplotlib draws, and whether it is mathematics."""
    return text._preprocess_math(text.get_text())


@pytest.mark.parametrize("odd", ODD)
def test_names_of_data_are_text_in_every_figure(odd):
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    point, axes = [(1, [0.5, 0.4])], {"xlabel": "", "ylabel": ""}
    shown = [plot.images({odd: images}).texts[0]]
    drawn()
    shown += (
        plot.curves({odd: point, "b": point}, **axes).get_legend().get_texts()[-2:-1]
    )
    drawn()
    shown += plot.intervals({odd: (0.5, 0.4, 0.6)}, xlabel="").get_yticklabels()
    shown += plot.dots({odd: [0.5, 0.4]}, xlabel="").get_yticklabels()
    drawn()
    ax = plot_text.next_words({odd: [(odd, 0.5), ("b", 0.1)]})
    shown += [ax.title, ax.get_yticklabels()[0]]
    drawn()
    shown += plot_text.surprise([odd, "a"], [1.0, 2.0]).texts[:1]
    drawn()
    shown += [plot_text.influence({odd: torch.ones(2, 2)}).title]
    drawn()
    words = diagrams.transformer([odd]).texts
    drawn()
    texts = [seen(text) for text in words]
    assert texts.count((odd, False)) == 2
    visible = plot_text.visible(odd)
    for text in shown:
        assert seen(text) in ((odd, False), (visible, False))


def test_a_map_shows_every_group_in_its_legend(monkeypatch):
    """A name that begins with _ too, which matplotlib would leave out."""
    legends = []
    draw = plt.Figure.draw

    def look(figure, renderer):
        texts = figure.axes[0].get_legend().get_texts()
        legends.append([seen(text) for text in texts])
        draw(figure, renderer)

    monkeypatch.setattr(plt.Figure, "draw", look)
    groups = ["_x", "$$", "$x_$", "a"]
    assert plot.moving_map({"$f$": torch.rand(4, 2)}, groups).startswith(b"GIF")
    assert legends[0] == [(name, False) for name in groups]


def test_mathematics_of_a_chapter_stays():
    images = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    ax = plot.images({"$\\hat{x}$": images}, math=True)
    assert seen(ax.texts[0]) == ("$\\hat{x}$", True)
    drawn()


@pytest.fixture
def no_fonts(monkeypatch):
    """No font but matplotlib's own, and a process that has warned of none."""
    own = [f for f in font_manager.fontManager.ttflist if f.name.startswith("DejaVu")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(plot, "WARNED", set())
    return own


def font_of(path, characters, name):
    """Write a font in which each of these characters is a square."""
    names = [".notdef", *(f"c{ord(c)}" for c in characters)]
    builder, pen = FontBuilder(1000, isTTF=True), TTGlyphPen(None)
    for move, place in zip(
        "mlll", [(0, 0), (0, 800), (800, 800), (800, 0)], strict=True
    ):
        (pen.moveTo if move == "m" else pen.lineTo)(place)
    pen.closePath()
    square = pen.glyph()
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f"c{ord(c)}" for c in characters})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return font_manager.FontEntry(fname=str(path), name=name, weight=400)


def test_chinese_takes_a_font_that_has_it(no_fonts, tmp_path):
    for name, characters in (("Few", "猫"), ("Many", "猫狗"), ("Other", "ก")):
        no_fonts.append(font_of(tmp_path / f"{name}.ttf", characters, name))
    before = plt.rcParams["font.family"]
    assert plot.plain("cat, é, π, Ж") == "cat, é, π, Ж"  # these need no other font
    assert plt.rcParams["font.family"] == before
    images = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    for odd in ("猫狗", "ก"):
        plot.images({odd: images})
        drawn()  # no box: matplotlib would warn
    assert plt.rcParams["font.family"] == [*before, "Many", "Other"]


def test_without_a_font_one_warning_says_which(no_fonts):
    def show(*names):
        plot.images({x: torch.zeros(1, 1, 4, 4, dtype=torch.uint8) for x in names})
        drawn()

    with pytest.warns(UserWarning, match="'猫'.*Noto Sans CJK") as said:
        show("猫", "狗", "한", "カ", "。", "\N{FULLWIDTH COLON}")
    assert len(said) == 1
    with pytest.warns(UserWarning, match="'ก'.*Noto Sans Thai") as said:
        show("猫", "ก")
    assert len(said) == 1
    show("狗", "ก")  # was said


def test_a_lone_surrogate_can_be_drawn():
    plot.images({"caf\udce9": torch.zeros(1, 1, 4, 4, dtype=torch.uint8)})
    drawn()


def test_similarities_share_one_scale_and_name_groups_once():
    cosines = torch.tensor([[1.0, 0.9, 0.2], [0.9, 1.0, 0.3], [0.2, 0.3, 1.0]])
    panels = {"before": 0.5 * cosines, "after": cosines}
    ax = plot.similarities(panels, ["cat", "cat", "dog"])
    maps = [axes.images[0] for axes in ax.figure.axes[:2]]
    assert [shown.get_clim() for shown in maps] == [(0, 1), (0, 1)]
    assert torch.equal(torch.tensor(maps[0].get_array()), 0.5 * cosines)
    ticks = zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)
    assert [(y, text.get_text()) for y, text in ticks] == [(0.5, "cat"), (2, "dog")]
    with pytest.raises(ValueError, match=r"after.*\(3, 3\)"):
        plot.similarities({"after": cosines}, ["cat", "dog"])


def test_series_stand_side_by_side_in_their_rows():
    rows = {
        "first": {"a": (0.5, 0.4, 0.7), "$b": (0.2, 0.1, 0.3)},
        "second": {"$b": (1, 0.9, 1)},
    }
    marks = {"chance": {"first": 0.25, "second": 0.5}, "other": {"second": 0.6}}
    ax = plot.grouped_intervals(rows, xlabel="accuracy", marks=marks, title="t")
    one, two = ax.containers
    assert one.lines[0].get_xdata().tolist() == [0.5]
    assert two.lines[0].get_xdata().tolist() == [0.2, 1]
    [y], (below, far) = one.lines[0].get_ydata(), two.lines[0].get_ydata()
    assert (y, below, far) == (pytest.approx(-0.2), pytest.approx(0.2), 1.2)
    [first, _] = two.lines[2][0].get_segments()
    assert first[:, 0].tolist() == [pytest.approx(0.1), pytest.approx(0.3)]
    assert one.lines[0].get_color() != two.lines[0].get_color()
    assert ax.get_ylim() == (1.5, -0.5)
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(names) == sorted([r"a", r"\$b", "chance", "other"])
    lines = [c.get_segments()[0][0, 0] for c in ax.collections[2:]]
    assert sorted(lines) == [0.25, 0.5, 0.6]
    assert plot.grouped_intervals(rows, xlabel="x", legend=False).get_legend() is None


def test_heat_maps_have_the_value_of_each_row_and_column():
    one = {"r": {"a": 0.1, "b": 1.0}, "$s": {"a": 0.456, "b": 0.0}}
    ax = plot.heat_maps({"p": one, "q": one}, label="share")
    assert ax.images[0].get_array().tolist() == [[0.1, 1.0], [0.456, 0.0]]
    assert [text.get_text() for text in ax.texts] == [".10", "1.00", ".46", ".00"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["a", "b"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["r", r"\$s"]
    titles = [other.get_title() for other in ax.figure.axes]
    assert titles[:2] == ["p", "q"]
    assert ax.figure.axes[-1].get_ylabel() == "share"


def test_grouped_dots_show_every_value_and_the_mean_of_a_series():
    rows = {"first": {"a": [0.4, 0.6], "$b": [0.2]}, "$2": {"$b": [1.0, 0.5]}}
    ax = plot.grouped_dots(rows, xlabel="accuracy", colours={"a": "#123456"})
    a, b, between = ax.lines
    assert [*between.get_ydata()] == [0.5, 0.5]  # two rows
    assert a.get_xdata().tolist() == [pytest.approx(0.5)]
    assert b.get_xdata().tolist() == [pytest.approx(0.2), pytest.approx(0.75)]
    assert a.get_ydata().tolist() == [pytest.approx(-0.2)]
    assert b.get_ydata().tolist() == [pytest.approx(0.2), pytest.approx(1.2)]
    dots = ax.collections[1].get_offsets().tolist()
    at = [[0.2, 0.2], [1.0, 1.2], [0.5, 1.2]]
    assert dots == [pytest.approx(point) for point in at]
    assert a.get_color() == "#123456" != b.get_color()
    assert a.get_marker() != b.get_marker()
    assert ax.get_ylim() == (1.5, -0.5)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["first", r"\$2"]
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["a", r"\$b"]
