"""What ``-p`` and profiles say: values, each as it was typed, and paths."""

import os
from pathlib import Path

import pytest
from papermill.translators import PythonTranslator
from support.notebooks import PARAMETERS, code, notebook, write

from fmkit.cli import main
from fmkit.runs.cells import RerunError
from fmkit.runs.parameters import (
    from_arguments,
    grid_of,
    located,
    parameters_of,
    read_notebook,
    read_profile,
    section_of,
)
from fmkit.runs.record import read_record
from fmkit.runs.sweep import sweep

LISTS = """
names: list[str] = []  # texts
rates: list[float] = []  # numbers
models: str | list[str] = "smollm2-135m-instruct-q4"  # one or several"""
TEXTS = [  # of which YAML makes something else, or nothing
    *("7", "010", "1_000", "0o17", "1e3", ".inf", "no", "on", "null", "~", "12:30"),
    *("2001-99-99", "My pictures #2", "a: b", '"x"', "'a' b", " x ", "", "@x", "%x"),
    *("*x", "&x", "!x", "!x y", "{x}", "[x", "[old] x", "- x", "? x", "---", "<<", "|"),
    *(
        "a\nb",
        "a\n",
        "\ta",
        "a\\nb",
        "\N{GRINNING FACE}",
        "图片",
        "a\u2028b",
        "=",
        "a=b",
    ),
]


@pytest.fixture
def parameters():
    return parameters_of(notebook(parameters=PARAMETERS + LISTS))


def test_a_text_and_a_list_of_it_are_one_point(parameters):
    with pytest.raises(RerunError, match=r'models has the value \["a"\] twice'):
        grid_of(["models=a,[a]"], parameters)


def everywhere(parameters, argument, folder):
    """The value of an argument for a rerun, a sweep and in a profile, all the same."""
    name, _, text = argument.partition("=")
    [[*swept]] = grid_of([argument], parameters).values()
    readings = [from_arguments([argument], parameters)[name], *swept]
    if text and text == text.strip():
        (folder / "p.yaml").write_text(f"tiny:\n  {name}: {text}", encoding="utf-8")
        readings += section_of(folder / "p.yaml", "tiny", parameters).values()
    assert len({repr(value) for value in readings}) == 1
    return readings[0]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("steps=7", 7),
        ("steps=-7", -7),
        ("steps=010", 10),  # 8 to YAML 1.1
        ("steps= 7 ", 7),
        ("tau=1e-3", 0.001),  # text to YAML 1.1
        ("tau=2", 2.0),
        ("tau=.5", 0.5),
        ("tau=+1.E2", 100.0),
        ("name=red", "red"),
        ("name=7", "7"),
        ("name=no", "no"),
        ("name=1_000", "1_000"),
        ("name=12:30", "12:30"),
        ("name=2001-99-99", "2001-99-99"),
        ("shuffle=false", False),
        ("shuffle=True", True),
        ("sizes=[]", []),
        ("sizes=[03]", [3]),
        ("names=[no]", ["no"]),
        ("models=1.5", "1.5"),
        ("models=[1.5]", ["1.5"]),
    ],
)
def test_a_value_is_the_same_everywhere(parameters, tmp_path, argument, value):
    got = everywhere(parameters, argument, tmp_path)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("text", TEXTS)
def test_the_value_of_a_text_is_what_was_typed(parameters, text):
    for name in ("name", "models"):
        if name == "name" or not text.startswith("["):
            assert from_arguments([f"{name}={text}"], parameters) == {name: text}
            assert grid_of([f"{name}={text}"], parameters) == {name: [text]}
    assert eval(PythonTranslator.translate(text)) == text  # as it enters the notebook


def test_texts_with_commas(parameters):
    assert from_arguments(["name=a, b"], parameters) == {"name": "a, b"}
    grid = grid_of(["name=a,'b, c',\"d\"", "models=[a, 'b, c'],d"], parameters)
    assert grid == {"name": ["a", "b, c", "d"], "models": [["a", "b, c"], "d"]}
    given = from_arguments(["names=[a b, 'c, d', no, 1.50]"], parameters)
    assert given == {"names": ["a b", "c, d", "no", "1.50"]}


@pytest.mark.parametrize(
    "argument",
    [
        *(
            f"steps={text}"
            for text in ("1_000", "0o17", "0x10", "1e3", "1:30", "٣", "")
        ),
        *(f"steps={text}" for text in ("7.5", "seven", "true", "null", "9" * 5000)),
        *(f"tau={text}" for text in ("nan", ".inf", "1e999", "1_0.0", "true", "x")),
        *(f"shuffle={text}" for text in ("yes", "on", "1", "null", "TRUE!")),
        *(f"sizes={text}" for text in ("3", "[3", "[3, x]", "[1_0]", "[[1]]", "[1]]")),
        *(
            f"names={text}"
            for text in ("a", "[&x]", "[&x a]", "[!x y]", "[*x]", "[a: b]", "[a #b]")
        ),
        *("names=[a,\nb]", "names=", f"names={'[' * 500}", "models=[a"),
    ],
)
def test_a_value_of_another_type(parameters, argument):
    name = argument.partition("=")[0]
    for read in (from_arguments, grid_of):
        with pytest.raises(RerunError, match=rf"^{name}('s items)? must be "):
            read([argument], parameters)


def test_a_profile(parameters, tmp_path):
    """Quotes, a text of several lines, comments and anchors are those of YAML."""
    (tmp_path / "p.yaml").write_text(
        "base: &base {steps: 1, tau: 1e-3}\n"
        "tiny:\n  <<: *base\n  tau: 2 # wins\n"
        "  name: 'a #b'\n  sizes: [10, 010]\n  names:\n  - a, b\n  - ''\n"
        "  models: |\n    two\n    lines\n",
        encoding="utf-8",
    )
    assert section_of(tmp_path / "p.yaml", "tiny", parameters) == {
        **{"steps": 1, "tau": 2.0, "name": "a #b", "sizes": [10, 10]},
        **{"names": ["a, b", ""], "models": "two\nlines\n"},
    }


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("tiny:\n\n  seed: 1_000", 3),
        ("tiny:\n  tau: 1\n  sizes:\n  - 1\n  - x", 3),
        ("tiny:\n  shuffle: yes", 2),
        ("other: &o {seed: x}\ntiny:\n  <<: *o", 1),
        ("tiny:\n  name: {a: b}", 2),
    ],
)
def test_a_wrong_value_in_a_profile_has_a_line(parameters, tmp_path, text, line):
    (tmp_path / "p.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RerunError, match=rf"p\.yaml, line {line}: \w+('s items)? must"):
        section_of(tmp_path / "p.yaml", "tiny", parameters)


@pytest.mark.parametrize("text", ["&a [*a]", "a: &a [*a]", "a: " + "[" * 500])
def test_a_profile_without_an_end(tmp_path, parameters, text):
    (tmp_path / "p.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RerunError, match=r"p\.yaml"):
        section_of(tmp_path / "p.yaml", "a", parameters)


# Paths

PLACES = """\
data: str = "animals"  # or a folder
tasks: list[str] = ["capitals"]  # or files
pretrained: str | list[str] = "smollm2"  # or a folder, or an id; "": none
keep: str = ""  # a folder
name: str = "red"  # of a colour
seed: int = 0  # of everything
device: str = "auto"  # where it runs"""


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A book with files beside its chapters, and the current folder."""
    write(notebook(parameters=PLACES), tmp_path / "chapters" / "tiny.ipynb")
    for folder in ("pics", "my pics ", "animals", "cifar10", "capitals", "red", "kept"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pairs.csv").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "typed", "meant"),
    [
        ("data", "pics", "{}/pics"),
        ("data", "pics/", "{}/pics"),
        ("data", "my pics ", "{}/my pics "),
        ("data", "chapters/../pics", "{}/chapters/../pics"),
        ("data", "~/pics", "/reader/pics"),
        ("data", "./nowhere", "{}/nowhere"),
        ("data", "../nowhere", "{}/../nowhere"),
        ("data", "/nowhere", "/nowhere"),
        ("data", ".", "{}"),
        ("data", "nowhere", "nowhere"),
        ("data", "x" * 300, "x" * 300),
        ("data", "animals", "animals"),  # the chapter's own
        ("data", "cifar10", "cifar10"),  # an asset
        ("tasks", ["capitals", "pairs.csv"], ["capitals", "{}/pairs.csv"]),
        ("pretrained", "owner/name", "owner/name"),
        ("pretrained", "", ""),
        ("pretrained", ["pics", "owner/name@main"], ["{}/pics", "owner/name@main"]),
        ("keep", "kept", "kept"),  # in the output folder
        ("keep", "./kept", "{}/kept"),
        ("name", "red", "red"),
        ("name", "./red", "./red"),
    ],
)
def test_a_path_means_the_folder_where_it_was_typed(
    book, monkeypatch, name, typed, meant
):
    monkeypatch.setenv("HOME", "/reader")
    parameters = parameters_of(notebook(parameters=PLACES))
    several = isinstance(meant, list)
    expected = [m.format(book) for m in meant] if several else meant.format(book)
    assert located(parameters, {name: typed}) == {name: expected}
    assert located(parameters, {name: expected}) == {name: expected}


def test_a_parameter_of_that_name_may_be_another_thing():
    parameters = parameters_of(notebook(parameters="text: bool = True\ndata: int = 1"))
    assert located(parameters, {"text": False, "data": 2}) == {"text": False, "data": 2}


def test_a_path_in_a_profile_means_the_profiles_folder(book):
    parameters = parameters_of(notebook(parameters=PLACES))
    folder = book / "profiles"
    (folder / "pics").mkdir(parents=True)
    given = "data: pics, tasks: [pairs.csv], pretrained: ../none, keep: kept"
    (folder / "p.yaml").write_text(f"tiny: {{{given}}}", encoding="utf-8")
    assert section_of(Path("profiles/p.yaml"), "tiny", parameters) == {
        "data": f"{folder}/pics",  # and not that of the current folder
        "tasks": [f"{book}/pairs.csv"],  # there is none beside the profile
        "pretrained": f"{folder}/../none",
        "keep": "kept",
    }


SEEN = """\
import os

from fmkit.assets.places import cache_folder

seen = [data, tasks, os.getcwd(), str(cache_folder()), os.environ["FMKIT_MIRROR"]]
print(seen)"""


@pytest.mark.parametrize("command", ["rerun", "sweep"])
def test_a_kernel_reads_what_was_typed_here(book, monkeypatch, command):
    cell = code(SEEN)
    path = write(notebook(cell, parameters=PLACES), Path("chapters", "tiny.ipynb"))
    monkeypatch.setenv("FMKIT_CACHE", "my cache")
    monkeypatch.setenv("FMKIT_MIRROR", "pics")
    (book / "p.yaml").write_text("tiny: {tasks: [pairs.csv]}", encoding="utf-8")
    given = ["-p", "data=pics", "-f", "p.yaml", "-o", "out"]
    assert main([command, str(path), *given]) == 0
    out = book / "out" / ("data=pics" if command == "sweep" else "")
    seen = [f"{book}/pics", [f"{book}/pairs.csv"], f"{book}/chapters"]
    seen += [f"{book}/my cache", f"{book}/pics"]
    cell = read_notebook(out / "tiny.ipynb").cells[-1]
    assert cell.outputs[0].text == f"{seen}\n"
    assert read_record(out / "record.json")["parameters"]["data"] == f"{book}/pics"
    assert os.listdir(book / "chapters") == ["tiny.ipynb"]
    if command == "sweep":
        check_who_is_finished(book, monkeypatch)


def check_who_is_finished(book, monkeypatch):
    """The point in out, and not the one with the same name in another folder."""

    def again():
        base = {"tasks": [str(book / "pairs.csv")]}
        path, out = book / "chapters" / "tiny.ipynb", book / "out"
        sweep(path, out, grid={"data": ["pics"]}, base=base, engine=lambda *_: 1 / 0)

    again()
    (book / "other" / "pics").mkdir(parents=True)
    monkeypatch.chdir(book / "other")
    with pytest.raises(ZeroDivisionError):  # it would run
        again()


def test_a_name_in_a_profile_is_a_text(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("tiny:\n  ? [seed]\n  : 1\n", encoding="utf-8")
    with pytest.raises(RerunError, match=r"p\.yaml, line 2: a name must be text\.$"):
        read_profile(path)
