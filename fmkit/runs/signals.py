"""Handle signals for a while: one way for a rerun and for a sweep."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def handled(*names: str, by: Callable[[int, object], object]) -> Iterator[None]:
    """Let `by` handle the signals of these names, and restore what did before.

    A signal that this process ignores stays ignored, as under nohup. Outside of the
    main thread, which Python's handlers belong to, nothing is changed.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in names:
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, by)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
