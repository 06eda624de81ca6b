"""The command ``fmkit``: show what is installed, fetch, rerun, sweep, make the book."""

import argparse
import contextlib
import os
import re
import sys
import traceback
from pathlib import Path

from fmkit._check import Refused, require
from fmkit.assets.catalogue import ASSETS

# Each command imports what it needs, because --help should not wait for torch.
BUG = 70  # EX_SOFTWARE of sysexits.h: an error inside the program
INTERRUPTED = 130  # what a shell reports after Ctrl-C
PIPE_CLOSED = 141  # what it reports of a program whose output nothing reads any more
BEGIN = """\
to begin, in the folder of the book:

  fmkit parameters chapters/zero_shot.ipynb                    what can be changed
  fmkit rerun chapters/zero_shot.ipynb -p seed=1 -o runs/one   change it
  fmkit book                                                   make the pages

fmkit COMMAND --help says more of a command.
"""
FETCH_HELP = """\
example: fetch into a folder that you can carry

  FMKIT_CACHE=CACHE fmkit fetch

Files that are there already are not fetched again. In FMKIT_MIRROR=FOLDER, files from
that folder take the place of the network.
"""
PARAMETERS_HELP = """\
example: the parameters of a chapter, each with its type, its value and what it means

  fmkit parameters chapters/zero_shot.ipynb
"""
RERUN_HELP = """\
example: run a chapter with another seed and two numbers of labels

  fmkit rerun chapters/NAME.ipynb -p seed=1 -p "n_task=[10, 100]" -o runs/seed-1

Names and values are checked before anything runs. A chapter that keeps checkpoints goes
on from those in the output folder if it was stopped.
"""
BOOK_HELP = """\
example: the book at its smallest, in two to four minutes

  fmkit book -f profiles/smoke.yaml
"""
SWEEP_HELP = """\
example: run a chapter six times, in the folders runs/sweep/seed=0,tau=0.1 and so on

  fmkit sweep chapters/NAME.ipynb -p tau=0.1,0.5 -p seed=0,1,2 -o runs/sweep

If a parameter is a list, its values are lists: -p "n_task=[10],[10, 100]". Ctrl-C stops
a sweep. The same command resumes it: finished points are not run again, unless the
chapter or the code that it imports from fmkit has changed. A point that fails does not
stop the others.

on several machines: each has fmkit and the data, but no disk needs to be shared

  dask scheduler                                       on one of them
  dask worker tcp://HOST:8786 --resources GPU=1        on every one
  fmkit sweep … --on tcp://HOST:8786 --gpus 1

A worker runs as many points at a time as it has threads (--nthreads) and, with --gpus,
GPUs. If it dies, another one runs its points.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status.

    A refusal is printed to stderr as one sentence, and the status is 1; so is a missing
    package of an extra. Any other error is a bug: its traceback is shown, and the
    status is 70.
    """
    with contextlib.suppress(AttributeError):  # if something else stands in for it
        sys.stdout.reconfigure(errors="replace")  # a locale may lack a character
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    if options.version:  # whatever else is asked for
        options.command, options.extra = _version, None
    try:
        for argument in arguments:
            _require_text("an argument", argument)
        if options.extra:  # it executes or writes notebooks
            _require_text("the current folder", _current_folder())
        options.command(options)
        sys.stdout.flush()
    except Refused as refused:
        print(f"fmkit: {' '.join(str(refused).split())}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        name = (error.name or "fmkit").partition(".")[0]
        if name == "fmkit" or options.extra is None:
            return _bug()
        print(
            f"fmkit: this command needs {name}, which is not installed; install it "
            f'with: pip install "fmkit[{options.extra}]".',
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("fmkit: interrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # for example, head has read its ten lines
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception:
        return _bug()
    return 0


def _require_text(name: str, got: str) -> None:
    """Refuse bytes that are no text, because neither notebooks nor records hold them.

    Python has them as surrogates.
    """
    encoding = sys.getfilesystemencoding()
    require(not re.search("[\ud800-\udfff]", got), name, f"be text in {encoding}", got)


def _current_folder() -> str:
    """Return the current folder; refuse one that was removed in the meantime."""
    try:
        return os.getcwd()
    except FileNotFoundError as error:
        raise Refused("the current folder no longer exists.") from error


def _path(text: str) -> Path:
    """Return the path that was typed; a shell leaves the ``~`` of ``--out=~/runs``."""
    return Path(os.path.expanduser(text))


def _bug() -> int:
    traceback.print_exc()
    print("fmkit: this is a bug; please report the lines above.", file=sys.stderr)
    return BUG


def _parser() -> argparse.ArgumentParser:
    text = "Read, run and rerun Foundation Models, Executed."
    lines = {"formatter_class": argparse.RawDescriptionHelpFormatter}  # kept in epilogs
    parser = argparse.ArgumentParser("fmkit", description=text, epilog=BEGIN, **lines)
    parser.add_argument("--version", action="store_true", help="print it, and exit")
    parser.set_defaults(command=_alone, extra=None)
    commands = parser.add_subparsers(metavar="command")

    def add(
        name: str,
        function: object,
        text: str,
        *,
        extra: str | None = None,
        example: str = "",
    ) -> argparse.ArgumentParser:
        about = {"description": f"{text[0].upper()}{text[1:]}.", "epilog": example}
        command = commands.add_parser(name, help=text, **about, **lines)
        command.set_defaults(command=function, extra=extra)
        return command

    add("info", _info, "show versions, the device, and every asset with its licence")
    text = "fetch data and weights, by default all that the chapters need"
    command = add("fetch", _fetch, text, example=FETCH_HELP)
    names = ", ".join(ASSETS)
    command.add_argument("names", nargs="*", help=f"which assets: {names}")
    text = "list the parameters of a chapter"
    command = add(
        "parameters", _parameters, text, extra="runs", example=PARAMETERS_HELP
    )
    command.add_argument("chapter", type=_path, help="a notebook")
    text = "execute one chapter with other parameters"
    _add_rerun(add("rerun", _rerun, text, extra="runs", example=RERUN_HELP))
    text = "execute one chapter at every point of a grid"
    _add_sweep(add("sweep", _sweep, text, extra="runs", example=SWEEP_HELP))
    text = "execute every chapter afresh and build the pages from the results"
    command = add("book", _book, text, extra="book", example=BOOK_HELP)
    command.add_argument(
        "-f",
        "--profile",
        type=_path,
        help="a file of parameters, with one section for each chapter",
    )
    text = "build the pages from the outputs stored in the notebooks"
    add("html", _html, text, extra="book")
    add("pdf", _pdf, "print the pages as one document, with Chromium", extra="book")
    text = "execute the chapters whose outputs are stale, in place"
    add("execute", _execute, text, extra="book")
    return parser


def _add_rerun(command: argparse.ArgumentParser) -> None:
    _add_chapter(command)
    command.add_argument(
        "-p",
        dest="given",
        metavar="name=value",
        action="append",
        default=[],
        help="the value of one parameter; may be repeated",
    )
    command.add_argument(
        "-o",
        "--out",
        type=_path,
        required=True,
        help="the folder for the executed notebook and record.json",
    )


def _add_sweep(command: argparse.ArgumentParser) -> None:
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
        type=_path,
        required=True,
        help="the folder for table.csv, index.html and a folder for each point",
    )
    command.add_argument(
        "-j",
        "--jobs",
        type=int,
        help="how many points run at a time, with the cores divided among them and the "
        "GPUs dealt in turns; default: the number of GPUs, or of cores if the points "
        "compute on the CPU",
    )
    command.add_argument(
        "--on",
        metavar="WHERE",
        help="dask, for a cluster on this machine, or the address of a scheduler, such "
        "as tcp://HOST:8786; default: this machine, without dask",
    )
    command.add_argument(
        "--cores",
        type=int,
        help="with --on: the cores of each point; default: 1, or with --on dask those "
        "of this machine divided among the points",
    )
    command.add_argument(
        "--gpus",
        type=int,
        help="with --on: the GPUs of each point, on workers that were started with "
        "--resources GPU=…; default: none",
    )


def _add_chapter(command: argparse.ArgumentParser) -> None:
    command.add_argument("chapter", type=_path, help="a notebook")
    command.add_argument(
        "-f",
        "--profile",
        type=_path,
        help="a file of parameters, of which the chapter's section is used; "
        "-p overrides it",
    )


def _alone(options: argparse.Namespace) -> None:
    _parser().print_help()


def _version(options: argparse.Namespace) -> None:
    from fmkit.runs import machine

    print(f"fmkit {machine.versions()['fmkit']}")


def _info(options: argparse.Namespace) -> None:
    from fmkit.assets import cache_folder, inventory
    from fmkit.runs import machine

    versions = machine.versions().items()
    print(", ".join(f"{name} {version}" for name, version in versions))
    print(f"device {machine.default_device()}")
    with contextlib.suppress(ModuleNotFoundError):  # joblib is of the extra "runs"
        variables = os.environ | machine.variables()
        print(f"chapters run with {variables['OMP_NUM_THREADS']} threads")
    print(f"assets are kept in {cache_folder()}")
    for row in inventory():
        cached = "fetched" if row["cached"] else "not fetched"
        cached += ", optional" if row["optional"] else ""
        print(f"\n{row['name']}: {row['what']}, {row['bytes'] / 1e6:.1f} MB, {cached}")
        print(f"  licence {row['licence']}; {row['source']}")


def _fetch(options: argparse.Namespace) -> None:
    from fmkit.assets import fetch

    needed = [name for name, asset in ASSETS.items() if not asset.optional]
    for name in options.names or needed:
        for path in fetch(name).values():
            print(f"{name}: {path}", flush=True)


def _parameters(options: argparse.Namespace) -> None:
    from fmkit.runs.parameters import parameters_cell, parameters_of, read_notebook

    notebook = read_notebook(options.chapter)
    parameters_of(notebook)  # refuses a cell of anything else
    print(parameters_cell(notebook))


def _section(
    options: argparse.Namespace, parameters: dict[str, object]
) -> dict[str, object]:
    from fmkit.runs.parameters import section_of

    profile, chapter = options.profile, options.chapter.stem
    return section_of(profile, chapter, parameters) if profile else {}


def _rerun(options: argparse.Namespace) -> None:
    from fmkit import ranks
    from fmkit.runs.parameters import from_arguments, parameters_of, read_notebook
    from fmkit.runs.rerun import rerun

    chapter = options.chapter
    parameters = parameters_of(read_notebook(chapter))
    given = _section(options, parameters)
    given |= from_arguments(options.given, parameters)
    record = rerun(chapter, options.out, given=given)
    if ranks.rank() == 0:
        print(f"{options.out / chapter.name}: {record['status']}")


def _sweep(options: argparse.Namespace) -> None:
    if options.on:
        options.extra = "dask"
    from fmkit.runs.engines import engine_of

    engine = engine_of(
        options.on, jobs=options.jobs, cores=options.cores, gpus=options.gpus
    )
    from fmkit.runs.parameters import grid_of, parameters_of, read_notebook
    from fmkit.runs.sweep import sweep  # which imports torch

    chapter = options.chapter
    parameters = parameters_of(read_notebook(chapter))
    grid, base = grid_of(options.given, parameters), _section(options, parameters)
    sweep(chapter, options.out, grid=grid, base=base, engine=engine)


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
