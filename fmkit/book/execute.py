"""Execute, in place, the notebooks whose outputs are stale."""

import base64
import io
import time
from pathlib import Path

import nbformat
from ipykernel.kernelspec import get_kernel_dict
from nbformat import NotebookNode
from PIL import Image

from fmkit._writing import whole
from fmkit.book.contents import notebooks_of
from fmkit.book.figures import FOLDER, VARIABLES, keep
from fmkit.runs.parameters import defaults_of, read_notebook
from fmkit.runs.record import METADATA, OWN
from fmkit.runs.rerun import environment, rerun
from fmkit.runs.stale import HASH, is_stale, source_hash


def execute(root: Path) -> list[Path]:
    """Execute the notebooks whose outputs are stale, on the CPU; return their paths.

    A notebook is replaced only after all of its cells have run.
    """
    stale = [path for path in notebooks_of(root) if is_stale(read_notebook(path))]
    for chapter in stale:
        digest = source_hash(read_notebook(chapter))  # of the code as it runs now
        runs = root / "_build" / "stage" / "execute"
        variables = {"FMKIT_DEVICE": "cpu", "FMKIT_FINDINGS": "stop"}
        with environment(variables):  # "auto" is the CPU; a false finding stops
            executed = execute_one(chapter, runs, given={}, figures=root / FOLDER)
        own = defaults_of(executed)  # these become the chapter's own parameters
        executed.metadata[METADATA] = {HASH: digest, OWN: own}
        with whole(chapter) as staging:
            nbformat.write(executed, staging)
    if not stale:
        print("No notebook is stale.", flush=True)
    return stale


def strip(notebook: NotebookNode) -> NotebookNode:
    """Remove times and papermill's metadata, so that two runs give equal files.

    Images get a palette, which makes figures of matplotlib a third as large. The cell
    that papermill injects stays, because a page must show the parameters of its run;
    only the random id of that cell is replaced.
    """
    for holder in (notebook, *notebook.cells):
        for key in ("papermill", "execution"):
            holder.metadata.pop(key, None)
    for cell in notebook.cells:
        if cell.metadata.get("tags") == []:  # papermill adds it to every cell
            del cell.metadata["tags"]
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell["id"] = "injected-parameters"
    for cell in notebook.cells:
        if "outputs" in cell:
            cell["outputs"] = _without_bars(cell.outputs)
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _with_palette(output.data["image/png"])
    # As JupyterLab writes it: else it marks a notebook as changed that it only opened
    spec = notebook.metadata.setdefault("kernelspec", {})
    spec["display_name"] = get_kernel_dict()["display_name"]
    return notebook


def _without_bars(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Remove outputs without data and join the text that was printed around them.

    A bar leaves such an output, but only where a loop took long enough to show one.
    """
    kept: list[NotebookNode] = []
    for output in outputs:
        stream = output.get("name")
        if stream and kept and kept[-1].get("name") == stream:
            kept[-1]["text"] += output.text
        elif output.get("data") != {}:
            kept.append(output)
    return kept


def _with_palette(png: str) -> str:
    """Return an image, in base64, on white and reduced to 64 colours.

    The method that keeps the largest error small: the default one, median cut, spends
    its colours where most pixels are, and gives two thin lines one hue between theirs.
    A step of k-means then moves each colour to the mean of its pixels, or a grey grid
    would have a tint.
    """
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA")
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image)
    file = io.BytesIO()
    few = page.convert("RGB").quantize(64, Image.Quantize.MAXCOVERAGE, kmeans=1)
    few.save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def execute_one(
    chapter: Path, runs: Path, *, given: dict[str, object], figures: Path
) -> NotebookNode:
    """Run a notebook in a folder of its own, print its time, and return it stripped.

    Its figures as SVG are put into a folder of its name in `figures`, in place of those
    that are there.
    """
    out = runs / chapter.stem
    print(f"{chapter.stem} …", flush=True)
    start = time.perf_counter()
    with environment(VARIABLES):
        rerun(chapter, out, given=given)
    print(f"{chapter.stem} took {seconds_since(start)}", flush=True)
    executed = strip(read_notebook(out / chapter.name))
    keep(executed, figures / chapter.stem)
    return executed


def seconds_since(start: float) -> str:
    """Format the time since `start`: 51 s."""
    return f"{time.perf_counter() - start:.0f} s"
