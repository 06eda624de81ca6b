"""Keep figures of matplotlib as SVG, light and dark, beside the PNG of a notebook.

A notebook holds a PNG of each figure, for JupyterLab and code hosts. While the book
executes it, :func:`fmkit.plot.svg` draws each figure once more, and the file is named
by the hash of that PNG, so that a page never shows it for another figure. The dark one
is made of it for the page.
"""

import base64
import hashlib
import io
import math
import re
import shutil
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from nbformat import NotebookNode
from PIL import Image

from fmkit._writing import write_whole
from fmkit.plot import KEPT

FOLDER = Path("images") / "figures"  # of the repository, with a folder for each chapter
VARIABLES = {"FMKIT_FIGURES": "svg"}  # of a kernel whose figures are kept
PNG, SVG = "image/png", "image/svg+xml"
NAMESPACE = "http://www.w3.org/2000/svg"
USE = f"{{{NAMESPACE}}}use"
HREF = "{http://www.w3.org/1999/xlink}href"
ElementTree.register_namespace("", NAMESPACE)
INCH, POINTS = 100, 72  # pixels of a page, and units of an SVG, to an inch of a figure
EM = 100  # units of a text of matplotlib to the size of its font
LEAST = 10  # pixels of the smallest text on a phone
SIDES = ("width", "height")
DIGITS = 2  # after the point, of a coordinate
ICON = 32  # pixels of a side, at the most: no photograph, but an image of CIFAR-10
GROUND, INK = "#121212", "#ced6dd"  # of a dark page, and of its text
READABLE, SEEN = 4.5, 3  # contrast of a text, and of a line
BRIGHT = 5.5  # of a vivid colour, which may be that of translucent dots
PALE, VIVID = 0.04, 0.09  # chroma of a tint at the most, of a vivid colour at the least
TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
IMAGE = re.compile(
    r'<img (?P<before>[^>]*\bsrc="[^"]*?)(?P<name>[0-9a-f]{64})\.png"(?P<after>[^>]*>)'
)
COLOUR = re.compile(r"#[0-9a-f]{6}\b")


# Keeping them


def keep(notebook: NotebookNode, folder: Path) -> None:
    """Move the SVGs of a notebook's figures into a folder, which then holds no others.

    Each is named by the hash of its PNG, see :func:`name_of`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            drawn = output.get("data", {}).pop(SVG, None)
            output.get("metadata", {}).pop(SVG, None)
            if drawn is not None:
                name = name_of(base64.b64decode(output.data[PNG]))
                folder.mkdir(parents=True, exist_ok=True)
                write_whole(folder / f"{name}.svg", f"{compact(drawn)}\n")


def name_of(png: bytes) -> str:
    """Return the name of a figure: the hash of its PNG, as MyST-NB names that file."""
    return hashlib.sha256(png).hexdigest()


# Making them small


def compact(svg: str) -> str:
    """Return a figure of matplotlib as a smaller SVG that looks the same.

    Coordinates are rounded, ids are short, and groups that do nothing are left out.
    """
    root = ElementTree.fromstring(svg)
    for parent in [*root.iter()]:
        for child in [*parent]:
            style = child.get("style", "").replace(" ", "")
            if child.tag.endswith("}metadata") or style == "fill:none":
                parent.remove(child)  # the ground
    box = [float(side) for side in root.get("viewBox").split()]
    width, height = (str(round(side * INCH / POINTS)) for side in box[2:])
    root.attrib = {"viewBox": _rounded(root.get("viewBox"), 2)}
    root.attrib |= {"width": width, "height": height}
    _shorten_ids(root)
    for element in root.iter():
        _shorten(element)
    _join_groups(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return text.replace(" />", "/>")


def _shorten_ids(root: ElementTree.Element) -> None:
    """Give short ids to what is referred to, and a class to what keeps its colours."""
    used = [element.get(HREF, "") for element in root.iter()]
    used += [element.get("clip-path", "") for element in root.iter()]
    names = [name for text in used for name in re.findall(r"^(?:url\()?#([^)]+)", text)]
    short = {name: _letters(i) for i, name in enumerate(dict.fromkeys(names))}
    for element in root.iter():
        name = element.attrib.pop("id", "")
        if name in short:
            element.set("id", short[name])
        elif name.startswith(KEPT):
            element.set("class", KEPT)
        if element.get("clip-path"):
            old = element.get("clip-path").removeprefix("url(#").removesuffix(")")
            element.set("clip-path", f"url(#{short[old]})")
        link = element.attrib.pop(HREF, "")
        if link:
            element.set("href", f"#{short[link[1:]]}" if link[0] == "#" else link)


def _letters(i: int) -> str:
    """Return a short name for a number: a, b, …, z, ba, bb, …"""
    last = chr(ord("a") + i % 26)
    return _letters(i // 26) + last if i >= 26 else last


def _shorten(element: ElementTree.Element) -> None:
    """Write what an element says in fewer characters."""
    kind = element.tag.rpartition("}")[2]
    if kind == "image":
        _pack(element)
    element.text, element.tail = (element.text or "").strip() or None, None
    place = re.fullmatch(r"translate\((\S+) (\S+)\)", element.get("transform", ""))
    if kind == "use" and place:  # the same, shorter
        del element.attrib["transform"]
        element.attrib |= {"x": place[1], "y": place[2]}
    for key, value in [*element.items()]:
        if key in ("x", "y", "width", "height") and element.get("viewBox") is None:
            element.set(key, _rounded(value, DIGITS))
        elif key == "transform":
            element.set(key, _rounded(value, 6))
        elif key == "style":
            element.set(key, re.sub(r"([:;]) ", r"\1", value))
        elif key == "d":
            element.set(key, _relative(value))
    if kind == "use" and element.get("y") == "0":
        del element.attrib["y"]


def _rounded(text: str, digits: int) -> str:
    """Round the numbers in a text."""
    return re.sub(r"-?\d+\.\d+", lambda number: _short(float(number[0]), digits), text)


def _short(number: float, digits: int) -> str:
    """Write a number with at most so many digits after its point."""
    text = f"{number:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return re.sub(r"^(-?)0\.", r"\1.", text) if text != "-0" else "0"


def _relative(path: str) -> str:
    """Write a path with coordinates relative to the point before."""
    written, x, y, start, last = [], 0, 0, (0, 0), ""
    for command, rest in re.findall(r"([MLQCz])([^MLQCz]*)", path):
        if command == "z":
            written, (x, y), last = [*written, "z"], start, "z"
            continue
        places = [round(float(number) * 10**DIGITS) for number in rest.split()]
        ends = [*zip(places[::2], places[1::2], strict=True)]
        numbers = [side for end in ends for side in (end[0] - x, end[1] - y)]
        x, y = ends[-1]
        start = (x, y) if command == "M" else start
        texts = [_short(number / 10**DIGITS, DIGITS) for number in numbers]
        joined = "".join(t if t[0] == "-" else f" {t}" for t in texts)
        same = command.lower() == last or (command, last) == ("L", "m")
        if not same:
            joined = command.lower() + joined.removeprefix(" ")
        written, last = [*written, joined], command.lower()
    return "".join(written)


def _pack(image: ElementTree.Element) -> None:
    """Embed the pixels of an image in fewer bytes.

    A photograph, with many colours, has at most two pixels for each of the page, and is
    a JPEG; other pixels stay as they are.
    """
    start, data = "data:image/png;base64,", image.get("href").partition(",")[2]
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    options = {"format": "png", "optimize": True}
    if picture.getextrema()[-1] == (255, 255):  # opaque
        picture = picture.convert("RGB")
        red, green, blue = picture.split()
        colours = picture.getcolors(256)
        if red.tobytes() == green.tobytes() == blue.tobytes():
            picture = red
        elif colours:
            picture = picture.quantize(len(colours), dither=Image.Dither.NONE)
        elif max(picture.size) > ICON:
            across = float(re.search(r"[-\d.]+", image.get("transform"))[0])
            most = abs(across) * picture.width * 2 * INCH / POINTS
            picture.thumbnail((most, most * picture.height / picture.width))
            image.attrib.pop("style", None)  # which would show each pixel as a square
            start = start.replace("png", "jpeg")
            options |= {"format": "jpeg", "quality": 85}
    file = io.BytesIO()
    picture.save(file, **options)
    image.set("href", start + base64.b64encode(file.getvalue()).decode())


def _join_groups(parent: ElementTree.Element) -> None:
    """Dissolve groups without attributes, and join neighbours with equal ones."""
    children: list[ElementTree.Element] = []
    for child in [*parent]:
        _join_groups(child)
        group = child.tag.endswith("}g")
        if group and not child.attrib:
            found = [*child]
        elif child.tag.endswith("}defs") and len(child) == 0:
            found = []
        else:
            found = [child]
        for one in found:
            last = children[-1] if children else None
            joins = last is not None and last.tag == one.tag and one.tag.endswith("}g")
            if joins and last.attrib == one.attrib and "opacity" not in one.attrib:
                last.extend(one)
            else:
                children.append(one)
    parent[:] = children
    styles = {child.get("style") for child in parent}
    alike = len(styles) == 1 and {child.tag for child in parent} == {USE}
    if alike and parent.tag.endswith("}g") and "style" not in parent.attrib:
        [style] = styles
        if style and not re.search(r"(^|;)opacity:", style):  # which adds up
            parent.set("style", style)
            for child in parent:
                del child.attrib["style"]


# The dark one


def dark(svg: str) -> str:
    """Return a figure in colours for a dark page; images and what is on them stay."""
    root = ElementTree.fromstring(svg)
    _darken(root)
    root.set("fill", INK)  # of what names no colour, which is black
    return ElementTree.tostring(root, encoding="unicode")


def _darken(element: ElementTree.Element) -> None:
    if element.get("class") == KEPT:
        element.set("fill", "#000")
        return
    if element.get("style"):
        style = COLOUR.sub(lambda colour: on_dark(colour[0]), element.get("style"))
        element.set("style", style)
    for child in element:
        _darken(child)


@cache
def on_dark(colour: str) -> str:
    """Return the colour of the same hue that a dark page has for one of a white page.

    A grey, or a tint, has the contrast with its ground that it had with white: white
    becomes the ground, black is the colour of texts; but what may be a text there, with
    a contrast of 3, has at least 4.5. A vivid colour stays as it is if it has 5.5, else
    it is lighter.
    """
    _, a, b = _oklab(colour)
    mirrored = min(contrast(colour, "#ffffff"), contrast(INK, GROUND))
    mirrored = max(mirrored, READABLE) if mirrored >= SEEN else mirrored
    bright = max(contrast(colour, GROUND), BRIGHT)
    share = min(max((math.hypot(a, b) - PALE) / (VIVID - PALE), 0), 1)
    wanted = mirrored ** (1 - share) * bright**share
    low, high = 0.0, 1.0  # a search for the lightness
    for _ in range(30):
        middle = (low + high) / 2
        if contrast(_hex(middle, a, b), GROUND) < wanted or middle < _oklab(GROUND)[0]:
            low = middle
        else:
            high = middle
    return _hex(high, a, b)


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours as WCAG 2 defines it, from 1 to 21."""
    weights = (0.2126, 0.7152, 0.0722)
    light = [
        sum(w * part for w, part in zip(weights, _linear(colour), strict=True)) + 0.05
        for colour in (one, other)
    ]
    return max(light) / min(light)


def _linear(colour: str) -> list[float]:
    """Return the linear red, green and blue of a colour such as ``#0072b2``."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]


def _oklab(colour: str) -> list[float]:
    """Return the lightness and the two coordinates of hue in OKLab (Ottosson, 2020)."""
    return [*(TO_OKLAB @ np.cbrt(TO_CONES @ _linear(colour)))]


def _hex(lightness: float, a: float, b: float) -> str:
    """Return a colour of OKLab, paler if a screen has it not."""
    for share in np.linspace(1, 0, 21):
        cones = np.linalg.solve(TO_OKLAB, [lightness, share * a, share * b]) ** 3
        linear = np.linalg.solve(TO_CONES, cones)
        if linear.min() >= -0.001 and linear.max() <= 1.001:
            break
    linear = linear.clip(0, 1)
    parts = np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055
    )
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)


# On a page


def size_of(svg: str) -> tuple[int, int, int]:
    """Return the width and the height of a figure, and its least width, in pixels.

    With the least width its smallest text has 10 pixels; exponents and indices are
    smaller.
    """
    head = svg.partition(">")[0]
    width, height = (int(re.search(rf'\b{x}="(\d+)"', head)[1]) for x in SIDES)
    fonts = re.findall(r"scale\(([\d.]+) -\1\)", svg)
    smallest = min((float(font) * EM * INCH / POINTS for font in fonts), default=LEAST)
    return width, height, math.ceil(width * LEAST / smallest)


def shown(body: str, figures: dict[str, Path], target: Path, *, paper: bool) -> str:
    """Show the figures of a page as SVG, and write these beside its images.

    `figures` are the files by name, `target` is the folder of the images. A page has a
    light and a dark one, of which a browser loads the one that it shows; paper has the
    light one only. An image without an SVG stays.
    """

    def replace(match: re.Match[str]) -> str:
        file = figures.get(match["name"])
        if file is None:
            return match[0]
        svg = file.read_text(encoding="utf-8")
        width, height, least = size_of(svg)
        write_whole(target / file.name, svg)
        look = f'width="{width}" height="{height}" style="--least: {least}px"'
        light = f'<img {look} {match["before"]}{file.name}"{match["after"]}'
        if paper:
            return light
        write_whole(target / f"{file.stem}-dark.svg", dark(svg))
        light = light.replace("<img ", '<img class="only-light" loading="lazy" ', 1)
        other = light.replace(file.name, f"{file.stem}-dark.svg")
        other = other.replace("only-light", "only-dark", 1)
        return f'<div class="wide-figure">{light}{other}</div>'

    return IMAGE.sub(replace, body)
