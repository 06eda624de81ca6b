"""The command ``fmkit``: what is here, fetch, rerun, sweep, make the book."""

import argparse
import sys
from pathlib import Path

import torch

from fmkit import book as books
from fmkit.assets import ASSETS, AssetError, cache_folder, fetch, inventory
from fmkit.grid import grid_of
from fmkit.records import RecordError
from fmkit.rerun import (
    RerunError,
    from_arguments,
    parameters_of,
    read_notebook,
    rerun,
    section_of,
)
from fmkit.runtime import device_name, pick_device, versions
from fmkit.sweep import sweep

ERRORS = (AssetError, RerunError, RecordError, books.BookError, ValueError, OSError)
INTERRUPTED = 130  # what a shell reports after Ctrl-C
SWEEP_HELP = """\
example: six runs of a chapter, in the folders runs/sweep/seed=0,tau=0.1 and so on

  fmkit sweep chapters/NAME.ipynb -p tau=0.1,0.5 -p seed=0,1,2 -o runs/sweep

The values of a list are lists: -p "n_task=[10],[10, 100]". Ctrl-C stops a sweep; the
same command goes on with it, without the points that have finished, unless the chapter
or what it imports of fmkit has changed. A point that fails does not stop the rest.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status. An error is one sentence on stderr."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except ERRORS as error:
        print(f"fmkit: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fmkit: interrupted.", file=sys.stderr)
        return INTERRUPTED
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
    needed = [name for name, asset in ASSETS.items() if not asset.optional]
    for name in options.names or needed:
        for path in fetch(name).values():
            print(f"{name}: {path}", flush=True)


def _section(options: argparse.Namespace) -> dict[str, object]:
    profile, chapter = options.profile, options.chapter.stem
    return section_of(profile, chapter) if profile else {}


def _rerun(options: argparse.Namespace) -> None:
    chapter = options.chapter
    parameters = parameters_of(read_notebook(chapter))
    given = _section(options) | from_arguments(options.given, parameters)
    record = rerun(chapter, options.out, given=given)
    print(f"{options.out / chapter.name}: {record['status']}")


def _sweep(options: argparse.Namespace) -> None:
    chapter, jobs = options.chapter, options.jobs
    grid = grid_of(options.given, parameters_of(read_notebook(chapter)))
    sweep(chapter, options.out, grid=grid, base=_section(options), jobs=jobs)


def _book(options: argparse.Namespace) -> None:
    books.book(Path.cwd(), profile=options.profile)


def _pdf(options: argparse.Namespace) -> None:
    print(books.pdf(Path.cwd()))


def _html(options: argparse.Namespace) -> None:
    print(books.html(Path.cwd()))


def _execute(options: argparse.Namespace) -> None:
    books.execute(Path.cwd())
