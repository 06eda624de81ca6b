"""Processes that tests watch, stop and kill."""

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# A cell: write which point has begun, and wait for the file go if steps is 3 or more.
BEGUN = """\
import os
import time

with open({folder!r} + "/log", "a") as log:
    print(steps, os.getpid(), os.getppid(), file=log, flush=True)
while steps > 2 and not os.path.exists({folder!r} + "/go"):
    time.sleep(0.05)"""


def begun(folder: Path) -> list[list[int]]:
    """Which points began, in this order, with the kernel of each and its parent."""
    log = folder / "log"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [[int(word) for word in line.split()] for line in lines]


def is_alive(process: int) -> bool:
    """Whether a process runs; one that has ended and is not yet collected does not."""
    run = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True)
    return run.stdout.strip()[:1] not in (b"", b"Z")


def parent_of(process: int) -> int:
    """The process that started another."""
    run = subprocess.run(["ps", "-o", "ppid=", "-p", str(process)], capture_output=True)
    return int(run.stdout)


def wait_until(condition: Callable[[], bool], *, seconds: float = 120) -> None:
    """Wait for something that takes a second, or minutes on a busy machine."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not come in {seconds} s"
        time.sleep(0.05)


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen]:
    """Start a command as a terminal does: Ctrl-C reaches it and what it starts.

    It is killed at the end if it still runs.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
        # Started in a shell's background, the tests ignore Ctrl-C, and so would a child
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def stopped(
    command: list[str], *, when: Callable[[], bool], by: int = signal.SIGINT
) -> tuple[int, str, str]:
    """Start a command, and send a signal to it and its children; how it ended."""
    with started(command) as process:
        wait_until(lambda: when() or process.poll() is not None)
        os.killpg(process.pid, by)
        printed = process.communicate()
    return process.returncode, *printed


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Let the system refuse to make a file larger than `size` bytes, as if it was full.

    The processes that are started meanwhile cannot either.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
