"""The task of naming a library: what is hidden, what is kept, what is drawn."""

import pytest

from fmkit.data.docstrings import LIBRARIES, Document, load_docstrings
from fmkit.tasks.libraries import (
    NAMES,
    bag_of_words,
    beginning,
    label_task,
    library_task,
    load_labelled,
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


# Labelled texts of one's own


def lines(count, label):
    return [f"{label} number {i} is here,{label}\n" for i in range(count)]


def test_labelled_texts_of_a_file(tmp_path):
    path = tmp_path / "own.csv"
    rows = ["text,label\n", *lines(12, "dog"), *lines(3, "cat"), *lines(12, "dog")]
    path.write_text("".join(rows), encoding="utf-8")
    train, test, classes = load_labelled(path)
    assert classes == ("cat", "dog")
    # The second dozen repeats the first; a fifth of each class, at least one
    count = {
        label: [sum(d.label == label for d in of) for of in (train, test)]
        for label in classes
    }
    assert count == {"cat": [2, 1], "dog": [10, 2]}
    texts = {d.text for d in train + test}
    assert texts == {row.split(",")[0] for row in rows[1:]}
    head, *others = rows
    path.write_text("".join([head, *others[::-1]]), encoding="utf-8")
    again = load_labelled(path)[1]
    assert {d.text for d in again} == {d.text for d in test}  # in any order of lines
    texts, labels = label_task(train, classes=classes, words=2)
    assert (texts, labels.tolist()) == (["cat number", "dog number"], [0, 1])


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("a b,x\nc d,x\n", r"data must have at least 2 different labels, got \('x',\)"),
        ("a b,x\nc d,x\ne f,y\n", "data must .*2 different texts labelled y, got 1"),
        ("a b,x\nc d,x\ne f,y\ne f,y\n", "2 different texts labelled y, got 1"),
        ("a b,x\nc d,\n", r"data must .* empty text or label, got \('c d', ''\)"),
    ],
)
def test_what_is_wrong_with_labelled_texts(tmp_path, text, wrong):
    path = tmp_path / "own.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=wrong):
        load_labelled(path)


def test_labelled_texts_need_a_file(tmp_path):
    (tmp_path / "own.txt").write_text("a,b", encoding="utf-8")
    for name in ("gone.csv", "own.txt", ""):
        with pytest.raises(ValueError, match=r"data must be docstrings, or .*\.csv"):
            load_labelled(tmp_path / name)


def test_words_of_any_alphabet():
    assert words_of("The cat's 2 n_s") == ["the", "cat", "s", "n", "s"]
    assert words_of("Ein Käfig, Жук 12") == ["ein", "käfig", "жук"]
    assert words_of("灰色的猫, a cat") == ["灰", "色", "的", "猫", "a", "cat"]
