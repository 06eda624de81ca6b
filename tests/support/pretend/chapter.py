"""Execute a chapter's cells in this process, on a device of the caller's choice."""

import gc
import json
import linecache
from pathlib import Path

import matplotlib.pyplot as plt
import yaml

from fmkit.runs.cells import tags_of
from support import guards

ROOT = Path(__file__).resolve().parents[3]


def smallest(name: str) -> dict[str, object]:
    """Return the parameters with which `make smoke` executes the chapter `name`."""
    text = (ROOT / "profiles" / "smoke.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)[name]


def execute(name: str, parameters: dict[str, object], *, before: str = "") -> None:
    """Execute every code cell, with `parameters` in place of its own.

    If `before` is the id of a cell, that one and those after it are left out. The
    current folder must be that of the chapters, where its kernel would start. Figures
    must have labels in words. An error says in which cell it happened, and its
    traceback shows the cell's line.
    """
    path = ROOT / "chapters" / f"{name}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    namespace = {"__name__": "__main__"}
    ids = [cell.get("id") for cell in cells]
    cells = cells[: ids.index(before)] if before else cells
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    try:
        for number, cell in enumerate(code, start=1):
            source, file = "".join(cell["source"]), f"<cell {number} of {name}>"
            lines = source.splitlines(keepends=True)
            linecache.cache[file] = (len(source), None, lines, file)
            try:
                exec(compile(source, file, "exec"), namespace)
            except Exception as error:
                error.add_note(f"in cell {number} of {name}")
                raise
            if "parameters" in tags_of(cell):
                namespace |= parameters
            figures = [plt.figure(number) for number in plt.get_fignums()]
            wrong = [fault for figure in figures for fault in guards.words_in(figure)]
            assert not wrong, (f"in cell {number} of {name}", wrong)
            plt.close("all")
    finally:  # functions of a cell hold its names, so models would stay until a late gc
        plt.close("all")
        namespace.clear()
        gc.collect()
