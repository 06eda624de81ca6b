"""The decoder in the page computes what fmkit computes, and its figure can be used."""

import json
import random
import re
import statistics
from dataclasses import replace

import pytest
import torch
from support.bounds import additions_of, rounding
from support.browser import DESKTOP, PHONE, await_frame, barriers, call, loaded, opened
from support.refusals import refused

from fmkit.book import live, packing
from fmkit.data.tokens import encode
from fmkit.generate import generate, greedy, keep_top_p
from fmkit.models.heads import attention_weights

ROOT, PAGE = '[data-figure="write_on"]', "chapters/interactive_figures.html"
CLOSE = 2e-5  # of probabilities, of which float32 changes 4e-6
MILLISECONDS = 30  # a token, as the book promises
PROMPTS = [*live.STARTS, "Returns the", "机器学习 is"]
LINES = """\
x|   x|x   |  two  spaces  |don't|I'll we've they're he'd it's I'm|DON'T|'s| 's|''s
3.14159|1,024|x2y3|½ ² ٣ Ⅷ|१२३|a1b2 c3|10**-6|0x1F|naïve café|cafe\u0301|Ångström
ﬁ ﬂ|straße|ǅ ǆ|机器学习|日本語のテキスト|한국어 텍스트|中文 and English|it\u2019s
\uff0c。\uff01\uff1f|🙂|\U0001f469\u200d\U0001f467|🇩🇪 flag|👍🏽|a🙂b| 🙂 |☃\ufe0f
\u00a0x|x\u00a0y|\u2003x|\u3000全角|\u0085x|\ufeffx|x\ufeff|\u200bx|\u200d|\u180ex
\u2028x|\u2029|\x00x|\x1f|\x7f|⊥| ⊥ |⊥⊥x|\ufffd|\ufffdx|\ue000|𐍈|\U0010ffff
עברית|العربية|ภาษาไทย|हिन्दी|Ελληνικά|кириллица|{'a': [1, 2]}|<html>&amp;</html>
\\frac{1}{2}|C:\\new\\table|a[i]->b::c|#!/bin/sh|$x_1$|ababab|array_like|shape (n, m)
numpy.ndarray|The quick brown fox|>>> import numpy as np|def f(x): return x**2
""".replace("\n", "|").split("|")
NASTY = [
    *LINES,
    *(
        "",
        " ",
        "  ",
        "\n",
        "\n\n\n",
        " \n ",
        "\t\tx",
        "a\r\nb",
        "\r",
        "def f():\n    return",
    ),
    *(20 * "a", 70 * "-", 33 * "=", 9 * ".", 11 * "_", 20 * " " + "x", 200 * "x"),
]


def texts():
    """Nasty texts, and others made of their pieces and of any characters."""
    draw = random.Random(0)
    some = [c for text in NASTY for c in text] + [*"  \n\t'eros"]
    planes = [range(0x20, 0x250), range(0x250, 0xD800), range(0xE000, 0x1FFFF)]
    yield from NASTY
    for n in range(60):
        yield "".join(draw.choice(some) for _ in range(1 + n % 25))
    for n in range(60):
        yield "".join(chr(draw.choice(planes[n % 3])) for _ in range(1 + n % 12))
    yield "word " * 400


@pytest.fixture(scope="module")
def exact():
    return live.trained()


@pytest.fixture(scope="module")
def lm(exact):
    """The model with the weights of the page."""
    return live.rounded(exact)


@pytest.fixture(scope="module")
def address(site):
    return (site / PAGE).as_uri()


@pytest.fixture(scope="module")
def untouched(browser, address):
    """The figure, whose functions are called; nobody uses it."""
    tab = opened(browser, address)
    yield loaded(tab, "write_on")
    tab.context.close()


@pytest.fixture
def figure(browser, address):
    """The figure, loaded, for a test that changes it."""
    tab = opened(browser, address, viewport=DESKTOP)
    yield loaded(tab, "write_on")
    tab.context.close()


# The weights


def test_the_file_is_small_and_always_the_same(site, exact):
    file = (site / "live" / live.FILE).read_bytes()
    assert len(file) <= packing.MOST
    assert file == live.script(exact)


def test_rounding_moves_no_weight_by_more_than_half_a_scale(exact, rng):
    heavy = torch.randn(40, 160, generator=rng) ** 5  # a few values far from the others
    matrices = [w for w in exact.model.parameters() if w.dim() == 2]
    for weight in (*matrices, heavy, torch.zeros(2, 3)):
        integers, scale = packing.quantize(weight.detach())
        assert integers.dtype == torch.int8
        torch.testing.assert_close(scale, scale.bfloat16().float(), rtol=0, atol=0)
        apart = (weight - integers.float() * scale[:, None]).abs() / scale[:, None]
        assert apart.max() <= 0.5 + 2**-12  # the quotient is rounded before


@pytest.fixture(scope="module")
def errors(exact):
    return live.errors(exact)


def test_the_page_states_the_errors_of_rounding(untouched, errors):
    said = untouched.locator(".facts").last.inner_text()
    for number in ("largest", "mean"):
        assert f"{errors[number]:.3f}" in said
    assert f"{100 * errors['same']:.1f} %" in said
    assert f"{errors['places']} places" in said


def test_the_errors_are_those_of_probabilities(exact, lm, errors):
    """In one text, written out."""
    ids = exact.encode(live.STARTS[1])
    [new] = generate(exact.model, [ids], new_tokens=40, choose=greedy, eos=exact.ends)
    with torch.no_grad():
        p, q = (m.model(torch.tensor([ids + new]))[0].softmax(1) for m in (exact, lm))
    assert 0 < (p - q).abs().max().item() <= errors["largest"] + 5e-5
    assert errors["mean"] < errors["largest"] < 0.1
    assert errors["same"] > 0.97


def test_a_model_that_the_page_cannot_run_is_refused(exact):
    config = replace(exact.model.config, qkv_bias=True)
    other = replace(exact, model=type(exact.model)(config).eval())
    sentence = refused(live.script, other)
    assert sentence.startswith("config ")
    assert "qkv_bias=True" in sentence


# What it computes


def test_greedy_tokens_are_those_of_fmkit(untouched, lm):
    prompts = [lm.encode(prompt) for prompt in PROMPTS]
    expected = generate(lm.model, prompts, new_tokens=64, choose=greedy)
    for prompt, ids, new in zip(PROMPTS, prompts, expected, strict=True):
        body = """
          const ids = [live.start, ...live.encode(given[0])];
          const set = {temperature: 0, topP: 1};
          for (let n = 0; n < 64; n++) {
            ids.push(live.reshaped(live.run(ids), set).indexOf(1));
          }
          return ids;"""
        assert call(untouched, body, prompt) == ids + new


def long_text(lm):
    """The ids of a text that fills the context."""
    text = "".join(f"{prompt} naïve 机器 🙂 {prompt[::-1]}\n" for prompt in PROMPTS)
    return lm.encode(text)[: lm.model.config.context]


def limit_of(lm, u):
    """How far logits may lie from these by the order of their additions."""
    return rounding(additions_of(lm.model), u.abs().max().item())


def test_probabilities_are_those_of_fmkit(untouched, lm):
    ids = long_text(lm)
    assert len(ids) == lm.model.config.context
    with torch.no_grad():
        expected = lm.model(torch.tensor([ids]))[0]
    body = "return given[0].map((_, t) => [...live.run(given[0].slice(0, t + 1))]);"
    u = torch.tensor(call(untouched, body, ids))
    limit = limit_of(lm, expected)
    assert limit < 1e-3
    torch.testing.assert_close(u, expected, rtol=0, atol=limit)
    torch.testing.assert_close(u.softmax(1), expected.softmax(1), rtol=0, atol=limit)


def test_the_cache_changes_nothing(untouched, lm):
    """A text that was changed in its middle, and one that lost its end."""
    ids = long_text(lm)[:40]
    for other, fresh in (([*ids[:20], ids[3], *ids[21:30]], 10), (ids[:30], 1)):
        body = """
          const [first, second] = given;
          live.run([first[5]]);
          const alone = live.run(second);
          live.run(first);
          return [...live.run(second)].map((u, i) => [u, alone[i]]);"""
        assert all(u == alone for u, alone in call(untouched, body, ids, other))
        assert call(untouched, "return live.computed();") == fresh


def test_attention_is_that_of_fmkit(untouched, lm):
    ids = long_text(lm)[:50]
    expected = attention_weights(lm.model, torch.tensor([ids]))[:, 0]
    body = """
      live.run(given[0]);
      const of = (n, f) => Array.from({length: n}, (_, i) => f(i));
      const rows = (l, h) => given[0].map((_, t) => [...live.attention(l, h, t)]);
      return of(live.layers, (l) => of(live.heads, (h) => rows(l, h)));"""
    for layer, heads in enumerate(call(untouched, body, ids)):
        for head, rows in enumerate(heads):
            for t, row in enumerate(rows):
                assert len(row) == t + 1  # none of a later token
                known = expected[layer, head, t, : t + 1]
                row = torch.tensor(row).float()
                torch.testing.assert_close(row, known, rtol=0, atol=CLOSE)


def reshaped(u, temperature, top_p):
    """What fmkit.generate.sampler draws from."""
    if temperature == 0:
        return torch.zeros_like(u).scatter(1, greedy(u)[:, None], 1.0)
    u = u / temperature
    return (keep_top_p(u, top_p) if top_p < 1 else u).softmax(1)


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_temperature_and_top_p_are_those_of_fmkit(untouched, lm, temperature, top_p):
    for prompt in PROMPTS[:3]:
        ids = lm.encode(prompt)
        with torch.no_grad():
            u = lm.model(torch.tensor([ids]))[:, -1]
        expected = reshaped(u, temperature, top_p)
        body = """
          const [ids, temperature, topP] = given;
          return [...live.reshaped(live.run(ids), {temperature, topP})];"""
        p = torch.tensor([call(untouched, body, ids, temperature, top_p)]).float()
        assert p.sum().item() == pytest.approx(1, abs=1e-5)
        assert (p > 0).sum() == (expected > 0).sum()
        torch.testing.assert_close(p, expected, rtol=0, atol=CLOSE)


def test_tokens_are_those_of_fmkit(untouched, lm):
    all_texts = [*texts()]
    assert len(all_texts) >= 200
    expected = [encode(lm.tokenizer, text) for text in all_texts]
    got = call(untouched, "return given[0].map(live.encode);", all_texts)
    assert {
        t: g for t, g, e in zip(all_texts, got, expected, strict=True) if g != e
    } == {}


def test_half_a_character_is_read_as_an_unknown_one(untouched, lm):
    """fmkit refuses such a text; a browser may hand one over."""
    for text in (
        "\ud83d",
        "a\udc00b",
        "x \ud83d y",
        "\udc00\ud83d",
        "\ud83d\ud83d\ude42",
    ):
        whole = re.sub("\ud83d(?!\ude42)|\udc00", "\ufffd", text)
        whole = whole.encode("utf-16", "surrogatepass").decode("utf-16")
        escaped = json.dumps(text)  # in ASCII
        got = call(untouched, f"return live.encode({escaped});")
        assert got == encode(lm.tokenizer, whole)


def test_texts_of_tokens_are_those_of_fmkit(untouched, lm, rng):
    V = lm.model.config.vocabulary
    drawn = torch.randint(V, (100, 12), generator=rng).tolist()
    low = torch.randint(
        100, 257, (100, 6), generator=rng
    ).tolist()  # bytes of characters
    known = [encode(lm.tokenizer, text) for text in NASTY]
    rows = drawn + low + known + [[i] for i in range(V)]
    expected = [lm.tokenizer.decode(row) for row in rows]
    assert call(untouched, "return given[0].map(live.decode);", rows) == expected


def test_a_token_takes_less_than_30_milliseconds(untouched, lm):
    body = """
      const ids = [live.start, ...live.encode(given[0])], times = [];
      const set = {temperature: 0.8, topP: 0.9};
      while (ids.length < live.context) {
        const start = performance.now();
        ids.push(live.reshaped(live.run(ids), set).findIndex((p) => p > 0));
        times.push(performance.now() - start);
      }
      return times;"""
    times = call(untouched, body, PROMPTS[0])
    print(f"A token takes {statistics.median(times):.1f} ms, {max(times):.1f} at most.")
    assert statistics.median(times) < MILLISECONDS


# The figure


def weights_in(tab):
    return [url for url in tab.asked if url.endswith(live.FILE)]


def test_nothing_is_loaded_before_the_figure_is_in_view(browser, address):
    tab = opened(browser, address, viewport=PHONE)
    tab.wait_for_timeout(500)
    assert tab.locator(ROOT).is_visible()
    assert weights_in(tab) == []
    before = tab.locator(ROOT).bounding_box()["height"]
    root = loaded(tab, "write_on")
    assert len(weights_in(tab)) == 1
    assert weights_in(tab)[0].startswith("file:")
    assert root.bounding_box()["height"] == pytest.approx(before, rel=0.05)
    tab.context.close()


def test_a_server_that_names_another_encoding_does_no_harm(browser, served, lm):
    tab = opened(browser, f"{served.address}/{PAGE}", offline=False)
    root = loaded(tab, "write_on")
    ids = lm.encode(PROMPTS[0])
    with torch.no_grad():
        expected = lm.model(torch.tensor([ids]))[0, -1]
    u = torch.tensor(call(root, "return [...live.run(given[0])];", ids))
    torch.testing.assert_close(u, expected, rtol=0, atol=limit_of(lm, expected))
    tab.context.close()


def test_without_its_weights_the_still_comes_back(browser, served):
    served.without = live.FILE
    tab = opened(browser, f"{served.address}/{PAGE}", offline=False)
    still = tab.locator(f"{ROOT} + figure.still img")
    assert not still.is_visible()
    tab.locator(ROOT).scroll_into_view_if_needed()
    still.wait_for(state="visible")
    assert not tab.locator(ROOT).is_visible()
    tab.context.close()


def shown(root):
    """The tokens of the list with their numbers; the last one is all others."""
    names = root.locator(".tokens .token").all_inner_texts()
    numbers = root.locator(".tokens .number").all_inner_texts()
    return dict(zip(names, map(float, numbers), strict=True))


def probabilities(lm, ids, temperature=1.0, top_p=1.0):
    with torch.no_grad():
        u = lm.model(torch.tensor([ids]))[:, -1]
    return reshaped(u, temperature, top_p)[0]


def test_bars_follow_what_is_typed_and_set(figure, lm):
    figure.get_by_label("your text").fill("")
    for typed in ("import numpy as np\n>>> x = np.", "r"):
        figure.get_by_label("your text").press_sequentially(typed)
    ids = lm.encode("import numpy as np\n>>> x = np.r")
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (2.0, 0.6), (0.0, 1.0)):
        figure.get_by_label("temperature").fill(str(temperature))
        figure.get_by_label("top-p").fill(str(top_p))
        p = probabilities(lm, ids, temperature, top_p)
        numbers = [*shown(figure).values()]
        order = probabilities(lm, ids).argsort(descending=True)[:7]
        known = [*p[order].tolist(), 1 - p[order].sum().item()]
        assert numbers == pytest.approx(known, abs=1.1e-3)
        widths = figure.locator(".tokens .bar").evaluate_all(
            "bars => bars.map(bar => parseFloat(bar.style.width) / 100)"
        )
        assert widths == pytest.approx(known, abs=1e-3)
        said = figure.locator(".facts.two").inner_text()
        assert said.startswith(f"{int((p > 0).sum()):,} of 1,024 tokens")


def test_a_token_is_appended_by_touch_and_by_key(figure, lm):
    box = figure.get_by_label("your text")
    ids = lm.encode(live.STARTS[0])
    for act in ("tap", "Enter", "tap"):
        button = figure.locator(".tokens button").first
        ids.append(probabilities(lm, ids).argmax().item())
        if act == "tap":
            button.tap()
        else:
            button.press(act)
            assert button.evaluate("b => b === document.activeElement")
        assert box.input_value() == lm.tokenizer.decode(ids)
    assert "was appended" in figure.locator(".said").inner_text()


def written(figure):
    figure.get_by_role("button", name="write on").click()
    figure.get_by_role(
        "button", name="write on"
    ).wait_for()  # it says "stop" until then
    return figure.get_by_label("your text").input_value()


def test_it_writes_on_as_fmkit_does(figure, lm):
    figure.get_by_label("temperature").fill("0")
    for _ in range(2):
        text = written(figure)
        assert figure.locator(".said").inner_text() == "20 tokens written."
    ids = lm.encode(live.STARTS[0])
    [new] = generate(lm.model, [ids], new_tokens=40, choose=greedy)
    assert text == lm.tokenizer.decode(ids + new)
    figure.get_by_role("button", name="start again").click()
    assert figure.get_by_label("your text").input_value() == live.STARTS[0]


def test_writing_can_be_stopped(figure):
    figure.get_by_role("button", name="write on").click()
    figure.get_by_role("button", name="stop").click()
    assert figure.locator(".said").inner_text() == "Stopped."
    length = len(figure.get_by_label("your text").input_value())
    figure.page.wait_for_timeout(300)
    assert len(figure.get_by_label("your text").input_value()) == length


def test_a_text_ends_with_the_start_symbol(figure):
    """It cannot be chosen, because no text contains it, and ends what is written."""
    body = """
      live.state.logits.fill(0);
      live.state.logits[live.start] = 50;"""
    call(figure, body)
    figure.get_by_label("temperature").fill("0.9")
    first = figure.locator(".tokens button").first
    assert first.inner_text().startswith("⊥")
    assert first.is_disabled()
    before = figure.get_by_label("your text").input_value()
    assert written(figure) == before
    assert "ended the text" in figure.locator(".said").inner_text()


def test_of_a_long_text_the_end_is_read(figure, lm):
    context = lm.model.config.context
    figure.get_by_label("your text").fill("Returns the mean of x. " * 60)
    ids = lm.encode("Returns the mean of x. " * 60)
    body = "return live.seen();"
    seen = call(figure, body)
    assert context * 3 // 4 <= len(seen) <= context
    assert seen == ids[-len(seen) :]
    p = probabilities(lm, seen)
    [*numbers, _] = shown(figure).values()
    assert numbers == pytest.approx(p.topk(7).values.tolist(), abs=1.1e-3)
    assert "the end of the text" in figure.locator(".facts.two").inner_text()
    written(figure)  # it goes on beyond the context
    assert len(call(figure, body)) <= context


def looks(lm, layer, head, at):
    """What the figure says of a head, from fmkit's weights of attention."""
    ids = lm.encode(live.STARTS[0])
    weights = attention_weights(lm.model, torch.tensor([ids]))[layer, 0, head, at]
    largest, place = weights.max(dim=0)
    return f"Layer {layer + 1}, head {head + 1}: ", f"({largest:.2f})", place.item()


def check_looks(figure, lm, layer, head, at):
    begin, share, place = looks(lm, layer, head, at)
    said = figure.locator(".looks").inner_text()
    assert said.startswith(begin)
    assert f"token {at + 1}, it" in said
    assert said.split(" attends most to ")[1].split(", ")[0].rstrip(".").endswith(share)
    heights = figure.locator(".strip .weight").evaluate_all(
        "bars => bars.map(bar => parseFloat(bar.style.height))"
    )
    assert heights.index(max(heights)) == place
    assert [h == 0 for h in heights[at + 1 :]] == [True] * (len(heights) - at - 1)


def test_heads_are_shown_by_mouse_key_and_finger(figure, lm):
    last = len(lm.encode(live.STARTS[0])) - 1
    head = figure.get_by_role("button", name="layer 3, head 4")
    head.hover()
    check_looks(figure, lm, 2, 3, last)
    figure.get_by_label("your text").hover()
    check_looks(figure, lm, 1, 2, last)  # what was kept comes back
    head.tap()
    figure.locator(".strip button").nth(9).tap()
    check_looks(figure, lm, 2, 3, 9)
    figure.page.keyboard.press("ArrowLeft")
    check_looks(figure, lm, 2, 3, 8)
    head.focus()
    figure.page.keyboard.press("ArrowDown")
    figure.page.keyboard.press("ArrowRight")
    check_looks(figure, lm, 3, 4, 8)
    figure.page.keyboard.press("Home")
    check_looks(figure, lm, 0, 0, 8)
    pressed = figure.locator(".heads [aria-pressed=true]")
    assert pressed.count() == 1
    assert pressed.get_attribute("aria-label") == "layer 1, head 1"


def test_a_square_is_a_map_of_attention(figure, lm):
    ids = lm.encode(live.STARTS[0])
    weights = attention_weights(lm.model, torch.tensor([ids]))[:, 0].flatten(0, 1)
    body = """canvases => canvases.map(canvas => {
      const {width, height} = canvas;
      const {data} = canvas.getContext("2d").getImageData(0, 0, width, height);
      return [...data].filter((_, i) => i % 4 === 3);
    })"""
    drawn = torch.tensor(figure.locator(".heads canvas").evaluate_all(body))
    known = 255 * weights.sqrt().flatten(1)
    torch.testing.assert_close(drawn.float(), known, rtol=0, atol=1)


def test_all_of_it_is_reached_by_tab(figure):
    figure.locator("select").focus()
    steps = []
    for _ in range(14):
        figure.page.keyboard.press("Tab")
        steps.append(
            figure.page.evaluate("""() => {
              const e = document.activeElement;
              return e.closest(".heads, .strip, .tokens")?.className ?? e.type;
            }""")
        )
    controls = ["button", "textarea", "button", "range", "range"]
    inside = ["heads", "strip"]  # a tab stop each; arrow keys inside
    assert steps == [*controls, *["tokens"] * 7, *inside]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desk"])
def test_it_is_accessible_once_it_is_used(browser, address, theme, size):
    tab = opened(browser, address, viewport=size, color_scheme=theme)
    root = loaded(tab, "write_on")
    root.get_by_label("top-p").fill("0.3")
    root.locator(".strip button").nth(4).tap()
    tab.wait_for_timeout(400)
    assert tab.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert barriers(tab) == []
    tab.context.close()


def test_squares_take_the_colours_of_the_theme(figure):
    colour = """canvas => {
      const {data} = canvas.getContext("2d").getImageData(0, 0, 1, 1);
      return [data[0], data[1], data[2]];
    }"""
    square = figure.locator(".heads canvas").first
    light = square.evaluate(colour)
    figure.page.evaluate("document.documentElement.dataset.theme = 'dark'")
    await_frame(figure.page)
    assert square.evaluate(colour) != light


def test_nothing_moves_for_those_who_want_it_so(browser, address):
    tab = opened(browser, address, reduced_motion="reduce")
    root = loaded(tab, "write_on")
    moves = "bar => getComputedStyle(bar).transitionDuration"
    assert root.locator(".tokens .bar").first.evaluate(moves) == "0s"
    root.get_by_label("temperature").fill("0")
    text = written(root)
    assert len(text) > len(live.STARTS[0])
    tab.emulate_media(reduced_motion="no-preference")
    assert root.locator(".tokens .bar").first.evaluate(moves) != "0s"
    tab.context.close()
