"""The book on paper: its pages as one PDF, printed by Chromium."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from fmkit.book.build import build_site, complaints, stage_pages
from fmkit.book.contents import BookError

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def pdf(root: Path) -> Path:
    """Print the pages of the committed outputs as one document; its path.

    Chromium does it, which typesets the formulas first and numbers the pages.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        how = "on Debian: apt-get install chromium"
        raise BookError(f"Chromium prints the book, and none is on the PATH ({how}).")
    stage, target = root / "_build" / "stage" / "pdf", root / "_build" / "book.pdf"
    source = stage_pages(root, stage)
    page = build_site(root, source, stage / "page", builder="singlehtml")
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
        said = complaints(run.stderr, source)
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
