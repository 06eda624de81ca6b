"""Measure what each notebook takes on a processor that has AVX2 and no AVX-512.

``python -m tools.slower_processor``, run on a clean checkout of an idle machine, reruns
every notebook at its own parameters with the vector instructions of an older processor,
on whatever newer one it runs, and writes ``results/slower_processor.json``: wall
seconds of each rerun, its kernel's start included. It takes about fifteen minutes on
two cores.
"""

import json
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from fmkit._writing import write_whole
from fmkit.book.contents import notebooks_of
from fmkit.progress import progress
from fmkit.runs.machine import default_device, usable_cores, versions
from fmkit.runs.rerun import environment, rerun

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "results" / "slower_processor.json"
AVX2 = {  # read by oneDNN, by torch's own kernels and by MKL
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


def main() -> None:
    """Write the times of all notebooks of the book."""
    seconds = {}
    for path in progress(notebooks_of(ROOT), bar="notebooks"):
        start = time.perf_counter()
        with environment(AVX2), tempfile.TemporaryDirectory() as out:
            rerun(path, Path(out), given={"device": "cpu"})
        seconds[path.stem] = round(time.perf_counter() - start, 1)
    write(seconds)


def write(seconds: dict[str, float]) -> None:
    """Write the times with what they depend on."""
    commit = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    run = subprocess.run(commit, capture_output=True, encoding="utf-8", check=True)
    times = {
        "environment": AVX2,
        "device": default_device(),
        "threads": usable_cores(),
        "versions": versions(),
        "commit": run.stdout.strip(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "total": round(sum(seconds.values()), 1),
    }
    write_whole(TARGET, json.dumps(times, indent=1) + "\n")


if __name__ == "__main__":
    main()
