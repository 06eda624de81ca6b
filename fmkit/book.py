"""The whole book: execute its chapters, build its pages."""

import base64
import io
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import yaml
from nbformat import NotebookNode
from PIL import Image

from fmkit import pictures, reproducibility
from fmkit.rerun import (
    RerunError,
    checked,
    environment,
    parameters_of,
    read_notebook,
    read_profile,
    rerun,
)
from fmkit.stale import HASH, is_stale, source_hash

CONFIGURATION = ("_config.yml", "_toc.yml")
PAGES = (
    *("index.md", "references.bib", "chapters", "images"),
    *("pictures", "vendor", "_static"),
)
EXERCISES = "_exercises"  # at the end of a chapter's name

# Opens a chapter without an installation: it reads environment.yml
LAUNCH = {"binderhub_url": "https://mybinder.org", "notebook_interface": "jupyterlab"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
COMPLAINT = r"WARNING|ERROR|SEVERE|malformed|Error: \w"  # in a line of Sphinx's log


class BookError(RuntimeError):
    """The book cannot be built: one sentence."""


def chapters_of(root: Path) -> list[Path]:
    """The chapters of the book in `root`, in the order of its table of contents."""
    return [path for path in notebooks_of(root) if not path.stem.endswith(EXERCISES)]


def notebooks_of(root: Path) -> list[Path]:
    """The chapters and, where the table of contents has them, their exercises."""
    try:
        toc = yaml.safe_load((root / "_toc.yml").read_text())
    except (OSError, yaml.YAMLError) as error:
        raise BookError(f"{root} holds no book (_toc.yml cannot be read).") from error
    pages = [root / f"{name}.ipynb" for name in _files_in(toc)]
    return [page for page in pages if page.is_file()]


def _files_in(toc: object) -> list[str]:
    if isinstance(toc, list):
        return [name for item in toc for name in _files_in(item)]
    if not isinstance(toc, dict):
        return []
    own = [toc["file"]] if "file" in toc else []
    return own + [name for value in toc.values() for name in _files_in(value)]


def html(root: Path) -> Path:
    """Build the pages from the committed outputs; the path of the first page."""
    source = _stage(root, root / "_build" / "stage" / "html")
    return _build_site(root, source, root / "_build" / "html")


def pdf(root: Path) -> Path:
    """Print the pages of the committed outputs as one document; its path.

    Chromium does it, which typesets the formulas first and numbers the pages.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        how = "on Debian: apt-get install chromium"
        raise BookError(f"Chromium prints the book, and none is on the PATH ({how}).")
    stage, target = root / "_build" / "stage" / "pdf", root / "_build" / "book.pdf"
    source = _stage(root, stage)
    page = _build_site(root, source, stage / "page", builder="singlehtml")
    printed = stage / "book.pdf"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--no-first-run", "--disable-background-networking"]
    command += [f"--user-data-dir={stage / 'browser'}", "--no-pdf-header-footer"]
    command += ["--generate-pdf-document-outline"]
    command += ["--virtual-time-budget=100000"]  # ms for the scripts; few are needed
    command += [f"--print-to-pdf={printed}", page.resolve().as_uri()]
    print("Printing them …", flush=True)
    run = subprocess.run(command, capture_output=True, text=True)
    if not printed.is_file():
        said = _complaints(run.stderr, source)
        raise BookError(f"Chromium printed nothing ({said}).")
    _repair_bookmarks(printed)
    os.replace(printed, target)
    return target


def _repair_bookmarks(path: Path) -> None:
    """Chromium writes a title twice where it moved the heading to the next page.

    What is cut is made up for by spaces: a PDF knows its objects by their places.
    """

    def once(found: re.Match) -> bytes:
        start, title, end = found.groups()
        return start + title + end + b" " * len(title)

    twice = rb"(/Title (?:\(|<FEFF))([^\n]+)\2([)>])"
    path.write_bytes(re.sub(twice, once, path.read_bytes()))


def book(root: Path, *, profile: Path | None) -> Path:
    """Execute every notebook afresh, build the pages from that; the first page's path.

    With a profile the parameters are those of its sections, one a chapter, and the
    pages lie in a folder of the profile's name; exercises have one scale, and keep
    their outputs. Each notebook's time is printed.
    """
    given = _parameters_at(profile, chapters_of(root))
    build = root / "_build" / (profile.stem if profile else "")
    stage = root / "_build" / "stage" / (profile.stem if profile else "book")
    start = time.perf_counter()
    source = _stage(root, stage)
    for path in chapters_of(root) if profile else notebooks_of(root):
        executed = _execute_one(path, stage / "runs", given=given.get(path.stem, {}))
        nbformat.write(executed, source / path.relative_to(root))
    page = _build_site(root, source, build / "html")
    print(f"The book took {_seconds(start)} in all; open {page}", flush=True)
    return page


def execute(root: Path) -> list[Path]:
    """Execute the notebooks whose outputs are stale, on the CPU, and put them back.

    A notebook is replaced only once it has run to its end. Returns those replaced.
    """
    stale = [path for path in notebooks_of(root) if is_stale(read_notebook(path))]
    for chapter in stale:
        digest = source_hash(read_notebook(chapter))  # of the code that is about to run
        runs = root / "_build" / "stage" / "execute"
        with environment({"FMKIT_DEVICE": "cpu"}):  # what "auto" means there
            executed = _execute_one(chapter, runs, given={})
        executed.metadata["fmkit"] = {HASH: digest}
        staging = chapter.with_name(f".{chapter.name}")
        nbformat.write(executed, staging)
        os.replace(staging, chapter)
    if not stale:
        print("No notebook is stale.", flush=True)
    return stale


def strip(notebook: NotebookNode) -> NotebookNode:
    """Remove papermill's and all timing metadata: two runs then give equal files.

    Pictures get a palette, which makes those of matplotlib a third as large.

    The cell that papermill injected stays, a page must show the parameters it was run
    with; only its random id goes.
    """
    for holder in (notebook, *notebook.cells):
        for key in ("papermill", "execution"):
            holder.metadata.pop(key, None)
    for cell in notebook.cells:
        if not cell.metadata.get("tags", True):  # papermill gives an empty list to all
            del cell.metadata["tags"]
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell["id"] = "injected-parameters"
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _with_palette(output.data["image/png"])
    notebook.metadata.get("language_info", {}).pop("version", None)
    return notebook


def _with_palette(png: str) -> str:
    """A picture in base64, on white, with the 64 colours that suit it best."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA")
    page = Image.new("RGBA", picture.size, "white")
    page.alpha_composite(picture)
    file = io.BytesIO()
    page.convert("RGB").quantize(64).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _parameters_at(
    profile: Path | None, chapters: list[Path]
) -> dict[str, dict[str, object]]:
    """What a profile gives each chapter, all of it checked before anything runs."""
    if profile is None:
        return {chapter.stem: {} for chapter in chapters}
    sections = read_profile(profile)
    if set(sections) != {chapter.stem for chapter in chapters}:
        needed = ", ".join(chapter.stem for chapter in chapters)
        got = ", ".join(sections) or "none"
        raise BookError(f"{profile} must have the sections {needed}, got {got}.")
    for chapter in chapters:
        try:
            checked(parameters_of(read_notebook(chapter)), sections[chapter.stem])
        except RerunError as error:
            raise BookError(f"{profile}, {chapter.stem}: {error}") from error
    return sections


def _execute_one(
    chapter: Path, runs: Path, *, given: dict[str, object]
) -> NotebookNode:
    """Run one chapter into a folder of its own, saying so; its notebook, stripped."""
    out = runs / chapter.stem
    print(f"{chapter.stem} …", flush=True)
    start = time.perf_counter()
    rerun(chapter, out, given=given)
    print(f"{chapter.stem} took {_seconds(start)}", flush=True)
    return strip(read_notebook(out / chapter.name))


def _seconds(start: float) -> str:
    return f"{time.perf_counter() - start:.0f} s"


def _stage(root: Path, stage: Path) -> Path:
    """Copy what belongs to the pages, and nothing else, into a folder made anew."""
    shutil.rmtree(stage, ignore_errors=True)
    source = stage / "source"
    source.mkdir(parents=True)
    ignore = shutil.ignore_patterns(".*", "__pycache__")
    for name in (*CONFIGURATION, *PAGES):
        if (root / name).is_dir():
            shutil.copytree(root / name, source / name, ignore=ignore)
        elif (root / name).is_file():
            shutil.copy2(root / name, source / name)
        elif name in CONFIGURATION:
            raise BookError(f"{root} holds no book ({name} is missing).")
    _add_buttons(source / "_config.yml")
    return source


def _add_reproducibility(root: Path, source: Path) -> None:
    """Make the page on reproducibility of the staged chapters, if the book has it.

    What each chapter took may stand on other pages too: ``{{ name_of_the_chapter }}``.
    """
    toc = yaml.safe_load((source / "_toc.yml").read_text())
    if reproducibility.PAGE in _files_in(toc):
        chapters = chapters_of(source)
        text = reproducibility.page(chapters, root / "results")
        (source / f"{reproducibility.PAGE}.md").write_text(text)
        settings = yaml.safe_load((source / "_config.yml").read_text())
        settings["parse"]["myst_substitutions"] = reproducibility.seconds_of(chapters)
        (source / "_config.yml").write_text(yaml.safe_dump(settings))


def _add_buttons(path: Path) -> None:
    """Launch buttons and "edit this page", if the settings name a repository's URL.

    Without one the theme has nowhere to lead to, and stops.
    """
    settings = yaml.safe_load(path.read_text())
    if settings["repository"]["url"]:
        of_pages = ("repository", "edit_page")
        settings["html"] |= {f"use_{name}_button": True for name in of_pages}
        settings["launch_buttons"] = LAUNCH
        path.write_text(yaml.safe_dump(settings))


def _build_site(
    root: Path, source: Path, target: Path, *, builder: str = "html"
) -> Path:
    """Build the pages of `source` and put them at `target` if there is no warning.

    Sphinx's builder singlehtml makes one page of all.
    """
    print("Building the pages …", flush=True)
    _add_reproducibility(root, source)
    if (source / pictures.FOLDER).is_dir():
        pictures.write(source / pictures.FOLDER)
    log, output = source.with_name("site.log"), source.with_name("site")
    start = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", start, "build", str(source)]
    command += ["--path-output", str(output), "-W", "-n", "--keep-going"]
    if builder != "html":
        command += ["--builder", "custom", "--custom-builder", builder]
    with open(log, "w") as file:
        run = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
    if run.returncode != 0:
        said = _complaints(log.read_text(errors="replace"), source)
        raise BookError(f"the pages were not built ({said}); see {log}.")
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(output / "_build" / builder, target)
    return target / "index.html"


def _complaints(log: str, source: Path) -> str:
    """The lines of a build's log that say what is wrong, else its last one."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", log).replace(f"{source}{os.sep}", "")
    lines = [" ".join(x.split()) for x in plain.splitlines() if re.search(r"\w", x)]
    wrong = [line for line in lines if re.search(COMPLAINT, line)]
    return "; ".join(dict.fromkeys(wrong)) or (lines or ["no output"])[-1]
