"""Notebooks are plain Markdown, and what Sphinx reads has roles and directives."""

import ast
import contextlib
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pybtex.database import parse_file
from sphinxcontrib.bibtex.style.referencing import PersonStyle
from support.notebooks import code, markdown, notebook

from fmkit.book import contents, portable
from fmkit.runs.cells import code_of, tags_of, trees_of
from fmkit.runs.parameters import read_notebook
from fmkit.runs.stale import NEEDS, source_hash

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = contents.notebooks_of(ROOT)
KEYS = {"https://arxiv.org/abs/1": "ho2020", "https://doi.org/10.1/2": "hu2021"}
HO, HU = "https://arxiv.org/abs/1", "https://doi.org/10.1/2"


# What Sphinx reads


@pytest.mark.parametrize(
    ("plain", "myst"),
    [
        (f"[Ho et al. (2020)]({HO}) show it.", "{cite:t}`ho2020` show it."),
        (f"It is so ([Ho, 2020]({HO})).", "It is so {cite:p}`ho2020`."),
        (f"([Ho, 2020]({HO}); [Hu, 2021]({HU}))", "{cite:p}`ho2020,hu2021`"),
        (f"(SwAV, [Ho, 2020]({HO}))", "(SwAV, {cite:p}`ho2020`)"),
        (f"([Ho (2020)]({HO}))", "({cite:t}`ho2020`)"),
        (f"[Ho (2020)]({HO}); [it](a.md)", "{cite:t}`ho2020`; [it](a.md)"),
        (f"[its code]({HO})", f"[its code]({HO})"),
        ("([a page, 2020](https://a.org))", "([a page, 2020](https://a.org))"),
        (f"```\n[Ho (2020)]({HO})\n```", f"```\n[Ho (2020)]({HO})\n```"),
        ('So\n\n<a id="eq-1"></a>\n\n$$\nx\n$$', "So\n\n(eq-1)=\n\n$$\nx\n$$"),
        ("[(14.1)](zero_shot.ipynb#eq-14-1)", "[(14.1)](#eq-14-1)"),
        ("[it](zero_shot.ipynb), [that](a.md)", "[it](zero_shot.ipynb), [that](a.md)"),
        (
            "[`f()`](../fmkit/models/ngram.py)",
            "{py:obj}`f() <fmkit.models.ngram.f>`",
        ),
        (
            "<details><summary>Hint</summary>\n\nLook.\n\n</details>",
            ":::{dropdown} Hint\n\nLook.\n\n:::",
        ),
    ],
)
def test_a_form_and_what_sphinx_reads(plain, myst):
    assert portable.markdown(plain, KEYS) == myst


def test_a_caption_becomes_that_of_its_figure():
    shown = {"image": {"alt": "A line."}, "figure": {"name": "line"}}
    caption = markdown(f"**Figure.** As [Ho (2020)]({HO}) say.", tags=["caption"])
    whole = notebook(code("plot()", mystnb=shown), caption, markdown("After."))
    before = json.dumps(whole)
    *_, cell, after = portable.to_myst(whole, KEYS).cells
    figure = {"name": "line", "caption": "As {cite:t}`ho2020` say."}
    assert cell.metadata.mystnb == {"image": {"alt": "A line."}, "figure": figure}
    assert after.source == "After."
    assert json.dumps(whole) == before


@pytest.mark.parametrize(
    "cells",
    [
        [markdown("Text."), markdown("**Figure.** A line.", tags=["caption"])],
        [code("plot()"), markdown("A line.", tags=["caption"])],
    ],
)
def test_a_caption_in_the_wrong_place_or_form(cells):
    with pytest.raises(
        ValueError, match=r"caption begins with .*, got '.*A line\.'\.$"
    ):
        portable.to_myst(notebook(*cells), KEYS)


@pytest.mark.parametrize(
    ("fields", "address"),
    [
        ({"eprint": "2005.1", "doi": "10.1/x"}, "https://arxiv.org/abs/2005.1"),
        ({"doi": "10.1/a(1)<2>", "url": "u"}, "https://doi.org/10.1/a%281%29%3C2%3E"),
        ({"url": "https://a.org/b"}, "https://a.org/b"),
    ],
)
def test_the_address_of_a_work(fields, address):
    assert portable.address_of(fields) == address


# The links of the notebooks


@pytest.fixture(scope="module")
def words_of():
    """The two ways to cite the work at an address, as the pages show its authors."""
    style, words = PersonStyle(), {}
    for entry in parse_file(str(ROOT / "references.bib")).entries.values():
        template = style.author_or_editor_or_title(full=False)
        data = {"entry": entry, "style": SimpleNamespace(person=style)}
        who = template.format_data(data).render_as("text")
        year = entry.fields["year"]
        address = portable.address_of(entry.fields)
        words[address] = (f"{who} ({year})", f"{who}, {year}")
    return words


def markdown_of(path):
    cells = read_notebook(path).cells
    return "\n\n".join(c.source for c in cells if c.cell_type == "markdown")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_citation_has_the_words_of_its_entry(path, words_of):
    for words, address in portable.links_in(markdown_of(path)):
        known = words_of.get(address, (words,))
        assert words in known, f"write [{known[0]}]({address}) or [{known[-1]}](…)"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_link_to_a_file_leads_to_one_and_to_a_label_in_it(path):
    for _, address in portable.links_in(markdown_of(path)):
        if not address.startswith("http"):
            name, _, label = address.partition("#")
            file = path.parent / name if name else path
            assert file.is_file(), address
            text = file.read_text(encoding="utf-8").replace('\\"', '"')
            labels = rf'id="{label}"|\({label}\)=|:name: {label}$|"name": "{label}"'
            assert not label or re.search(labels, text, re.MULTILINE), address


# What to install


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_says_what_to_install(path):
    whole = read_notebook(path)
    right = portable.with_what_is_missing(whole, portable.repository_of(ROOT))
    assert whole == right, "run python -m fmkit.book.portable"
    first = next(cell for cell in whole.cells if cell.cell_type == "code")
    assert NEEDS in tags_of(first)


@pytest.mark.parametrize(
    ("repository", "how"),
    [
        ("", 'in the folder of the book, run pip install -e ".[runs]"'),
        ("https://a.org/b", 'run pip install "fmkit[runs] @ git+https://a.org/b"'),
    ],
)
def test_without_fmkit_a_notebook_ends_in_one_line(tmp_path, repository, how):
    """In a process that finds the standard library and nothing else."""
    source = portable.says_what_is_missing(repository)
    command = [sys.executable, "-I", "-S", "-c", source]
    run = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=tmp_path)
    said = run.stderr.splitlines()[-1]
    assert said == f"ModuleNotFoundError: fmkit is missing: {how}"


def test_another_address_makes_no_outputs_stale():
    whole = portable.with_what_is_missing(notebook(code("print(1)")), "")
    moved = portable.with_what_is_missing(whole, "https://a.org/b")
    assert "a.org" in moved.cells[1].source
    assert len(moved.cells) == len(whole.cells)
    assert source_hash(moved) == source_hash(whole)


def as_import(statement):
    """The source of an import; empty for another statement."""
    kinds = ast.Import | ast.ImportFrom
    return ast.unparse(statement) if isinstance(statement, kinds) else ""


def brought_by(extra):
    """The distributions that fmkit with an extra brings, directly or not."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"][extra]]
    pending = [(line, "") for line in lines]
    brought = {("fmkit", "")}
    for line, extra in pending:  # the list grows while it is read
        requirement = Requirement(line)
        marker, name = requirement.marker, canonicalize_name(requirement.name)
        wanted = {(name, one) for one in ("", *requirement.extras)}
        if (marker and not marker.evaluate({"extra": extra})) or wanted <= brought:
            continue
        brought |= wanted
        with contextlib.suppress(PackageNotFoundError):  # of another system
            pending += [(x, one) for _, one in wanted for x in requires(name) or []]
    return {name for name, _ in brought}


WITHOUT = """\
import sys
from importlib.machinery import PathFinder

class Brought(PathFinder):
    @classmethod
    def find_spec(cls, name, *others):
        blocked = name.partition(".")[0] in {blocked}
        return None if blocked else super().find_spec(name, *others)

sys.meta_path = [Brought if x is PathFinder else x for x in sys.meta_path]
"""


def test_what_notebooks_import_comes_with_runs():
    """In a process without the packages that fmkit[runs] does not bring."""
    lines = set()
    for path in NOTEBOOKS:
        for tree in trees_of(code_of(read_notebook(path))):
            lines |= {x for x in map(as_import, tree.body) if x}
    assert {"from fmkit.book.exercises import check"} < lines
    brought = brought_by("runs")
    distributions = packages_distributions()
    blocked = [
        name
        for name, whose in distributions.items()
        if name.isidentifier() and not brought & set(map(canonicalize_name, whose))
    ]
    assert {"sphinx", "pybtex", "jupyter_book"} <= set(blocked)
    text = WITHOUT.format(blocked=blocked) + "\n".join(sorted(lines))
    run = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, encoding="utf-8"
    )
    assert (run.returncode, run.stderr) == (0, "")
