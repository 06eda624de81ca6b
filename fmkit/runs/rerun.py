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
from pathlib import Path

import papermill
from jupyter_client.kernelspec import NoSuchKernel
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from fmkit import ranks
from fmkit.runs import machine
from fmkit.runs.cells import RerunError, code_of
from fmkit.runs.parameters import (
    checked,
    defaults_of,
    located,
    parameters_of,
    read_notebook,
)
from fmkit.runs.record import new_record, read_record, write_record

# fmkit reports an error once. ipykernel would report it again, and so would tornado,
# which may stumble on a busy machine while the kernel is shut down.
QUIET = (
    "--log-level=CRITICAL",
    "--IPKernelApp.exec_lines="
    "__import__('logging').getLogger('tornado').setLevel('CRITICAL')",
)
# Without a handler, Python also prints what papermill logs.
logging.getLogger("papermill").addHandler(logging.NullHandler())


def rerun(path: Path, out: Path, *, given: dict[str, object]) -> dict[str, object]:
    """Execute a chapter with `given` parameters and return its record.

    Writes ``<chapter>.ipynb`` and ``record.json`` into `out`. If the chapter fails,
    the record names the error, and so does the RerunError that is raised. Also raises
    RerunError if the notebook or `given` cannot be used, or if `out` cannot be written.

    If torchrun started several processes, each executes the chapter, which must join
    them (:func:`fmkit.ranks.processes`). Only the first writes into `out`; a temporary
    folder takes what the others write, and stays there if they fail.
    """
    if ranks.started() > 1:  # torchrun ends the others so when one has failed
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    if ranks.rank() == 0:
        return _rerun(path, out, given=given)
    folder = Path(tempfile.mkdtemp(prefix=f"fmkit-{ranks.rank()}-"))
    record = _rerun(path, folder, given=given)
    shutil.rmtree(folder, ignore_errors=True)
    return record


def _rerun(path: Path, out: Path, *, given: dict[str, object]) -> dict[str, object]:
    source = read_notebook(path)
    defaults, parameters = defaults_of(source), parameters_of(source)
    values = defaults | located(parameters, checked(parameters, given))
    changed = {n: v for n, v in values.items() if v != defaults[n]}
    if not source.metadata.get("kernelspec", {}).get("name"):
        raise RerunError(f"{path} must name its kernel in its metadata (kernelspec).")
    joins = any("ranks.processes(" in cell for cell in code_of(source))
    if ranks.started() > 1 and not joins:
        rule = "must call ranks.processes, which several processes need"
        raise RerunError(f"{path} {rule}; run it without torchrun.")
    notebook, record = _empty_places(path, out)
    # MPLBACKEND would empty every figure, without an error.
    variables = {"FMKIT_RECORD": str(record), "MPLBACKEND": None, **machine.variables()}
    error = "interrupted"
    try:
        with environment(variables):
            error = _execute(path, notebook, changed)
    except Exception as unforeseen:
        error = f"{type(unforeseen).__name__}: {unforeseen}"
        raise
    finally:
        finished = _finish(record, path.stem, values, error=error)
    if error:
        raise RerunError(f"{path} failed in {error}; see {notebook}.")
    return finished


def _empty_places(path: Path, out: Path) -> tuple[Path, Path]:
    """Return the paths of the notebook and the record, emptied of an earlier run."""
    notebook, record = out / path.name, out / "record.json"
    if notebook.resolve() == path.resolve():
        raise RerunError(f"the output folder must not be the chapter's own, got {out}.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        notebook.unlink(missing_ok=True)
        record.touch()  # fails now if the folder cannot be written
        record.unlink()
    except OSError as error:
        raise RerunError(f"{out} cannot be written ({error.strerror}).") from error
    return notebook.resolve(), record.resolve()


def _execute(path: Path, target: Path, parameters: dict[str, object]) -> str | None:
    """Execute `path` into `target`; return the error and its cell, or None."""
    live = sys.stderr.isatty()
    bar = {"desc": path.stem, "leave": False, "file": sys.stderr}
    try:
        papermill.execute_notebook(
            _braces_escaped(path.resolve()),
            _braces_escaped(target),
            parameters=parameters,
            cwd=str(path.resolve().parent),
            progress_bar=bar if live else False,
            extra_arguments=[*QUIET],
        )
    except PapermillExecutionError as error:
        text = " ".join(error.evalue.split())
        return f"cell {error.exec_count}: {error.ename}: {text}".rstrip(". ")
    except DeadKernelError:
        return f"cell {_begun(read_notebook(target))}: its kernel died"
    except NoSuchKernel as error:
        return f"starting its kernel: {error}"
    except OSError as error:
        return f"writing {error.filename or target} ({error.strerror or error})"
    return None


def _begun(notebook: NotebookNode) -> int:
    """Count the code cells that papermill has begun: the number of the last one."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return sum(cell.metadata.papermill["start_time"] is not None for cell in code)


def _braces_escaped(path: Path) -> str:
    """Write a path for papermill, which would replace the text in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _finish(
    path: Path, chapter: str, parameters: dict[str, object], *, error: str | None
) -> dict[str, object]:
    """Complete the record with how the run ended; make one if the chapter did not."""
    if path.exists():
        record = read_record(path)
    else:
        device = str(parameters.get("device", "auto"))
        record = new_record(chapter, parameters, device=device)
    record |= {"status": "failed" if error else "finished", "error": error}
    try:
        write_record(path, record)
    except OSError as fault:
        raise RerunError(f"{path} cannot be written ({fault.strerror}).") from fault
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
