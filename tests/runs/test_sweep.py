"""A grid of runs: what is refused, what goes on after Ctrl-C, table and gallery."""

import base64
import contextlib
import csv
import html
import io
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from nbformat.v4 import new_output
from support.notebooks import PARAMETERS, PNG, code, notebook, write
from support.processes import (
    BEGUN,
    begun,
    is_alive,
    no_file_above,
    started,
    stopped,
    wait_until,
)

from fmkit.cli import main
from fmkit.runs.engines import Ended
from fmkit.runs.machine import usable_cores
from fmkit.runs.owner import owned
from fmkit.runs.parameters import (
    grid_of,
    name_of,
    parameters_of,
    points_of,
    read_notebook,
)
from fmkit.runs.record import new_record, write_record
from fmkit.runs.sweep import result_after, results_before

SHOW = f"""\
from base64 import b64decode
from IPython.display import Image, display

display(Image(b64decode({PNG!r}) + bytes(steps)))"""  # another file at each point
FMKIT = str(Path(sys.executable).with_name("fmkit"))
CAPTION, ALT = "A <wave> & more.", 'A "wave".'


@pytest.fixture
def parameters():
    return parameters_of(notebook())


def arguments(path, out, *given):
    """The command line of a sweep."""
    return ["sweep", str(path), *(p for g in given for p in ("-p", g)), "-o", str(out)]


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("tau=0.1,1e-3,2", [0.1, 0.001, 2.0]),
        ("seed=0, 1", [0, 1]),
        ("shuffle=true,false", [True, False]),
        ("name=red,7,no,1.50,'a, b'", ["red", "7", "no", "1.50", "a, b"]),
        ("sizes=[1],[10, 50],[]", [[1], [10, 50], []]),
    ],
)
def test_values(parameters, argument, values):
    [got] = grid_of([argument], parameters).values()
    assert got == values
    assert [*map(type, got)] == [*map(type, values)]


def test_the_last_name_varies_fastest(parameters, tmp_path):
    grid = grid_of(["tau=0.1,0.2", "seed=0,1,2"], parameters)
    points = points_of(grid, {"steps": 7, "seed": 9}, tmp_path)
    assert [(p.given["tau"], p.given["seed"]) for p in points] == [
        (0.1, 0),
        (0.1, 1),
        (0.1, 2),
        (0.2, 0),
        (0.2, 1),
        (0.2, 2),
    ]
    assert {p.given["steps"] for p in points} == {7}
    assert points[1].folder == tmp_path / "seed=1,tau=0.1"


@pytest.mark.parametrize(
    ("given", "printed"),
    [
        (["tau"], "-p must be name=value,value,…, got 'tau'."),
        (["taus=1,2"], "no parameter is named taus (did you mean tau?); there are"),
        (["seed=0,x"], "seed must be int, got 'x'."),
        (["sizes=1,2"], "sizes must be list[int], got '1'."),
        (["tau=[0.1,0.2]"], "tau must be float, got ['0.1', '0.2']."),
        (["tau=0.1,,0.2"], "tau must be values such as a,'b, c', got '0.1,,0.2'."),
        (["tau=1,2] : [3"], "tau must be values such as a,'b, c', got '1,2] : [3'."),
        (["name=&a,b"], "name must be values such as a,'b, c', got '&a,b'."),
        (["name=a\nb,c"], "name must be values such as a,'b, c', got 'a\\nb,c'."),
        (["tau="], "tau must be float, got ''."),
        (["tau=1", "seed=0", "tau=2"], "tau is given twice; one -p takes all its"),
        (["tau=0.1,1e-1"], "tau has the value 0.1 twice."),
        (["tau=1", "-j0"], "jobs must be at least 1, got 0."),
        (["tau=1", "-fbase.yaml"], "base.yaml, line 1: steps must be int, got 'x'."),
    ],
)
def test_a_wrong_grid(tmp_path, capsys, monkeypatch, given, printed):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("tiny: {steps: x}", encoding="utf-8")
    path = write(notebook(), tmp_path / "tiny.ipynb")
    options = [option for option in given if option.startswith("-")]
    values = [value for value in given if value not in options]
    assert main([*arguments(path, "out", *values), *options]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"fmkit: {printed}")
    assert shown.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    path = write(notebook(), tmp_path / "tiny.ipynb")
    (tmp_path / "file").touch()
    assert main(arguments(path, tmp_path / "file", "seed=0")) == 1
    assert capsys.readouterr().err.endswith("file cannot be written (File exists).\n")


@pytest.mark.parametrize(
    ("varied", "name"),
    [
        ({"tau": 0.1, "seed": 0}, "seed=0,tau=0.1"),
        ({"tau": 1e-5, "shuffle": True}, "shuffle=true,tau=1e-05"),
        ({"sizes": [10, 50]}, "sizes=10+50"),
        ({"name": "a/b"}, r"name=a_b-\w{10}"),
        ({"name": ".."}, r"name=..-\w{10}"),
        ({"name": "Red"}, r"name=Red-\w{10}"),
        ({"sizes": []}, r"sizes=-\w{10}"),
        ({"name": "x" * 300}, r"name=x{95}-\w{10}"),
    ],
)
def test_a_folder_is_named_for_its_point(varied, name):
    assert re.fullmatch(name.replace("+", r"\+"), name_of(varied))


def test_no_two_points_share_a_folder():
    texts = ["a/b", "a_b", "a b", "A_B", "a+b", "a,seed=0", "", "x" * 200, "x" * 201]
    names = [name_of({"name": text}) for text in texts]
    names += [name_of({"name": value}) for value in (["a", "b"], ["a,b"], ["a+b"], [])]
    assert len({name.lower() for name in names}) == len(names)


def rows_of(out):
    """The rows of a sweep's table, each by its columns."""
    with open(out / "table.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A sweep of four points of which one fails and one loses its process."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "base.yaml").write_text("tiny: {name: blue, tau: 7}", encoding="utf-8")
    names = "OMP_NUM_THREADS", "MKL_NUM_THREADS", "FMKIT_FINDINGS"
    cells = [
        code(f"import os\n\nprint([os.environ[name] for name in {names}])"),
        code(SHOW, mystnb={"figure": {"caption": CAPTION}, "image": {"alt": ALT}}),
        code("if steps == 2: raise ValueError('no <2>')"),
        code("if steps == 3: os.kill(os.getppid(), 9)"),
    ]
    path = write(notebook(*cells), folder / "tiny.ipynb")
    command = [*arguments(path, folder / "out", "steps=2,3,4", "tau=0.5"), "-j2"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([*command, "-f", str(folder / "base.yaml")])
    return folder, status, out.getvalue(), err.getvalue()


def test_a_failing_point_does_not_stop_the_rest(mixed):
    folder, status, printed, error = mixed
    two = "cell 5: ValueError: no <2>"
    three = "its process ended with status -9"
    assert status == 1
    assert error == "fmkit: 2 of 3 points failed.\n"
    first, *ended, _, _, last = printed.splitlines()
    cores = f"{max(usable_cores() // 2, 1)} of {usable_cores()} cores each"
    assert first == f"tiny, 3 points: 3 not run; 2 at a time with {cores}"
    assert len(ended) == 3
    assert [line.rpartition("; ")[2] for line in ended] == [
        f"{left} remain" for left in (2, 1, 0)
    ]
    assert re.search(rf"steps=2,tau=0.5 failed in \d+ s: {two}; ", printed)
    assert re.search(rf"steps=3,tau=0.5 failed in \d+ s: {three}; ", printed)
    assert re.search(r"steps=4,tau=0.5 finished in \d+ s; ", printed)
    assert printed.splitlines()[-3:-1] == [
        f"steps=2,tau=0.5 failed: {two}",
        f"steps=3,tau=0.5 failed: {three}",
    ]
    assert last.startswith("3 points: 2 failed, 1 finished; see ")
    assert [
        (row["steps"], row["tau"], row["status"]) for row in rows_of(folder / "out")
    ] == [
        ("2", "0.5", "failed"),
        ("3", "0.5", "failed"),
        ("4", "0.5", "finished"),
    ]


def test_a_point_whose_folder_cannot_be_written(tmp_path, capsys):
    path, out = write(notebook(), tmp_path / "tiny.ipynb"), tmp_path / "out"
    (out / "seed=1" / "log.txt").mkdir(parents=True)
    assert main(arguments(path, out, "seed=1")) == 1
    shown = capsys.readouterr().err
    assert shown.endswith("seed=1/log.txt cannot be written (Is a directory).\n")
    assert shown.count("\n") == 1


def test_figures_that_cannot_be_written(tmp_path):
    """The disk is full when a point has ended; the sweep reports it as failed."""
    [point] = points_of({"seed": [1]}, {}, tmp_path)
    record = new_record("tiny", {"seed": 1}, device="cpu") | {"status": "finished"}
    cell = code("draw()")
    cell["outputs"] = [new_output("display_data", {"image/png": PNG})]
    write(notebook(cell), point.folder / "tiny.ipynb")
    write_record(point.folder / "record.json", record)
    with no_file_above(20):
        after = result_after(Ended(point, 0, 1.0), Path("tiny.ipynb"))
    figure = point.folder / "figure-2-1.png"
    printed = f"{figure} cannot be written (File too large)."
    assert (after.status, after.error) == ("failed", printed)
    assert not figure.exists()


def test_each_point_has_its_parameters_and_its_threads(mixed):
    folder, *_ = mixed
    threads = str(max(usable_cores() // 2, 1))
    point = folder / "out" / "steps=4,tau=0.5"
    record = json.loads((point / "record.json").read_text(encoding="utf-8"))
    assert record["parameters"]["steps"] == 4
    assert record["parameters"]["tau"] == 0.5  # -p wins over the profile
    assert record["parameters"]["name"] == "blue"
    cells = read_notebook(point / "tiny.ipynb").cells
    texts = [o.get("text") for c in cells for o in c.get("outputs", [])]
    assert texts[0] == f"{[threads, threads, 'report']}\n"


def test_gallery_of_a_sweep(mixed):
    folder, *_ = mixed
    page = (folder / "out" / "index.html").read_text(encoding="utf-8")
    assert html.escape("cell 5: ValueError: no <2>") in page
    assert "<h3>A &lt;wave&gt; &amp; more.</h3>" in page
    assert page.count("<h3>") == 1
    assert page.count("<img ") == 3  # of the points that failed too
    for file in re.findall('src="([^"]*)"', page):
        picture = folder / "out" / file.replace("%3D", "=").replace("%2C", ",")
        assert picture.read_bytes().startswith(base64.b64decode(PNG))
    alt = 'alt="steps = 4, tau = 0.5: A &#34;wave&#34;." width="2" height="1"'
    assert alt in page
    for steps in (2, 3, 4):  # all have notebooks, and pages of them
        for file in ("tiny.html", "tiny.ipynb"):
            assert f'href="steps%3D{steps}%2Ctau%3D0.5/{file}"' in page
    assert "Alike in all: name = blue, shuffle = true, sizes = [1, 2]" in page
    assert not re.search(r"(src|href)=.?https?://", page)


@pytest.mark.parametrize(
    ("steps", "end", "rest"),
    [
        (2, "cell 5: ValueError: no &lt;2&gt;", "did not run: 1."),
        (3, "its process ended with status -9", ""),
    ],
)
def test_the_page_of_a_failed_point_ends_where_it_failed(mixed, steps, end, rest):
    folder, *_ = mixed
    point = folder / "out" / f"steps={steps},tau=0.5"
    page = (point / "tiny.html").read_text(encoding="utf-8")
    assert f"The run ended here: {end}</p>" in page
    assert rest in page
    assert "An Exception was encountered" not in page  # which papermill adds


def test_an_interrupted_sweep_goes_on_without_repeating(tmp_path, capsys):
    out, begins = tmp_path / "out", code(BEGUN.format(folder=str(tmp_path)))
    path = write(notebook(begins), tmp_path / "tiny.ipynb")
    rest = [*arguments(path, out, "steps=1,3,4"), "-j2"]
    record = out / "steps=1" / "record.json"

    status, printed, error = stopped(
        [FMKIT, *rest], when=lambda: len(begun(tmp_path)) == 3
    )
    assert (status, error) == (130, "fmkit: interrupted.\n")
    assert printed.splitlines()[-1].startswith("3 points: 1 finished, 2 not run; see ")
    assert sorted(steps for steps, *_ in begun(tmp_path)) == [1, 3, 4]
    assert not any(is_alive(pid) for _, *both in begun(tmp_path) for pid in both)
    assert [r["status"] for r in rows_of(out)] == ["finished", "not run", "not run"]
    assert (out / "index.html").read_text(encoding="utf-8").count(
        "<span>not run</span>"
    ) == 2
    made = record.stat().st_mtime_ns

    command = [FMKIT, *arguments(path, out, "steps=1,3")]
    status, printed, error = stopped(
        command, when=lambda: len(begun(tmp_path)) == 4, by=signal.SIGTERM
    )
    assert status == 130
    assert printed.startswith("tiny, 2 points: 1 finished, 1 not run; ")
    assert not any(is_alive(pid) for _, *both in begun(tmp_path) for pid in both)

    (tmp_path / "go").touch()
    assert main(rest) == 0
    assert sorted(steps for steps, *_ in begun(tmp_path)) == [1, 3, 3, 3, 4, 4]
    assert [row["status"] for row in rows_of(out)] == ["finished"] * 3
    assert record.stat().st_mtime_ns == made

    capsys.readouterr()
    assert main(rest) == 0
    assert capsys.readouterr().out.startswith("tiny, 3 points: 3 finished\n")
    assert len(begun(tmp_path)) == 6


STUBBORN = """\
import os
import time

with open({folder!r} + "/log", "a") as log:
    print(steps, os.getpid(), os.getppid(), file=log, flush=True)
while not os.path.exists({folder!r} + "/go"):
    try:
        time.sleep(0.05)
    except KeyboardInterrupt:
        if steps == 3:
            raise"""


def test_a_killed_sweep_leaves_nothing_that_runs(tmp_path):
    """Nobody stops its points, one of which does not let itself be interrupted."""
    cell, out = code(STUBBORN.format(folder=str(tmp_path))), tmp_path / "out"
    path = write(notebook(cell), tmp_path / "tiny.ipynb")
    with started([FMKIT, *arguments(path, out, "steps=3,4"), "-j2"]) as process:
        wait_until(lambda: len(begun(tmp_path)) == 2)
        left = {steps: both for steps, *both in begun(tmp_path)}
        process.kill()
        process.wait()
        try:
            # What starts now waits for its folder: seconds, or many on a busy machine.
            for steps, (kernel, _) in left.items():
                with owned(out), owned(out / f"steps={steps}", patience=60):
                    assert not is_alive(kernel)
            wait_until(lambda: not any(is_alive(rerun) for _, rerun in left.values()))
        finally:
            for _, rerun in left.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rerun, signal.SIGKILL)
    files = {path.name for path in out.rglob("*") if path.is_file()}
    assert files - {"table.csv", "index.html"} == {
        "tiny.ipynb",
        "record.json",
        "log.txt",
        "source_hash.txt",
    }


def test_what_is_run_again(tmp_path, capsys):
    defaults = PARAMETERS.replace("steps: int = 3", "steps: int = 1")
    reports = code("assert os.environ['FMKIT_FINDINGS'] == 'report'")  # at defaults too
    begins = code(BEGUN.format(folder=str(tmp_path)))
    path = write(notebook(begins, reports, parameters=defaults), tmp_path / "a.ipynb")
    changed = notebook(begins, parameters=defaults)
    out = tmp_path / "out"
    record, whole = out / "steps=1" / "record.json", path.read_text(encoding="utf-8")

    def status(**base):
        [point] = points_of({"steps": [1]}, base, out)
        return results_before([point], path)[point.folder].status

    assert main(arguments(path, out, "steps=1")) == 0
    good = record.read_text(encoding="utf-8")
    assert status() == status(tau=0.5) == "finished"
    assert status(tau=0.7) == "stale"
    for damaged in (good[:-9], good.replace("finished", "failed"), "", "\xff"):
        record.write_text(damaged, encoding="latin-1")
        assert status() == "not run"
    record.write_text(good, encoding="utf-8")
    (out / "steps=1" / "source_hash.txt").rename(tmp_path / "away")
    assert status() == "not run"
    (tmp_path / "away").rename(out / "steps=1" / "source_hash.txt")
    write(changed, path)
    assert status() == "stale"
    path.write_text(whole, encoding="utf-8")
    assert status() == "finished"
    write(changed, path)

    capsys.readouterr()
    assert main(arguments(path, out, "steps=1")) == 0
    assert capsys.readouterr().out.startswith("a, 1 point: 1 stale; ")
    assert len(begun(tmp_path)) == 2
    assert status() == "finished"
    (out / "steps=1" / "a.ipynb").unlink()
    assert status() == "not run"
