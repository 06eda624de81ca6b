"""Read the settings of the book, and its table of contents: pages and notebooks."""

from pathlib import Path

import yaml

from fmkit._check import Refused

EXERCISES = "_exercises"  # follows a chapter's name in that of its exercises


class BookError(Refused):
    """Say in one sentence why the book cannot be built."""


def settings_of(root: Path) -> dict:
    """Return what ``_config.yml`` says."""
    return _read(root / "_config.yml")


def chapters_of(root: Path) -> list[Path]:
    """Return the chapters of the book in `root`, in the order of its contents."""
    return [path for path in notebooks_of(root) if not path.stem.endswith(EXERCISES)]


def notebooks_of(root: Path) -> list[Path]:
    """Return the chapters and those exercises that the table of contents lists.

    Raises :class:`BookError` if there is no table of contents.
    """
    try:
        names = pages_of(root)
    except (OSError, yaml.YAMLError) as error:
        raise BookError(f"{root} holds no book (_toc.yml cannot be read).") from error
    pages = [root / f"{name}.ipynb" for name in names]
    return [page for page in pages if page.is_file()]


def parts_of(root: Path) -> list[tuple[str, list[str]]]:
    """Return the parts of the book in `root`: the caption of each and its pages.

    The pages below another one, such as exercises, are left out. A book without parts
    is one part without a caption.
    """
    toc = _read(root / "_toc.yml")
    return [
        (part.get("caption", ""), [page["file"] for page in part["chapters"]])
        for part in toc.get("parts", [toc])
    ]


def pages_of(root: Path) -> list[str]:
    """Return the names of all pages in the table of contents, without suffixes."""
    return _files_in(_read(root / "_toc.yml"))


def _files_in(toc: object) -> list[str]:
    if isinstance(toc, list):
        return [name for item in toc for name in _files_in(item)]
    if not isinstance(toc, dict):
        return []
    own = [toc["file"]] if "file" in toc else []
    return own + [name for value in toc.values() for name in _files_in(value)]


def _read(path: Path) -> object:
    return yaml.safe_load(path.read_text(encoding="utf-8"))
