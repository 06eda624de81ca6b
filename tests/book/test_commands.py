"""Commands that pages show: each is parsed, and its names and values are checked."""

import inspect
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from bench._gpu import parser as gpu_parser
from fmkit._check import Refused
from fmkit.cli import _parser
from fmkit.runs.engines import engine_of
from fmkit.runs.parameters import (
    from_arguments,
    grid_of,
    parameters_of,
    read_notebook,
    section_of,
)
from tools.base_model import parser as base_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for place in ("*.md", "chapters/*.md", "results/*.md")
    for path in ROOT.glob(place)
)
# commands that are not ours
OTHERS = {"cp", "dask", "jupyter", "pip", "py", "python", "xz"}


def commands_of(text):
    """The words of each command in a page's blocks, variables put in."""
    variables = {}
    for block in re.findall(r"```(?:bash|powershell)\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"\w+=.*", words[0]):
                name, _, value = words.pop(0).partition("=")
                variables[name] = shlex.split(value)
            if words and words[0].startswith("$"):
                words = variables[words[0][1:]] + words[1:]
            if words:
                words[0] = re.sub(r"^\.venv/(bin|Scripts)/", "", words[0])
                yield words


def check(command, root):
    """Raise what running it would, up to the point where a chapter begins."""
    name, *arguments = command
    if name == "make":
        targets = re.findall(
            r"^(\w+):", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
        )
        for word in arguments:
            variable, _, value = word.partition("=")
            known = (root / "profiles" / f"{value}.yaml").is_file()
            assert word in targets or (variable == "PROFILE" and known), word
    elif name == "fmkit":
        options = _parser().parse_args(arguments)
        if hasattr(options, "chapter"):
            chapter = root / options.chapter
            parameters = parameters_of(read_notebook(chapter))
            if getattr(options, "profile", None):
                section_of(root / options.profile, chapter.stem, parameters)
            if arguments[0] == "sweep":
                grid_of(options.given, parameters)
                flags = {n: getattr(options, n) for n in ("jobs", "cores", "gpus")}
                engine_of(options.on, **flags)
            elif arguments[0] == "rerun":
                from_arguments(options.given, parameters)
    elif name == "torchrun":
        options = get_args_parser().parse_args(arguments)
        assert options.module, "-m"
        check([options.training_script, *options.training_script_args], root)
    elif name == "python" and arguments[1] == "tools.base_model":
        base_parser().parse_args(arguments[2:])
    elif name == "python" and arguments[1] == "fmkit.harness":
        check_of_harness(arguments[2:])
    elif name == "bash" and arguments[0] == "bench/base_model.sh":
        assert len(arguments) == 3, arguments
    elif name == "bash":
        assert arguments[0] == "bench/gpu.sh", arguments[0]
        gpu_parser().parse_args(arguments[1:])
    else:
        assert name in OTHERS, name


def check_of_harness(arguments):
    if find_spec("lm_eval") is None:  # of the extra "harness"
        return
    from lm_eval._cli.harness import HarnessCLI

    from fmkit.harness import HarnessModel

    options = HarnessCLI()._parser.parse_args(["run", *arguments])
    assert options.model == "fmkit"
    inspect.signature(HarnessModel).bind(**options.model_args)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_pages(page):
    for command in commands_of(page.read_text(encoding="utf-8")):
        check(command, ROOT)


def test_how_many_commands_there_are():
    counts = {
        page: len([*commands_of(page.read_text(encoding="utf-8"))]) for page in PAGES
    }
    assert counts[ROOT / "README.md"] >= 5
    assert counts[ROOT / "chapters" / "howto.md"] >= 9
    assert counts[ROOT / "results" / "README.md"] >= 15


@pytest.mark.parametrize(
    "line",
    [
        "fmkit rerun chapters/none.ipynb -o runs/a",
        "fmkit rerun chapters/zero_shot.ipynb -p none=1 -o runs/a",
        "fmkit rerun chapters/zero_shot.ipynb -p seed=red -o runs/a",
        "fmkit rerun chapters/zero_shot.ipynb -f profiles/cifar10.yaml -o runs/a",
        "fmkit rerun chapters/zero_shot.ipynb",
        "fmkit sweep chapters/zero_shot.ipynb -p seed=0,red -o runs/a",
        "fmkit sweep chapters/zero_shot.ipynb -p seed=0 -o runs/a --on ray",
        "fmkit sweep chapters/zero_shot.ipynb -p seed=0 -o runs/a --gpus 1",
        "fmkit sing",
        "torchrun fmkit rerun chapters/zero_shot.ipynb -o runs/a",
        "torchrun --procs 2 -m fmkit rerun chapters/zero_shot.ipynb -o runs/a",
        "torchrun --nproc-per-node 2 -m fmkit rerun chapters/none.ipynb -o runs/a",
        "make tea",
        "make book PROFILE=none",
        "bash bench/none.sh runs/a",
        "bash bench/gpu.sh runs/a --none",
        "bash bench/base_model.sh runs/a",
        "python -m tools.base_model runs/a huge",
        "conjure",
    ],
)
def test_a_command_that_would_not_run(line):
    [command] = commands_of(f"```bash\n{line}\n```")
    with pytest.raises((Refused, AssertionError, SystemExit)):
        check(command, ROOT)


def test_how_commands_are_read():
    text = """```bash
of="fmkit sweep a.ipynb"  # a comment
$of -p x=1 \\
    -o b
A=1 .venv/bin/fmkit info
```"""
    assert [*commands_of(text)] == [
        ["fmkit", "sweep", "a.ipynb", "-p", "x=1", "-o", "b"],
        ["fmkit", "info"],
    ]
