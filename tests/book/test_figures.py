"""Figures as SVG: kept beside the notebook, small, in dark colours, on a page."""

import base64
import io
import math
import re
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from PIL import Image
from support.browser import DESKTOP, PHONE, barriers
from support.notebooks import book, code, figures_in, notebook, write
from support.pages import ROOT, Page

from fmkit import plot, plot_text
from fmkit.book import build as books
from fmkit.book import figures
from fmkit.book.execute import execute
from fmkit.book.palette import COLOURS
from fmkit.runs.parameters import read_notebook

DRAW = """
import matplotlib.pyplot as plt
from fmkit import plot
plot.use_style()
figure, axes = plt.subplots(1, 3, figsize=(10, 3))
axes[0].plot([1, steps, 2])
axes[1].set_title("rising", fontsize=9);
"""
META = {"mystnb": {"image": {"alt": "A line."}, "figure": {"caption": "A line."}}}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A tiny book whose one notebook, which draws a wide figure, was executed."""
    root = tmp_path_factory.mktemp("book")
    path = root / "chapters" / "tiny.ipynb"
    write(notebook(code(DRAW, **META)), path)
    old = root / figures.FOLDER / "tiny" / "old.svg"
    old.parent.mkdir(parents=True)
    old.write_text("of an earlier run", encoding="utf-8")
    (root / "_static").symlink_to(ROOT / "_static")
    execute(book(root))
    return root


@pytest.fixture(scope="module")
def page(executed):
    """The page of that notebook."""
    return books.html(executed).with_name("chapters") / "tiny.html"


def test_execute_keeps_a_figure_beside_the_notebook(executed):
    """Named by the image that the notebook holds; one that no output has is removed."""
    path = executed / "chapters" / "tiny.ipynb"
    [kept] = (executed / figures.FOLDER / "tiny").iterdir()
    assert {kept.stem} == figures_in(path)
    width, height, least = figures.size_of(kept.read_text(encoding="utf-8"))
    with Image.open(io.BytesIO(base64.b64decode(png_of(path)))) as png:
        assert png.size == pytest.approx((width, height), abs=4)
    assert least == math.ceil(width * 10 / (9 * 100 / 72))  # the title's 9 points
    assert "image/svg" not in path.read_text(encoding="utf-8")


def png_of(path):
    [output] = read_notebook(path).cells[-1].outputs
    return output.data["image/png"]


def test_a_run_of_a_reader_keeps_none(executed, monkeypatch):
    """And its image is the same."""
    from fmkit.runs.rerun import rerun

    path, out = executed / "chapters" / "tiny.ipynb", executed / "out"
    rerun(path, out, given={})
    assert "image/svg" not in (out / "tiny.ipynb").read_text(encoding="utf-8")
    both = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))
        for png in (png_of(path), png_of(out / "tiny.ipynb"))
    ]
    assert abs(both[0].astype(int) - both[1]).max() < 16  # one has a palette


def test_a_page_has_a_light_and_a_dark_figure(executed, page):
    images = [i for i in Page(page.read_text("utf-8")).of("img") if "class" in i]
    drawn = [i for i in images if "only" in i["class"] and "logo" not in i["class"]]
    [kept] = (executed / figures.FOLDER / "tiny").iterdir()
    for image, shown in zip(drawn, ("only-light", "only-dark"), strict=True):
        assert image["class"] == shown
        assert (image["alt"], image["loading"]) == ("A line.", "lazy")
        sizes = figures.size_of(kept.read_text("utf-8"))
        assert (int(image["width"]), int(image["height"])) == sizes[:2]
        assert image["style"] == f"--least: {sizes[2]}px"
    light, dark = (page.parent / image["src"] for image in drawn)
    assert light.read_text("utf-8") == kept.read_text("utf-8")
    assert dark.read_text("utf-8") == figures.dark(kept.read_text("utf-8"))


def test_paper_and_other_images(tmp_path):
    """Paper has the light figure alone; an image without an SVG stays."""
    name, other = "a" * 64, "b" * 64
    (tmp_path / "figure.svg").write_text('<svg width="7" height="5"/>', "utf-8")
    tag = f'<img alt="A." src="../_images/{name}.png" />'
    stays = f'<img alt="B." src="../_images/{other}.png" /><img src="a.gif">'
    path = (tmp_path / "figure.svg").rename(tmp_path / f"{name}.svg")
    given = {name: path}
    target = tmp_path / "target"
    target.mkdir()
    assert figures.shown(tag + stays, given, target, paper=True) == (
        '<img width="7" height="5" style="--least: 7px" alt="A." '
        f'src="../_images/{name}.svg" />{stays}'
    )
    assert [file.name for file in target.iterdir()] == [path.name]
    both = figures.shown(tag + stays, given, target, paper=False)
    assert both.startswith('<div class="wide-figure"><img class="only-light"')
    assert both.endswith(f"</div>{stays}")
    assert len([*target.iterdir()]) == 2


@pytest.fixture
def figure():
    """One as chapters have them: lines, dots, texts, a heat map and pictures."""
    plot.use_style()
    rng = np.random.default_rng(0)
    drawn, axes = plt.subplots(1, 3, figsize=(9, 3))
    for i in range(3):
        axes[0].plot(rng.normal(size=90).cumsum(), "o-", label=f"$x_{i}$", alpha=0.6)
    axes[0].scatter(rng.uniform(0, 90, 40), rng.normal(size=40), c="C4")
    axes[0].legend()
    shown = axes[1].imshow(rng.uniform(size=(9, 9)))
    axes[1].text(4, 4, "on it", color="white")
    axes[1].set_title("beside it")
    drawn.colorbar(shown)
    axes[2].imshow(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8))
    axes[2].fill_between([0, 300], [0, 300], color="#d5efe5")
    yield drawn
    plt.close(drawn)


def pixels(browser, path, width, height, **options):
    context = browser.new_context(viewport={"width": width, "height": height})
    tab = context.new_page()
    tab.goto(path.as_uri())
    shot = tab.screenshot(**options)
    context.close()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)


def test_a_small_file_looks_the_same(figure, browser, tmp_path):
    """And it is less than half as large, with a photograph a tenth."""
    raw = plot.svg(figure)
    small = figures.compact(raw)
    assert len(small) < len(raw) / 2
    width, height, _ = figures.size_of(small)
    seen = []
    for name, text in (("raw", raw), ("small", small)):
        head, box = re.search(r"<svg[^>]*>", text)[0], "viewBox"
        [box] = re.findall(r'viewBox="[^"]*"', head)
        tag = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box} '
        tag += f'xmlns="{figures.NAMESPACE}" width="{width}" height="{height}">'
        path = tmp_path / f"{name}.svg"
        path.write_text(text.replace(head, tag), encoding="utf-8")
        seen.append(pixels(browser, path, width, height))
    ink = (seen[0].min(axis=2) < 250).mean()
    wrong = (abs(seen[0] - seen[1]).max(axis=2) > 60)[:, : width * 2 // 3]
    assert ink > 0.1
    assert wrong.mean() < 0.002  # the photograph, on the right, is a JPEG


def embedded(svg):
    return re.findall(r'data:image/(\w+);base64,([^"]+)"', svg)


def test_pixels_stay_as_they_are(figure):
    """Nine by nine of a heat map, and 300 pixels of noise as a JPEG no larger."""
    heat, photograph, *_ = [
        (kind, Image.open(io.BytesIO(base64.b64decode(data))))
        for kind, data in embedded(figures.compact(plot.svg(figure)))
    ]
    assert (heat[0], heat[1].size) == ("png", (9, 9))
    shown = figure.axes[1].images[0]
    expected = (255 * shown.cmap(shown.norm(shown.get_array()))[..., :3]).round()
    assert abs(np.asarray(heat[1].convert("RGB")) - expected).max() <= 1
    assert photograph[0] == "jpeg"
    assert photograph[1].width <= 300


def test_a_second_drawing_is_equal_and_leaves_the_figure(figure):
    kinds = [image.get_interpolation() for image in figure.axes[1].images]
    gids = [text.get_gid() for text in figure.axes[1].texts]
    places = [ax.get_position().bounds for ax in figure.axes]
    first = plot.svg(figure)
    assert plot.svg(figure) == first
    assert [ax.get_position().bounds for ax in figure.axes] == places
    assert [i.get_interpolation() for i in figure.axes[1].images] == kinds
    assert [text.get_gid() for text in figure.axes[1].texts] == gids
    assert all(ax.get_in_layout() for ax in figure.axes)


def test_what_is_on_an_image_keeps_its_colours(figure):
    light = figures.compact(plot.svg(figure))
    dark = figures.dark(light)
    assert embedded(dark) == embedded(light)
    namespace = {"s": figures.NAMESPACE}
    kept = ElementTree.fromstring(dark).findall(".//s:g[@class='kept']", namespace)
    styles = [g.get("style") for group in kept for g in group.iter() if g.get("style")]
    assert "fill:#ffffff" in styles
    assert {group.get("fill") for group in kept} == {"#000"}
    rest = ElementTree.fromstring(dark)
    for parent in [*rest.iter()]:
        for child in [*parent]:
            if child.get("class") == "kept":
                parent.remove(child)
    text = ElementTree.tostring(rest, encoding="unicode")
    assert "#ffffff" not in text
    assert "#000000" not in text


def test_a_text_is_as_dark_on_its_shade():
    """In the dark too: white is no surprise, and light letters would be lost on it."""
    drawn = plot_text.surprise(["The", " cat"], [0.0, 6.0], columns=2).figure
    light = figures.compact(plot.svg(drawn))
    dark = figures.dark(light)
    shades = [*map(set, map(figures.COLOUR.findall, (light, dark)))]
    assert shades[1] == shades[0] | {figures.INK}
    assert dark.count('class="kept" fill="#000"') == light.count('class="kept"') > 0


# On a page


def open_figure(browser, path, theme, size):
    """The page scrolled to its figure, and the names of the figures that it loaded."""
    tab = browser.new_page(viewport=size, color_scheme=theme, device_scale_factor=2)
    loaded = []
    tab.on("request", lambda asked: loaded.append(asked.url.rpartition("/")[2]))
    tab.goto(path.as_uri())
    tab.locator(".wide-figure").scroll_into_view_if_needed()
    await_figure(tab, theme)
    return tab, lambda: [name for name in loaded if re.match(r"\w{64}", name)]


def await_figure(tab, theme):
    """Until it is loaded, a figure that comes into sight may have no size."""
    figure = tab.locator(f".wide-figure img.only-{theme}")
    figure.wait_for()
    figure.evaluate("image => image.decode()")


def ground_of(tab):
    """The lightness of the corner of the figure, and of the darkest and lightest."""
    shot = tab.locator(".wide-figure").screenshot()
    grey = Image.open(io.BytesIO(shot)).convert("L")
    return grey.getpixel((3, 3)), grey.getextrema()


def test_the_figure_of_the_theme_is_shown_and_loaded_alone(page, browser):
    """And the other one once a reader changes the theme."""
    tab, loaded = open_figure(browser, page, "light", DESKTOP)
    light = tab.locator(".wide-figure img.only-light")
    dark = tab.locator(".wide-figure img.only-dark")
    assert (light.is_visible(), dark.is_visible()) == (True, False)
    [first] = loaded()
    assert not first.endswith("-dark.svg")
    assert ground_of(tab) == (255, (0, 255))
    tab.evaluate("document.documentElement.dataset.theme = 'dark'")
    await_figure(tab, "dark")
    assert not light.is_visible()
    assert loaded() == [first, first.replace(".svg", "-dark.svg")]
    tab.close()


def test_a_dark_figure_lies_on_the_page(page, browser):
    """Its ground is the page's, of which colours were made; ink is that of its text."""
    tab, loaded = open_figure(browser, page, "dark", DESKTOP)
    [only] = loaded()
    assert only.endswith("-dark.svg")
    corner, (darkest, lightest) = ground_of(tab)
    assert corner == int(figures.GROUND[1:3], 16) == pytest.approx(darkest, abs=4)
    assert lightest > 180
    looks = tab.evaluate("""() => ["--pst-color-background", "--pst-color-text-base"]
      .map(name => getComputedStyle(document.body).getPropertyValue(name).trim())""")
    assert looks == [figures.GROUND, figures.INK]
    tab.emulate_media(media="print")
    await_figure(tab, "light")
    assert not tab.locator(".wide-figure img.only-dark").is_visible()
    tab.close()


def test_texts_of_a_figure_are_readable_on_a_phone(page, browser):
    """At 10 pixels: the figure scrolls in its box, which the keyboard reaches."""
    tab, _ = open_figure(browser, page, "light", PHONE)
    box = tab.locator(".wide-figure")
    width, natural = tab.locator(".wide-figure img.only-light").evaluate(
        "image => [image.clientWidth, +image.getAttribute('width')]"
    )
    assert 9 * 100 / 72 * width / natural >= 10
    assert width < natural
    width = tab.evaluate("document.documentElement.scrollWidth")
    assert width == PHONE["width"]
    assert box.evaluate("box => box.scrollWidth > box.clientWidth")
    assert (box.get_attribute("tabindex"), box.get_attribute("role")) == ("0", "group")
    assert "scroll" in box.evaluate("box => getComputedStyle(box, '::after').content")
    assert barriers(tab) == []
    tab.set_viewport_size(DESKTOP)
    tab.wait_for_function("document.querySelector('.wide-figure').tabIndex < 0")
    assert box.get_attribute("tabindex") is None
    tab.close()


# Colours

WHITE = "#ffffff"


@pytest.mark.parametrize("colour", sorted({*COLOURS.values(), *plot.FREE}))
def test_a_colour_of_the_book_is_readable_in_the_dark(colour):
    """As a text even, as a translucent dot, and it has its hue."""
    dark = figures.on_dark(colour)
    assert figures.contrast(dark, figures.GROUND) >= 4.45
    both = zip(to_rgb(dark), to_rgb(figures.GROUND), strict=True)
    dot = to_hex([0.75 * ink + 0.25 * ground for ink, ground in both])
    assert figures.contrast(dot, figures.GROUND) >= 2.9
    (_, *before), (_, *after) = figures._oklab(colour), figures._oklab(dark)
    if math.hypot(*before) > 0.05:
        turned = math.atan2(*before) - math.atan2(*after)
        assert abs(math.remainder(turned, 2 * math.pi)) < 0.1


def test_greys_are_mirrored():
    assert figures.contrast(figures.on_dark(WHITE), figures.GROUND) < 1.02
    ink = figures.contrast(figures.INK, figures.GROUND)
    black = figures.on_dark("#000000")
    assert figures.contrast(black, figures.GROUND) == pytest.approx(ink, rel=0.02)
    for grey in ("#555555", "#666666", "#7f7f7f", "#888888"):
        on_white = figures.contrast(grey, WHITE)
        on_dark = figures.contrast(figures.on_dark(grey), figures.GROUND)
        assert on_dark >= min(4.49, on_white)
    for tint in ("#b0b0b0", "#f0f0f0", "#d5efe5"):  # of grids and boxes
        on_white = figures.contrast(tint, WHITE)
        on_dark = figures.contrast(figures.on_dark(tint), figures.GROUND)
        assert on_dark == pytest.approx(on_white, rel=0.05)


def test_the_palette_can_be_told_apart_in_the_dark():
    dark = [figures.on_dark(colour) for colour in plot.FREE]
    assert len(set(dark)) == len(dark)
    places = [figures._oklab(colour) for colour in dark]
    apart = [math.dist(a, b) for i, a in enumerate(places) for b in places[:i]]
    assert min(apart) > 0.08


def test_contrast_is_that_of_wcag():
    assert figures.contrast("#000000", WHITE) == pytest.approx(21)
    assert figures.contrast("#767676", WHITE) == pytest.approx(4.54, abs=0.01)
