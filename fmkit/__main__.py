"""``python -m fmkit`` is the command ``fmkit``, for ``torchrun -m fmkit``."""

import sys

from fmkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
