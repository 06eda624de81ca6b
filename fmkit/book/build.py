"""Build the pages with Sphinx, and the whole book, every notebook executed first."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import yaml

from fmkit.book import reproducibility, widgets
from fmkit.book.contents import (
    BookError,
    chapters_of,
    notebooks_of,
    pages_of,
    settings_of,
)
from fmkit.book.execute import execute_one, seconds_since
from fmkit.book.figures import FOLDER
from fmkit.runs.parameters import (
    parameters_of,
    read_notebook,
    read_profile,
    section_of,
)

CONFIGURATION = ("_config.yml", "_toc.yml")
PAGES = (
    *("index.md", "references.bib", "CITATION.cff", "chapters", "images"),
    *("examples", "widgets", "vendor", "_static"),
)

# Binder opens a chapter without an installation: it reads the folder binder. Colab
# opens what is on GitHub, and the theme warns if the repository is elsewhere.
BINDER = {"binderhub_url": "https://mybinder.org", "notebook_interface": "jupyterlab"}
COLAB = {"colab_url": "https://colab.research.google.com"}
COMPLAINT = r"WARNING|ERROR|SEVERE|malformed|Error: \w"  # marks lines of the log


def html(root: Path) -> Path:
    """Build the pages from the committed outputs; return the path of the first page."""
    source = stage_pages(root, root / "_build" / "stage" / "html")
    return build_site(root, source, root / "_build" / "html")


def book(root: Path, *, profile: Path | None) -> Path:
    """Execute every notebook, build the pages, and return the path of the first page.

    A profile has a section of parameters for each chapter; its pages are put into a
    folder with the name of the profile, and exercises, which have only one scale, keep
    their committed outputs. The time of each notebook is printed.
    """
    given = _parameters_at(profile, chapters_of(root))
    build = root / "_build" / (profile.stem if profile else "")
    stage = root / "_build" / "stage" / (profile.stem if profile else "book")
    start = time.perf_counter()
    source = stage_pages(root, stage)
    for path in chapters_of(root) if profile else notebooks_of(root):
        own, drawn = given.get(path.stem, {}), source / FOLDER
        executed = execute_one(path, stage / "runs", given=own, figures=drawn)
        nbformat.write(executed, source / path.relative_to(root))
    page = build_site(root, source, build / "html")
    print(f"The book took {seconds_since(start)} in all; open {page}", flush=True)
    return page


def _parameters_at(
    profile: Path | None, chapters: list[Path]
) -> dict[str, dict[str, object]]:
    """Return the parameters of each chapter, all checked before any chapter runs."""
    if profile is None:
        return {chapter.stem: {} for chapter in chapters}
    sections = read_profile(profile)
    if set(sections) != {chapter.stem for chapter in chapters}:
        needed = ", ".join(chapter.stem for chapter in chapters)
        got = ", ".join(sections) or "none"
        raise BookError(f"{profile} must have the sections {needed}, got {got}.")
    return {
        chapter.stem: section_of(
            profile, chapter.stem, parameters_of(read_notebook(chapter))
        )
        for chapter in chapters
    }


def stage_pages(root: Path, stage: Path) -> Path:
    """Copy the sources of the pages into an empty folder; return that folder.

    Raises :class:`~fmkit.book.contents.BookError`, and writes nothing, if a file of the
    book's configuration is missing.
    """
    for name in CONFIGURATION:
        if not (root / name).is_file():
            raise BookError(f"{root} holds no book ({name} is missing).")
    shutil.rmtree(stage, ignore_errors=True)
    source = stage / "source"
    source.mkdir(parents=True)
    ignore = shutil.ignore_patterns(".*", "__pycache__")
    for name in (*CONFIGURATION, *PAGES):
        if (root / name).is_dir():
            shutil.copytree(root / name, source / name, ignore=ignore)
        elif (root / name).is_file():
            shutil.copy2(root / name, source / name)
    _add_buttons(source)
    return source


def _add_reproducibility(root: Path, source: Path) -> None:
    """Write the page on reproducibility if the table of contents lists it.

    Other pages can show the time that a chapter took as ``{{ name_of_the_chapter }}``.
    """
    if reproducibility.PAGE in pages_of(source):
        chapters = chapters_of(source)
        text = reproducibility.page(chapters, root / "results")
        (source / f"{reproducibility.PAGE}.md").write_text(text, encoding="utf-8")
        settings = settings_of(source)
        settings["parse"]["myst_substitutions"] = reproducibility.times_of(chapters)
        (source / "_config.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")


def _add_buttons(source: Path) -> None:
    """Add launch buttons and "edit this page" if the settings have a repository's URL.

    The theme raises an error for such a button without a URL.
    """
    settings = settings_of(source)
    if url := settings["repository"]["url"]:
        buttons = ("use_repository_button", "use_edit_page_button")
        settings["html"] |= dict.fromkeys(buttons, True)
        on_github = urlsplit(url).hostname == "github.com"
        settings["launch_buttons"] = BINDER | (COLAB if on_github else {})
        (source / "_config.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")


def build_site(
    root: Path, source: Path, target: Path, *, builder: str = "html"
) -> Path:
    """Build the pages of `source`, move them to `target`, and return the first page.

    The builder "singlehtml" makes one page of the whole book. Raises
    :class:`~fmkit.book.contents.BookError` if Sphinx warns of anything; the old pages
    then stay at `target`.
    """
    print("Building the pages …", flush=True)
    _add_reproducibility(root, source)
    if (source / widgets.FOLDER).is_dir():
        widgets.write(source / widgets.FOLDER)
        widgets.embed(source)
    log, output = source.with_name("site.log"), source.with_name("site")
    start = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", start, "build", str(source)]
    command += ["--path-output", str(output), "-W", "-n", "--keep-going"]
    if builder != "html":
        command += ["--builder", "custom", "--custom-builder", builder]
    with open(log, "w", encoding="utf-8") as file:
        run = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
    if run.returncode != 0:
        wrong = complaints(log.read_text(encoding="utf-8", errors="replace"), source)
        raise BookError(f"The pages were not built ({wrong}); see {log}.")
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(output / "_build" / builder, target)
    return target / "index.html"


def complaints(log: str, source: Path) -> str:
    """Return the lines of a log that name a fault, or its last line if none does."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", log).replace(f"{source}{os.sep}", "")
    lines = [" ".join(x.split()) for x in plain.splitlines() if re.search(r"\w", x)]
    wrong = [line for line in lines if re.search(COMPLAINT, line)]
    return "; ".join(dict.fromkeys(wrong)) or (lines or ["no output"])[-1]
