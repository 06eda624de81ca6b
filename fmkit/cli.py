"""The command ``fmkit``: what is here, fetch, rerun a chapter, make the book."""

import argparse
import sys
from pathlib import Path

import torch

from fmkit import book as books
from fmkit.assets import ASSETS, AssetError, cache_folder, fetch, inventory
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

ERRORS = (AssetError, RerunError, RecordError, books.BookError, ValueError, OSError)
INTERRUPTED = 130  # what a shell reports after Ctrl-C


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
    text = "execute every chapter afresh and build the pages from that"
    command = add("book", _book, text)
    command.add_argument(
        "-f", "--profile", type=Path, help="a file of parameters, one section a chapter"
    )
    add("html", _html, "build the pages from the outputs that the notebooks carry")
    add("execute", _execute, "execute the chapters whose outputs are stale, in place")
    return parser


def _add_rerun(command: argparse.ArgumentParser) -> None:
    command.add_argument("chapter", type=Path, help="a notebook")
    command.add_argument(
        "-p",
        dest="given",
        metavar="name=value",
        action="append",
        default=[],
        help="one parameter; may be repeated",
    )
    command.add_argument(
        "-f",
        "--profile",
        type=Path,
        help="a file of parameters; its section of the chapter counts, -p wins over it",
    )
    command.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        help="the folder that gets the executed notebook and record.json",
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


def _rerun(options: argparse.Namespace) -> None:
    chapter = options.chapter
    section = section_of(options.profile, chapter.stem) if options.profile else {}
    parameters = parameters_of(read_notebook(chapter))
    given = section | from_arguments(options.given, parameters)
    record = rerun(chapter, options.out, given=given)
    print(f"{options.out / chapter.name}: {record['status']}")


def _book(options: argparse.Namespace) -> None:
    books.book(Path.cwd(), profile=options.profile)


def _html(options: argparse.Namespace) -> None:
    print(books.html(Path.cwd()))


def _execute(options: argparse.Namespace) -> None:
    books.execute(Path.cwd())
