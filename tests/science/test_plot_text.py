"""Figures of texts show the numbers they are given."""

import io

import matplotlib
import pytest
import torch

from fmkit import diagrams, plot_text

matplotlib.use("agg")


pytestmark = pytest.mark.usefixtures("closed_figures")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_one_vector_more_goes_in_than_there_are_words():
    """In the notes: figure 14.1."""
    ax = diagrams.transformer(["the", "cat"])
    shown = texts(ax)
    assert [f"$e_{{x_{{{t}}}}}$" in shown for t in range(4)] == [True] * 3 + [False]
    assert [f"$u_{{{t}}}$" in shown for t in range(5)] == [False, *[True] * 3, False]
    # Each word goes in below and is asked for above, one column to the left
    places = {}
    for text in ax.texts:
        places.setdefault(text.get_text(), []).append(round(text.get_position()[0]))
    assert (places["⊥"], places["?"]) == ([0], [2])
    assert (sorted(places["the"]), sorted(places["cat"])) == ([0, 1], [1, 2])


def test_an_output_is_joined_with_the_inputs_that_it_may_see():
    ax = diagrams.transformer(["the", "cat"])
    joined = {tuple(line.get_xdata()) for line in ax.lines}
    assert joined == {(s, t) for t in range(3) for s in range(t + 1)}


def test_influence_is_white_exactly_where_there_is_none():
    size = torch.tensor([[1.0, 0.0], [100.0, 1e-9]])
    ax = plot_text.influence({"a": size, "b": size})
    [image] = ax.images
    assert image.get_array().mask.tolist() == [[False, True], [False, False]]
    assert image.get_array()[1].tolist() == pytest.approx([2, -9])
    assert image.get_clim() == pytest.approx((-9, 2))
    assert [other.get_title() for other in ax.figure.axes] == ["a", "b", ""]


def test_surprise_shows_each_token_with_its_nats_and_shade():
    ax = plot_text.surprise([" a", "b\n", "c"], [0.0, 2.5, 99.0], columns=2)
    assert texts(ax) == ["␣a", "0.0", "b↵", "2.5", "c", "99.0"]
    places = [patch.get_xy() for patch in ax.patches]
    assert places == [(0, 0), (1, 0), (0, -1)]
    green = [patch.get_facecolor()[1] for patch in ax.patches]
    assert green[0] > green[1] > green[2]  # from white to red
    with pytest.raises(ValueError, match=r"nats .*2.* 1\."):
        plot_text.surprise(["a", "b"], [1.0])


def test_next_words_are_bars_from_the_most_probable_down():
    ax = plot_text.next_words({"x =": [(" 1", 0.5), ("\n", 0.25)], "y": [("z", 1.0)]})
    assert [bar.get_width() for bar in ax.patches] == [0.5, 0.25]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["␣1", "↵"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert [other.get_title() for other in ax.figure.axes] == ["x =", "y"]


def test_every_piece_of_a_byte_can_be_seen():
    pieces = [chr(i) for i in range(128)]
    ax = plot_text.surprise(pieces, [1.0] * len(pieces))
    shown = texts(ax)[::2]
    assert all(text.isprintable() and len(text.strip()) for text in shown)
    assert len(set(shown)) == 128
    ax.figure.savefig(io.BytesIO())
