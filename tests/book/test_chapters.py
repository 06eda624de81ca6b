"""The guards over every chapter; each guard on a small chapter that lacks something."""

import copy
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from nbformat.v4 import new_output
from support import guards
from support.notebooks import RUN, code, figures_in, markdown, notebook, write

from fmkit.book.contents import chapters_of, notebooks_of
from fmkit.book.exercises import CHECKS
from fmkit.book.figures import FOLDER
from fmkit.book.palette import COLOURS, NAMES, NAMES_OF_TEXTS
from fmkit.runs.parameters import (
    parameters_of,
    read_notebook,
    read_profile,
    section_of,
)
from fmkit.runs.record import read_record
from fmkit.runs.stale import source_hash

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = chapters_of(ROOT)
NOTEBOOKS = notebooks_of(ROOT)
EXERCISES = [path for path in NOTEBOOKS if path not in CHAPTERS]
# Two are beside other chapters; the exercises of one are those of the next
WITHOUT_EXERCISES = {"five_pretrainings", "in_context_learning", "inside_the_box"}
PROFILES = sorted((ROOT / "profiles").glob("*.yaml"))
RECORDS = sorted((ROOT / "results").glob("*/*.json"))
MOST = 150_000  # bytes of a figure as SVG
PIXEL = new_output("display_data", data={"image/png": "iVBORw0KGgo="})
FIGURE = {"image": {"alt": "A line that rises."}}
CAPTION = "**Figure.** A line."


def test_the_book_holds_every_notebook():
    assert set(NOTEBOOKS) == set((ROOT / "chapters").glob("*.ipynb"))
    assert [path.stem for path in EXERCISES] == [
        f"{x.stem}_exercises" for x in CHAPTERS if x.stem not in WITHOUT_EXERCISES
    ]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
@pytest.mark.parametrize("guard", guards.GUARDS, ids=lambda guard: guard.__name__)
def test_chapter(path, guard):
    assert guard(read_notebook(path)) == []


@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)
@pytest.mark.parametrize("guard", guards.OF_EXERCISES, ids=lambda guard: guard.__name__)
def test_exercises(path, guard):
    assert guard(read_notebook(path)) == []


def test_a_check_belongs_to_one_exercise():
    cells = [cell for path in EXERCISES for cell in read_notebook(path).cells]
    asked = [name for cell in cells for name in set(guards.checks_in(cell))]
    assert Counter(asked) == dict.fromkeys(CHECKS, 2)  # the reader's cell, the solution


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_small(path):
    assert guards.small(path) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_figure_is_kept_as_svg(path):
    """And no file is left of a figure that the notebook no longer has."""
    kept = [*(ROOT / FOLDER / path.stem).glob("*")]
    assert {file.stem for file in kept} == figures_in(path)
    assert [file.name for file in kept if file.stat().st_size > MOST] == []


def test_figures_are_of_notebooks():
    folders = {path.name for path in (ROOT / FOLDER).glob("*")}
    assert folders <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_profiles_name_parameters_of_chapters(path):
    for name in read_profile(path):
        parameters = parameters_of(read_notebook(ROOT / "chapters" / f"{name}.ipynb"))
        assert section_of(path, name, parameters).keys() <= parameters.keys()


@pytest.mark.parametrize("name", ["smoke", "binder", "gpu"])
def test_profiles_of_the_whole_book_have_every_chapter(name):
    sections = read_profile(ROOT / "profiles" / f"{name}.yaml")
    assert sections.keys() == {path.stem for path in CHAPTERS}


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_committed_records_are_of_whole_runs_of_a_commit(path):
    record = read_record(path)
    assert record["chapter"] == path.parent.name
    assert (record["status"], record["error"]) == ("finished", None)
    assert re.fullmatch("[0-9a-f]{7,}", record["commit"])  # without "+changes"


@pytest.fixture
def good():
    """A notebook without a fault; the last two cells are a figure and its caption."""
    whole = notebook(
        code("print(1)", "nbval-check-output", text="1\n"),
        code("run.finding('one', 1, at_least=1)", "finding"),
        code("plt.plot([1, 2])", mystnb=FIGURE),
        markdown(CAPTION, tags=["caption"]),
    )
    whole.cells[-2].outputs = [copy.deepcopy(PIXEL)]
    whole.metadata["fmkit"] = {"source_hash": source_hash(whole)}
    return whole


def complaints(whole):
    return [complaint for guard in guards.GUARDS for complaint in guard(whole)]


def test_no_guard_complains_of_a_good_chapter(good, tmp_path):
    assert complaints(good) == []
    assert guards.small(write(good, tmp_path / "good.ipynb")) == []


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("steps: int = 2 * 3  # T", "must hold annotated literals"),
        ("steps = 6  # T", "must hold annotated literals"),
        ("steps: int = '6'  # T", "steps must be int, got '6'"),
        ("steps: int | None = 6  # T", "steps must be annotated with one of"),
        ("steps: int = 6", "no comment says what steps is"),
    ],
)
def test_parameters_cell(line, complaint):
    rest = 'seed: int = 0  # of all\ndevice: str = "auto"  # where'
    [wrong] = guards.parameters(notebook(parameters=f"{line}\n{rest}"))
    assert complaint in wrong


def test_parameters_name_seed_and_device(good):
    good.cells[1].source = 'device: str = "cpu"  # where'
    assert guards.parameters(good) == [
        "there is no parameter seed: int",
        'there is no parameter device: str = "auto"',
    ]


def test_one_parameters_cell(good):
    good.cells.append(code("late: int = 1  # too late", "parameters"))
    assert guards.parameters(good) == ["one cell must be tagged parameters, got 2."]


@pytest.mark.parametrize(
    ("label", "is_wrong"),
    [
        ("simclr", True),
        ("cifar10-jpeg, 400 labels", True),
        ("reconstruction: 3 seeds", True),
        ("accuracy against n_task", True),
        ("$n_{task}$, labels in all", False),
        ("side of the image, pixels", False),
        ("NT-Xent, no head", False),
        ("untrained", False),
    ],
)
@pytest.mark.parametrize("where", ["title", "xlabel", "legend", "text"])
def test_figures_show_words_and_no_keys(label, is_wrong, where):
    ax = plt.figure().subplots()
    if where == "legend":
        ax.plot([1, 2], label=label)
        ax.legend()
    elif where == "text":
        ax.annotate(label, (0, 0))
    else:
        ax.set(**{where: label})
    ax.set_yticks([0], ["<|im_end|>"])  # a token
    complaint = f"a figure shows the key {label!r} in place of words"
    assert guards.words_in(ax.figure) == [complaint] * is_wrong
    plt.close("all")


def test_every_key_has_words_that_are_no_key():
    assert not {*COLOURS} & ({*NAMES} - {*NAMES.values()})
    for words in {*NAMES.values(), *NAMES_OF_TEXTS.values()}:
        assert words in NAMES.values() or words not in NAMES


def test_every_cell_ran_in_order(good):
    good.cells[2].execution_count = None
    assert guards.executed(good) == ["cells did not run once in order: [1, None, 3, 4]"]


def test_outputs_without_errors(good):
    error = new_output("error", ename="ValueError", evalue="no", traceback=[])
    warning = new_output("stream", name="stderr", text="careful")
    good.cells[2].outputs = [error, warning]
    wrong = ["cell 2 failed with ValueError", "cell 2 wrote to stderr"]
    assert guards.executed(good) == wrong


@pytest.mark.parametrize("alt", ["", " ", "_images/0a1b.png"])
def test_figure_without_alt_text(good, alt):
    good.cells[-2].metadata["mystnb"] = {"image": {"alt": alt}}
    assert guards.figures(good) == ["cell 4 shows an image without alt text"]


def test_figure_without_a_caption(good):
    good.cells[-1].metadata["tags"] = []
    assert guards.figures(good) == ["cell 4 shows an image without a caption"]


def test_figure_beside_another_output(good):
    text = new_output("stream", name="stdout", text="1\n")
    good.cells[-2].outputs.append(text)
    assert guards.figures(good) == ["cell 4 shows an image and something else"]


def test_drawing_without_an_image(good):
    good.cells[-2].outputs = []  # as MPLBACKEND=Agg leaves it
    assert guards.figures(good) == ["cell 4 draws, but shows 0 images"]


def test_an_optional_figure_may_be_absent(good):
    good.cells[-2].metadata["tags"] = ["optional-figure"]
    assert guards.figures(good) == []
    good.cells[-2].outputs = []
    assert guards.figures(good) == []
    del good.cells[-2].metadata["mystnb"]
    del good.cells[-1]
    wrong = ["alt text", "a caption"]
    assert guards.figures(good) == [f"cell 4 shows an image without {x}" for x in wrong]


def test_markdown_image_without_alt_text(good):
    good.cells.append(markdown("![](stages.svg)"))
    assert guards.figures(good) == ["a Markdown cell shows an image without alt text"]


def test_findings_and_compared_cells_are_there(good):
    for cell in good.cells[2:4]:
        cell.metadata["tags"] = []
    wrong = ["no cell is tagged finding", "no cell is tagged nbval-check-output"]
    assert guards.checks(good) == wrong


def test_compared_cell_has_an_output(good):
    good.cells[2].outputs = []  # nbval would pass it
    assert guards.checks(good) == ["cell 2 has no output to be compared"]


def test_stale_outputs(good):
    good.cells[2].source = "print(2)"
    assert guards.fresh(good) == ["its outputs are stale: run make execute"]


@pytest.mark.parametrize(
    "text",
    ["See {doc}`zero_shot`.", "{cite:p}`he2022`", ":::{dropdown} Hint", "(eq-14-1)="],
)
def test_markdown_that_only_sphinx_understands(good, text):
    good.cells.append(markdown(f"As follows.\n\n{text}\n\nAnd `{{x}}` is no role."))
    [wrong] = guards.plain(good)
    assert re.match(r"a Markdown cell has [{:(]", wrong)


def test_folded_code_is_folded_everywhere_and_has_words(good):
    good.cells.append(code("b = 1", "hide-input"))
    assert guards.plain(good) == [
        "cell None is folded on pages, but not in JupyterLab",
        "cell None is folded without words",
    ]
    words = {"code_prompt_show": "The code"}
    good.cells[-1].metadata |= {"jupyter": {"source_hidden": True}, "mystnb": words}
    assert guards.plain(good) == []


@pytest.fixture
def exercises():
    """Three exercises without a fault; the first can be checked."""
    hint = "<details><summary>Hint</summary>\n\nLook.\n\n</details>"
    asked = [
        markdown(f"## {i}. Understand\n\n{hint}\n\n[Solution](#solution-{i})")
        for i in (1, 2, 3)
    ]
    asked.insert(1, code('check("one", ...)', text="Not yet.\n"))
    answered = [markdown("## Solutions")]
    for i in (1, 2, 3):
        heading = markdown(f'<a id="solution-{i}"></a>\n\n### Solution {i}')
        answered += [heading, markdown(f"So {i}."), code(f"print({i})")]
    answered[3] = code('check("one", 1)', text="Right.\n")
    return notebook(*asked, *answered)


def test_no_complaint_of_good_exercises(exercises):
    assert guards.solved(exercises) == []


@pytest.mark.parametrize(
    ("cell", "old", "new", "complaint"),
    [
        (2, "## 1", "## One", ["it has 2 exercises", "none of its exercises can be "]),
        (2, ">Hint", ">Nudge", ["1. Understand has no hint that"]),
        (4, "[Solution]", "[Answer]", ["2. Understand has no link to a solution"]),
        (4, "tion-2", "tion-4", ["2. Understand has no link to a solution"]),
        (11, "So 2.", "", ["2. Understand has no link to a solution in words and"]),
        (9, 'check("one", 1)', "", ["1. Understand has a check that its solution"]),
    ],
)
def test_exercises_with_a_fault(exercises, cell, old, new, complaint):
    assert old in exercises.cells[cell].source
    exercises.cells[cell].source = exercises.cells[cell].source.replace(old, new)
    faults = guards.solved(exercises)
    assert len(faults) == len(complaint)
    assert all(
        message.startswith(start)
        for message, start in zip(faults, complaint, strict=True)
    )


def test_exercises_show_no_solution(exercises):
    del exercises.cells[-1]
    [wrong] = guards.solved(exercises)
    assert wrong == "3. Understand has no link to a solution in words and code"


def test_the_solution_passes_its_own_check(exercises):
    exercises.cells[9].outputs = copy.deepcopy(exercises.cells[3].outputs)
    [wrong] = guards.solved(exercises)
    assert wrong == "1. Understand has a check that its solution does not pass"


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("a = 1\n" * 26, "cell 2 has 26 lines"),
        ("a = " + "1" * 85, "cell 2 is wider than 88 columns"),
        ("class Net:\n    pass", "cell 2 defines a class"),
        ("!pip install x", "cell 2 installs something"),
        ("%pip install x", "cell 2 installs something"),
    ],
)
def test_readable_cells(good, source, complaint):
    good.cells[2].source = source
    assert guards.readable(good) == [complaint]


def test_few_cells(good):
    good.cells += [code(f"a = {i}") for i in range(30)]
    assert guards.readable(good) == ["it has 34 code cells"]


def test_large_file(good, tmp_path):
    good.cells[2].outputs = [new_output("stream", name="stdout", text="1" * 400_000)]
    [wrong] = guards.small(write(good, tmp_path / "large.ipynb"))
    assert "more than 400000" in wrong


def failing_under_nbval(folder):
    """The cells of the notebooks in `folder` that fail under nbval, by name."""
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env"]
    run = subprocess.run(
        [*command, "-q", "-rf", "-p", "no:cacheprovider", str(folder)],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
    )
    failed = [x for x in run.stdout.splitlines() if x.startswith("FAILED")]
    assert run.returncode == bool(failed)
    return [re.match(r"FAILED (\S+ \d+)", line)[1] for line in failed]


def test_nbval_compares_what_is_tagged(tmp_path):
    """One notebook is as it was run; in the other a stored number was changed."""
    cells = "print(6 * 7)", "nbval-check-output"
    write(notebook(code(*cells, text="42\n")), tmp_path / "kept.ipynb")
    write(notebook(code(*cells, text="43\n")), tmp_path / "tampered.ipynb")
    assert failing_under_nbval(tmp_path) == ["tampered.ipynb::Cell 1"]


def test_nbval_stops_at_a_finding_that_does_not_hold(tmp_path, monkeypatch):
    monkeypatch.delenv("FMKIT_FINDINGS", raising=False)
    for bound in (0, 1):
        cell = code(f"run.finding('one', 1, at_most={bound})")
        write(notebook(cell, derived=RUN), tmp_path / f"at_{bound}" / "tiny.ipynb")
    assert failing_under_nbval(tmp_path) == ["at_0/tiny.ipynb::Cell 2"]
