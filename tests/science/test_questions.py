"""The tasks' files are what they should be, and what is wrong with a file is said."""

import tomllib
from collections import Counter
from itertools import pairwise

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from fmkit.tasks.questions import (
    FOLDER,
    TASKS,
    Task,
    TaskError,
    candidates,
    load_task,
    require_tokens,
)

GOOD = """
name = "numbers"
title = "Numbers"
origin = "written for this test"
licence = "CC BY 4.0"
instruction = "Write the number."
cloze = "{x} is {y}."
items = [
    ["one", "1"],
    ["two", "2"],
    ["zwei", "2"],
    ["three", "3"],
]
"""


@pytest.fixture
def of(tmp_path):
    """Load the task of a text, in which something may be put in place of something."""

    def load(old="", new=""):
        assert old in GOOD
        path = tmp_path / "numbers.toml"
        path.write_text(GOOD.replace(old, new, 1), encoding="utf-8")
        return load_task(path)

    return load


@pytest.mark.parametrize("name", TASKS)
def test_every_task_of_the_book(name):
    task = load_task(name)
    assert task.name == name
    assert task.origin == "written for this book"
    assert task.licence == "CC BY 4.0"
    assert task.instruction.endswith(".")
    assert len(task.items) >= 100
    assert all(text.isascii() for item in task.items for text in item)
    if not task.answers and name != "sums":
        assert len({y for _, y in task.items}) == len(task.items)
    pairs_a_line = (
        (FOLDER / f"{name}.toml").read_text(encoding="utf-8").count('\n    ["')
    )
    assert pairs_a_line == len(task.items)


def test_there_are_enough_tasks():
    wanted = {"antonyms", "capitals", "past_tense", "sentiment", "statements", "sums"}
    assert wanted <= set(TASKS)


@pytest.mark.parametrize("name", ["sentiment", "statements"])
def test_two_classes_in_turn(name):
    task = load_task(name)
    assert len(set(Counter(y for _, y in task.items).values())) == 1
    assert all(a != b for (_, a), (_, b) in pairwise(task.items))


def test_sums_are_right():
    for x, y in load_task("sums").items:
        a, sign, b, *rest = x.split(" ")
        assert (sign, rest) == ("~", ["=", "?"])
        assert 1 <= min(int(a), int(b)) <= max(int(a), int(b)) <= 20
        assert int(a) + int(b) == int(y)


def test_regular_verbs_are_formed_by_rule():
    """Half of the verbs; the rest, and only they, must be known one by one."""
    regular = 0
    for x, y in load_task("past_tense").items:
        doubled = x + x[-1] + "ed"
        rule = x[:-1] + "ied" if x[-1] == "y" and x[-2] not in "aeou" else x + "ed"
        rule = x + "d" if x[-1] == "e" else rule
        regular += y in (rule, doubled)
        assert y in (rule, doubled) or not y.endswith("ed") or y in ("fed", "led")
    assert regular == len(load_task("past_tense").items) / 2


def test_two_tasks_agree_on_countries():
    """No country of one lies on two continents, and names are spelled one way."""
    capitals = {x for x, _ in load_task("capitals").items}
    continents = {x for x, _ in load_task("continents").items}
    assert len(capitals & continents) > 80


def test_a_file_of_ones_own(of):
    task = of()
    assert task.items == (("one", "1"), ("two", "2"), ("zwei", "2"), ("three", "3"))
    assert (task.title, task.cloze, task.answers) == ("Numbers", "{x} is {y}.", ())
    closed = of("items =", 'answers = ["3", "1", "2"]\nitems =')
    assert closed.answers == ("3", "1", "2")
    assert closed.items == task.items


ITEM = '    ["one", "1"],\n'


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ('name = "numbers"', "name = numbers", r"cannot be read as TOML \("),
        ('"Numbers"', '" "', "title must be text that is not empty, got ' '"),
        ('"Numbers"', "3", "title must be text that is not empty, got 3"),
        ("title", "titel", "must have no field except items, answers, .*, got titel"),
        ("items =", "answers = 2\nitems =", "answers must be texts, got 2"),
        ("items =", "answers = [2]\nitems =", r"answers must be texts, got \[2\]"),
        (GOOD[GOOD.index("items") :], "", "items must be at least 2 pairs, got 0"),
        (
            GOOD[GOOD.index('    ["two') :],
            "]",
            "items must be at least 2 pairs, got 1",
        ),
        (ITEM, '["one"],', r"an item must be two texts, got \['one'\]"),
        (ITEM, '["one", 1],', r"an item must be two texts, got \['one', 1\]"),
        (ITEM, '["one", "1", "I"],', "an item must be two texts"),
        (ITEM, '{x = "one", y = "1"},', "an item must be two texts, got {'x': 'one'"),
        (ITEM, '"on",', "an item must be two texts, got 'on'"),
        ("{x} is", "That is", "cloze must have one {x}, and one {y} after it"),
        ("{y}", "it", "cloze must have one {x}, and one {y} after it, got '{x} is it"),
        ("{x} is {y}", "{y} is {x}", "cloze must have one {x}, and one {y} after it"),
        ("{x} is", "{x} {x} is", "cloze must have one {x}, and one {y} after it"),
        ('"one"', '""', "an x must be text without white space around it, got ''"),
        ('"1"', '" "', "an answer must be text without white space around it, got ' '"),
        ('"1"', '"1 "', "an answer must be text without white space .*, got '1 '"),
        ('"one"', '"two"', "an x must occur once, got 'two' 2 times"),
        (
            "items =",
            'answers = ["1", "2", "2", "3"]\nitems =',
            "an answer of answers must occur once, got '2' 2 times",
        ),
        (
            "items =",
            'answers = ["1", "2"]\nitems =',
            "the answer of 'three' must be one of answers, got '3'",
        ),
    ],
)
def test_what_is_wrong_with_a_file(of, old, new, wrong):
    with pytest.raises(TaskError, match=wrong) as caught:
        of(old, new)
    assert str(caught.value).endswith(".")
    assert "numbers.toml" in str(caught.value)


def test_pairs_are_enough(tmp_path):
    """In Python and in a file, and a file gives its name to its task."""
    pairs = [("one", "1"), ("two", "2")]
    task = Task(pairs)
    assert task.items == tuple(pairs)
    assert (task.name, task.title, task.answers) == ("own", "own", ())
    assert (task.instruction, task.cloze) == ("", "{x} {y}")
    path = tmp_path / "counting.toml"
    path.write_text('items = [["one", "1"], ["two", "2"]]', encoding="utf-8")
    loaded = load_task(path)
    assert loaded == Task(pairs, name="counting")
    assert loaded.title == "counting"
    with pytest.raises(TaskError, match=r"^items must be at least 2 pairs, got 1\.$"):
        Task(pairs[:1])
    with pytest.raises(TaskError, match=r"^an x must occur once, got 'one' 2 times"):
        Task([*pairs, ("one", "I")])


PAIRS = (("one", "1"), ("two, or a pair", "2"), ("猫", "3"))
FILES = {
    "plain.csv": 'one,1\n"two, or a pair",2\n猫,3\n',
    "head.csv": 'x,y\none,1\n"two, or a pair",2\n猫,3\n',
    "excel.csv": "sep=;\none;1\ntwo, or a pair;2\n猫;3\n",
    "excel.CSV": "\ufeffone;1\r\ntwo, or a pair;2\r\n\r\n猫;3\r\n",
    "spaces.csv": 'one , 1\n"two, or a pair",  2\n 猫,3\n ,\n',
    "columns.csv": 'id,Answer,Question\n7,1,one\n8,2,"two, or a pair"\n9,3,猫\n',
    "tabs.tsv": "one\t1\ntwo, or a pair\t2\n猫\t3",
    "lists.jsonl": '["one", "1"]\n\n["two, or a pair", 2]\n["\\u732b", "3"]',
    "objects.jsonl": '{"question": "one", "answer": 1, "id": 7}\n'
    '{"y": "2", "x": "two, or a pair"}\r\n{"text": "猫", "label": "3"}\n',
    "spaces.jsonl": '["one", " 1"]\n["two, or a pair\\n", " 2"]\n["猫 ", "3"]\n',
    "pairs.toml": 'items = [["one", "1"], ["two, or a pair", "2"], ["猫", "3"]]',
    "mark.toml": '\ufeffitems = [["one","1"], ["two, or a pair","2"], ["猫","3"]]',
}


@pytest.mark.parametrize("name", FILES)
def test_pairs_of_any_file(tmp_path, name):
    (tmp_path / name).write_text(FILES[name], encoding="utf-8", newline="")
    stem = name.split(".")[0]
    assert load_task(tmp_path / name) == Task(PAIRS, name=stem)


def test_a_number_is_the_text_that_is_written_there(tmp_path):
    path = tmp_path / "prices.jsonl"
    digits = "1" * 5000  # more than Python makes a number of
    path.write_text(f'["a", 0.10]\n["b", 1e400]\n["c", {digits}]\n["d", true]\n')
    assert [y for _, y in load_task(path).items] == ["0.10", "1e400", digits, "true"]


def test_a_cell_may_have_line_breaks(tmp_path):
    path = tmp_path / "lines.csv"
    path.write_bytes('x,y\n"two\nlines\u2028","2"\nthree\u2028x,3\n'.encode())
    items = load_task(path).items
    assert items == (("two\nlines", "2"), ("three\u2028x", "3"))


WRONG = [
    ("three.csv", "one,1,I\ntwo,2,II\n", r"two columns, .* x \(.* got 'one,1,I'"),
    ("odd.csv", "one,1\ntwo, or a pair,2\n", "two columns, .* got 'two,or a pair,2'"),
    ("single.csv", "one\ntwo\n", "two columns, .* got 'one'"),
    ("empty.csv", "", "two columns, .* got ''"),
    ("both.csv", "x,text,y\na,b,c\n", "two columns, .* got 'x,text,y'"),
    ("half.csv", "text,mood\na,b\n", "both columns or none, x .* got 'text,mood'"),
    ("turned.tsv", "Label\tsms\na\tb\n", r"both columns or none, .* 'Label.*sms'"),
    ("which.csv", "one, I;1\ntwo, II;2\n", "one separator, .* got 'one, I;1'"),
    ("open.csv", 'one,"1\ntwo,2\n', r"read \(line 2: unexpected end of data\)"),
    ("quoted.tsv", 'one\t1\n"two" is\t2\n', r"read \(line 2: .* expected after"),
    ("latin.csv", b"caf\xe9,1\n", "must be UTF-8 text, got byte 0xe9 at 3"),
    ("blank.csv", "one,\ntwo,2\n", "an answer must be text .*''"),
    ("head.csv", "x,y\none,1\n", "at least 2 pairs, got 1"),
    (
        "cut.jsonl",
        '["one", "1"]\n["two", ',
        r"cannot be read \(line 2: Expecting",
    ),
    ("array.json", '[["a", "b"]]', r"TOML \(.*; the name .* ends in \.csv, .*son\)"),
    ("words.jsonl", '"one"\n', "two texts in line 1.*'\"one\"'"),
    ("triple.jsonl", '["a", "b", "c"]\n', "two texts in line 1"),
    (
        "keys.jsonl",
        '{"country": "a", "city": "b"}\n',
        r"line 1: a list, or x \(x, qu",
    ),
    ("null.jsonl", '["a", null]\n', r"two texts in line 1.*null"),
    ("half.jsonl", '["a", "\\ud800"]\n', r"cannot be read \(.*surrogates"),
    ("nan.jsonl", '["a", NaN]\n', r"cannot be read \(line 1: NaN is neither"),
    ("endless.jsonl", '["a", -Infinity]\n', r"\(line 1: -Infinity is neither"),
    ("utf16.csv", "one,1\ntwo,2\n".encode("utf-16-le"), "UTF-8 .* null .* at 1"),
]


def test_an_answer_may_be_an_article(tmp_path):
    article = "word " * 40_000
    (tmp_path / "long.csv").write_text(f"one,1\ntwo,{article}\n", encoding="utf-8")
    assert load_task(tmp_path / "long.csv").items[1] == ("two", article.strip())


@pytest.mark.parametrize(("name", "text", "wrong"), WRONG, ids=[w[0] for w in WRONG])
def test_what_is_wrong_with_pairs(tmp_path, name, text, wrong):
    text = text if isinstance(text, bytes) else text.encode()
    (tmp_path / name).write_bytes(text)
    with pytest.raises(TaskError, match=wrong) as caught:
        load_task(tmp_path / name)
    assert name in str(caught.value) or "own" in str(caught.value)


def test_a_name_that_is_none(tmp_path):
    for name in ("no-such-task", str(tmp_path), tmp_path):
        with pytest.raises(
            TaskError, match=r"one of antonyms, capitals, .*, or a file"
        ):
            load_task(name)


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_bytes(b'name = "\xff"')
    with pytest.raises(TaskError, match=r"broken.toml must be UTF-8 text, .* 0xff"):
        load_task(str(path))


def test_candidates_are_the_right_answer_and_others(of, rng):
    task = of()
    for i, (_, right) in enumerate(task.items):
        drawn = {tuple(candidates(task, i, count=2, generator=rng)) for _ in range(50)}
        others = {"1", "2", "3"} - {right}
        assert drawn == {(right, other) for other in others}
        everything = candidates(task, i, count=3, generator=rng)
        assert everything[0] == right
        assert sorted(everything) == ["1", "2", "3"]


def test_candidates_of_a_closed_set(of, rng):
    task = of("items =", 'answers = ["3", "1", "2", "4"]\nitems =')
    assert sorted(candidates(task, 0, count=4, generator=rng)) == ["1", "2", "3", "4"]


def test_candidates_follow_their_generator():
    task = load_task("capitals")
    once, again, other = (
        candidates(task, 7, count=5, generator=torch.Generator().manual_seed(number))
        for number in (1, 1, 2)
    )
    assert once == again != other


@pytest.mark.parametrize("count", [1, 4])
def test_how_many_candidates_there_may_be(of, rng, count):
    rule = rf"count must be from 2 to the answers of numbers \(3\), got {count}"
    with pytest.raises(ValueError, match=rule):
        candidates(of(), 0, count=count, generator=rng)


def test_answers_that_leave_no_token(of):
    """A tokenizer of whole words, which drops those that it does not know."""
    known = Tokenizer(models.BPE({"1": 0, "2": 1, "3": 2, " ": 3}, []))
    known.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    require_tokens(of(), known)
    with pytest.raises(TaskError, match="numbers: the answer 'I' must have a token"):
        require_tokens(of('"1"', '"I"'), known)
    closed = of("items =", 'answers = ["3", "1", "2", "I"]\nitems =')
    with pytest.raises(TaskError, match="the answer 'I' must have a token, got 0"):
        require_tokens(closed, known)


def test_titles_differ():
    titles = [
        tomllib.loads(p.read_text(encoding="utf-8"))["title"]
        for p in FOLDER.glob("*.toml")
    ]
    assert len(set(titles)) == len(titles) == len(TASKS)


@pytest.mark.parametrize("name", ["capitals", "past_tense"])
def test_hard_distractors_of_the_book(name):
    task = load_task(name)
    correct = dict(task.items)
    assert len(task.distractors) >= 20
    for x, wrong in task.distractors.items():
        assert len({*wrong, correct[x]}) == 4
    if name == "past_tense":
        assert [*task.distractors] == [x for x, _ in task.items]
        assert task.distractors["carry"] == ["carry", "carries", "carrying"]


WRONG_DISTRACTORS = [
    ("one = ['2']\ntwo = ['1', '3']", r"equally many .* \[1, 2\]"),
    ("one = []", r"at least one, got \[0\]"),
    ("four = ['2']", "an x, got 'four'"),
    ("one = ['1']", "'one' must be different wrong answers"),
    ("one = ['2', '2']", "'one' must be different wrong answers"),
    ("one = [' 2']", "'one' must be different wrong answers"),
    ("one = '2'", "lists of texts, got {'one': '2'}"),
    ("one = [2]", "lists of texts, got"),
]


@pytest.mark.parametrize(("table", "wrong"), WRONG_DISTRACTORS)
def test_distractors_that_are_refused(tmp_path, table, wrong):
    path = tmp_path / "numbers.toml"
    path.write_text(f"{GOOD}\n[distractors]\n{table}\n", encoding="utf-8")
    with pytest.raises(TaskError, match=wrong):
        load_task(path)


def test_distractors_of_a_file(tmp_path):
    path = tmp_path / "numbers.toml"
    path.write_text(f"{GOOD}\n[distractors]\ntwo = ['1', '3']\n", encoding="utf-8")
    assert load_task(path).distractors == {"two": ["1", "3"]}
    assert Task([("one", "1"), ("two", "2")]).distractors == {}
