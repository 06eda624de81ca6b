"""What may import what, what may lie in the repository, and one set of versions."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import (
    PackageNotFoundError,
    packages_distributions,
    requires,
)
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "fmkit").rglob("*.py"))
EXTRAS = ("runs", "dask", "book", "lab", "harness", "test", "bench")
OWN_EXTRA = {"on_dask": "dask", "harness": "harness"}  # modules that need one


def ident(path):
    return "/".join(path.relative_to(ROOT / "fmkit").with_suffix("").parts)


COMMON = {"_check", "_tensors", "_reading", "_writing", "runtime", "ranks"}
COMMON |= {"progress", "assets"}
MAY_IMPORT = {  # the rooms of the house, and those whose code they may use
    "common": {"common"},
    "science": {"common", "science"},
    "runs": {"common", "runs"},
    "book": {"common", "science", "runs", "book"},
    "cli": {"common", "runs", "book", "cli"},
}
INSIDE_SCIENCE = {  # these use no other science than what is named
    **{part: set() for part in ("losses", "augment", "_logistic", "data", "train")},
    **{part: set() for part in ("evaluate", "muon", "_adapters")},
    "models": {"data"},  # a language model comes with its tokenizer
    "tasks": {"data"},
    "generate": {"data", "models"},
    "prompt": {"data", "models"},
    "harness": {"models", "generate", "prompt"},
    "probe": {"_logistic"},
    "adapt": {"probe", "train"},
    "checkpoint": {"train"},
    "lora": {"_adapters", "models"},
}
OF_NOTEBOOKS = ("papermill", "nbformat", "nbclient", "IPython")
OF_PAGES = ("sphinx", "docutils", "yaml", "jupyter_book")


def imports(text):
    """Every dotted name that a module imports, names inside modules too."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute: staleness follows them"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(part):
    """The room of a part of fmkit: a folder or a module at its top."""
    if part in COMMON:
        return "common"
    if part == "__main__":
        return "cli"
    return part if part in MAY_IMPORT else "science"


def forbidden(part, text):
    """The imports of a part of fmkit that its room does not allow."""
    room, known = room_of(part), INSIDE_SCIENCE.get(part)
    for name in imports(text):
        first, *rest = name.split(".")
        if first == "fmkit":
            other = rest[0]
            wrong = room_of(other) not in MAY_IMPORT[room]
            if known is not None and other != part and room_of(other) == "science":
                wrong |= other not in known
        else:
            wrong = first in ("tests", "tools", "bench", "chapters", "support")
            wrong |= room in ("common", "science") and first in OF_NOTEBOOKS + OF_PAGES
        if wrong:
            yield name


@pytest.mark.parametrize("path", MODULES, ids=ident)
def test_rooms(path):
    part = path.relative_to(ROOT / "fmkit").with_suffix("").parts[0]
    if part != "__init__":
        assert [*forbidden(part, path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("part", "text", "wrong"),
    [
        ("progress", "from fmkit.train import train", True),
        ("evaluate", "from fmkit.runs.record import Run", True),
        ("plot", "from IPython.display import display", True),
        ("data", "import yaml", True),
        ("runs", "from fmkit.losses import simclr_loss", True),
        ("runs", "from fmkit.book.build import html", True),
        ("train", "from fmkit.models.resnet import ResNet", True),
        ("losses", "import support.models", True),
        ("tasks", "from fmkit.models.transformer import Transformer", True),
        ("tasks", "from fmkit.data.docstrings import Document", False),
        ("models", "from fmkit.models.blocks import Block", False),
        ("adapt", "from fmkit.train import train", False),
        ("book", "from fmkit.runs.rerun import rerun", False),
    ],
)
def test_rooms_tell_right_from_wrong(part, text, wrong):
    assert bool([*forbidden(part, text)]) is wrong


def test_runs_name_no_chapter():
    chapters = {path.stem for path in (ROOT / "chapters").glob("*.ipynb")}
    for path in (ROOT / "fmkit" / "runs").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert [name for name in chapters if name in text] == []


def test_shapes_are_checked_wherever_they_are_stated():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
        "tool"
    ]["pytest"]
    [option] = re.findall("jaxtyping-packages=(.*)", settings["ini_options"]["addopts"])
    checked = option.removesuffix(",beartype.beartype").split(",")
    stating = {
        path for path in MODULES if "from jaxtyping" in path.read_text(encoding="utf-8")
    }
    parts = {path.relative_to(ROOT).with_suffix("").parts[:2] for path in stating}
    assert sorted(".".join(part) for part in parts) == checked


def test_importing_fmkit_imports_nothing():
    assert [
        *imports((ROOT / "fmkit" / "__init__.py").read_text(encoding="utf-8"))
    ] == []


@pytest.mark.parametrize("path", MODULES, ids=ident)
def test_only_runtime_looks_for_devices(path):
    if path.name != "runtime.py":
        assert not re.search(
            r"torch\.(cuda|mps|backends)\b", path.read_text(encoding="utf-8")
        )


def repository_files():
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    if run.returncode != 0:
        pytest.skip("no checkout, so nothing says which files belong to it")
    paths = (ROOT / name for name in run.stdout.split("\0") if name)
    return [path for path in paths if path.is_file()]


def test_no_large_file():
    assert [p.name for p in repository_files() if p.stat().st_size > 4_000_000] == []


def test_no_path_of_a_machine_and_no_host_of_a_registry():
    folders = r"(?<![\w+/.])/(?:work|root|opt|tmp|home/\w+)/\w"
    hosts = r"download\.pytorch|pypi\.org/simple|files\.pythonhosted|npmjs"
    found_in = {}
    for path in repository_files():
        if "vendor" not in path.parts and path != Path(__file__).resolve():
            text = path.read_bytes().decode(errors="replace")
            found_in[path.name] = re.findall(f"{folders}|{hosts}", text)
    assert {name: matches for name, matches in found_in.items() if matches} == {}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]


@pytest.fixture(scope="module")
def lock():
    """Locked versions by name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def unlocked(lines, lock):
    """Requirements that the lock does not satisfy."""
    wanted = [Requirement(line) for line in lines]
    names = [canonicalize_name(requirement.name) for requirement in wanted]
    pairs = zip(wanted, names, strict=True)
    return [n for r, n in pairs if n not in lock or lock[n] not in r.specifier]


def test_every_requirement_is_locked(project, lock):
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(x for e in extras.values() for x in e)]
    others = [line for line in lines if not line.startswith("fmkit[")]
    assert unlocked(others, lock) == []
    assert unlocked(["torch>=99", "no-such-package"], lock) == [
        "torch",
        "no-such-package",
    ]


def test_the_lock_is_for_every_machine(project, lock):
    assert not any("+" in version for version in lock.values())
    assert unlocked(["pip>=24.1"], lock) == []
    assert "fmkit" not in lock


def required_by(name):
    """Requirements of a package; of one that is not installed nothing is known."""
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


def test_the_lock_is_whole(lock):
    if not torch.__version__.endswith("+cpu"):
        pytest.skip("the lock was made with a torch without CUDA, here is another")
    pending, seen = [("fmkit", extra) for extra in ("", *EXTRAS)], set()
    while pending:
        name, extra = pending.pop()
        for requirement in map(Requirement, required_by(name)):
            marker = requirement.marker
            if marker is None or marker.evaluate({"extra": extra}):
                key = canonicalize_name(requirement.name)
                extras_of = {(key, wanted) for wanted in ("", *requirement.extras)}
                pending += extras_of - seen
                seen |= extras_of
    assert {name for name, _ in seen} - set(lock) - {"fmkit"} == set()


def test_conda_takes_what_a_reader_needs(project):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, nested = environment["dependencies"]
    assert (python, pip) == (f"python{project['requires-python']}", "pip")
    assert nested == {"pip": ["-c constraints.txt", "-e .[book,lab]"]}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    sets = re.findall(r"^\$\((\w+)\): extras := (.*)$", makefile, re.MULTILINE)
    assert dict(sets) == {
        "READ": "book,lab",
        "TEST": "book,lab,test",
        "BENCH": "runs,bench",
    }
    assert set(EXTRAS) == set(project["optional-dependencies"])


def test_binder_has_a_torch_without_cuda(project):
    """From conda, in the versions that pip allows; all else is what conda installs."""
    folder = ROOT / "binder"
    environment = yaml.safe_load((folder / "environment.yml").read_text("utf-8"))
    python, pip, torch_there = environment["dependencies"]
    assert python.partition("=")[2] in PYTHONS
    [wanted] = [x for x in project["dependencies"] if x.startswith("torch>")]
    assert (pip, torch_there) == ("pip", wanted.replace("torch", "pytorch-cpu"))
    script = folder / "postBuild"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    lines = script.read_text(encoding="utf-8")
    assert re.findall(r"-e '(.*)'", lines) == [".[book,lab]"]
    [profile] = re.findall(r"tools\.for_binder (\S+)", lines)
    assert (ROOT / profile).is_file()


# What is imported is declared

OUTSIDE = "import sys\nfor name in {blocked}:\n    sys.modules[name] = None\n"


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def test_science_needs_none_of_the_notebook_s_libraries():
    """Every module of science and of common; only yaml is there, which gguf brings."""
    blocked = {*OF_NOTEBOOKS, "ipykernel", "jupyter_client", *OF_PAGES, "lm_eval"}
    blocked -= {"yaml"}
    modules = [
        module_of(path)
        for path in MODULES
        if room_of(path.relative_to(ROOT / "fmkit").with_suffix("").parts[0])
        in ("common", "science")
        and path.stem not in OWN_EXTRA
    ]
    assert {"fmkit.losses", "fmkit.models.transformer", "fmkit.assets"} < set(modules)
    lines = [f"import {module}" for module in modules]
    text = OUTSIDE.format(blocked=blocked) + "\n".join(lines)
    run = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, encoding="utf-8"
    )
    assert (run.returncode, run.stderr) == (0, "")


def third_party(path):
    """The first parts of the names that a file imports from elsewhere."""
    first = {name.partition(".")[0] for name in imports(path.read_text("utf-8"))}
    ours = {"fmkit", "bench", "tools", "tests", "support", "reference"}
    ours |= {other.stem for other in (ROOT / "tests").rglob("*.py")}
    return first - ours - set(sys.stdlib_module_names)


def undeclared(files, extras, project):
    """What files import and no requirement of the core or of these extras brings."""
    optional = project["optional-dependencies"]
    lines = [*project["dependencies"], *(x for e in extras for x in optional[e])]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    brought = packages_distributions()
    wanted = set().union(*map(third_party, files))
    return {
        name
        for name in wanted
        if not declared & {canonicalize_name(d) for d in brought.get(name, [name])}
    }


@pytest.mark.parametrize(
    ("rooms", "extras"),
    [
        (("common", "science"), ()),
        (("common", "science"), ("harness",)),
        (("runs",), ("runs",)),
        (("runs",), ("runs", "dask")),
        (("book", "cli"), ("runs", "book")),
    ],
)
def test_what_fmkit_imports_is_declared(project, rooms, extras):
    files = [
        path
        for path in MODULES
        if room_of(path.relative_to(ROOT / "fmkit").with_suffix("").parts[0]) in rooms
        and OWN_EXTRA.get(path.stem) in (None, *extras)
    ]
    assert undeclared(files, extras, project) == set()


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("tests", ("runs", "book", "test")),
        ("bench", ("runs", "bench")),
        ("tools", ("runs", "bench", "test")),
    ],
)
def test_what_others_import_is_declared(project, folder, extras):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert undeclared(files, extras, project) == set()


def test_what_is_not_declared_is_seen(project, tmp_path):
    file = tmp_path / "x.py"
    file.write_text("import os\nimport papermill\nimport torch.nn\n", encoding="utf-8")
    assert undeclared([file], (), project) == {"papermill"}
    assert undeclared([file], ("runs",), project) == set()


# Pythons


def test_versions_of_python_agree(project):
    supported = SpecifierSet(project["requires-python"])
    versions = ("3.10", "3.11", "3.12", "3.13", "3.14")
    assert [*supported.filter(versions)] == PYTHONS
    script = (ROOT / "tools" / "venv.sh").read_text(encoding="utf-8")
    assert "(3, 11) <= sys.version_info < (3, 14)" in script
    assert "3.11, 3.12 or 3.13" in script


PYTHONS = ["3.11", "3.12", "3.13"]
FAKE = """\
#!/bin/sh
if [ "$1" = -c ]; then
  exec {python} -c "import sys; sys.version_info = ({version}, 0, 'final', 0)
$2"
fi
echo "{name} $*"
"""


@pytest.fixture
def set_up(tmp_path):
    """What tools/venv.sh does where there are only these programs, by name."""

    def run(version="", **programs):
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, its_version in programs.items():
            text = FAKE.format(
                python=sys.executable,
                name=name,
                version=its_version.replace(".", ", "),
            )
            (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
            (folder / name.replace("_", ".")).chmod(0o755)
        command = [shutil.which("sh"), ROOT / "tools" / "venv.sh", "there", version]
        options = {
            "capture_output": True,
            "encoding": "utf-8",
            "env": {"PATH": str(folder)},
        }
        return subprocess.run(command, **options)

    return run


@pytest.mark.parametrize(
    ("version", "programs", "chosen"),
    [
        ("", {"python3": "3.12", "python3_11": "3.11"}, "python3"),
        ("", {"python3": "3.14", "python3_13": "3.13"}, "python3_13"),
        ("", {"python3": "3.10", "python": "3.11"}, "python"),
        ("3.12", {"python3": "3.11", "python3_12": "3.12"}, "python3_12"),
        ("3.12", {"python3": "3.12"}, "python3"),
    ],
)
def test_a_suitable_python_is_taken(set_up, version, programs, chosen):
    run = set_up(version, **programs)
    assert run.returncode == 0
    assert run.stdout.endswith(f"\n{chosen} -m venv there\n")


@pytest.mark.parametrize(("version", "brought"), [("", "3.13"), ("3.12", "3.12")])
def test_uv_brings_a_python(set_up, version, brought):
    run = set_up(version, python3="3.14", uv="")
    assert run.returncode == 0
    _, install, venv = run.stdout.splitlines()
    assert install == f"uv python install --quiet {brought}"
    assert venv.startswith("uv venv")
    assert venv.endswith(f"--python {brought} there")


@pytest.mark.parametrize("programs", [{}, {"python3": "3.14"}, {"python3": "3.10"}])
def test_one_sentence_says_how_to_get_a_python(set_up, programs):
    run = set_up(**programs)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.count("\n") == 1
    assert "uv python install 3.13" in run.stderr
    assert run.stderr.endswith(".\n")


# Workflows


def targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lines = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    return {name for line in lines for name in line.split()}


def test_make_test_is_its_stages():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\ntest: lint unit devices nbval smoke\n" in makefile
    stages = {"lint", "unit", "devices", "nbval", "smoke"}
    assert stages | {"test-python", "mutants"} < targets()
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert 'make "${@:-test}" </dev/null' in script


def workflows():
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        yield path.name, yaml.safe_load(path.read_text(encoding="utf-8"))


WEEKLY = {"links.yml", "newest.yml"}


def test_workflows_run_what_a_reader_runs(project):
    """Targets of the Makefile, by make or by .ci/run; every Python on every change."""
    pythons, change = {}, "test.yml"
    for name, workflow in workflows():
        for job in workflow["jobs"].values():
            matrix = job.get("strategy", {}).get("matrix", {}).get("python", [])
            for step in job["steps"]:
                version = step.get("with", {}).get("python-version")
                versions = matrix if "matrix" in str(version) else [version]
                pythons.setdefault(name, set()).update(filter(None, versions))
                if "run" in step:
                    program, *words = step["run"].split()
                    assert program in ("make", ".ci/run", "gh", "sudo")
                    if program in ("make", ".ci/run"):
                        assert set(words[:1]) <= targets()
    assert pythons == {
        change: set(PYTHONS),
        "links.yml": {"3.11"},
        "newest.yml": {PYTHONS[-1]},
        "site.yml": {"3.11"},
    }


def test_every_week_an_issue_tells_of_what_broke():
    """One issue, by the only permission to write, only after a failure."""
    weekly = {name: w for name, w in workflows() if "schedule" in w[True]}  # on:
    assert set(weekly) == WEEKLY
    for name, workflow in weekly.items():
        assert workflow["permissions"] == {"contents": "read", "issues": "write"}, name
        [job] = workflow["jobs"].values()
        [told] = [step for step in job["steps"] if "gh issue" in step.get("run", "")]
        assert told["if"] in ("failure()", "steps.lychee.outputs.exit_code != 0")
        assert {"GH_TOKEN", "TITLE"} <= job["env"].keys()
        syntax = subprocess.run(["bash", "-n", "-c", told["run"]], check=False)
        assert syntax.returncode == 0
        lists, _, creates = told["run"].partition(" || ")
        assert lists == 'gh issue list --search "in:title $TITLE" | grep -q .'
        assert creates.startswith('gh issue create --title "$TITLE" --body')


def test_the_newest_versions_are_those_without_the_lock():
    command = [shutil.which("make"), "-n", "newest"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    installs = re.findall(r"pip .*install (.*)", run.stdout)
    assert len(installs) == 2
    assert all(line.startswith("--upgrade") for line in installs)
    assert "constraints.txt" not in "".join(installs)
    assert run.stdout.count(".venv-newest/bin/fmkit book") == 1
