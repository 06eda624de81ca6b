"""Start IPython's kernel without any settings of the reader.

The process of a rerun's kernel runs this file, see :mod:`fmkit.runs.kernel`. It imports
nothing of fmkit, which a notebook need not find.
"""

import contextlib
import logging
import os
import sys


def main() -> None:
    """Run a kernel until it is told to stop, or its parent has died."""
    if not sys.flags.safe_path:
        # The folder of this file, whose modules would hide others of their names.
        del sys.path[0]
    # The kernel watches its parent from now on; it may have died before.
    if os.name == "posix" and os.getppid() != int(os.environ["JPY_PARENT_PID"]):
        sys.exit("its parent has died")
    # fmkit reports an error once. So would tornado, which may stumble on a busy machine
    # while the kernel is shut down.
    logging.getLogger("tornado").setLevel(logging.CRITICAL)
    from ipykernel.kernelapp import IPKernelApp

    class Kernel(IPKernelApp):
        def load_config_file(self, *_: object, **__: object) -> None:
            """Load none, neither the reader's nor the system's."""

        def _run_startup_files(self) -> None:
            """Run none, and no PYTHONSTARTUP."""

        def init_gui_pylab(self) -> None:
            super().init_gui_pylab()
            if os.path.exists("matplotlibrc"):  # which would win over MATPLOTLIBRC
                with contextlib.chdir(os.environ["MATPLOTLIBRC"]):
                    import matplotlib  # noqa: F401

    Kernel.launch_instance()


if __name__ == "__main__":
    main()
