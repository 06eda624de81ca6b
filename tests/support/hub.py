"""A tiny hub of models on 127.0.0.1, which speaks what huggingface_hub asks."""

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

ERRORS = {  # by the hub's own code, as huggingface.co answers
    "RepoNotFound": 404,
    "RevisionNotFound": 404,
    "EntryNotFound": 404,
    "GatedRepo": 401,
}


def commit_of(folder: Path) -> str:
    """A hash of 40 digits that stands for all files of a folder."""
    found = hashlib.sha1(usedforsecurity=False)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        found.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return found.hexdigest()


class Hub(ThreadingHTTPServer):
    """Repositories by id, each with folders by branch, tag or commit."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, Path]] = {}
        self.gated: dict[str, str] = {}  # the token that opens a repository
        self.status: int | None = None  # of every answer, if the hub is ill
        self.pause = 0.0  # seconds between two pieces of a file
        self.sent: list[str] = []  # the files whose content was asked for

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, id: str, folder: Path, *revisions: str) -> str:
        """Publish a folder at a commit, on these branches; return the commit."""
        commit = commit_of(folder)
        known = self.repositories.setdefault(id, {})
        known |= dict.fromkeys([commit, *(revisions or ["main"])], folder)
        return commit

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no error."""


@contextlib.contextmanager
def served() -> Iterator[Hub]:
    """Serve in a thread until the end of the block."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path.strip("/").split("/")
        if self.server.status:
            self.answer(b"", self.server.status)
        elif path[:2] == ["api", "models"]:
            self.about("/".join(path[2:4]), *map(unquote, path[4:6]))
        else:
            revision, *file = map(unquote, path[3:])
            self.file("/".join(path[:2]), revision, "/".join(file))

    def folder_of(self, id: str, revision: str) -> Path | None:
        folders = self.server.repositories.get(id)
        if folders is None:
            self.refuse("RepoNotFound")
        elif revision not in folders:
            self.refuse("RevisionNotFound")
        return (folders or {}).get(revision)

    def about(self, id: str, what: str = "revision", revision: str = "main") -> None:
        folder = self.folder_of(id, revision)
        if folder is None:
            return
        files = {
            path.relative_to(folder).as_posix(): path.stat().st_size
            for path in folder.rglob("*")
            if path.is_file()
        }
        if what == "tree":
            said = [
                {"type": "file", "path": file, "size": size, "oid": "0" * 40}
                for file, size in files.items()
            ]
        else:
            said = {
                "id": id,
                "sha": commit_of(folder),
                "private": False,
                "siblings": [{"rfilename": f, "size": s} for f, s in files.items()],
            }
        self.answer(json.dumps(said).encode(), kind="application/json")

    def file(self, id: str, revision: str, name: str) -> None:
        folder = self.folder_of(id, revision)
        if folder is None:
            return
        token = self.server.gated.get(id)
        if token and self.headers.get("Authorization") != f"Bearer {token}":
            self.refuse("GatedRepo")
        elif not (folder / name).is_file():
            self.refuse("EntryNotFound")
        else:
            if self.command == "GET":
                self.server.sent.append(name)
            content = (folder / name).read_bytes()
            tag = hashlib.sha256(content).hexdigest()
            self.answer(
                content, more={"ETag": f'"{tag}"', "X-Repo-Commit": commit_of(folder)}
            )

    def refuse(self, code: str) -> None:
        self.answer(b"", ERRORS[code], more={"X-Error-Code": code})

    def answer(
        self,
        content: bytes,
        status: int = 200,
        *,
        kind: str = "application/octet-stream",
        more: Mapping[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        said = {"Content-Type": kind, "Content-Length": len(content)} | (more or {})
        for name, value in said.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        pieces = 8 if self.server.pause and kind != "application/json" else 1
        for i in range(pieces):
            begin, end = (len(content) * n // pieces for n in (i, i + 1))
            self.wfile.write(content[begin:end])
            time.sleep(self.server.pause)
