"""Execute one chapter with other parameters, with papermill but strictly.

Papermill itself only warns about an unknown name, injects the text "false" for a flag,
and ends a failing notebook with a page of traceback.
"""

import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import LocalHandler, papermill_io

from fmkit import ranks
from fmkit._check import Refused
from fmkit._writing import whole, write_whole
from fmkit.runs import kernel, machine
from fmkit.runs.cells import RerunError, code_of
from fmkit.runs.owner import owned
from fmkit.runs.parameters import (
    checked,
    defaults_of,
    located,
    parameters_of,
    read_notebook,
)
from fmkit.runs.record import new_record, read_record, write_record
from fmkit.runs.signals import handled
from fmkit.runs.stale import source_hash

PYTHON = "python"  # the language of a notebook, and of what papermill injects into it
# Without a handler, Python also prints what papermill logs.
logging.getLogger("papermill").addHandler(logging.NullHandler())


class _Whole(LocalHandler):
    """How papermill writes a notebook: completely or not at all."""

    def write(self, text: str, path: str) -> None:
        write_whole(Path(path), text)


def rerun(path: Path, out: Path, *, given: dict[str, object]) -> dict[str, object]:
    """Execute a chapter with `given` parameters and return its record.

    The chapter runs with this Python, whatever kernel it names, and without the
    reader's settings of IPython and matplotlib. Writes ``<chapter>.ipynb`` and
    ``record.json`` into `out`; those of an earlier run stay until both can be replaced.
    SIGTERM and SIGHUP end a run as Ctrl-C does.

    If the chapter fails, the record names the error, and so does the RerunError that is
    raised. Also raises RerunError if the notebook or `given` cannot be used, or if
    another run writes into `out`; raises Refused if a file cannot be written.

    If torchrun started several processes, each executes the chapter, which must join
    them (:func:`fmkit.ranks.processes`). Only the first writes into `out`; a temporary
    folder takes what the others write, and stays there if they fail.
    """
    with handled("SIGTERM", "SIGHUP", by=signal.default_int_handler):  # as Ctrl-C
        if ranks.rank() == 0:
            return _rerun(path, out, given=given)
        folder = Path(tempfile.mkdtemp(prefix=f"fmkit-{ranks.rank()}-"))
        record = _rerun(path, folder, given=given)
        shutil.rmtree(folder, ignore_errors=True)
        return record


def _rerun(path: Path, out: Path, *, given: dict[str, object]) -> dict[str, object]:
    source = read_notebook(path)
    parameters = parameters_of(source)
    values = defaults_of(source) | located(parameters, checked(parameters, given))
    language = _language_of(source)
    if language.lower() != PYTHON:
        raise RerunError(f"{path} must be in Python, got {language}.")
    joins = any("ranks.processes(" in cell for cell in code_of(source))
    if ranks.started() > 1 and not joins:
        rule = "must call ranks.processes, which several processes need"
        raise RerunError(f"{path} {rule}; run it without torchrun.")
    if (out / path.name).resolve() == path.resolve():
        raise RerunError(f"the output folder must not be the chapter's own, got {out}.")
    if find_spec("ipykernel") is None:  # papermill does not need it
        raise ModuleNotFoundError("No module named 'ipykernel'", name="ipykernel")
    with owned(out):
        return _owning(path, out.resolve(), values)


def _language_of(notebook: NotebookNode) -> str:
    """Return the language in which a notebook says it is; Python if it does not."""
    said = notebook.metadata.get("language_info", {}).get("name")
    return said or notebook.metadata.get("kernelspec", {}).get("language") or PYTHON


def _owning(path: Path, out: Path, values: dict[str, object]) -> dict[str, object]:
    """Run a chapter with the values of all parameters into a folder that is ours."""
    source = read_notebook(path)
    digest = source_hash(source)
    changed = {n: v for n, v in values.items() if v != defaults_of(source)[n]}
    for cell in source.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    begun = new_record(path.stem, values, device=str(values.get("device", "auto")))
    notebook, record = out / path.name, out / "record.json"
    with whole(notebook) as staging:  # which takes its place after the record
        nbformat.write(source, staging)
        write_record(record, begun)
    error = "interrupted"
    try:
        with tempfile.TemporaryDirectory(
            prefix="fmkit-kernel-", ignore_cleanup_errors=True
        ) as name:
            folder = Path(name)
            variables = {"FMKIT_RECORD": str(record), "FMKIT_SOURCE": digest}
            variables |= machine.variables()
            with environment(variables | kernel.settings(folder)):
                error = _execute(path, notebook, changed, folder)
    except Refused as refused:
        error = str(refused).rstrip(".")
        raise
    except Exception as unforeseen:
        error = f"{type(unforeseen).__name__}: {unforeseen}"
        raise
    finally:
        finished = _finish(record, error=error)
    if error:
        raise RerunError(f"{path} failed in {error}; see {notebook}.")
    return finished


def _execute(
    path: Path, target: Path, parameters: dict[str, object], folder: Path
) -> str | None:
    """Execute `path` into `target`; return the error and its cell, or None.

    `folder` is for files of the kernel.
    """
    papermill_io.register(str(target), _Whole())
    live = sys.stderr.isatty()
    bar = {"desc": path.stem, "leave": False, "file": sys.stderr}
    try:
        papermill.execute_notebook(
            _braces_escaped(path.resolve()),
            _braces_escaped(target),
            parameters=parameters,
            cwd=str(path.resolve().parent),
            progress_bar=bar if live else False,
            kernel_name="python3",
            language=PYTHON,
            kernel_manager_class=kernel.manager(folder),
        )
    except PapermillExecutionError as error:
        text = " ".join(error.evalue.split())
        return f"cell {error.exec_count}: {error.ename}: {text}".rstrip(". ")
    except (RuntimeError, OSError) as error:
        cell = _begun(read_notebook(target))
        if cell == 0:
            return f"starting its kernel: {kernel.reason(error, folder)}"
        if not isinstance(error, DeadKernelError):
            raise
        return f"cell {cell}: its kernel died"
    return None


def _begun(notebook: NotebookNode) -> int:
    """Count the code cells that papermill has begun: the number of the last one."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    ran = [cell.metadata.get("papermill", {}).get("start_time") for cell in code]
    return sum(start is not None for start in ran)


def _braces_escaped(path: Path) -> str:
    """Write a path for papermill, which would replace the text in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _finish(path: Path, *, error: str | None) -> dict[str, object]:
    """Complete the record with how the run ended."""
    record = read_record(path)
    record |= {"status": "failed" if error else "finished", "error": error}
    write_record(path, record)
    return record


@contextlib.contextmanager
def environment(variables: dict[str, str | None]) -> Iterator[None]:
    """Set environment variables for a while, and remove those whose value is None."""
    before = {name: os.environ.get(name) for name in variables}
    _set(variables)
    try:
        yield
    finally:
        _set(before)


def _set(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
