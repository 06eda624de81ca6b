"""The encoder in the page computes what fmkit computes, and its figure can be used."""

import re
import statistics
from pathlib import Path

import pytest
import torch
from support.bounds import additions_of, rounding
from support.browser import DESKTOP, PHONE, await_frame, barriers, call, loaded, opened
from support.refusals import refused

from fmkit.book import drawing, packing
from fmkit.data.animals import ANIMALS, load_animals
from fmkit.models.resnet import ResNet, ResNetConfig
from fmkit.runs.record import read_record, results

PAGE = "chapters/interactive_figures.html"
MILLISECONDS = 50  # a drawing, as the book promises
TEXT = Path(__file__).resolve().parents[2] / "chapters" / "interactive_figures.md"
WAYS = ("encoder", "pixels")
BUTTONS = {  # and the changes of fmkit.book.drawing that they make
    "mirror": "mirror",
    "shift by 2 pixels": "shift 2",
    "thicken": "thicken",
    "hard edges": "hard edges",
    "rotate by 30°": "rotate",
}


@pytest.fixture(scope="module")
def known():
    return drawing.of_page()


@pytest.fixture(scope="module")
def test_set():
    return load_animals()[1]


@pytest.fixture(scope="module")
def some(test_set):
    """Two test images of each class, also changed, and an empty one."""
    at = [(test_set.labels == i).nonzero()[5:7, 0] for i in range(len(ANIMALS))]
    images = test_set.images[torch.cat(at)]
    changed = [change(images[:3]) for change in drawing.CHANGES.values()]
    return torch.cat([images, *changed, torch.zeros_like(images[:1])])


@pytest.fixture(scope="module")
def metrics():
    return read_record(results("widgets") / "drawing.json")["metrics"]


@pytest.fixture(scope="module")
def address(site):
    return (site / PAGE).as_uri()


@pytest.fixture(scope="module")
def untouched(browser, address):
    """The figure, whose functions are called; nobody uses it."""
    tab = opened(browser, address)
    yield loaded(tab, "draw")
    tab.context.close()


@pytest.fixture
def figure(browser, address):
    """The figure, for a test that changes it."""
    tab = opened(browser, address, viewport=DESKTOP)
    yield loaded(tab, "draw")
    tab.context.close()


def as_bytes(image):
    return image.numpy().tobytes()


def pixels(images):
    return images.flatten(1).tolist()


# The weights and the silhouettes


def test_the_file_is_small_and_always_the_same(site):
    file = (site / "live" / drawing.FILE).read_bytes()
    assert len(file) <= packing.MOST
    assert file == drawing.script.__wrapped__()


def test_the_gallery_is_of_the_training_set_and_examples_of_the_test_set(test_set):
    train_set, _ = load_animals()
    examples, images = drawing.read_sheet()
    assert len(images) == drawing.EACH * len(ANIMALS)
    for image_set, drawn in ((train_set, images), (test_set, examples)):
        levels = (image_set.images.float() / drawing.GREY).round() * drawing.GREY
        labels = image_set.labels.tolist()
        of_set = {*zip(map(as_bytes, levels.byte()), labels, strict=True)}
        assert {(as_bytes(x), i % len(ANIMALS)) for i, x in enumerate(drawn)} <= of_set


def test_the_page_states_the_errors_of_rounding(untouched, metrics, test_set):
    errors = drawing.errors(drawing.trained(), drawing.read_sheet()[1], test_set.images)
    for name, value in errors.items():  # the record may be of another processor
        assert metrics[f"rounded/{name}"] == pytest.approx(value, abs=1e-3)
    said = untouched.locator(".facts").last.inner_text()
    assert f"{len(test_set):,} test images" in said
    assert f"at least {metrics['rounded/least cosine']:.3f}" in said
    assert f"{100 * metrics['rounded/same nearest']:.1f} %" in said


def test_the_errors_are_those_of_codes(known, test_set):
    """Of one image, written out."""
    phi, images = drawing.trained(), test_set.images[:1]
    with torch.no_grad():
        exact, page = (
            f(f.prepare(images))[0] - f(f.prepare(known.images)).mean(dim=0)
            for f in (phi, known.phi)
        )
    cosine = torch.cosine_similarity(exact, page, dim=0).item()
    errors = drawing.errors(phi, known.images, images)
    assert errors["least cosine"] == pytest.approx(cosine, abs=1e-5)
    assert errors["mean cosine"] == pytest.approx(cosine, abs=1e-5)
    assert 0.98 < cosine < 0.99999  # rounding changes something


def test_folding_batch_norm_changes_nothing_but_rounding(monkeypatch, some):
    monkeypatch.setattr(packing, "rounded", dict)
    phi = drawing.trained()
    x = phi.prepare(some)
    with torch.no_grad():
        z, folded = phi(x), drawing.rounded(phi)(x)
    limit = rounding(additions_of(phi), z.abs().max().item())
    torch.testing.assert_close(folded, z, rtol=0, atol=limit)


def test_an_encoder_that_the_page_cannot_run_is_refused():
    sentence = refused(drawing.rounded, ResNet(ResNetConfig(channels=3)))
    assert sentence.startswith("config ")
    assert "channels=3" in sentence


def test_the_text_has_the_numbers_of_the_record(metrics):
    """The table on the page: what is done to test images, and two accuracies."""
    changes = {
        "nothing": "unchanged",
        "*mirror*": "mirror",
        "*shift by 2 pixels*, twice": "shift 4",
        "*rotate by 30°*": "rotate",
        "*hard edges*": "hard edges",
        "*thicken*": "thicken",
    }
    text = TEXT.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.*?) \| (\d+) % \| (\d+) % \|$", text, re.MULTILINE)
    assert [name for name, *_ in rows] == [*changes]
    for name, *shares in rows:
        keys = [f"{way}/nearest/{changes[name]}/test" for way in WAYS]
        assert shares == [f"{100 * metrics[key]:.0f}" for key in keys]
    same = [f"{100 * metrics[f'{way}/same/mirror/test']:.0f} %" for way in WAYS]
    assert f"for {same[0]} of the images, and pixels for {same[1]}" in text


def test_the_record_is_of_these_images(known, metrics, test_set):
    for change in ("unchanged", "shift 4"):
        cosines = known.cosines(drawing.CHANGES[change](test_set.images))
        for way in WAYS:
            right = known.labels[cosines[way].argmax(dim=1)] == test_set.labels
            share = right.double().mean().item()
            key = f"{way}/nearest/{change}/test"
            assert metrics[key] == pytest.approx(share, abs=2e-3)


# What it computes


def test_representations_are_those_of_fmkit(untouched, known, some):
    with torch.no_grad():
        expected = known.phi(known.phi.prepare(some))
    got = call(
        untouched, "return given[0].map(x => [...live.represent(x)]);", pixels(some)
    )
    limit = rounding(additions_of(known.phi), expected.abs().max().item())
    assert limit < 1e-4 * expected.norm(dim=1).max()
    torch.testing.assert_close(torch.tensor(got), expected, rtol=0, atol=limit)


def test_the_nearest_are_those_of_fmkit(untouched, known, some):
    body = """
      const [images, way, n] = given;
      return images.map(x => live.nearest(way, live.ways[way].code(x), n));"""
    for way, cosines in known.cosines(some).items():
        ranks, least = cosines.sort(dim=1, descending=True)
        for row, found in enumerate(call(untouched, body, pixels(some), way, 6)):
            at, values = zip(*found, strict=True)
            torch.testing.assert_close(
                torch.tensor(values), ranks[row, :6], rtol=0, atol=1e-5
            )
            clear = ranks[row, :6] - ranks[row, 1:7] > 2e-5  # others may change places
            same = torch.tensor(at) == least[row, :6]
            assert same[clear & torch.cat([clear[:1] | True, clear[:-1]])].all()


def test_silhouettes_are_those_of_the_sheet(untouched):
    examples, images = drawing.read_sheet()
    for name, expected in (("example", examples), ("image", images[:300])):
        body = "return [...Array(given[1]).keys()].map(i => [...live[given[0]](i)]);"
        assert call(untouched, body, name, len(expected)) == pixels(expected)


def test_the_map_shows_the_two_directions_of_most_variance(untouched, known):
    points = torch.tensor(call(untouched, "return live.points;"))
    torch.testing.assert_close(points, known.codes @ known.axes.T, rtol=0, atol=1e-5)
    spread = torch.linalg.svdvals(known.codes - known.codes.mean(dim=0))
    variances = points.double().var(dim=0) * (len(points) - 1)
    torch.testing.assert_close(variances, spread[:2].double() ** 2, rtol=1e-4, atol=0)


def test_fitted_drawings_are_those_of_fmkit(untouched, some, rng):
    small = torch.zeros(20, 1, 28, 28, dtype=torch.uint8)
    for image in small[:, 0]:
        top, left, height, width = torch.randint(1, 14, (4,), generator=rng).tolist()
        dots = torch.randint(256, (height, width), generator=rng)
        image[top : top + height, left : left + width] = dots
    images = torch.cat([some, small])
    got = call(untouched, "return given[0].map(x => [...live.fit(x)]);", pixels(images))
    expected = drawing.fitted(images)
    apart = (torch.tensor(got) - expected.flatten(1).int()).abs()
    assert apart.max() <= 1  # a half may be rounded either way
    assert (apart > 0).double().mean() < 1e-3
    bright = expected[: len(some) - 1] > 100
    tall, wide = bright.any(dim=3).sum(dim=2), bright.any(dim=2).sum(dim=2)
    longer = torch.maximum(tall, wide)
    assert ((longer >= 25) & (longer <= 27)).double().mean() > 0.9


def test_changes_are_those_of_fmkit(untouched, some):
    assert call(untouched, "return Object.keys(live.changes);") == [*BUTTONS]
    for name, change in BUTTONS.items():
        body = "return given[0].map(x => [...live.changes[given[1]](x)]);"
        got = torch.tensor(call(untouched, body, pixels(some), name))
        apart = (got - drawing.CHANGES[change](some).flatten(1).int()).abs()
        assert apart.max() <= (name == "rotate by 30°")


def test_a_drawing_takes_less_than_50_milliseconds(untouched):
    body = "return Array.from({length: 25}, () => live.look().milliseconds);"
    times = call(untouched, body)  # other processes may slow some of them down
    print(f"A drawing takes {min(times):.1f} ms, {statistics.median(times):.1f} busy.")
    assert min(times) < MILLISECONDS


# The figure


def drawn(figure):
    """The drawing as an image."""
    values = call(figure, "return [...live.pixels()];")
    return torch.tensor(values, dtype=torch.uint8).view(1, 1, 28, 28)


def check_answer(figure, known, *, fitted):
    """What the figure says of its drawing is what fmkit finds for it."""
    await_frame(figure.page)
    image = drawing.fitted(drawn(figure)) if fitted else drawn(figure)
    said = figure.locator(".said").inner_text()
    lists = zip(WAYS, figure.locator(".found").all(), strict=True)
    for (way, found), name in zip(lists, ("the encoder", "raw pixels"), strict=True):
        cosines = known.cosines(image)[way]
        values, at = cosines.topk(drawing.NEAREST, dim=1)
        labels = known.labels[at]
        classes = [ANIMALS[i] for i in labels[0].tolist()]
        assert found.locator(".name").all_inner_texts() == classes
        numbers = [*map(float, found.locator(".number").all_inner_texts())]
        assert numbers == pytest.approx(values[0].tolist(), abs=6e-3)
        [label] = drawing.vote(labels).tolist()
        count = classes.count(ANIMALS[label])
        pattern = rf"{name} like an? {ANIMALS[label]} \({count} of 6 neighbours\)"
        assert re.search(pattern, said)


def test_it_begins_with_a_test_image(figure, known):
    assert torch.equal(drawn(figure), drawing.read_sheet()[0][[7]])
    check_answer(figure, known, fitted=True)
    figure.get_by_label("fit into the frame").uncheck()
    check_answer(figure, known, fitted=False)
    figure.get_by_label("start with").select_option(label="an elephant of the test set")
    assert torch.equal(drawn(figure), drawing.read_sheet()[0][[5]])
    check_answer(figure, known, fitted=False)


def strokes(figure, points):
    """Move the mouse from point to point, in pixels of the drawing."""
    board = figure.locator(".board")
    board.scroll_into_view_if_needed()
    box = board.bounding_box()
    places = [
        (box["x"] + x * box["width"] / 28, box["y"] + y * box["height"] / 28)
        for x, y in points
    ]
    figure.page.mouse.move(*places[0])
    figure.page.mouse.down()
    for place in places[1:]:
        figure.page.mouse.move(*place)
    figure.page.mouse.up()


def test_an_outline_is_filled_and_erased(figure, known):
    figure.get_by_role("button", name="clear").click()
    strokes(figure, [(6, 8), (20, 8), (20, 18), (6, 18)])
    inside = drawn(figure)[0, 0, 9:17, 7:19]
    assert (inside == 255).all()
    assert drawn(figure)[0, 0, :7].max() == 0
    check_answer(figure, known, fitted=True)
    figure.get_by_label("eraser").check()
    figure.get_by_label("width").fill("4")
    strokes(figure, [(13, 2), (13, 26)])
    assert drawn(figure)[0, 0, :, 12:14].max() == 0
    assert drawn(figure)[0, 0, 10:16, 16:18].min() == 255
    figure.get_by_role("button", name="undo").click()
    assert (drawn(figure)[0, 0, 9:17, 7:19] == 255).all()
    figure.get_by_role("button", name="undo").click()
    assert drawn(figure).max() == 0
    await_frame(figure.page)
    assert "Draw an animal" in figure.locator(".said").inner_text()
    assert not figure.locator(".found").first.is_visible()


def test_it_is_drawn_by_touch(figure):
    figure.get_by_role("button", name="clear").tap()
    figure.get_by_role("radio", name="pencil").tap()
    board = figure.locator(".board")
    box = board.bounding_box()
    board.tap(position={"x": box["width"] / 2, "y": box["height"] / 4})
    assert drawn(figure)[0, 0, 6:8, 13:15].min() > 200
    assert drawn(figure)[0, 0, 10:].max() == 0


def test_it_is_drawn_by_keys(figure, known):
    figure.get_by_role("button", name="clear").press("Enter")
    figure.locator(".board").focus()
    press = figure.page.keyboard.press
    assert figure.locator(".cursor").is_visible()
    press("Space")
    for _ in range(8):
        press("Shift+ArrowRight")
    for _ in range(40):
        press("ArrowDown")  # without a line, and not out of the frame
    press("Space")
    image = drawn(figure)[0, 0]
    assert image[13:15, 13:22].min() == 255
    assert image[17:26].max() == 0
    assert image[27, 21:23].min() > 200
    check_answer(figure, known, fitted=True)


def test_buttons_change_the_drawing(figure, known):
    figure.get_by_label("fit into the frame").uncheck()
    before = drawn(figure)
    for name, change in (("mirror", "mirror"), ("shift by 2 pixels", "shift 2")):
        figure.get_by_role("button", name=name).click()
        before = drawing.CHANGES[change](before)
        assert torch.equal(drawn(figure), before)
        check_answer(figure, known, fitted=False)


def test_what_is_compared_and_the_map_follow_the_drawing(figure, known):
    shown = """canvas => {
      const {width, height} = canvas;
      const {data} = canvas.getContext("2d").getImageData(0, 0, width, height);
      return [...data].filter((_, i) => i % 4 === 0);
    }"""
    for name in ("bird", "giraffe"):
        chooser = figure.get_by_label("start with")
        chooser.select_option(label=f"a {name} of the test set")
        check_answer(figure, known, fitted=True)
        seen = torch.tensor(figure.locator(".seen").evaluate(shown))
        image = drawing.fitted(drawn(figure))
        assert (seen - image.flatten().int()).abs().max() <= 1
        classes = figure.locator(".found").first.locator(".name").all_inner_texts()
        text = figure.locator(".plane").get_attribute("aria-label")
        assert text.endswith(f"{', '.join(classes)}.")
    [x, y] = (known.coded(image)["encoder"] @ known.axes.T)[0].tolist()
    points = known.codes @ known.axes.T
    low, high = points.amin(dim=0).tolist(), points.amax(dim=0).tolist()
    plane = torch.tensor(figure.locator(".plane").evaluate(shown)).view(800, 1280)
    left = 2 * (22 + (x - low[0]) / (high[0] - low[0]) * 596)
    top = 2 * (378 - (y - low[1]) / (high[1] - low[1]) * 356)
    at = [round(min(max(v, 40), n - 40)) for v, n in ((top, 800), (left, 1280))]
    framed = plane[at[0] - 32 : at[0] + 32, at[1] - 32 : at[1] + 32]
    small = framed[1::8, 1::8].float() / 255
    wanted = torch.nn.functional.interpolate(image.float() / 255, (8, 8), mode="area")
    assert torch.corrcoef(torch.stack([small.flatten(), wanted.flatten()]))[0, 1] > 0.5


def test_all_of_it_is_reached_by_tab(figure):
    figure.locator("select").focus()
    steps = []
    for _ in range(11):
        figure.page.keyboard.press("Tab")
        steps.append(
            figure.page.evaluate("""() => {
              const e = document.activeElement;
              return e.className || (e.type === "button" ? e.textContent : e.type);
            }""")
        )
    controls = ["board", "radio", "range", "checkbox"]
    assert steps == ["clear", "undo", *controls, *BUTTONS]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desk"])
def test_it_is_accessible_once_it_is_used(browser, address, theme, size):
    tab = opened(browser, address, viewport=size, color_scheme=theme)
    loaded(tab, "draw").get_by_role("button", name="mirror").tap()
    tab.wait_for_timeout(400)
    assert tab.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert barriers(tab) == []
    tab.context.close()
