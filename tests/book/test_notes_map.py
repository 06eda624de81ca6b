"""The map of the notes is whole and no row dangles; on small copies, what is not."""

import pytest
from support.notebooks import code, markdown, notebook, write

from fmkit.book import notes_map

ITEMS = """
"14.1 Adaptation" = [
  ["algorithm", "linear probe", 'learns $w$'],
  ["equation", "(14.1)", 'what it minimizes'],
  ["definition", "few-shot", 'few labels'],
  ["figure", "figure 14.1", 'what goes in', "fig-in"],
]
"""
TEXT = r"""## The probe

<a id="notes-linear-probe"></a>

A probe learns $w$ by minimizing

<a id="eq-14-1"></a>

$$
\min_w L(w). \tag{14.1}
$$

<a id="notes-few-shot"></a>

### Few labels

Fewer than fifty.
"""
PACKAGE = '''
def probe(x):
    """Learn w.

    In the notes: linear probe, (14.1).
    """


class Head:
    def forward(self):
        """What it says. In the notes: few-shot."""
'''
TESTS = '''
from fmkit.probe import Head, probe


def helper(x):
    return probe(Head().forward())


def test_probe():
    """In the notes: (14.1), linear probe,
    few-shot."""
    assert helper(1)
'''
FILES = {
    "fmkit/book/notes_map.toml": ITEMS,
    "fmkit/probe.py": PACKAGE,
    "tests/test_probe.py": TESTS,
}


def small(root, old="", new=""):
    """A repository of four items, one of its texts changed."""
    texts = {**FILES, "text": TEXT, "figure": "fig-in"}
    assert not old or sum(old in text for text in texts.values()) == 1
    texts = {name: text.replace(old or "\0", new) for name, text in texts.items()}
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(texts[name], encoding="utf-8")
    figure = code("plot()", mystnb={"figure": {"name": texts["figure"]}})
    whole = notebook(markdown(texts["text"]), figure)
    write(whole, root / "chapters" / "tiny.ipynb")
    return notes_map.read(root)


def test_what_the_notes_number_is_listed_in_order():
    items = notes_map.items_of(notes_map.ROOT / notes_map.LIST)
    numbered = {
        "equation": [f"(14.{i})" for i in range(1, 9)],
        "footnote": [f"footnote {i}" for i in range(1, 7)],
        "figure": ["figure 14.1"],
    }
    for kind, names in numbered.items():
        assert [item.name for item in items if item.kind == kind] == names


def test_the_map_is_whole():
    wrong = [*notes_map.complaints(notes_map.read(notes_map.ROOT))]
    assert not wrong, "\n".join(wrong)


def test_the_page_is_of_today():
    page = (notes_map.ROOT / notes_map.PAGE).read_text(encoding="utf-8")
    today = notes_map.page(notes_map.read(notes_map.ROOT))
    assert page == today, "the map is stale: run python -m fmkit.book.notes_map"


def test_a_row_has_place_function_and_test(tmp_path):
    whole = small(tmp_path)
    assert [*notes_map.complaints(whole)] == []
    rows = [x for x in notes_map.page(whole).splitlines() if x.startswith("| **")]
    assert rows == [
        "| **linear probe**: learns $w$ | [The probe](#notes-linear-probe)"
        " | {py:obj}`probe.probe <fmkit.probe.probe>` `test_probe` |",
        "| **(14.1)**: what it minimizes | [The probe](#eq-14-1)"
        " | {py:obj}`probe.probe <fmkit.probe.probe>` `test_probe` |",
        "| **few-shot**: few labels | [Few labels](#notes-few-shot)"
        " | {py:obj}`probe.Head.forward <fmkit.probe.Head.forward>` `test_probe` |",
        "| **figure 14.1**: what goes in | [Few labels](#fig-in) |  |",
    ]
    assert "## 14.1 Adaptation\n\nIn {doc}`tiny`:\n\n| " in notes_map.page(whole)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            '<a id="notes-few-shot"></a>',
            "",
            'few-shot has no place: put <a id="notes-few-shot"></a> before it in a'
            " chapter.",
        ),
        (
            '"fig-in"',
            '"fig-out"',
            'figure 14.1 has no place: put <a id="fig-out"></a> before it in a'
            " chapter.",
        ),
        (
            "Fewer than",
            '<a id="notes-few-shots"></a>\nFewer than',
            'tiny: <a id="notes-few-shots"></a> is of no item of notes_map.toml.',
        ),
        (
            "Fewer than",
            '<a id="eq-14-2"></a>\nFewer than',
            'tiny: <a id="eq-14-2"></a> is of no item of notes_map.toml.',
        ),
        (
            "Fewer than fifty.",
            '<a id="notes-few-shot"></a>\nFewer than fifty.',
            'few-shot has several places: <a id="notes-few-shot"></a> stands in tiny,'
            " tiny.",
        ),
        (
            "### Few labels\n\nFewer than fifty.\n",
            "",
            'tiny: <a id="notes-few-shot"></a> stands before nothing.',
        ),
        (
            r"\tag{14.1}",
            r"\tag{14.2}",
            'tiny: <a id="eq-14-1"></a> is not before the equation (14.1).',
        ),
        (
            "linear probe, (14.1).",
            "linear probe.",
            '(14.1) has no function: end a docstring with "In the notes: (14.1)."',
        ),
        (
            "(14.1), linear probe",
            "linear probe",
            '(14.1) has no test: end a docstring with "In the notes: (14.1)."',
        ),
        (
            "linear probe,\n    few-shot.",
            "linear probe.",
            'few-shot has no test: end a docstring with "In the notes: few-shot."',
        ),
        (
            "says. In the notes: few-shot.",
            "says. In the notes: few-shots.",
            "probe.Head.forward is of 'few-shots', which is no item of notes_map.toml.",
        ),
        (
            "linear probe,\n    few-shot.",
            "linear probe, few-shot. And more.",
            "test_probe.test_probe is of 'few-shot. And more', which is no item of"
            " notes_map.toml.",
        ),
        (
            "def test_probe",
            "def check_probe",
            "test_probe.check_probe is marked, and pytest does not collect it.",
        ),
        (
            "def forward",
            "def backward",
            "test_probe.test_probe is of few-shot, but uses no function of it.",
        ),
        (
            "assert helper(1)",
            "assert Head().forward()",
            "test_probe.test_probe is of (14.1), but uses no function of it.",
        ),
        (
            '"definition"',
            '"idea"',
            "few-shot is of the kind idea, which is unknown.",
        ),
        (
            '"figure 14.1"',
            '"few-shot"',
            "notes_map.toml has few-shot more than once.",
        ),
    ],
)
def test_what_is_missing_and_what_dangles(tmp_path, old, new, complaint):
    assert complaint in [*notes_map.complaints(small(tmp_path, old, new))]


def test_a_function_that_is_gone_makes_the_page_stale(tmp_path):
    before = notes_map.page(small(tmp_path))
    after = notes_map.page(small(tmp_path, "def probe(x)", "def linear(x)"))
    assert ("`probe.linear " in before, "`probe.linear " in after) == (False, True)


def test_a_helper_that_tests_share_is_followed(tmp_path):
    helper = "def helper(x):\n    return probe(Head().forward())\n"
    (tmp_path / "tests" / "support").mkdir(parents=True)
    (tmp_path / "tests" / "support" / "aid.py").write_text(helper, encoding="utf-8")
    whole = small(tmp_path, f"\n{helper}", "from support.aid import helper\n")
    assert [*notes_map.complaints(whole)] == []
