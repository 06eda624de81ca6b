"""One chapter with other parameters: papermill, but strict.

Papermill itself only warns of an unknown name, injects the text "false" for a flag,
and ends a failing notebook with a page of traceback.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import papermill
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from fmkit.runs import machine
from fmkit.runs.parameters import RerunError, checked, parameters_of, read_notebook
from fmkit.runs.record import new_record, read_record, write_record

# What goes wrong is said once, by us: not by ipykernel, and not by its tornado, which
# on a busy machine may stumble while the kernel is shut down.
QUIET = (
    "--log-level=CRITICAL",
    "--IPKernelApp.exec_lines="
    "__import__('logging').getLogger('tornado').setLevel('CRITICAL')",
)
# Without a handler Python prints what papermill logs as well.
logging.getLogger("papermill").addHandler(logging.NullHandler())


def rerun(path: Path, out: Path, *, given: dict[str, object]) -> dict[str, object]:
    """Execute a chapter with `given` parameters and return its record.

    Writes ``<chapter>.ipynb`` and ``record.json`` into `out`, also where the chapter
    fails: then the record names the error, and so does the ``RerunError`` raised.
    Claims only report once a parameter differs from its default.
    """
    parameters = parameters_of(read_notebook(path))
    values = {p.name: p.default for p in parameters.values()}
    values |= checked(parameters, given)
    changed = {n: v for n, v in values.items() if v != parameters[n].default}
    notebook, record = _empty_places(path, out)
    # MPLBACKEND would empty every figure, without an error.
    variables = {"FMKIT_RECORD": str(record), "MPLBACKEND": None, **machine.variables()}
    if changed:
        variables["FMKIT_CLAIMS"] = "report"
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
    """Where the notebook and the record go, with what an earlier run left removed."""
    notebook, record = out / path.name, out / "record.json"
    if notebook.resolve() == path.resolve():
        raise RerunError(f"the output folder must not be the chapter's own, got {out}.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        notebook.unlink(missing_ok=True)
        record.write_text("")  # a folder that cannot be written shows itself here
        record.unlink()
    except OSError as error:
        raise RerunError(f"{out} cannot be written ({error.strerror}).") from error
    return notebook.resolve(), record.resolve()


def _execute(path: Path, target: Path, parameters: dict[str, object]) -> str | None:
    """Execute `path` into `target`; what went wrong and in which cell, or None."""
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
        said = " ".join(error.evalue.split())
        return f"cell {error.exec_count}: {error.ename}: {said}".rstrip(". ")
    except DeadKernelError:
        return f"cell {_begun(read_notebook(target))}: its kernel died"
    except OSError as error:
        return f"writing {error.filename or target} ({error.strerror or error})"
    return None


def _begun(notebook: NotebookNode) -> int:
    """How many code cells papermill has begun; the last one's number as shown."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return sum(cell.metadata.papermill["start_time"] is not None for cell in code)


def _braces_escaped(path: Path) -> str:
    """A path as papermill takes it, which fills in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _finish(
    path: Path, chapter: str, parameters: dict[str, object], *, error: str | None
) -> dict[str, object]:
    """Write how the run ended into its record; make one where the chapter did not."""
    if path.exists():
        record = read_record(path)
    else:
        device = str(parameters.get("device", "auto"))
        record = new_record(chapter, parameters, device=device)
    record |= {"status": "failed" if error else "finished", "error": error}
    write_record(path, record)
    return record


@contextlib.contextmanager
def environment(variables: dict[str, str | None]) -> Iterator[None]:
    """Set variables of the kernel's environment, or remove where None, for a while."""
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
