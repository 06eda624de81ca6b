"""Print the book as one PDF, with Chromium: a title page, contents, and the pages."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pikepdf
from pikepdf import Array, Dictionary, Name, OutlineItem, Page, Pdf

from fmkit.book.build import build_site, complaints, stage_pages
from fmkit.book.contents import BookError, chapters_of, parts_of, settings_of
from fmkit.book.publication import FILE, TEMPLATES, read_publication

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LINK = "page:"  # the scheme of a link from the contents; its number is an index
OFFER = "<!-- printed -->"  # of the footer, where a link to the PDF can be
COMPRESSED = {
    "object_stream_mode": pikepdf.ObjectStreamMode.generate,
    "compress_streams": True,
}


@dataclass
class Entry:
    """A line of the contents; `index` is that of a page of the book, from 0."""

    title: str
    index: int
    number: str = ""  # of a chapter
    part: str = ""  # which begins here
    sections: tuple["Entry", ...] = ()


def pdf(root: Path) -> Path:
    """Print the pages of the committed outputs as one PDF; return its path.

    Chromium runs MathJax, which typesets the formulas, and numbers the pages. If the
    pages for a browser have been built, they offer the PDF from then on. Raises
    :class:`~fmkit.book.contents.BookError` if there is no Chromium or it fails.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        how = "on Debian: apt-get install chromium"
        raise BookError(f"Printing needs Chromium, and none is on the PATH ({how}).")
    stage, target = root / "_build" / "stage" / "pdf", root / "_build" / "book.pdf"
    source = stage_pages(root, stage)
    page = build_site(root, source, stage / "page", builder="singlehtml")
    print("Printing them …", flush=True)
    body, front = stage / "body.pdf", stage / "front.pdf"
    # the limit for scripts is in milliseconds
    options = ["--generate-pdf-document-outline", "--virtual-time-budget=100000"]
    _print(browser, page, body, options)
    with Pdf.open(body) as book:
        entries = _arrange(book, root)
        first = page.with_name("front.html")
        first.write_text(_front_matter(root, page.parent, entries), encoding="utf-8")
        _print(browser, first, front, ["--disable-pdf-tagging"])
        with Pdf.open(front) as pages:
            book.docinfo["/Title"] = pages.docinfo["/Title"]
            _put_in_front(book, pages)
        book.save(stage / "book.pdf", **COMPRESSED)
    os.replace(stage / "book.pdf", target)
    _offer(target, root / "_build" / "html")
    return target


def _print(browser: str, page: Path, target: Path, options: list[str]) -> None:
    """Print one page; raises BookError with what Chromium says if it prints nothing."""
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--no-first-run", "--disable-background-networking"]
    command += [f"--user-data-dir={target.with_name('browser')}", *options]
    command += ["--no-pdf-header-footer", f"--print-to-pdf={target}"]
    run = subprocess.run(
        [*command, page.resolve().as_uri()],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if not target.is_file():
        wrong = complaints(run.stderr, page.parent)
        raise BookError(f"Chromium printed nothing ({wrong}).")


def _arrange(book: Pdf, root: Path) -> list[Entry]:
    """Move the bookmarks of chapters to the top; return what the contents list.

    Chromium nests the bookmarks as the headings of the page are: the first page of the
    book, below it the sections of that page, then the pages that the contents list.
    """
    parts = [(part, name) for part, names in parts_of(root) for name in names]
    chapters = {path.relative_to(root).with_suffix("") for path in chapters_of(root)}
    with book.open_outline() as outline:
        [about] = outline.root
        pages = about.children[len(about.children) - len(parts) :]
        del about.children[len(about.children) - len(parts) :]
        outline.root.extend(pages)
        places = {page.objgen: i for i, page in enumerate(book.pages)}
        entries = [_entry(about, places, depth=0)]
        number, before = 0, ""
        for (part, name), item in zip(parts, pages, strict=True):
            entry = _entry(item, places, depth=1)
            entry.part, before = "" if part == before else part, part
            if Path(name) in chapters:
                number += 1
                entry.number = str(number)
            entries.append(entry)
    return entries


def _entry(item: OutlineItem, places: dict[object, int], *, depth: int) -> Entry:
    """Repair the titles of a bookmark and of those below it; return it as an entry.

    Chromium writes a title twice in a row if the heading did not fit on a page and was
    moved to the next one.
    """
    half = item.title[: len(item.title) // 2]
    if half and item.title == half + half:
        item.title = half
    below = [_entry(child, places, depth=depth - 1) for child in item.children]
    index = places[item.destination[0].objgen]
    return Entry(item.title.strip(), index, sections=tuple(below if depth > 0 else ()))


def _front_matter(root: Path, folder: Path, entries: list[Entry]) -> str:
    """Return the title page and the contents, as a page of the folder of the pages."""
    settings = settings_of(root)
    book = read_publication(
        root / FILE,
        site=settings["html"].get("baseurl", ""),
        repository=settings["repository"]["url"],
    )
    loader = jinja2.FileSystemLoader(TEMPLATES)
    template = jinja2.Environment(loader=loader, autoescape=True)
    return template.get_template("front.html").render(
        title=settings["title"],
        book=book,
        cover=(folder / "_static" / "cover.png").is_file(),
        entries=entries,
        link=LINK,
    )


def _put_in_front(book: Pdf, front: Pdf) -> None:
    """Insert pages before those of the book, with Roman numbers, their links led there.

    A link of the front whose address is ``page:12`` leads to the page of that index.
    """
    pages, number = [*book.pages], len(front.pages)
    for i, page in enumerate(front.pages):
        book.pages.insert(i, page)
    for page in book.pages[:number]:
        for note in page.obj.get("/Annots", []):
            address = str(note.get("/A", {}).get("/URI", ""))
            if address.startswith(LINK):
                there = pages[int(address.removeprefix(LINK))]
                del note["/A"]
                note["/Dest"] = Array([there.obj, Name.Fit])
    with book.open_outline() as outline:
        outline.root.insert(0, _bookmark("Contents", book.pages[1]))
        outline.root.insert(0, _bookmark("Title page", book.pages[0]))
    roman, plain = Dictionary(S=Name.r), Dictionary(S=Name.D)
    book.Root.PageLabels = Dictionary(Nums=Array([0, roman, number, plain]))


def _bookmark(title: str, page: Page) -> OutlineItem:
    return OutlineItem(title, Array([page.obj, Name.Fit]))


def _offer(printed: Path, site: Path) -> None:
    """Put the PDF beside the built pages, and a link to it into the footer of each."""
    if not (site / "index.html").is_file():
        return
    shutil.copyfile(printed, site / printed.name)
    size = f"{printed.stat().st_size / 1e6:.0f} MB"
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        up = "../" * (len(path.relative_to(site).parts) - 1)
        link = f'<a class="printed" href="{up}{printed.name}">PDF</a> ({size}).'
        path.write_text(text.replace(OFFER, link), encoding="utf-8")
