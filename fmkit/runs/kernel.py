"""The kernel of a rerun: this environment's Python, without settings of the reader.

A notebook's metadata name a kernel, and a reader's settings change what it does: VS
Code writes a name of its own, the kernel of a name may belong to another environment,
and a profile of IPython may ask for other figures. None of this may reach a rerun,
whose numbers and figures are to be the same everywhere.
"""

import contextlib
import sys
from pathlib import Path

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

from fmkit._check import one_line

LAUNCHER = Path(__file__).with_name("launcher.py")
STDERR = "stderr.txt"  # what the kernel's process says outside of cells
SHOWN = 300  # characters of its last line, enough for an error


def settings(folder: Path) -> dict[str, str | None]:
    """Return the variables that keep settings out of a kernel; None removes one.

    IPython and matplotlib find an empty folder instead. Fonts that matplotlib has
    found for the reader are used.
    """
    (folder / "matplotlibrc").touch()
    variables = {"IPYTHONDIR": str(folder), "MATPLOTLIBRC": str(folder)}
    # MPLBACKEND would empty every figure, without an error.
    return {**variables, "MPLBACKEND": None, "PYTHONSTARTUP": None}


def manager(folder: Path) -> type[AsyncKernelManager]:
    """Return the class with which nbclient starts a kernel that uses `folder`."""
    command = [sys.executable, str(LAUNCHER), "-f", "{connection_file}"]

    class ThisPython(AsyncKernelManager):
        # It reports no error that fmkit reports.
        kernel_spec = KernelSpec(
            argv=[*command, "--log-level=CRITICAL"], language="python"
        )
        # A killed sweep is to leave nothing behind after 5 seconds: a kernel is asked
        # to stop, told so after half of this time, and killed after all of it.
        shutdown_wait_time = 4.0

        def __init__(self, **options: object) -> None:
            file = str(folder / "connection.json")
            super().__init__(**options, connection_file=file)

        async def start_kernel(self, **options: object) -> None:
            with open(folder / STDERR, "wb") as stderr:
                await super().start_kernel(stderr=stderr, **options)

    return ThisPython


def reason(error: Exception, folder: Path) -> str:
    """Return why a kernel did not start, with the last line that its process wrote."""
    place = error.filename or folder if isinstance(error, OSError) else ""
    said = error.strerror if place else one_line(error)
    with contextlib.suppress(OSError):
        text = (folder / STDERR).read_text(encoding="utf-8", errors="replace")
        for last in text.strip().splitlines()[-1:]:
            said += f" ({' '.join(last.split())[:SHOWN]})"
    return f"{place}: {said}" if place else said
