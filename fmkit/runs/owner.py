"""Give an output folder one owner: the run that writes into it.

The owner holds a lock, which the system frees when its process ends, however it ends.
Two hidden files are in the folder meanwhile: the lock, and a line that says who has it.
"""

import contextlib
import os
import platform
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from fmkit._writing import writing
from fmkit.runs.cells import RerunError

LOCK, OWNER = ".owner.lock", ".owner"


@contextlib.contextmanager
def owned(folder: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Make a folder, and be the only run that writes into it.

    Waits `patience` seconds for an owner to end. Raises RerunError if the folder still
    has one, and names it; raises Refused if the folder cannot be written.
    """
    with writing(folder):
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    with writing(folder):
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            raise RerunError(
                f"{folder} is in use by {_owner_of(folder)}; wait until that has "
                "ended, or choose another folder."
            ) from None
    try:
        since = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        own = f"process {os.getpid()} on {platform.node()} since {since}"
        with writing(folder):
            (folder / OWNER).write_text(f"{own}\n", encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / OWNER).unlink(missing_ok=True)
            if os.name == "posix":  # while it is locked, so it is still ours
                (folder / LOCK).unlink(missing_ok=True)
        lock.release()
        with contextlib.suppress(OSError):
            if os.name != "posix":  # Windows keeps a file that is open
                (folder / LOCK).unlink(missing_ok=True)
            if made:
                folder.rmdir()  # which succeeds only if nothing was written


def _owner_of(folder: Path) -> str:
    try:
        return (folder / OWNER).read_text(encoding="utf-8").strip() or "another process"
    except OSError:  # it has the lock, and has not said so yet
        return "another process"
