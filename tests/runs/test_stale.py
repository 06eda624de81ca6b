"""Outputs become stale by what can change them, and by nothing else."""

import ast

import pytest
from support.notebooks import code, markdown, notebook

from fmkit.runs.stale import canonical, is_stale, source_hash

MODULES = {
    "__init__.py": '"""Nothing."""\n',
    "used.py": (
        '"""Used."""\nfrom fmkit.deep.below import f\n\ndef g():\n    return f()\n'
    ),
    "unused.py": "def g():\n    return 1\n",
    "deep/__init__.py": "",
    "deep/below.py": (
        'def f():\n    """One."""\n    return 1  # one\n\nDATA = "table.txt"\n'
    ),
    "deep/table.txt": "1 2 3",
    "deep/notes.txt": "4 5 6",
}


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "fmkit"
    for name, text in MODULES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def chapter(package):
    """A notebook whose stored hash is that of its code."""
    whole = notebook(markdown("Text."), code("%matplotlib inline\nimport fmkit.used"))
    whole.metadata["fmkit"] = {"source_hash": source_hash(whole, package=package)}
    return whole


def replace(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("used.py", "f()", "f() + 1"),
        ("deep/below.py", "return 1", "return 2"),
        ("deep/__init__.py", "", "x = 1"),
        ("__init__.py", "Nothing", 'Nothing."""\nx = 1\n"""'),
        ("deep/table.txt", "2", "7"),
    ],
)
def test_stale_by_code_that_it_imports(chapter, package, file, old, new):
    assert not is_stale(chapter, package=package)
    replace(package / file, old, new)
    assert is_stale(chapter, package=package)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("used.py", "Used", "Much used"),
        ("deep/below.py", "One.", "A docstring."),
        ("deep/below.py", "# one", "# a comment"),
        ("unused.py", "return 1", "return 2"),
        ("deep/notes.txt", "4", "7"),
    ],
)
def test_not_stale_by_docstrings_comments_and_what_it_leaves(
    chapter, package, file, old, new
):
    replace(package / file, old, new)
    assert not is_stale(chapter, package=package)


def test_stale_by_its_own_code_not_by_its_text(chapter, package):
    chapter.cells[2].source = "Another text."
    assert not is_stale(chapter, package=package)
    chapter.cells[3].source += "\nprint(1)"
    assert is_stale(chapter, package=package)


def test_stale_without_a_hash(chapter, package):
    del chapter.metadata["fmkit"]
    assert is_stale(chapter, package=package)


@pytest.mark.parametrize(
    "line",
    [
        "from fmkit import used",
        "from fmkit.used import g",
        "import fmkit.used as u",
        "def f():\n    from fmkit import used",
    ],
)
def test_every_way_to_import(package, line):
    whole = notebook(code(line))
    before = source_hash(whole, package=package)
    replace(package / "deep/below.py", "return 1", "return 2")
    assert source_hash(whole, package=package) != before


def test_a_cell_that_does_not_parse_has_a_hash(package):
    assert source_hash(notebook(code("1 +")), package=package)


def test_canonical_keeps_what_matters():
    alike = "def f(a, *, b=None):\n    return None"
    assert canonical(ast.parse(alike)) == canonical(ast.parse(alike + "  # same"))
    others = [
        "def f(a, b=None):\n    return None",
        "def f(a, *, b=0):\n    return None",
        "def f(a, *, b=None):\n    return",
    ]
    assert len({canonical(ast.parse(text)) for text in [alike, *others]}) == 4
