"""Write the values of a profile into the chapters, each in a cell below its parameters.

``python -m tools.for_binder profiles/binder.yaml`` changes the notebooks in place: it
is for the copy of the book in Binder's image, where the chapters' own values would need
more memory than there is.
"""

import sys
from pathlib import Path

import papermill

from fmkit.book.contents import chapters_of
from fmkit.runs.parameters import (
    parameters_of,
    read_notebook,
    read_profile,
    section_of,
)


def main(profile: Path, root: Path) -> None:
    """Inject a cell of parameters into each chapter for which the profile has some."""
    sections = read_profile(profile)
    for path in chapters_of(root):
        if sections.get(path.stem):
            given = section_of(profile, path.stem, parameters_of(read_notebook(path)))
            papermill.execute_notebook(path, path, given, prepare_only=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path.cwd())
