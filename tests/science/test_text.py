"""Text: what is read, what repeats, what leaks; ids and back; windows of a sequence."""

import collections
import gc
import itertools
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
import torch
from reference import text as reference_text
from tokenizers import models, pre_tokenizers, trainers

from fmkit._check import Refused
from fmkit.assets import ASSETS
from fmkit.data import docstrings as docstrings_module
from fmkit.data import text as text_module
from fmkit.data.docstrings import Document, load_docstrings
from fmkit.data.folders import read_folder, read_unlabelled
from fmkit.data.load import load_images
from fmkit.data.text import (
    leakage,
    load_corpus,
    shingles,
    split_by_group,
    without_near_duplicates,
)
from fmkit.data.tokens import (
    PADDING,
    START,
    byte_pairs,
    characters,
    check_ids,
    consecutive,
    crosses_documents,
    encode,
    pack,
    padded,
    pieces,
    read_tokenizer,
    spaced,
    utf8_bytes,
    windows,
)
from fmkit.models.pretrained import load_pretrained
from fmkit.runs.rerun import rerun
from fmkit.tasks.libraries import load_labelled
from fmkit.tasks.questions import load_task

CHAPTER = Path(__file__).parents[2] / "chapters" / "language_models.ipynb"

WORDS = [f"w{i}" for i in range(40)]


def prose(*numbers):
    return " ".join(WORDS[i] for i in numbers)


def texts_of(documents):
    return [document.text for document in documents]


# Docstrings


SOURCE = '''"""{long} of the module."""

class A:
    """{long} of A."""

    def f(self):
        """{long} of f.

        Plain.
            Indented.
        """
        def inside():
            """{long} of inside."""

    async def g(self): "{long} of g"

def short():
    """{long} nineteen."""

def café():
    """{long} of the café."""

def after():
    x = 1
    """{long} of no one."""

    "\\d"
'''.replace("{long}", " ".join(["word"] * 18))


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A library that fails when it is imported."""
    files = {
        "__init__.py": "raise AssertionError('was imported')",
        "b.py": SOURCE,
        "a/__init__.py": SOURCE,
        "a/tests/c.py": SOURCE,
        "newer.py": SOURCE + "\nmatch = = 1\n",
        "none.py": "x = 1",
    }
    for name, text in files.items():
        path = tmp_path / "made_up" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)


def test_docstrings_of_a_library(library):
    documents = load_docstrings(["made_up"])
    assert gc.isenabled()
    long = " ".join(["word"] * 18)
    whose = ("the module.", "A.", "f.\n\nPlain.\n    Indented.", "inside.", "g")
    expected = [f"{long} of {who}" for who in whose]
    assert texts_of(documents) == expected * 2
    groups = [document.group for document in documents]
    assert groups == ["made_up.a"] * 5 + ["made_up.b"] * 5
    assert {document.label for document in documents} == {"made_up"}


def test_a_library_that_is_not_installed_is_named():
    with pytest.raises(ValueError, match=r"be installed .*, got 'no_such_library'"):
        load_docstrings(["numpy", "no_such_library"])


def test_docstrings_of_scikit_learn_are_read_and_not_imported():
    script = (
        "import sys; from fmkit.data.docstrings import load_docstrings as read;"
        "a = read(['sklearn']); assert 'sklearn' not in sys.modules;"
        "assert a == read(['sklearn']); print(len(a), {d.label for d in a})"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, encoding="utf-8"
    )
    assert run.stderr == ""
    number, label = run.stdout.split()
    assert int(number) > 1000
    assert label == "{'sklearn'}"


# Near duplicates and the split


def test_shingles_are_equal_where_words_are(rng):
    numbers = torch.randint(0, 2, (8, 40), generator=rng).tolist()
    texts = [prose(*row[: 5 * i]) for i, row in enumerate(numbers)]
    texts += [texts[-1][3:] + " \n more", texts[3], texts[2] + " " + texts[2], " "]
    found = shingles(texts)
    slow = [reference_text.shingles(text) for text in texts]
    assert [len(run) for run in found] == [len(run) for run in slow]
    pairs = {*zip(torch.cat(found).tolist(), itertools.chain(*slow), strict=True)}
    numbers, spelled = zip(*pairs, strict=True)
    assert len(pairs) == len({*numbers}) == len({*spelled})


def test_near_duplicates_are_those_of_the_rule(rng):
    base = torch.randint(0, 40, (6, 60), generator=rng).tolist()
    texts = [prose(*row) for row in base]
    for n in (20, 21, 22, 23, 24, 25, 59):  # 0.17 is allowed, 0.25 is not
        texts.append(prose(*base[0][:n], *torch.randint(0, 40, (40,), generator=rng)))
    texts += [texts[2], "a few words", "a few\nwords", "a few other words"]
    documents = [Document(text, "", "") for text in texts]
    kept = [documents.index(d) for d in without_near_duplicates(documents)]
    assert kept == reference_text.without_near_duplicates(texts)
    assert 6 in kept  # so the bound is used from both sides
    assert len(kept) < 12
    assert without_near_duplicates([]) == []


def test_what_was_dropped_is_no_reason_to_drop():
    a, b = range(13), range(13, 33)
    near = prose(*a, *range(20, 33))  # half of its words are of b, no shingle is
    documents = [Document(text, "", "") for text in (prose(*a), near, prose(*b))]
    kept = without_near_duplicates(documents)
    assert texts_of(kept) == texts_of(documents)
    texts = [prose(*range(26)), prose(*range(40)), prose(*range(27, 40))]
    documents = [Document(text, "", "") for text in texts]
    assert texts_of(without_near_duplicates(documents)) == [texts[0], texts[2]]


def test_leakage_is_the_share_of_shingles():
    train = [prose(*range(20)), prose(*range(20, 40))]
    held_out = [prose(*range(5, 25)), prose(*range(3, 16))]
    a, b = ([Document(text, "", "") for text in part] for part in (train, held_out))
    assert leakage(a, b) == pytest.approx(reference_text.leakage(train, held_out))
    # Of 8 + 1 shingles, the first 3 and the last; none that crosses the two of train
    assert leakage(a, b) == pytest.approx(4 / 9)
    assert leakage(a, a) == 1
    assert leakage(a[:1], a[1:]) == 0


def grouped(sizes):
    """Documents of the given sizes, three to a group, groups mixed."""
    documents = [
        Document(f"{i}-{name}".ljust(size, "."), "", f"module{name}")
        for name, size in enumerate(sizes)
        for i in range(3)
    ]
    return documents[::2] + documents[1::2]


def test_no_group_straddles_and_a_tenth_is_held_out():
    documents = grouped([20 + 7 * i % 90 for i in range(200)])
    train, held_out = split_by_group(documents)
    assert {d.group for d in train}.isdisjoint(d.group for d in held_out)
    counted = collections.Counter(documents)
    assert collections.Counter(train) + collections.Counter(held_out) == counted
    share = sum(map(len, texts_of(held_out))) / sum(map(len, texts_of(documents)))
    assert 0.099 < share <= 0.1
    reordered = split_by_group(documents[::-1])
    assert [d.group for d in reordered[1]] == [d.group for d in held_out]


def test_the_order_of_groups_is_a_mixture():
    train, _ = split_by_group(grouped([30] * 200))
    numbers = [int(d.group.removeprefix("module")) for d in train]
    halves = [sum(part) / len(part) for part in (numbers[:270], numbers[270:])]
    # Of 90 numbers below 200 each: four deviations of a mean are 4 * 58 / sqrt(90) = 24
    assert halves == pytest.approx([100, 100], abs=24)
    together = [len([*run]) for _, run in itertools.groupby(numbers)]
    assert set(together) == {3}


def test_where_no_group_fits_the_smallest_is_held_out():
    train, held_out = split_by_group(grouped([50, 40, 60]))
    assert {d.group for d in held_out} == {"module1"}
    assert {d.group for d in train} == {"module0", "module2"}
    with pytest.raises(ValueError, match="be of at least 2 groups, got 1"):
        split_by_group(grouped([50]))


# Corpora


def test_a_file_is_cut_at_nine_tenths(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeff0123456789é\r\nabcdefgh".encode())
    train, held_out = load_corpus(str(path))
    assert texts_of(train) == ["0123456789é\nabcdef"]  # 18 of 20
    assert texts_of(held_out) == ["gh"]


def test_a_folder_gives_a_document_a_file(tmp_path):
    (tmp_path / "deep").mkdir()
    numbers = range(12)
    for i in numbers:
        name = f"deep/{i}.md" if i % 2 else f"{i}.txt"
        (tmp_path / name).write_text(f"text {i} " + prose(i), encoding="utf-8")
    (tmp_path / "copy.rst").write_text("text 3 " + prose(3), encoding="utf-8")
    (tmp_path / "empty.py").write_text("\n", encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\xff\xfe\xfd")
    train, held_out = load_corpus(str(tmp_path))
    assert len(held_out) == 1
    groups = {d.group for d in (*train, *held_out)}
    expected = {f"deep/{i}.md" if i % 2 else f"{i}.txt" for i in numbers}
    assert groups == expected - {"deep/3.md"} | {"copy.rst"}  # the first by name


def test_corpora_that_are_refused(tmp_path):
    def message(content):
        path = tmp_path / "mine.txt"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="must") as raised:
            load_corpus(str(path))
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "text must name a text of at least 2 characters, got '" in message(b" \n ")
    assert "mine.txt must be UTF-8 text, got byte 0xff at 2." in message(b"ab\xff")
    rule = "docstrings, tinyshakespeare, or a file or a folder that exists, got 'gone'"
    with pytest.raises(ValueError, match=rule):
        load_corpus("gone")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"at least 2 different texts, .*\.py, got 0"):
        load_corpus(str(empty))


def test_the_corpus_of_docstrings(library, monkeypatch):
    made_up = load_docstrings(["made_up"])
    monkeypatch.setattr(text_module, "load_docstrings", lambda: made_up)
    with pytest.raises(ValueError, match="at least 2 groups"):
        load_corpus("docstrings")  # as made_up.b says what made_up.a said
    made = [Document(prose(i), "", str(i)) for i in range(20)]
    monkeypatch.setattr(text_module, "load_docstrings", lambda: [*made, *made])
    train, held_out = load_corpus("docstrings")
    assert sorted(texts_of(train + held_out)) == sorted(texts_of(made))
    assert len(docstrings_module.LIBRARIES) == 5


def test_shakespeare_is_cut_as_nanogpt_cuts_it(mirror, asset_cache):
    if "tinyshakespeare" not in ASSETS:
        pytest.skip("the catalogue has no tinyshakespeare")
    [train], [held_out] = load_corpus("tinyshakespeare")
    assert (len(train.text), len(held_out.text)) == (1_003_854, 111_540)
    assert train.text.startswith("First Citizen:\nBefore we proceed")
    whole = (mirror / "tinyshakespeare.txt").read_text(encoding="utf-8")
    assert train.text + held_out.text == whole


# Tokenizers

TEXT = "All the world's a stage, and all the men and women: naïve ⊥ 世界 🎭\n\n  x  "
TOKENIZERS = {
    "characters": characters([TEXT[:40], TEXT[40:]]),
    "bytes": utf8_bytes(),
    "pairs": byte_pairs([TEXT] * 3, vocabulary=280),
}
each_tokenizer = pytest.mark.parametrize(
    "tokenizer", TOKENIZERS.values(), ids=TOKENIZERS.keys()
)


@each_tokenizer
def test_text_comes_back(tokenizer):
    for text in (TEXT, TEXT[::-1], "", "  a", "a  "):
        assert tokenizer.decode(encode(tokenizer, text)) == text


@each_tokenizer
def test_no_text_encodes_to_the_start_symbol(tokenizer):
    for kept in (tokenizer, read_tokenizer(tokenizer.to_str())):
        ids = encode(kept, TEXT + "⊥⊥")
        assert min(ids) > START
        assert max(ids) < kept.get_vocab_size()
        assert kept.decode([START, *ids, START]) == TEXT + "⊥⊥"


@each_tokenizer
def test_pieces_are_the_text_of_each_token(tokenizer):
    ids = encode(tokenizer, "all women")
    start, *others = pieces(tokenizer, [START, *ids])
    assert {*start} == {"⊥"}
    assert "".join(others) == "all women"
    assert others == [tokenizer.decode([i]) for i in ids]


@each_tokenizer
def test_a_word_after_a_space(tokenizer):
    assert spaced(tokenizer, "women") == " women"


def test_a_word_that_a_tokenizer_itself_puts_after_a_space():
    tokenizer = byte_pairs(["all the men and women"], vocabulary=270)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert spaced(tokenizer, "women") == "women"
    head, whole = (encode(tokenizer, text) for text in ("all", "all women"))
    assert whole == head + encode(tokenizer, spaced(tokenizer, "women"))


def test_characters_are_numbered_in_order():
    tokenizer = characters(["banana", "cad"])
    assert tokenizer.get_vocab_size() == 6
    assert encode(tokenizer, "badcan") == [2, 1, 4, 3, 1, 5]
    with pytest.raises(Exception, match="vocabulary"):
        encode(tokenizer, "nxabéx")
    lines = characters(["a\r\n🎭"])
    assert encode(lines, "🎭\r\na") == [4, 2, 1, 3]


def test_bytes_are_those_of_utf_8():
    tokenizer = utf8_bytes()
    assert tokenizer.get_vocab_size() == 257
    assert encode(tokenizer, "aé") == [98, 0xC3 + 1, 0xA9 + 1]
    assert pieces(tokenizer, [98, 0xC3 + 1]) == ["a", "�"]
    every = "".join(map(chr, range(0x250)))
    assert encode(tokenizer, every) == [byte + 1 for byte in every.encode()]


def test_byte_pairs_are_merged_by_frequency():
    """In the notes: footnote 6."""
    texts = ["low low low lower lowest slow"] * 2
    tokenizer = byte_pairs(texts, vocabulary=260)
    assert tokenizer.get_vocab_size() == 260  # ⊥, 256 bytes, three merges
    assert pieces(tokenizer, range(257, 260)) == ["lo", "low", " low"]
    assert pieces(tokenizer, encode(tokenizer, "slow low")) == ["s", "low", " low"]
    again = byte_pairs(iter(texts), vocabulary=260)
    assert again.to_str() == tokenizer.to_str()
    assert byte_pairs(["ab"], vocabulary=999).get_vocab_size() == 258  # nothing is left
    with pytest.raises(ValueError, match=r"vocabulary .*257.* 256"):
        byte_pairs(texts, vocabulary=256)


def test_ids_of_byte_pairs_are_one_above_those_without_a_start_symbol():
    """So the recorded models, which were trained on ids of that form, can be read."""
    texts = [TEXT, "low lower ⊥ ⊥ ⊥ lowest"] * 2
    tokenizer = byte_pairs(texts, vocabulary=300)
    plain = tokenizers.Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=299,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    plain.train_from_iterator(texts, trainer)
    for text in (TEXT, TEXT[::-1], "⊥ low"):
        assert encode(tokenizer, text) == [i + 1 for i in plain.encode(text).ids]


# Rows of ids


def test_texts_are_cut_and_padded():
    texts = [[0, 5, 3], [7], [2, 9, 9, 1], [0, 8, 8, 2]]
    assert padded(texts, limit=3).tolist() == [
        [0, 5, 3],
        [7, PADDING, PADDING],
        [2, 9, 9],
        [0, 8, 8],
    ]


@pytest.mark.parametrize(
    ("texts", "limit", "message"),
    [
        ([[1]], 0, r"^limit .* 1.* 0\.$"),
        ([], 3, r"^texts .* 1.* 0\.$"),
        ([[4, 2], [], [1]], 3, r"^texts\[1\] .*token"),
        ([[4, PADDING]], 3, r"^an id .* 0.* -1\.$"),
    ],
)
def test_rows_that_cannot_be_are_refused(texts, limit, message):
    with pytest.raises(ValueError, match=message):
        padded(texts, limit=limit)


def test_ids_are_inside_the_vocabulary():
    check_ids(torch.tensor([[0, 4], [2, 3]]), vocabulary=5)
    check_ids(torch.zeros(2, 0, dtype=torch.long), vocabulary=5)
    for wrong in (-1, 5):
        with pytest.raises(
            ValueError, match=rf"^an id .*0 to V - 1 \(4\).* {wrong}\.$"
        ):
            check_ids(torch.tensor([[0, 4], [wrong, 3]]), vocabulary=5)


# Packing and windows


def test_a_start_symbol_stands_before_each_document():
    """In the notes: footnote 5, start symbol."""
    packed = pack(iter([[5, 6], [], [7]]), start=9)
    assert packed.tolist() == [9, 5, 6, 9, 9, 7]
    assert packed.dtype == torch.int64
    with pytest.raises(ValueError, match=r"^documents .* 1.* 0\.$"):
        pack([], start=0)
    with pytest.raises(ValueError, match=r"^an id .* 0.* -1\.$"):
        pack([[3], [-1]], start=0)


def test_windows_are_runs_from_anywhere(rng):
    """In the notes: footnote 5."""
    sequence = torch.arange(100, 120)
    drawn = windows(sequence, context=4, batch_size=4000, generator=rng)
    batch = next(drawn)
    assert torch.equal(batch - batch[:, :1], torch.arange(5).expand(4000, 5))
    counts = (batch[:, 0] - 100).bincount()
    assert len(counts) == 16  # from the first place to the last
    # Each has probability 1/16; four deviations of 4000 draws are 61
    assert ((counts - 250).abs() < 61).all()
    assert not torch.equal(next(drawn), batch)
    short = windows(sequence.short(), context=4, batch_size=3, generator=rng)
    assert next(short).dtype == torch.int16


def test_windows_come_from_their_generator_alone():
    def first(seed):
        rng = torch.Generator().manual_seed(seed)
        return next(windows(torch.arange(99), context=3, batch_size=8, generator=rng))

    torch.manual_seed(1)
    before = first(0)
    torch.manual_seed(2)
    assert torch.equal(first(0), before)
    assert not torch.equal(first(1), before)


@pytest.mark.parametrize("n", range(5, 22))
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_each_token_but_the_first_is_predicted_once(n, batch_size):
    cut = consecutive(torch.arange(n), context=4, batch_size=batch_size)
    predicted = torch.cat([batch[:, 1:].flatten() for batch in cut])
    assert predicted.tolist() == list(range(1, n))
    for batch in cut:
        assert torch.equal(batch[:, 1:], batch[:, :-1] + 1)
        assert len(batch) <= batch_size
    assert {batch.shape[1] for batch in cut[:-1]} <= {5}
    assert 2 <= cut[-1].shape[1] <= 5


def test_which_windows_cross_into_another_document():
    rows = [[0, 1, 2], [1, 0, 2], [1, 2, 0], [1, 2, 3], [0, 0, 1]]
    crossing = crosses_documents(torch.tensor(rows), start=0)
    assert crossing.tolist() == [False, True, True, False, True]


def test_windows_that_cannot_be_are_refused(rng):
    sequence = torch.arange(5)
    rule = r"sequence must have more tokens than the context \(5\), got 5"
    with pytest.raises(ValueError, match=rule):
        windows(sequence, context=5, batch_size=1, generator=rng)
    with pytest.raises(ValueError, match=rule):
        consecutive(sequence, context=5, batch_size=1)
    with pytest.raises(ValueError, match="context must be at least 1, got 0"):
        consecutive(sequence, context=0, batch_size=1)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        windows(sequence, context=2, batch_size=0, generator=rng)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        consecutive(sequence, context=2, batch_size=0)


def test_a_chapter_adds_no_character_to_a_text(tmp_path):
    """A text without a space or a line break has a tokenizer of its characters."""
    rng, path = random.Random(0), tmp_path / "text.txt"
    letters = "海上平静灰色的早晨她驾船经过灯塔。"
    path.write_text("".join(rng.choices(letters, k=5000)), encoding="utf-8")
    given = {"text": str(path), "pretrained": "", "vocabulary": 260, "context": 32}
    given |= {"width": 16, "layers": 1, "heads": 2, "steps": 2, "batch_size": 4}
    rerun(CHAPTER, tmp_path / "out", given=given | {"orders": [2], "masked": False})
    found = (tmp_path / "out" / CHAPTER.name).read_text(encoding="utf-8")
    row = re.search(r"character +(\d+) ", found)
    assert int(row[1]) == len(letters) + 1  # and the start symbol


@pytest.mark.parametrize("name", ["", "to be or not to be " * 300, "a\0b"])
def test_a_text_in_place_of_its_path(tmp_path, monkeypatch, name):
    """An empty path would be the current folder, a long one ends in an OSError."""
    monkeypatch.chdir(tmp_path)
    for file in ("a.txt", "b.txt"):
        (tmp_path / file).write_text(file, encoding="utf-8")
    with pytest.raises(Refused, match=r"^text must be one of .* that exists, got"):
        load_corpus(name)
    with pytest.raises(Refused, match=r"^data must be one of .* that exists, got"):
        load_images(name)
    for read in (read_folder, read_unlabelled):
        with pytest.raises(Refused, match=r"^path must be a folder or a zip that exis"):
            read(name)
    with pytest.raises(Refused, match=r"^task must be one of .*, or a file, got"):
        load_task(name)
    with pytest.raises(Refused, match=r"^name must be an asset .*, got"):
        load_pretrained(name)
    with pytest.raises(Refused, match=r"^data must be docstrings, or a file that exi"):
        load_labelled(name)


def test_line_breaks_of_any_system_and_utf_16_without_a_mark(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\nfour")
    train, test = load_corpus(path)
    assert train[0].text + test[0].text == "one\ntwo\nthree\nfour"
    path.write_bytes("one, two".encode("utf-16-le"))  # each byte is ASCII or null
    with pytest.raises(Refused, match=rf"^{path} must be UTF-8 .* null .* at 1\.$"):
        load_corpus(path)
