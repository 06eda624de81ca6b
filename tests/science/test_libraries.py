"""The task of naming a library: what is hidden, what is kept, what is drawn."""

import pytest

from fmkit.data.docstrings import LIBRARIES, Document, load_docstrings
from fmkit.tasks.libraries import (
    NAMES,
    bag_of_words,
    beginning,
    library_task,
    without_names,
    words_of,
)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Uses numpy.fft.rfft, NumPy and np.", "Uses _, _ and _."),
        ("A Tensor of the tensors; an ndarray.", "A _ of the _; an _."),
        ("Set `n_samples` or maxIter (a DataFrame).", "Set `_` or _ (a _)."),
        ("PyTorch, TORCH: ``torch.nn.Linear``", "_, _: ``_``"),
        ("scikit-learn's Estimator", "_-learn's _"),
        ("A torchlight, an input, the supreme. Next one.", None),
        ("HTTP and UTF stay; so does x. And i.e. goes", None),
        ("_private and __init__ are named", "_private and __init__ are named"),
    ],
)
def test_names_are_hidden(text, left):
    expected = text if left is None else left
    assert without_names(text) == expected.replace("i.e.", "_.")


def test_no_name_of_a_library_is_left():
    """In real texts, by other means: no run of letters is one of the names."""
    for document in load_docstrings(("numpy",))[::20]:
        text = without_names(document.text)
        assert not NAMES & set(words_of(text.replace("_", ""))) - {"sp"}, text


def test_a_beginning_keeps_its_layout():
    text = "One two\n\n    three:\n  four"
    assert beginning(text, words=3) == "One two\n\n    three:"
    assert beginning(text, words=4) == beginning(text, words=9) == text
    assert beginning("  \n", words=3) == ""


def test_the_task():
    documents = [
        Document("a b c d", "torch", "m"),
        Document("a b c e", "numpy", "n"),  # begins as the first does
        Document("numpy b c", "scipy", "o"),
    ]
    texts, labels = library_task(documents, words=3)
    assert texts == ["a b c", "_ b c"]
    assert [LIBRARIES[i] for i in labels] == ["torch", "scipy"]
    assert library_task([], words=3)[1].shape == (0,)


def test_what_is_wrong():
    with pytest.raises(ValueError, match="words must be at least 1, got 0"):
        library_task([], words=0)
    message = "documents must be labelled with one of numpy, .* torch, got 'pandas'"
    with pytest.raises(ValueError, match=message):
        library_task([Document("a", "pandas", "m")], words=3)


def test_a_bag_of_words():
    texts = ["The cat, the CAT; a dog", "cat_dog", ""]
    counts = bag_of_words(texts, vocabulary=["cat", "dog", "the"])
    assert counts.tolist() == [[2, 1, 2], [1, 1, 0], [0, 0, 0]]
