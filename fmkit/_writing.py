"""Write a file completely or not at all, and name it if that is not possible.

Whatever a run leaves is written through :func:`whole`: a reader may have the file open,
the disk may be full, and a run may be killed at any moment.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from fmkit._check import Refused, one_line


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield the path at which to write a file, which then takes its place in one step.

    If anything is raised, the file at `path` stays as it was. Raises Refused if the
    file cannot be written.
    """
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path):
        try:
            yield staging
            os.replace(staging, path)
        except BaseException:
            with contextlib.suppress(OSError):
                staging.unlink(missing_ok=True)
            raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all; raises Refused if it cannot be written."""
    data = content.encode() if isinstance(content, str) else content
    with whole(path) as staging:
        staging.write_bytes(data)


def write_tensors(
    path: Path, tensors: dict[str, object], *, about: dict[str, str]
) -> None:
    """Write tensors and texts about them as safetensors, completely or not at all.

    Raises Refused if the file cannot be written.
    """
    # Imported here, because torch takes a second that a sweep's process need not wait
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with whole(path) as staging:
        try:
            save_file(tensors, staging, metadata=about)
        except SafetensorError as error:
            raise Refused(f"{path} cannot be written ({one_line(error)}).") from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise Refused, with the path and the reason, if `path` cannot be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise Refused(f"{path} cannot be written ({reason}).") from error
