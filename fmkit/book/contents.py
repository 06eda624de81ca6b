"""The table of contents: which pages and notebooks the book in a folder has."""

from pathlib import Path

import yaml

from fmkit._check import Refused

EXERCISES = "_exercises"  # at the end of a chapter's name


class BookError(Refused):
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
    pages = [root / f"{name}.ipynb" for name in files_in(toc)]
    return [page for page in pages if page.is_file()]


def files_in(toc: object) -> list[str]:
    if isinstance(toc, list):
        return [name for item in toc for name in files_in(item)]
    if not isinstance(toc, dict):
        return []
    own = [toc["file"]] if "file" in toc else []
    return own + [name for value in toc.values() for name in files_in(value)]
