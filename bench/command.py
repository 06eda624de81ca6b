"""How long the command takes to answer, against how long `import torch` takes.

`fmkit --help`, `fmkit info` and an unknown command should each take at most a third of
it: the ratio is at least 3. Processes are started anew for each measurement and all run
in turns. `equal` says that each printed what it should.
"""

import subprocess
import sys
from pathlib import Path

import torch

from bench import compared, report, timed

ROUNDS = 7
COMMANDS = {"--help": "usage: fmkit", "info": "licence", "aminals": "invalid choice"}


def printed(command: list[str]) -> str:
    """Return what a process prints, to both streams."""
    run = subprocess.run(command, capture_output=True, encoding="utf-8")
    return run.stdout + run.stderr


def main() -> None:
    program = str(Path(sys.executable).with_name("fmkit"))
    importing = [sys.executable, "-c", "import torch"]
    cases, equal = [], printed(importing) == ""  # also reads torch's files once
    for argument, text in COMMANDS.items():
        command = [program, argument]
        equal = equal and text in printed(command)
        pairs = [
            (timed(lambda: printed(command))[0], timed(lambda: printed(importing))[0])  # noqa: B023
            for _ in range(ROUNDS)
        ]
        cases.append(compared(pairs, label=f"fmkit {argument}, import torch"))
    worst = min(cases, key=lambda case: case["ratio"])
    report("command", worst, equal=equal, device=torch.device("cpu"))


if __name__ == "__main__":
    main()
