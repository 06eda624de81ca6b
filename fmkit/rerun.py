"""One chapter with other parameters: papermill, but strict.

Papermill itself only warns of an unknown name, injects the text "false" for a flag,
and ends a failing notebook with a page of traceback.
"""

import ast
import contextlib
import difflib
import logging
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill
import yaml
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from fmkit.records import new_record, read_record, write_record

KINDS = {"int": int, "float": float, "str": str, "bool": bool}
LISTS = ("list[int]", "list[float]", "list[str]")

# What goes wrong is said once, by us: not by ipykernel, and not by its tornado, which
# on a busy machine may stumble while the kernel is shut down.
QUIET = (
    "--log-level=CRITICAL",
    "--IPKernelApp.exec_lines="
    "__import__('logging').getLogger('tornado').setLevel('CRITICAL')",
)
# Without a handler Python prints what papermill logs as well.
logging.getLogger("papermill").addHandler(logging.NullHandler())


class RerunError(RuntimeError):
    """A chapter cannot be rerun, or failed: one sentence."""


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell, its annotation as text."""

    name: str
    kind: str
    default: object


def read_notebook(path: Path) -> NotebookNode:
    """Read a notebook; ``RerunError`` where there is none."""
    try:
        return nbformat.read(path, as_version=4)
    except OSError as error:
        raise RerunError(f"{path} cannot be read ({error.strerror}).") from error
    except Exception as error:  # nbformat has several words for it
        raise RerunError(f"{path} is no notebook ({type(error).__name__}).") from error


def parameters_of(notebook: NotebookNode) -> dict[str, Parameter]:
    """The parameters of a notebook by name: the annotated literals of its one cell.

    Unlike ``papermill.inspect_notebook`` it also reads values of several lines.
    Raises ``RerunError`` for anything else in that cell, which would keep its old
    value after papermill has injected new ones.
    """
    cells = [cell for cell in notebook.cells if "parameters" in tags_of(cell)]
    if len(cells) != 1:
        raise RerunError(f"one cell must be tagged parameters, got {len(cells)}.")
    try:
        lines = ast.parse(cells[0].source).body
    except SyntaxError as error:
        raise RerunError(f"the parameters cell does not parse ({error}).") from error
    return {line.name: line for line in map(_parameter, lines)}


def tags_of(cell: NotebookNode) -> list[str]:
    """The tags of a cell."""
    return cell.metadata.get("tags", [])


def _parameter(line: ast.stmt) -> Parameter:
    text = ast.unparse(line)
    wrong = RerunError(f"the parameters cell must hold annotated literals, got {text}.")
    if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
        raise wrong
    name, kind = line.target.id, ast.unparse(line.annotation)
    if kind not in (*KINDS, *LISTS):
        known = ", ".join([*KINDS, *LISTS])
        raise RerunError(f"{name} must be annotated with one of {known}, got {kind}.")
    try:
        value = ast.literal_eval(line.value)
    except (ValueError, TypeError):
        raise wrong from None
    return Parameter(name, kind, _as_kind(value, kind, name=name))


def from_arguments(
    arguments: list[str], parameters: dict[str, Parameter]
) -> dict[str, object]:
    """Values of ``name=value`` arguments, read as YAML where they are not text."""
    given: dict[str, object] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            raise RerunError(f"-p must be name=value, got {argument!r}.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise RerunError(f"the value of {name} is no YAML: {text!r}.") from None
        is_text = name in parameters and parameters[name].kind == "str"
        given[name] = text if is_text and not isinstance(value, str) else value
    return given


def read_profile(path: Path) -> dict[str, dict[str, object]]:
    """A profile: the parameters of each chapter by its name."""
    try:
        profile = yaml.safe_load(path.read_text())
    except OSError as error:
        raise RerunError(f"{path} cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = " ".join(str(error).split())
        raise RerunError(f"{path} is no YAML ({first}).") from error
    sections = profile.values() if isinstance(profile, dict) else [None]
    if not all(isinstance(section, dict) for section in sections):
        raise RerunError(f"{path} must map chapters to their parameters.")
    return profile


def section_of(path: Path, chapter: str) -> dict[str, object]:
    """The section of `chapter` in a profile, which must have one."""
    profile = read_profile(path)
    if chapter not in profile:
        known = ", ".join(profile)
        raise RerunError(f"{path} has no section {chapter}, only {known}.")
    return profile[chapter]


def checked(
    parameters: dict[str, Parameter], given: dict[str, object]
) -> dict[str, object]:
    """`given` with each value of its parameter's type; an integer may be a float.

    Raises ``RerunError`` for an unknown name, with the nearest one, and for a value of
    another type.
    """
    for name in given:
        if name not in parameters:
            near = difflib.get_close_matches(name, parameters, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            known = ", ".join(parameters)
            raise RerunError(f"no parameter is named {name}{hint}; there are {known}.")
    return {
        name: _as_kind(value, parameters[name].kind, name=name)
        for name, value in given.items()
    }


def _as_kind(value: object, kind: str, *, name: str) -> object:
    if kind in LISTS and isinstance(value, list):
        return [_as_kind(item, kind[5:-1], name=f"{name}'s items") for item in value]
    if kind == "float" and type(value) in (int, float, str):
        # YAML 1.1 takes 1e-3 for text: its numbers in powers have a point and a sign.
        with contextlib.suppress(ValueError):
            if math.isfinite(float(value)):
                return float(value)
    elif kind in KINDS and type(value) is KINDS[kind]:
        return value
    raise RerunError(f"{name} must be {kind}, got {value!r}.")


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
    variables = {"FMKIT_RECORD": str(record), "MPLBACKEND": None}
    # MPLBACKEND would empty every figure, without an error.
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
