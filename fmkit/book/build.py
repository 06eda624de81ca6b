"""Build the pages with Sphinx; make the whole book, every notebook executed first."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import yaml

from fmkit.book import reproducibility, widgets
from fmkit.book.contents import BookError, chapters_of, files_in, notebooks_of
from fmkit.book.execute import execute_one, seconds_since
from fmkit.runs.parameters import (
    RerunError,
    checked,
    parameters_of,
    read_notebook,
    read_profile,
)

CONFIGURATION = ("_config.yml", "_toc.yml")
PAGES = (
    *("index.md", "references.bib", "chapters", "images"),
    *("widgets", "vendor", "_static"),
)

# Opens a chapter without an installation: it reads environment.yml
LAUNCH = {"binderhub_url": "https://mybinder.org", "notebook_interface": "jupyterlab"}
COMPLAINT = r"WARNING|ERROR|SEVERE|malformed|Error: \w"  # in a line of Sphinx's log


def html(root: Path) -> Path:
    """Build the pages from the committed outputs; the path of the first page."""
    source = stage_pages(root, root / "_build" / "stage" / "html")
    return build_site(root, source, root / "_build" / "html")


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
    source = stage_pages(root, stage)
    for path in chapters_of(root) if profile else notebooks_of(root):
        executed = execute_one(path, stage / "runs", given=given.get(path.stem, {}))
        nbformat.write(executed, source / path.relative_to(root))
    page = build_site(root, source, build / "html")
    print(f"The book took {seconds_since(start)} in all; open {page}", flush=True)
    return page


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


def stage_pages(root: Path, stage: Path) -> Path:
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
    if reproducibility.PAGE in files_in(toc):
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


def build_site(
    root: Path, source: Path, target: Path, *, builder: str = "html"
) -> Path:
    """Build the pages of `source` and put them at `target` if there is no warning.

    Sphinx's builder singlehtml makes one page of all.
    """
    print("Building the pages …", flush=True)
    _add_reproducibility(root, source)
    if (source / widgets.FOLDER).is_dir():
        widgets.write(source / widgets.FOLDER)
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
        said = complaints(log.read_text(errors="replace"), source)
        raise BookError(f"the pages were not built ({said}); see {log}.")
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(output / "_build" / builder, target)
    return target / "index.html"


def complaints(log: str, source: Path) -> str:
    """The lines of a build's log that say what is wrong, else its last one."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", log).replace(f"{source}{os.sep}", "")
    lines = [" ".join(x.split()) for x in plain.splitlines() if re.search(r"\w", x)]
    wrong = [line for line in lines if re.search(COMPLAINT, line)]
    return "; ".join(dict.fromkeys(wrong)) or (lines or ["no output"])[-1]
