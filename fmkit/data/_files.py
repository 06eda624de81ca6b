"""Which files count in a folder of images or texts, and what their names are."""

import os
from collections.abc import Iterator
from pathlib import Path

from fmkit._check import Refused

# Left by file managers, disks, servers and Python. Hidden files have a dot first.
LITTER = ("__MACOSX", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN", "@eaDir")
LITTER += ("#recycle", "System Volume Information", "lost+found", "__pycache__")


def is_litter(name: str) -> bool:
    """Tell whether a file or folder of this name is hidden or one of ``LITTER``."""
    return name.startswith(".") or name in LITTER


def walk(folder: Path) -> Iterator[Path]:
    """Yield the files and folders below `folder`, in the order of the parts of names.

    Links are followed, except to a folder that they lie in. Litter is left out, and so
    is everything that is neither a file nor a folder. A link that leads nowhere is a
    file that cannot be read, if its name has a suffix. Raises ValueError if it has
    none, because it may be a folder of which all would be missed, and if a folder
    cannot be read.
    """
    yield from _walk(folder, (os.path.realpath(folder),))


def _walk(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """Walk through `folder`; `above` are the real paths of it and of those around."""
    try:
        names = [name for name in sorted(os.listdir(folder)) if not is_litter(name)]
        kinds = {
            path: (path.is_file(), path.is_dir())
            for path in map(folder.joinpath, names)
        }
    except OSError as error:
        raise Refused(f"{folder} cannot be read ({error.strerror}).") from error
    for path, (is_file, is_folder) in kinds.items():
        if is_file or is_folder or (path.is_symlink() and path.suffix):
            yield path
        elif path.is_symlink():  # otherwise a socket or the like
            rule = "lead to a file or a folder that exists"
            raise Refused(f"the link {path} must {rule}, got {os.readlink(path)!r}.")
        if is_folder and (real := os.path.realpath(path)) not in above:
            yield from _walk(path, (*above, real))


def name_of(path: Path) -> str:
    """Return a path as text with slashes: UTF-8, whatever the locale.

    Bytes that are not UTF-8 become surrogates, as in Python's own names of files.
    """
    return os.fsencode(path.as_posix()).decode("utf-8", "surrogateescape")
