"""Find the built pages, build them if they are not current, read and serve them."""

import contextlib
import re
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from filelock import FileLock

from fmkit.book import build as books

ROOT = Path(__file__).resolve().parents[2]
FIRST = ROOT / "_build" / "html" / "index.html"
MADE_BY_SCRIPTS = ("search.html",)  # pages that are empty until then


class Page(HTMLParser):
    """Hold the tags of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def of(self, *names):
        return [attributes for tag, attributes in self.tags if tag in names]


class Files(SimpleHTTPRequestHandler):
    """Files as servers send them that call every script UTF-8."""

    def guess_type(self, path):
        kind = super().guess_type(path)
        return f"{kind}; charset=utf-8" if kind.endswith("javascript") else kind

    def do_GET(self):
        if self.server.without and self.path.endswith(self.server.without):
            self.send_error(404)
        else:
            super().do_GET()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(site):
    """Serve the pages at ``address``, except a file that is called ``without``."""
    handler = partial(Files, directory=site)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.without = None
        server.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def without_text(page):
    """Return the images whose alternative text is missing or is the path of a file."""
    texts = {a.get("src"): (a.get("alt") or "").strip() for a in page.of("img")}
    path = re.compile(r"\S+\.(png|svg|jpe?g|gif)$")
    return [src for src, alt in texts.items() if not alt or path.match(alt)]


def read_by_people(site):
    """Return all pages except the theme's templates."""
    return sorted(p for p in site.rglob("*.html") if "_static" not in p.parts)


def is_current(page):
    """Tell whether the pages are newer than all of their sources."""
    if not page.exists():
        return False
    made_of = (*books.CONFIGURATION, *books.PAGES, "fmkit", "results")
    files = [
        file for name in made_of for file in (ROOT / name, *(ROOT / name).rglob("*"))
    ]
    files = [f for f in files if f.is_file() and "__pycache__" not in f.parts]
    times = [file.stat().st_mtime for file in files]
    return page.stat().st_mtime > max(times)


def built():
    """Return the folder of the pages, which are built if they are not current.

    Of several processes one builds them, and the others wait.
    """
    FIRST.parent.parent.mkdir(exist_ok=True)
    with FileLock(FIRST.parent.with_suffix(".lock")):
        return FIRST.parent if is_current(FIRST) else books.html(ROOT).parent
