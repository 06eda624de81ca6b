"""The interactive figures show the numbers of the records, and react."""

import json
import math
import re
import shutil
import statistics
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from support.browser import AXE, DESKTOP, PHONE, call, loaded, opened
from support.notebooks import book, markdown, notebook, write
from support.refusals import refused

from fmkit import plot
from fmkit.book import widgets
from fmkit.book.palette import COLOURS, NAMES
from fmkit.cli import main
from fmkit.losses import nt_xent_loss, simclr_loss
from fmkit.runs import record as records
from fmkit.runs.record import read_record
from tools import widget_records

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
SCRIPTS = sorted((ROOT / "widgets").glob("*.js"))
MOST = 30_000  # bytes of a script
AXE_HERE = """async () => {
  const options = {preload: false, resultTypes: ["violations"]};
  const found = await axe.run(".widget", options);
  return found.violations
    .flatMap(rule => rule.nodes.map(node => `${rule.id}: ${node.target}`));
}"""


WEIGHTS = {"write_on": "decoder-weights.js", "draw": "encoder-weights.js"}
PLACES = {  # of the figures in chapters
    "contrastive_learning": ["loss", "draw"],
    "language_models": ["words", "write_on"],
    "pretraining_and_adaptation": ["accuracy"],
}


def numbers_on(site, name):
    """Return the data that the figure called `name` reads."""
    script = (site / "live" / f"{name}.js").read_text(encoding="utf-8")
    return json.loads(re.search(r"^const data = (.*);$", script, re.MULTILINE)[1])


def metrics(chapter, name):
    return read_record(RESULTS / chapter / f"{name}.json")["metrics"]


def test_the_colours_are_those_that_all_can_tell_apart():
    assert set(COLOURS.values()) <= {*plot.FREE, "#7f7f7f"}


def test_scripts_are_small_and_plain():
    parts = {*widgets.HELPERS}.union(*widgets.PARTS.values())
    assert {path.stem for path in SCRIPTS} == {*widgets.WIDGETS, *parts}
    for path in SCRIPTS:
        assert path.stat().st_size <= MOST
        assert not re.search(
            r"https?:(?!//www\.w3\.org/2000/svg)", path.read_text(encoding="utf-8")
        )


def test_the_probabilities_are_those_of_the_record(site):
    recorded = metrics("widgets", "next_words")
    pending = [((prompt,), tree) for prompt, tree in numbers_on(site, "words").items()]
    read = {}
    while pending:
        before, tree = pending.pop()
        for token, (p, after) in (tree or {}).items():
            read["\t".join((*before, token))] = p
            pending.append(((*before, token), after))
    assert read == pytest.approx(recorded, abs=5e-6)


def of_labels(line, x):
    return f"{line['of'][0]}/{line['of'][1]}/{x}/{line['one']}"


def of_examples(line, x):
    closed = line["one"] in ("continents", "sentiment", "statements")
    how = "choice" if closed else "greedy"
    return f"{line['one']}-{line['of'][0]}/{how}/{x}/test"


SOURCES = {  # of the lines: chapter, how its records begin, what its metrics are called
    "animals, with labels": ("pretraining_and_adaptation", "finetuning", of_labels),
    "docstrings, with labels": ("finetuning_language_models", "small", of_labels),
    "SmolLM2, with examples": ("in_context_learning", "kshot", of_examples),
}
ELSEWHERE = {  # of lines whose encoder has runs of its own
    "simclr": ("contrastive_learning", "animals"),
    "minilm": ("finetuning_language_models", "minilm"),
    "smollm2": ("finetuning_language_models", "smollm2"),
}


@pytest.mark.parametrize("family", SOURCES)
def test_the_accuracies_are_those_of_the_records(site, family):
    *usual, called = SOURCES[family]
    lines, compared = numbers_on(site, "accuracy")[family]["lines"], 0
    for line in lines:
        chapter, runs = ELSEWHERE.get(line["of"][0], usual)
        seeds = [metrics(chapter, f"{runs}_seed{seed}") for seed in (0, 1, 2)]
        for x, *shown in line["points"]:
            values = [of_seed[called(line, x)] for of_seed in seeds]
            expected = [statistics.mean(values), min(values), max(values)]
            assert shown == pytest.approx(expected, abs=6e-5)
            compared += 1
    assert compared > 50


@pytest.fixture
def tab(site, browser):
    """The page of the figures in a browser without a network, on a touch screen."""
    page = (site / "chapters" / "interactive_figures.html").as_uri()
    tab = opened(browser, page)
    yield tab
    tab.context.close()


# A batch in your hand

TAU_LABEL = "temperature tau of NT-Xent"
LOSSES = {"simclr": simclr_loss, "ntXent": nt_xent_loss}
END = ".side >> nth={plane} >> .end >> nth={i}"


@pytest.fixture
def batch(tab):
    return loaded(tab, "loss")


def vectors(root, plane):
    return torch.tensor(
        call(root, f"return live.planes[{plane}].vectors;"), dtype=torch.float64
    )


def known(name, v, **options):
    """The loss of fmkit, its gradient, its terms, and its slope by each product."""
    v = v.double().requires_grad_()
    loss = LOSSES[name](*v.chunk(2), **options)
    [gradient] = torch.autograd.grad(loss, v)
    z = v.detach() if name == "simclr" else F.normalize(v.detach(), dim=1)
    B = len(v) // 2
    products = (z @ z.T / options.get("tau", 1)).requires_grad_()
    if name == "simclr":
        rows = products[:B, B:]
        terms = F.cross_entropy(rows, torch.arange(B), reduction="none")
        terms.sum().backward()
    else:
        rows = products.masked_fill(torch.eye(2 * B).bool(), -torch.inf)
        partner = torch.arange(2 * B).roll(B)
        both = F.cross_entropy(rows, partner, reduction="none")
        both.mean().backward()
        terms = both.view(2, B).mean(dim=0)
    slope = products.grad / options.get("tau", 1)
    return loss.detach(), gradient, terms.detach(), slope + slope.T


@pytest.mark.parametrize("name", LOSSES)
def test_the_losses_are_those_of_fmkit(batch, name, rng):
    for tau in (0.05, 0.3, 1.0, 2.0):
        lengths = 0.05 + 3 * torch.rand(8, 1, generator=rng).double()
        v = lengths * F.normalize(torch.randn(8, 2, generator=rng).double(), dim=1)
        options = {"tau": tau} if name == "ntXent" else {}
        body = f"return live.{name}(given[0], given[1]);"
        got = call(batch, body, v.tolist(), tau)
        loss, gradient, terms, slope = known(name, v, **options)
        for key, value in (
            *(("loss", loss), ("gradient", gradient)),
            *(("terms", terms), ("weights", slope)),
        ):
            torch.testing.assert_close(
                torch.tensor(got[key]).double(), value.double(), rtol=1e-6, atol=1e-6
            )


def shown_loss(root):
    return [float(x) for x in root.locator("output.loss").all_inner_texts()]


def check_shown(root):
    """What the figure shows is what fmkit computes for its vectors."""
    tau = call(root, "return live.state.tau;")
    for plane, (name, options) in enumerate((("simclr", {}), ("ntXent", {"tau": tau}))):
        v = vectors(root, plane)
        loss, gradient, terms, _ = known(name, v, **options)
        assert shown_loss(root)[plane] == pytest.approx(loss.item(), abs=6e-4)
        box = root.locator(".side").nth(plane)
        numbers = [float(x) for x in box.locator(".number").all_inner_texts()]
        assert numbers == pytest.approx(terms.tolist(), abs=6e-3)
        widths = box.locator(".terms .bar").evaluate_all(
            "bars => bars.map(bar => parseFloat(bar.style.width))"
        )
        assert widths == pytest.approx(
            (terms * max(widths) / terms.max()).tolist(), abs=0.01
        )
        arrows = box.locator("line.arrow").evaluate_all(
            "lines => lines.map(l => ['x1', 'y1', 'x2', 'y2'].map("
            "key => Number(l.getAttribute(key))))"
        )
        x1, y1, x2, y2 = torch.tensor(arrows).double().view(-1, 4).T
        drawn = torch.stack([x2 - x1, y1 - y2], dim=1)
        down = -gradient[gradient.norm(dim=1) > 0.2]
        drawn_long = drawn[drawn.norm(dim=1) > 6]
        for arrow in F.normalize(down, dim=1):
            nearest = (F.normalize(drawn_long, dim=1) @ arrow).max()
            assert nearest == pytest.approx(1, abs=1e-6)


def test_a_term_names_its_image_to_those_who_listen(batch):
    for box in batch.locator(".side").all():
        terms = box.locator(".terms li").all_inner_texts()
        for name, term in zip(widgets.BATCH, terms, strict=True):
            assert name in term


def test_it_starts_before_training(batch):
    check_shown(batch)
    notes, nt_xent = shown_loss(batch)
    assert notes > 4 * math.log(4)  # worse than if all vectors are equal
    assert nt_xent > math.log(7)


def drag(tab, root, plane, i, to, *, touch=False):
    """Drag a vector's end to a place of its plane, in lengths of a unit vector."""
    svg = root.locator(".side svg").nth(plane)
    svg.scroll_into_view_if_needed()
    end = root.locator(END.format(plane=plane, i=i)).bounding_box()
    box = svg.bounding_box()
    radius = float(svg.locator("circle.grid").get_attribute("r")) * box["width"] / 300
    x = box["x"] + box["width"] / 2 + radius * to[0]
    y = box["y"] + box["height"] / 2 - radius * to[1]
    at = (end["x"] + end["width"] / 2, end["y"] + end["height"] / 2)
    if touch:
        session = tab.context.new_cdp_session(tab)
        for kind, points in (
            ("touchStart", [at]),
            ("touchMove", [((at[0] + x) / 2, (at[1] + y) / 2)]),
            ("touchMove", [(x, y)]),
            ("touchEnd", []),
        ):
            session.send(
                "Input.dispatchTouchEvent",
                {"type": kind, "touchPoints": [{"x": a, "y": b} for a, b in points]},
            )
            tab.wait_for_timeout(50)  # or the browser leaves a move out
    else:
        tab.mouse.move(*at)
        tab.mouse.down()
        tab.mouse.move(x, y, steps=4)
        tab.mouse.up()


@pytest.mark.parametrize("touch", [False, True])
def test_a_vector_is_dragged_in_both_planes(tab, batch, touch):
    before = [vectors(batch, plane) for plane in (0, 1)]
    drag(tab, batch, 0, 2, (-0.6, -0.3), touch=touch)
    for plane in (0, 1):
        moved = (vectors(batch, plane) - before[plane]).norm(dim=1) > 0
        assert moved.nonzero().flatten().tolist() == [2]
    notes, nt_xent = (vectors(batch, plane)[2] for plane in (0, 1))
    assert notes.tolist() == pytest.approx([-0.6, -0.3], abs=0.02)
    torch.testing.assert_close(nt_xent, F.normalize(notes, dim=0))
    check_shown(batch)
    drag(tab, batch, 1, 5, (0.0, -0.5), touch=touch)
    assert vectors(batch, 1)[5].tolist() == pytest.approx([0, -1], abs=0.03)
    assert vectors(batch, 0)[5].tolist() == pytest.approx([0, -1], abs=0.03)
    check_shown(batch)


def test_a_vector_is_moved_by_keys(tab, batch):
    ends = batch.locator(".side").first.locator(".end")
    assert [end.get_attribute("tabindex") for end in ends.all()] == ["0", *7 * ["-1"]]
    ends.first.focus()
    tab.keyboard.press("PageDown")
    before = vectors(batch, 0)[1]
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("Shift+ArrowLeft")
    tab.keyboard.press("ArrowUp")
    after = vectors(batch, 0)[1]
    angles = torch.atan2(
        torch.stack([before, after])[:, 1], torch.stack([before, after])[:, 0]
    )
    assert angles.rad2deg().diff().item() == pytest.approx(18)
    assert after.norm().item() == pytest.approx(1.1)
    assert ends.nth(1).get_attribute("aria-valuenow") == "99"
    assert ends.nth(1).get_attribute("aria-valuetext") == "direction 99°, length 1.10"
    said = batch.locator("[role=status]").inner_text()
    assert said.startswith("elephant, first view: direction 99°, length 1.10")
    assert f"{shown_loss(batch)[1]:.3f} nats" in said
    check_shown(batch)


def test_lines_are_as_wide_as_the_forces_are_strong(batch):
    for plane, (name, options) in enumerate((("simclr", {}), ("ntXent", {"tau": 0.5}))):
        box = batch.locator(".side").nth(plane)
        *_, slope = known(name, vectors(batch, plane), **options)
        row = slope[0]
        lines = box.locator(":is(.pull, .push)").evaluate_all(
            "lines => lines.map(l => [l.getAttribute('class'), "
            "Number(l.getAttribute('stroke-width'))])"
        )
        strong = [x for x in row.tolist() if x != 0]
        assert [kind == "pull" for kind, _ in lines] == [x < 0 for x in strong]
        widths = torch.tensor([width for _, width in lines])
        assert (widths / torch.tensor(strong).abs()).std() < 1e-4


def test_a_step_goes_down_the_gradient_of_one_loss(batch):
    rates = widgets.RATES
    start = vectors(batch, 0)
    buttons = batch.get_by_role("button", name="one step")
    buttons.first.tap()
    _, gradient, *_ = known("simclr", start)
    torch.testing.assert_close(vectors(batch, 0), start - rates["notes"] * gradient)
    torch.testing.assert_close(vectors(batch, 1), start)
    batch.get_by_label(TAU_LABEL).fill(f"{math.log(0.2):.2f}")
    tau = call(batch, "return live.state.tau;")
    assert tau == pytest.approx(0.2, abs=2e-3)
    buttons.last.press("Enter")
    _, gradient, *_ = known("ntXent", start, tau=tau)
    stepped = start - rates["ntXent"] * tau * gradient
    torch.testing.assert_close(vectors(batch, 1), F.normalize(stepped, dim=1))
    check_shown(batch)
    assert batch.locator(".steps").all_inner_texts() == 2 * ["after 1 step"]


def test_the_still_shows_the_way_of_the_figure(batch, monkeypatch):
    """And where the text says that it leads."""
    paths = []
    way = widgets._path
    monkeypatch.setattr(
        widgets, "_path", lambda *a, **k: paths.append(way(*a, **k)) or paths[-1]
    )
    widgets._draw_loss(widgets.loss_data())
    plt.close("all")
    for plane, path in enumerate(paths):
        call(batch, f"for (let n = 0; n < 100; n++) live.planes[{plane}].walk();")
        last = vectors(batch, plane)
        torch.testing.assert_close(last, path[-1].double(), rtol=0, atol=1e-3)
    notes, nt_xent = vectors(batch, 0), vectors(batch, 1)
    assert notes.norm(dim=1).mean() > 2
    cosines = nt_xent @ nt_xent.T
    square = torch.tensor([-1.0, 0.0, 1.0]).double()
    assert (cosines[..., None] - square).abs().amin(dim=2).max() < 0.01
    torch.testing.assert_close(cosines[:4, 4:].diag(), torch.ones(4).double())


def test_length_acts_as_a_temperature(batch):
    slider = batch.get_by_label("length of all vectors in the loss of the notes")
    slider.fill("2")
    v = vectors(batch, 0)
    torch.testing.assert_close(v.norm(dim=1), torch.full((8,), 2.0).double())
    assert batch.locator("output.size").inner_text() == "2.00, as τ = 0.25"
    check_shown(batch)
    z = F.normalize(v, dim=1)
    rows = F.cross_entropy(z[:4] @ z[4:].T / 0.25, torch.arange(4), reduction="sum")
    assert shown_loss(batch)[0] == pytest.approx(rows.item(), abs=6e-4)


def test_a_collapsed_batch_stays_where_it_is(batch):
    batch.locator("select").select_option(label="at one point")
    assert shown_loss(batch) == pytest.approx([4 * math.log(4), math.log(7)], abs=6e-4)
    assert batch.locator("line.arrow").count() == 0
    for button in batch.get_by_role("button", name="one step").all():
        button.click()
    for plane in (0, 1):
        v = vectors(batch, plane)
        torch.testing.assert_close(v, torch.tensor([[0.0, 1.0]]).double().expand(8, 2))
    batch.locator("select").select_option(label="anywhere")
    first = vectors(batch, 0)
    batch.get_by_role("button", name="start again").click()
    assert (vectors(batch, 0) - first).abs().max() > 0.01
    torch.testing.assert_close(vectors(batch, 0), vectors(batch, 1))


def test_it_plays_until_it_is_stopped_or_out_of_sight(tab, batch):
    steps = "return live.planes.map(plane => plane.steps);"
    notes, nt_xent = batch.locator("button.go").all()
    walked = """i => document.querySelector('[data-figure="loss"]')
                       .live.planes[i].steps > 2"""
    notes.click()
    tab.wait_for_function(walked, arg=0)
    assert notes.inner_text() == "pause"
    assert call(batch, steps)[1] == 0
    notes.click()
    assert notes.inner_text() == "play"
    stopped = call(batch, steps)
    tab.wait_for_timeout(200)
    assert call(batch, steps) == stopped
    nt_xent.click()
    tab.wait_for_function(walked, arg=1)
    tab.evaluate("scrollTo(0, document.body.scrollHeight)")
    tab.wait_for_timeout(400)
    gone = call(batch, steps)
    tab.wait_for_timeout(200)
    assert call(batch, steps) == gone
    assert nt_xent.inner_text() == "play"


def test_nothing_moves_for_those_who_prefer_it_so(tab):
    tab.emulate_media(reduced_motion="reduce")
    root = loaded(tab, "loss")
    button = root.locator("button.go").last
    assert button.inner_text() == "100 steps"
    button.click()
    assert root.locator(".steps").all_inner_texts()[1] == "after 100 steps"
    tab.wait_for_timeout(200)
    assert root.locator(".steps").all_inner_texts()[1] == "after 100 steps"
    check_shown(root)


def test_tokens_are_opened_one_by_one(tab, site):
    root = loaded(tab, "words")
    [prompt, tree], p = next(iter(numbers_on(site, "words").items())), 1.0
    for _ in range(3):
        share, tree = max(tree.values(), key=lambda value: value[0])
        p *= share
        root.locator(".tokens button").first.tap()
        shown = root.locator(".tokens .number").all_inner_texts()
        assert sum(map(float, shown)) == pytest.approx(1, abs=0.004)
    message = root.locator(".said").inner_text()
    assert message.startswith(f"3 tokens chosen, together with probability {p:.3f}")
    assert f"{-math.log(p):.2f} nats" in message
    assert root.locator(".prompt").inner_text() == prompt


def test_tokens_answer_the_keyboard_until_the_record_ends(tab):
    root = loaded(tab, "words")
    root.locator(".tokens button").last.focus()
    for _ in range(30):
        tab.keyboard.press("Enter")
        if "goes no farther" in root.locator(".said").inner_text():
            break
    else:
        pytest.fail("the record has no end")
    tab.keyboard.press("Enter")  # "start again" has the focus then
    assert root.locator(".text button").count() == 0
    assert root.locator(".tokens button").count() == 5


def test_lines_are_where_their_numbers_are(tab, site):
    root = loaded(tab, "accuracy")
    families = numbers_on(site, "accuracy")
    for name, family in families.items():
        root.locator("select").first.select_option(name)
        first = [kind["first"] for kind in family["many"]]
        for box in root.locator("input[type=checkbox]").all():
            box.check()
        lines = [
            line
            for line in family["lines"]
            if line["one"] == family["one"]["values"][0]
        ]
        drawn = root.locator("svg[role=img] path").all()
        assert len(drawn) == len(lines) > len(first)
        top, bottom = (
            float(root.locator(".grid").nth(i).get_attribute("y1")) for i in (4, 0)
        )
        for line, path in zip(lines, drawn, strict=True):
            places = re.findall(r"[ML][\d.]+ ([\d.]+)", path.get_attribute("d"))
            values = [(bottom - float(y)) / (bottom - top) for y in places]
            assert values == pytest.approx([mean for _, mean, *_ in line["points"]])


def test_lines_are_called_in_words(tab, site):
    root = loaded(tab, "accuracy")
    for name, family in numbers_on(site, "accuracy").items():
        root.locator("select").first.select_option(name)
        labels = {text.strip() for text in root.locator("label").all_inner_texts()}
        keys = {*NAMES} - {*NAMES.values()} - {"masked"}
        assert not labels & keys
        for kind in family["many"]:
            assert {family["words"][key] for key in kind["values"]} <= labels
        assert not re.search(r"\w_\w", root.inner_text())


def test_lines_are_switched_by_keys(tab):
    root = loaded(tab, "accuracy")
    lines = root.locator("svg[role=img] path")
    before, text = (
        lines.count(),
        root.locator("svg[role=img]").get_attribute("aria-label"),
    )
    root.get_by_label("finetune").press("Space")
    assert lines.count() > before
    assert root.locator("svg[role=img]").get_attribute("aria-label") != text
    for box in root.locator("fieldset").first.locator("input").all():
        box.uncheck()
    assert lines.count() == 0
    assert "No line is switched on" in root.locator(".said").inner_text()


# Their places

PAGES = PLACES | {"interactive_figures": [*widgets.WIDGETS]}


@pytest.fixture
def open_page(site, browser):
    """Open a page of the chapters."""
    tabs = []

    def open_page(name, **options):
        page = (site / "chapters" / f"{name}.html").as_uri()
        tabs.append(opened(browser, page, **options))
        return tabs[-1]

    yield open_page
    for tab in tabs:
        tab.context.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_still_stands_there_without_scripts_and_in_print(open_page, name):
    figures = len(PAGES[name])
    plain = open_page(name, java_script_enabled=False)
    stills = plain.locator("figure.still img")
    assert [still.is_visible() for still in stills.all()] == [True] * figures
    assert plain.locator(".widget:visible").count() == 0
    tab = open_page(name)
    stills, alive = tab.locator("figure.still img"), tab.locator(".widget")
    assert [still.is_visible() for still in stills.all()] == [False] * figures
    assert tab.locator("figure.still figcaption:visible").count() == figures
    tab.emulate_media(media="print")
    for still in stills.all():
        still.wait_for()
    assert [figure.is_visible() for figure in alive.all()] == [False] * figures


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desk"])
@pytest.mark.parametrize("name", PAGES)
def test_a_figure_is_loaded_where_it_stands(open_page, name, size, theme):
    """Not before it comes near the screen, at the height that was kept for it."""
    tab = open_page(name, viewport=size, color_scheme=theme)
    tab.wait_for_timeout(300)
    roots = tab.locator(".widget").all()
    assert [root.get_attribute("data-figure") for root in roots] == PAGES[name]
    scripts = [url for url in tab.asked if "/live/" in url]
    assert len(scripts) < len(roots)
    heights = [root.bounding_box()["height"] for root in roots]
    for root, which, before in zip(roots, PAGES[name], heights, strict=True):
        loaded(tab, which)
        tab.wait_for_timeout(100)
        assert root.bounding_box()["height"] == pytest.approx(before, rel=0.05)
    scripts = [url.rsplit("/", 1)[1] for url in tab.asked if "/live/" in url]
    assert sorted(scripts) == sorted(
        [f"{which}.js" for which in PAGES[name]]
        + [file for which, file in WEIGHTS.items() if which in PAGES[name]]
    )
    assert tab.locator(".widget [id]").count() == 0  # a figure may be there twice
    assert tab.evaluate("document.documentElement.scrollWidth") <= size["width"]
    tab.evaluate(AXE)
    found = tab.evaluate(AXE_HERE)
    assert found == []
    assert tab.wrong == []


def test_a_cell_without_its_figure_leads_to_it(site):
    """On a code host and in JupyterLab, which show the notebook."""
    labels = {name: widget.label for name, widget in widgets.WIDGETS.items()}
    text = (ROOT / "chapters" / "interactive_figures.md").read_text(encoding="utf-8")
    placed = {}
    for path in sorted((ROOT / "chapters").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            name = cell["metadata"].get("fmkit", {}).get("widget")
            if name:
                placed.setdefault(path.stem, []).append(name)
                [(file, label)] = re.findall(
                    r"\]\((.*?)#(.*?)\)", "".join(cell["source"])
                )
                assert (file, label) == ("interactive_figures.md", labels[name])
                assert f"({label})=" in text
                page = (site / "chapters" / f"{path.stem}.html").read_text("utf-8")
                assert "runs on the page of this chapter" not in page
                assert f"interactive_figures.html#{label}" in page
    assert placed == PLACES


def test_a_figure_that_nobody_made_stops_the_pages(tmp_path):
    for name, text in (("page.md", "<!-- interactive: lost -->\n"), ("a.ipynb", None)):
        pages = tmp_path / name.split(".")[0] / "chapters"
        pages.mkdir(parents=True)
        if text:
            (pages / name).write_text(text, encoding="utf-8")
        else:
            made = notebook(markdown("A link."))
            made.cells[-1].metadata["fmkit"] = {"widget": "lost"}
            write(made, pages / name)
        sentence = refused(widgets.embed, pages.parent)
        assert sentence.startswith(f"{name} shows the figure lost")
        assert "write_on" in sentence


def test_a_figure_whose_script_is_missing_gives_way_to_its_still(served, browser):
    served.without = "live/loss.js"
    tab = browser.new_page()
    tab.goto(f"{served.address}/chapters/contrastive_learning.html")
    root = tab.locator('[data-figure="loss"]')
    root.scroll_into_view_if_needed()
    tab.locator('[data-figure="loss"] + figure.still img').wait_for(state="visible")
    assert not root.is_visible()
    tab.close()


def test_a_damaged_record_stops_the_pages_with_a_sentence(
    tmp_path, monkeypatch, capsys
):
    """As a reader sees it who builds the book."""
    book(tmp_path)
    shutil.copytree(ROOT / "widgets", tmp_path / "widgets")
    shutil.copytree(RESULTS / "widgets", tmp_path / "results" / "widgets")
    (tmp_path / "results" / "widgets" / "next_words.json").write_text(
        '{"schema": 2}', encoding="utf-8"
    )
    monkeypatch.setattr(records, "PACKAGE", tmp_path / "fmkit")
    monkeypatch.chdir(tmp_path)
    assert main(["html"]) == 1
    message = capsys.readouterr().err
    assert message.endswith("next_words.json must have schema 1, got 2.\n")
    assert message.count("\n") == 1


def test_the_tool_makes_a_record_of_its_parameters(tmp_path, monkeypatch):
    monkeypatch.setenv("FMKIT_RECORD", "")  # the tool sets it
    path = tmp_path / "next_words.json"
    names = []

    def work(run, folder, **parameters):
        run.metric("trained/cat/dog", 0.5)
        names.extend((folder, *parameters))

    widget_records._record(path, work, steps=3, seed=0)
    record = read_record(path)
    assert record["parameters"] == {"steps": 3, "seed": 0, "device": "cpu"}
    assert record["metrics"] == {"trained/cat/dog": 0.5}
    assert record["status"] == "finished"
    assert names == [tmp_path, "steps", "seed", "device"]
