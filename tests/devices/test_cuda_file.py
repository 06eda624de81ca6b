"""The tests for a real GPU run on the pretended one, except for what that one lacks.

As a program it is pytest on ``tests/test_cuda.py``, on the pretended GPU: that file
looks for CUDA when it is imported.
"""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
LACKS = "holds_the_weights"  # it has no memory of its own


def test_they_pass(compiler):
    command = [sys.executable, __file__]
    run = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=TESTS)
    assert run.returncode == 0, run.stdout
    assert "1 deselected" in run.stdout


def main() -> int:
    import pytest
    import torch
    from support import pretend
    from support.pretend import build

    build.load()
    with pretend.cuda() as seen:
        places = []

        def set_sync_debug_mode(mode: str) -> None:
            if mode == "default":
                assert seen.waits[places[-1] :] == []
            places.append(len(seen.waits))

        torch.cuda.set_sync_debug_mode = set_sync_debug_mode
        torch.cuda.get_device_capability = lambda device=None: (9, 0)
        options = ["-q", "-p", "no:cacheprovider", "-k", f"not {LACKS}"]
        return pytest.main([*options, "test_cuda.py"])


if __name__ == "__main__":
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]
    sys.exit(main())
