"""Make ``_static/fonts.css``, the typefaces of the pages, from fonts of Adobe.

``python -m tools.fonts FOLDER`` reads two packages of npm, unpacked into FOLDER:
``@fontsource-variable/source-serif-4`` and ``@fontsource-variable/source-code-pro``. It
keeps the letters of the languages of Western Europe and the weights from regular to
bold. The fonts get names of their own, because their licence reserves "Source".

They are inside of the style sheet, so they are there before the first line is drawn,
and no line breaks anew. A page that is opened as a file could load no font early.
"""

import base64
import io
import sys
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont
from fontTools.varLib.instancer import instantiateVariableFont

SHEET = Path(__file__).resolve().parents[1] / "_static" / "fonts.css"
FACE = """
@font-face {{
  font-family: "{family}";
  font-style: {style};
  font-weight: {weight};
  src: url("data:font/woff2;base64,{data}") format("woff2");
}}
"""
WEIGHTS = (400, 700)
# The name of a font here, its package, its style there, and the weights that it has
MADE = (
    ("Book Text", "source-serif-4", "normal", WEIGHTS),
    ("Book Text Italic", "source-serif-4", "italic", WEIGHTS[0]),
    ("Book Code", "source-code-pro", "normal", WEIGHTS),
)
FEATURES = ("ccmp", "kern", "liga", "locl", "mark", "mkmk", "tnum")
# Latin letters; spaces, dashes, quotation marks, points, primes, €, arrows, the minus
CHARACTERS = [*range(0x20, 0x7F), *range(0xA0, 0x100), 0x131, 0x152, 0x153, 0x2009]
CHARACTERS += [0x2010, 0x2011, 0x2013, 0x2014, 0x2018, 0x2019, 0x201A, 0x201C, 0x201D]
CHARACTERS += [0x201E, 0x2020, 0x2022, 0x2026, 0x202F, 0x2032, 0x2033, 0x20AC, 0x2191]
CHARACTERS += [0x2193, 0x2212]
NAMES = (1, 3, 4, 6, 16)  # in the table of names, what a font is called


def make(name: str, source: Path, weights: int | tuple[int, int]) -> bytes:
    """Return a smaller font of another name, as WOFF2."""
    font = TTFont(source, recalcTimestamp=False)
    options = Options(layout_features=list(FEATURES), hinting=False, name_IDs=["*"])
    subsetter = Subsetter(options)
    subsetter.populate(unicodes=CHARACTERS)
    subsetter.subset(font)
    font.flavor = None
    font.save(file := io.BytesIO())  # or tables that were dropped would be missed
    font = TTFont(file, recalcTimestamp=False)
    font = instantiateVariableFont(font, {"wght": weights})
    for entry in font["name"].names:
        if entry.nameID in NAMES:
            entry.string = name.replace(" ", "") if entry.nameID == 6 else name
    font.flavor = "woff2"
    font.save(file := io.BytesIO())
    return file.getvalue()


def main() -> None:
    """Write the style sheet and print the sizes of its fonts."""
    [folder] = map(Path, sys.argv[1:])
    text = "/* Made by tools/fonts.py; the licence of the fonts is fonts.txt. */\n"
    for name, package, style, weights in MADE:
        [source] = folder.glob(f"**/{package}-latin-wght-{style}.woff2")
        font = make(name, source, weights)
        print(name, len(font))
        text += FACE.format(
            family=name.removesuffix(" Italic"),
            style=style,
            weight=f"{weights[0]} {weights[1]}" if weights == WEIGHTS else weights,
            data=base64.b64encode(font).decode(),
        )
    SHEET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
