"""Read pairs of texts (x, y) from a CSV or JSONL file: questions, or labelled texts."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from fmkit._check import Refused, one_line
from fmkit._reading import read_text

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
# Columns and keys that are x, and that are y, whatever their capitals
X_NAMES = ("x", "question", "prompt", "input", "text", "sentence", "content")
Y_NAMES = ("y", "answer", "completion", "output", "label", "response", "target")
Y_NAMES += ("class", "category")
NAMED = f"x ({', '.join(X_NAMES)}) and y ({', '.join(Y_NAMES)})"
HEADS = {*X_NAMES, *Y_NAMES} - {"x", "y"}  # a first line with one of them is a head


def _refuse_constant(name: str) -> str:
    """Refuse NaN and Infinity, which other tools write for a value that is missing."""
    raise ValueError(f"{name} is neither a text nor a number")


# So that 0.10 does not become 0.1, and numbers may have any length
AS_WRITTEN = {"parse_int": str, "parse_float": str}
AS_WRITTEN["parse_constant"] = _refuse_constant


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Read the pairs in a file, whose suffix is one of ``SUFFIXES``.

    A line of a CSV is a pair: two columns, separated by commas, semicolons or tabs. If
    the names of two columns in the first line are among ``X_NAMES`` and ``Y_NAMES``,
    these are read, and other columns are left out. A line of a JSONL is a list of two
    texts, or an object with two such names; a number becomes the text that is written
    there. White space around a text is removed, and empty lines are left out. Raises
    ValueError if the file is not UTF-8 or not of this form, and if the first line names
    one of two columns alone, because it would become a pair.
    """
    text = read_text(path)
    try:
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            return _of_jsonl(path, text)
        return _of_csv(path, text)
    except UnicodeError as error:
        raise Refused(f"{path} cannot be read ({one_line(error)}).") from error


def _of_csv(path: Path, text: str) -> list[tuple[str, str]]:
    """Read pairs from a CSV, with the separator that gives equal and known columns."""
    named, others, wrong = [], [], []
    separators = "\t" if path.suffix.lower() == ".tsv" else ",;\t"
    if text[:4].casefold() == "sep=":  # Excel's own first line
        first, _, text = text.partition("\n")
        separators = first[4:5] or separators
    for separator in separators:
        try:
            head, *rest = _rows(text, separator)
        except csv.Error as error:  # its quotes fit no such separator
            wrong.append(f"{path} cannot be read ({one_line(error)}).")
            continue
        unequal = next((row for row in rest if len(row) != len(head)), None)
        rule = f"have two columns, or name two of them {NAMED}"
        if unequal is None and (columns := _columns(head)):
            named.append([(row[columns[0]], row[columns[1]]) for row in rest])
        elif unequal is None and len(head) == 2:
            if HEADS.isdisjoint(map(str.casefold, head)):
                others.append([(x, y) for x, y in (head, *rest)])
            rule = f"name both columns or none, {NAMED}"
        wrong.append(f"{path} must {rule}, got {separator.join(unequal or head)!r}.")
    found = named or others
    if len(found) == 1:
        return found[0]
    if found:
        rule = f"have one separator, or name two columns {NAMED}"
        raise Refused(f"{path} must {rule}, got {text.splitlines()[0][:80]!r}.")
    raise Refused(wrong[0])


def _rows(text: str, separator: str) -> list[list[str]]:
    """Read the rows of a CSV that are not empty, or one without a cell."""
    lines = io.StringIO(text, newline="")  # a cell in quotes keeps its line breaks
    options = {"delimiter": separator, "skipinitialspace": True, "strict": True}
    reader = csv.reader(lines, **options)
    usual = csv.field_size_limit(max(len(text), 1))  # a cell may be a whole article
    try:
        rows = [[cell.strip() for cell in row] for row in reader]
    except csv.Error as error:
        raise csv.Error(f"line {reader.line_num}: {error}") from error
    finally:
        csv.field_size_limit(usual)
    return [row for row in rows if any(row)] or [[]]


def _columns(names: Sequence[str]) -> tuple[int, int] | None:
    """Return the places of the names that mean x and y, if there is one of each."""
    places = [
        [i for i, name in enumerate(names) if name.strip().casefold() in known]
        for known in (X_NAMES, Y_NAMES)
    ]
    return (places[0][0], places[1][0]) if [*map(len, places)] == [1, 1] else None


def _of_jsonl(path: Path, text: str) -> list[tuple[str, str]]:
    """Read pairs from the lines of a JSONL file."""
    pairs = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                item = json.loads(line, **AS_WRITTEN)
            except (ValueError, RecursionError) as error:
                said = getattr(error, "msg", one_line(error))
                reason = f"line {number}: {said}"
                raise Refused(f"{path} cannot be read ({reason}).") from error
            pair = item if isinstance(item, list) else None
            if isinstance(item, dict) and (columns := _columns([*item])):
                pair = [[*item.values()][i] for i in columns]
            simple = isinstance(pair, list) and len(pair) == 2
            if not simple or not all(isinstance(v, str | bool) for v in pair):
                rule = f"hold two texts in line {number}: a list, or {NAMED}"
                raise Refused(f"{path} must {rule}, got {line.strip()[:80]!r}.")
            x, y = (v if isinstance(v, str) else json.dumps(v) for v in pair)
            (x + y).encode()  # an error if JSON's \\ud800 left half a character
            pairs.append((x.strip(), y.strip()))
    return pairs
