"""Figures show the numbers they are given."""

import io

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
from PIL import Image

from fmkit import diagrams, plot

matplotlib.use("agg")


pytestmark = pytest.mark.usefixtures("closed_figures")


def test_curves_show_points_intervals_and_names():
    series = {
        "pixels": [(10, 0.3, 0.2, 0.5), (100, 0.6, 0.55, 0.6)],
        "new": [(10, 1, 1, 1)],
    }
    text = {"xlabel": "n", "ylabel": "accuracy", "title": "t"}
    ax = plot.curves(series, chance=0.1, colours={"new": "#123456"}, **text)
    first, second = ax.containers
    x, y = first.lines[0].get_data()
    assert (x.tolist(), y.tolist()) == ([10, 100], [0.3, 0.6])
    ends = [segment.tolist() for segment in first.lines[2][0].get_segments()]
    assert ends == [
        [[10, pytest.approx(0.2)], [10, pytest.approx(0.5)]],
        [[100, pytest.approx(0.55)], [100, pytest.approx(0.6)]],
    ]
    assert (first.lines[0].get_color(), second.lines[0].get_color()) == (
        "C0",
        "#123456",
    )
    assert second.lines[0].get_marker() != first.lines[0].get_marker()
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(names) == ["chance", "new", "pixels"]
    labels = (ax.get_xlabel(), ax.get_ylabel(), ax.get_title(), ax.get_xscale())
    assert labels == ("n", "accuracy", "t", "log")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["10", "100"]


def test_an_interval_may_miss_its_mean_by_a_rounding():
    plot.curves({"a": [(1, 0.3, 0.3 + 1e-17, 0.3 - 1e-17)]}, xlabel="", ylabel="")


def test_curves_draw_into_given_axes():
    ax = matplotlib.pyplot.figure().subplots()
    assert plot.curves({"a": [(1, 1, 1, 1)]}, xlabel="", ylabel="", ax=ax) is ax


def test_a_series_without_points_is_named():
    with pytest.raises(ValueError, match=r"pixels .*1.* \[\]"):
        plot.curves({"pixels": []}, xlabel="", ylabel="")


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


def test_representations_share_one_scale(rng):
    images = torch.randint(256, (2, 1, 4, 4), generator=rng, dtype=torch.uint8)
    phi_x = torch.tensor([[1.0, 2.0, 0.0], [9.0, 0.0, 3.0]])
    axes = plot.representations(images, phi_x).figure.axes
    heights = [[bar.get_height() for bar in ax.patches] for ax in axes[2:]]
    assert heights == phi_x.tolist()
    assert axes[2].get_ylim() == axes[3].get_ylim()


def test_the_two_stages_name_what_the_notes_name():
    """In the notes: two stages."""
    ax = diagrams.two_stages()
    said = " ".join(text.get_text() for text in ax.texts)
    for word in ("pretraining", "adaptation", "n_{task}", "\\hat\\theta", "L_{pre}"):
        assert word in said


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


def test_series_without_a_colour_have_those_that_all_can_tell_apart():
    plot.use_style()
    [line] = plt.subplots()[1].plot([1, 2])
    assert line.get_color() == plot.FREE[0]


def test_a_map_may_have_more_groups_than_there_are_markers():
    groups = [f"{i}" for i in range(len(plot.MARKERS) + 1)]
    places = torch.arange(2 * len(groups)).view(-1, 2).float()
    assert plot.moving_map({"step 0": places}, groups).startswith(b"GIF")


def test_labels_of_ticks_do_not_overlap():
    points = [(x, 1, 1, 1) for x in (10, 11, 20, 100)]
    ax = plot.curves({"a": points}, xlabel="", ylabel="")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["10", "20", "100"]
