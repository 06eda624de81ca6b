"""An output folder has one owner, which is named and whose death frees the folder."""

import os
import platform
import signal
import sys
from pathlib import Path

import pytest
from support.notebooks import code, notebook, write
from support.processes import BEGUN, begun, is_alive, started, wait_until

from fmkit.cli import main
from fmkit.runs import point
from fmkit.runs.cells import RerunError
from fmkit.runs.owner import owned

FMKIT = str(Path(sys.executable).with_name("fmkit"))


@pytest.fixture
def path(tmp_path):
    """A notebook that waits, if steps is 3 or more, for a file ``go``."""
    cell = code(BEGUN.format(folder=str(tmp_path)))
    return write(notebook(cell), tmp_path / "tiny.ipynb")


def contents(folder):
    """Every file in a folder and below, with what it holds."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_second_run_stops_at_once_and_touches_nothing(path, tmp_path, capsys):
    out = tmp_path / "out"
    command = [FMKIT, "rerun", str(path), "-p", "steps=3", "-o", str(out)]
    with started(command) as first:
        wait_until(lambda: begun(tmp_path))
        before = contents(out)
        for second in (["rerun"], ["sweep", "-p", "seed=1"]):
            name, *given = second
            assert main([name, str(path), *given, "-o", str(out)]) == 1
            shown = capsys.readouterr()
            assert shown.out == ""
            owner = f"process {first.pid} on {platform.node()} since 20"
            assert shown.err.startswith(f"fmkit: {out} is in use by {owner}")
            assert shown.err.count("\n") == 1
        assert contents(out) == before
        [[_, kernel, _]] = begun(tmp_path)
        first.send_signal(signal.SIGKILL)
        first.wait()
        # Nothing frees the folder but the death of its owner.
        assert main(["rerun", str(path), "-o", str(out), "-p", "steps=2"]) == 0
        wait_until(lambda: not is_alive(kernel), seconds=5)
    assert contents(out).keys() == {"tiny.ipynb", "record.json"}


def test_a_folder_has_one_owner_at_a_time(tmp_path):
    with owned(tmp_path):
        with pytest.raises(RerunError, match=f"in use by process {os.getpid()} on"):
            owned(tmp_path).__enter__()
        with owned(tmp_path / "inside"):
            pass
    assert [*tmp_path.iterdir()] == []
    with owned(tmp_path):
        pass


def test_an_owner_that_has_not_said_who_it_is(tmp_path):
    with owned(tmp_path):
        (tmp_path / ".owner").unlink()
        with pytest.raises(RerunError, match="in use by another process;"):
            owned(tmp_path).__enter__()


def test_points_of_a_sweep_have_folders_of_their_own(path, tmp_path, capsys):
    """A rerun into one of them is refused while its point is not finished."""
    out = tmp_path / "out"
    with owned(out / "seed=1"):
        patience, point.STOP_SECONDS = point.STOP_SECONDS, 0.2
        try:
            assert main(["sweep", str(path), "-p", "seed=1,2", "-o", str(out)]) == 1
        finally:
            point.STOP_SECONDS = patience
    assert f"fmkit: {out / 'seed=1'} is in use by " in capsys.readouterr().err
    assert begun(tmp_path) == []


def test_files_that_come_from_elsewhere_respect_an_owner(tmp_path, monkeypatch):
    monkeypatch.setattr(point, "STOP_SECONDS", 0.2)
    folder = tmp_path / "seed=1"
    with owned(folder), pytest.raises(RerunError, match="in use by"):
        point.keep({"record.json": b"{}"}, folder, notebook="tiny.ipynb")
    assert not folder.exists()
    point.keep({"record.json": b"{}"}, folder, notebook="tiny.ipynb")
    assert contents(folder) == {"record.json": b"{}"}
