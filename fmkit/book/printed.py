"""Print the pages of the book as one PDF, with Chromium."""

import os
import shutil
import subprocess
from pathlib import Path

from pypdf import PdfWriter
from pypdf.generic import NameObject, TextStringObject

from fmkit.book.build import build_site, complaints, stage_pages
from fmkit.book.contents import BookError

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def pdf(root: Path) -> Path:
    """Print the pages of the committed outputs as one PDF; return its path.

    Chromium runs MathJax, which typesets the formulas, and numbers the pages. Raises
    :class:`~fmkit.book.contents.BookError` if there is no Chromium or it fails.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        how = "on Debian: apt-get install chromium"
        raise BookError(f"Printing needs Chromium, and none is on the PATH ({how}).")
    stage, target = root / "_build" / "stage" / "pdf", root / "_build" / "book.pdf"
    source = stage_pages(root, stage)
    page = build_site(root, source, stage / "page", builder="singlehtml")
    printed = stage / "book.pdf"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--no-first-run", "--disable-background-networking"]
    command += [f"--user-data-dir={stage / 'browser'}", "--no-pdf-header-footer"]
    command += ["--generate-pdf-document-outline"]
    command += ["--virtual-time-budget=100000"]  # upper limit for scripts, in ms
    command += [f"--print-to-pdf={printed}", page.resolve().as_uri()]
    print("Printing them …", flush=True)
    options = {"capture_output": True, "encoding": "utf-8", "errors": "replace"}
    run = subprocess.run(command, **options)
    if not printed.is_file():
        wrong = complaints(run.stderr, source)
        raise BookError(f"Chromium printed nothing ({wrong}).")
    _repair_bookmarks(printed)
    os.replace(printed, target)
    return target


def _repair_bookmarks(path: Path) -> None:
    """Halve the titles of the outline that Chromium wrote twice in a row.

    It does so if a heading did not fit on a page and was moved to the next one.
    """
    writer = PdfWriter(clone_from=path)
    pending = [writer.root_object["/Outlines"]]
    while pending:
        bookmark = pending.pop().get_object()
        pending += [bookmark[key] for key in ("/First", "/Next") if key in bookmark]
        title = bookmark.get("/Title", "")
        half = title[: len(title) // 2]
        if half and title == half + half:
            bookmark[NameObject("/Title")] = TextStringObject(half)
    writer.write(path)
