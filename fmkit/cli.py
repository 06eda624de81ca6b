"""The command ``fmkit``: what is here, fetch, rerun, sweep, make the book."""

import argparse
import sys
import traceback
from pathlib import Path

from fmkit._check import Refused
from fmkit.assets.catalogue import ASSETS

# Each command imports what it needs: --help is not to wait for torch.
BUG = 70  # EX_SOFTWARE of sysexits.h: an error inside the program
INTERRUPTED = 130  # what a shell reports after Ctrl-C
SWEEP_HELP = """\
example: six runs of a chapter, in the folders runs/sweep/seed=0,tau=0.1 and so on

  fmkit sweep chapters/NAME.ipynb -p tau=0.1,0.5 -p seed=0,1,2 -o runs/sweep

The values of a list are lists: -p "n_task=[10],[10, 100]". Ctrl-C stops a sweep; the
same command goes on with it, without the points that have finished, unless the chapter
or what it imports of fmkit has changed. A point that fails does not stop the rest.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status.

    What fmkit refuses is one sentence on stderr and status 1. Any other error is a bug:
    it shows its traceback, and the status is 70.
    """
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except Refused as refused:
        print(f"fmkit: {' '.join(str(refused).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fmkit: interrupted.", file=sys.stderr)
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        print("fmkit: this is a bug; please report what stands above.", file=sys.stderr)
        return BUG
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fmkit", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, function: object, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=function)
        return command

    add("info", _info, "show versions, the device, and every asset with its licence")
    command = add(
        "fetch", _fetch, "fetch data and weights, by default all that chapters need"
    )
    command.add_argument("names", nargs="*", help=f"of {', '.join(ASSETS)}")
    _add_rerun(add("rerun", _rerun, "execute one chapter with other parameters"))
    _add_sweep(add("sweep", _sweep, "execute one chapter at every point of a grid"))
    text = "execute every chapter afresh and build the pages from that"
    command = add("book", _book, text)
    command.add_argument(
        "-f", "--profile", type=Path, help="a file of parameters, one section a chapter"
    )
    add("html", _html, "build the pages from the outputs that the notebooks carry")
    add("pdf", _pdf, "print them as one document, with Chromium")
    add("execute", _execute, "execute the chapters whose outputs are stale, in place")
    return parser


def _add_rerun(command: argparse.ArgumentParser) -> None:
    _add_chapter(command)
    command.add_argument(
        "-p",
        dest="given",
        metavar="name=value",
        action="append",
        default=[],
        help="one parameter; may be repeated",
    )
    command.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        help="the folder that gets the executed notebook and record.json",
    )


def _add_sweep(command: argparse.ArgumentParser) -> None:
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.epilog = SWEEP_HELP
    _add_chapter(command)
    command.add_argument(
        "-p",
        dest="given",
        metavar="name=a,b,c",
        action="append",
        required=True,
        help="the values of one parameter; with several -p, every combination",
    )
    command.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        help="the folder that gets table.csv, index.html and a folder for each point",
    )
    command.add_argument(
        "-j",
        "--jobs",
        type=int,
        help="how many points run at a time, the cores divided among them; default: "
        "as many as there are cores. Take fewer where they share a GPU",
    )


def _add_chapter(command: argparse.ArgumentParser) -> None:
    command.add_argument("chapter", type=Path, help="a notebook")
    command.add_argument(
        "-f",
        "--profile",
        type=Path,
        help="a file of parameters; its section of the chapter counts, -p wins over it",
    )


def _info(options: argparse.Namespace) -> None:
    import torch

    from fmkit.assets import cache_folder, inventory
    from fmkit.runtime import device_name, pick_device, versions

    device = pick_device()
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    print(f"device {device_name(device)}, {torch.get_num_threads()} threads")
    print(f"assets are kept in {cache_folder()}")
    for row in inventory():
        here = "fetched" if row["cached"] else "not fetched"
        here += ", optional" if row["optional"] else ""
        print(f"\n{row['name']}: {row['what']}, {row['bytes'] / 1e6:.1f} MB, {here}")
        print(f"  licence {row['licence']}; {row['source']}")


def _fetch(options: argparse.Namespace) -> None:
    from fmkit.assets import fetch

    needed = [name for name, asset in ASSETS.items() if not asset.optional]
    for name in options.names or needed:
        for path in fetch(name).values():
            print(f"{name}: {path}", flush=True)


def _section(options: argparse.Namespace) -> dict[str, object]:
    from fmkit.runs.parameters import section_of

    profile, chapter = options.profile, options.chapter.stem
    return section_of(profile, chapter) if profile else {}


def _rerun(options: argparse.Namespace) -> None:
    from fmkit.runs.parameters import from_arguments, parameters_of, read_notebook
    from fmkit.runs.rerun import rerun

    chapter = options.chapter
    parameters = parameters_of(read_notebook(chapter))
    given = _section(options) | from_arguments(options.given, parameters)
    record = rerun(chapter, options.out, given=given)
    print(f"{options.out / chapter.name}: {record['status']}")


def _sweep(options: argparse.Namespace) -> None:
    from fmkit.runs.parameters import grid_of, parameters_of, read_notebook
    from fmkit.runs.sweep import sweep

    chapter, jobs = options.chapter, options.jobs
    grid = grid_of(options.given, parameters_of(read_notebook(chapter)))
    sweep(chapter, options.out, grid=grid, base=_section(options), jobs=jobs)


def _book(options: argparse.Namespace) -> None:
    from fmkit.book.build import book

    book(Path.cwd(), profile=options.profile)


def _pdf(options: argparse.Namespace) -> None:
    from fmkit.book.printed import pdf

    print(pdf(Path.cwd()))


def _html(options: argparse.Namespace) -> None:
    from fmkit.book.build import html

    print(html(Path.cwd()))


def _execute(options: argparse.Namespace) -> None:
    from fmkit.book.execute import execute

    execute(Path.cwd())
