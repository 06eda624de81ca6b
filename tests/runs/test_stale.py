"""Outputs become stale by what can change them, and by nothing else."""

import ast
from pathlib import Path

import pytest
from support.notebooks import code, markdown, notebook

from fmkit.book.contents import notebooks_of
from fmkit.runs.cells import READERS, code_of, results_named, trees_of
from fmkit.runs.parameters import read_notebook
from fmkit.runs.stale import PACKAGE, canonical, data_of, is_stale, source_hash

ROOT = Path(__file__).resolve().parents[2]

MODULES = {
    "__init__.py": '"""Nothing."""\n',
    "used.py": (
        '"""Used."""\nfrom fmkit.deep.below import f\n\ndef g():\n    return f()\n'
    ),
    "unused.py": "def g():\n    return 1\n",
    "deep/__init__.py": "",
    "deep/below.py": (
        "from pathlib import Path\n\nfrom fmkit.record import results\n\n"
        'def f():\n    """One."""\n    return 1  # one\n\n'
        'DATA = Path(__file__).with_name("table.txt")\n'
        'MORE = Path(__file__).parent / "more"\nROOT = Path(__file__).parents[1]\n'
        'TEXT = "unnamed.txt"\n\ndef g():\n    return results("theirs") / "x"\n'
    ),
    "deep/table.txt": "1 2 3",
    "deep/more/a/b.txt": "1 2 3",
    "deep/more/tool.py": "x = 1 2 3",
    "deep/more/.hidden": "1 2 3",
    "deep/unnamed.txt": "1 2 3",
    "tasks/__init__.py": (
        "from pathlib import Path\n\nfrom fmkit.other import x\n"
        'NAMES = [p.stem for p in Path(__file__).parent.glob("*.toml")]\n'
    ),
    "tasks/words.toml": "1 2 3",
    "tasks/apart.py": "x = '1 2 3'",
    "unused.txt": "1 2 3",
    "../results/ours/seed0.json": "1 2 3",
    "../results/ours/model.safetensors": "1 2 3",
    "../results/theirs/seed0.json": "1 2 3",
    "../results/others/seed0.json": "1 2 3",
    "../results/README.md": "1 2 3",
}
READS = "import fmkit.used, fmkit.tasks\nprint(run.committed('ours'), results(name))"


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "fmkit"
    for name, text in MODULES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def chapter(package):
    """A notebook whose stored hash is that of its code."""
    whole = notebook(markdown("Text."), code(f"%matplotlib inline\n{READS}"))
    whole.metadata["fmkit"] = {"source_hash": source_hash(whole, package=package)}
    return whole


def replace(path, old, new):
    assert old in path.read_text(encoding="utf-8")
    path.write_text(
        path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8"
    )


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("used.py", "f()", "f() + 1"),
        ("deep/below.py", "return 1", "return 2"),
        ("deep/__init__.py", "", "x = 1"),
        ("__init__.py", "Nothing", 'Nothing."""\nx = 1\n"""'),
        ("deep/table.txt", "2", "7"),
        ("deep/more/a/b.txt", "2", "7"),
        ("tasks/words.toml", "2", "7"),
        ("../results/ours/seed0.json", "2", "7"),
        ("../results/ours/model.safetensors", "2", "7"),
        ("../results/theirs/seed0.json", "2", "7"),  # which a module reads
    ],
)
def test_stale_by_code_and_data_that_it_imports(chapter, package, file, old, new):
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
        ("deep/unnamed.txt", "2", "7"),
        ("deep/more/tool.py", "2", "7"),
        ("deep/more/.hidden", "2", "7"),
        ("tasks/apart.py", "2", "7"),
        ("unused.txt", "2", "7"),
        ("../results/others/seed0.json", "2", "7"),  # of another chapter
        ("../results/README.md", "2", "7"),
    ],
)
def test_not_stale_by_docstrings_comments_and_what_it_leaves(
    chapter, package, file, old, new
):
    replace(package / file, old, new)
    assert not is_stale(chapter, package=package)


def test_a_module_is_parsed_once(chapter, package, monkeypatch):
    digest, parsed, parse = source_hash(chapter, package=package), [], ast.parse
    monkeypatch.setattr(ast, "parse", lambda *of: parsed.append(of) or parse(*of))
    assert source_hash(chapter, package=package) == digest
    cells = len(parsed)  # which are the notebook's own
    replace(package / "deep/below.py", "return 1", "return 2")
    assert source_hash(chapter, package=package) != digest
    assert len(parsed) == 2 * cells + 1


@pytest.mark.parametrize("file", ["tasks/new.toml", "../results/ours/seed1.json"])
def test_stale_by_a_file_that_is_new_or_gone(chapter, package, file):
    (package / file).write_text("4 5 6", encoding="utf-8")
    assert is_stale(chapter, package=package)
    (package / file).unlink()
    assert not is_stale(chapter, package=package)
    (package / "tasks" / "words.toml").rename(package / "tasks" / "letters.toml")
    assert is_stale(chapter, package=package)


def test_data_of_this_package():
    """Each place that a module names is found; a place to start from is not data."""
    named = {}
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [n for n in ast.walk(tree) if getattr(n, "id", None) == "__file__"]
        places = data_of(tree, path)
        assert all(place.exists() for place in places)
        if names and places:
            named[path.relative_to(PACKAGE).as_posix()] = len(places)
            assert len(places) == len(names)
        elif names:
            assert path.parent.name in ("runs", "book")  # which start from there
    assert named == {
        "book/publication.py": 1,  # templates
        "data/animals.py": 1,
        "data/imagenet.py": 1,
        "runs/kernel.py": 1,  # the file that starts a kernel
        "runs/pages.py": 1,  # templates
        "tasks/questions.py": 1,
    }


@pytest.mark.parametrize("path", notebooks_of(ROOT), ids=lambda path: path.stem)
def test_chapters_name_the_results_that_they_read(path):
    """By literals, which can be found without running the chapter."""
    trees = trees_of(code_of(read_notebook(path)))
    calls = [
        node
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in READERS
    ]
    assert all(isinstance(call.args[0], ast.Constant) for call in calls)
    assert all((ROOT / "results" / name).is_dir() for name in results_named(trees))


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
