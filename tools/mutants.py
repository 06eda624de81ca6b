"""Plant the bugs of ``tests/mutants.toml``, one at a time, and check that tests fail.

    python -m tools.mutants [--only FILE] [--sample N [--seed DATE]]

Each bug is planted in a copy of the tree, never in the tree itself, and the test that
its entry names runs there in a process of its own. The last line counts the bugs that
were planted, were caught (the test fails), survived (it passes) or are broken (it does
not run), and the entries that are gone: their old text no longer occurs exactly once
in its file. The exit status is 1 if any bug was not caught.
"""

import argparse
import contextlib
import gc
import io
import os
import random
import shutil
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
AT_ONCE = 2  # processes
NOT_COPIED = (".*", "__pycache__", "_build", "*.egg-info")
# Imported once, then forked, because importing them takes seconds; any may be missing
PRELOADED = ["pytest", "anyio.pytest_plugin", "nbval.plugin", "torch", "gguf"]
PRELOADED += ["matplotlib.pyplot", "transformers", "peft", "sklearn.linear_model"]
# Plugins are preloaded, so pytest warns that it cannot rewrite their asserts
OPTIONS = ["-qx", "-pno:cacheprovider", "-Wignore::pytest.PytestAssertRewriteWarning"]
OUTCOMES = {0: "survived", 1: "caught"}  # by pytest's exit status; any other is broken


@dataclass(frozen=True)
class Mutant:
    """A bug: `new` in place of `old` in `file`, and the `test` that must fail then."""

    file: str
    bug: str
    old: str
    new: str
    test: str

    def planted(self) -> str | None:
        """Return the file with the bug; None unless `old` occurs in it exactly once."""
        path = ROOT / self.file
        source = path.read_text(encoding="utf-8") if path.is_file() else ""
        once = source.count(self.old) == 1
        return source.replace(self.old, self.new) if once else None


def mutants() -> list[Mutant]:
    """Read every entry, in the order of the file."""
    text = (ROOT / "tests" / "mutants.toml").read_text(encoding="utf-8")
    groups = tomllib.loads(text).items()
    return [Mutant(file, **entry) for file, group in groups for entry in group]


def status_of(tests: Sequence[str], file: str = "", source: str = "") -> int:
    """Return pytest's status for `tests` in a copy of the tree, with one file replaced.

    The process must not be used afterwards, because this changes its state.
    """
    import pytest

    gc.freeze()  # so that preloaded modules are not searched for cycles
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*NOT_COPIED))
        (tree.parent / "shared").symlink_to(ROOT.parent / "shared")  # if there is one
        if file:
            (tree / file).write_text(source, encoding="utf-8")
        os.chdir(tree)
        os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        sys.path.insert(0, str(tree))
        sys.dont_write_bytecode = True
        with contextlib.redirect_stdout(io.StringIO()):
            return int(pytest.main([*OPTIONS, *tests]))


def outcomes(chosen: Sequence[Mutant]) -> Iterator[tuple[Mutant, str]]:
    """Plant each mutant and yield it with its outcome.

    Exits with a message if one of the tests fails where no bug is planted.
    """
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    sources = [mutant.planted() for mutant in chosen]
    tests = sorted({mutant.test for mutant in chosen})
    with ProcessPoolExecutor(AT_ONCE, context, max_tasks_per_child=1) as pool:
        clean = pool.submit(status_of, tests)
        runs = [
            source and pool.submit(status_of, [mutant.test], mutant.file, source)
            for mutant, source in zip(chosen, sources, strict=True)
        ]
        for mutant, run in zip(chosen, runs, strict=True):
            yield mutant, OUTCOMES.get(run.result(), "broken") if run else "gone"
        if clean.result() != 0:
            sys.exit("One of the tests fails without any bug.")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.mutants")
    parser.add_argument("--only", metavar="FILE", help="only the bugs of this file")
    parser.add_argument(
        "--sample", type=int, metavar="N", help="only N bugs, drawn at random"
    )
    today = datetime.now(UTC).date().isoformat()
    parser.add_argument("--seed", default=today, help="of the draw; default: today")
    arguments = parser.parse_args()
    chosen = [m for m in mutants() if arguments.only in (None, m.file)]
    if not chosen:
        parser.error(f"tests/mutants.toml has no bug of {arguments.only}.")
    if shutil.which("g++") is None:  # tests of pretended devices are skipped
        chosen = [m for m in chosen if not m.test.startswith("tests/devices/")]
    if arguments.sample:
        count = min(arguments.sample, len(chosen))
        chosen = random.Random(arguments.seed).sample(chosen, count)
    counts = Counter()
    for mutant, outcome in outcomes(chosen):
        counts[outcome] += 1
        if outcome != "caught":
            print(f"{outcome}: {mutant.file}: {mutant.bug} ({mutant.test})", flush=True)
    planted = len(chosen) - counts["gone"]
    numbers = [f"{counts[name]} {name}" for name in ("caught", "survived", "broken")]
    print(f"{planted} planted: {', '.join(numbers)}; {counts['gone']} gone")
    sys.exit(counts["caught"] < len(chosen))


if __name__ == "__main__":
    main()
