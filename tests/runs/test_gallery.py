"""The results of a sweep as a table, as a page with a script, and its notebooks."""

import base64
import csv
import hashlib
import itertools
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from markupsafe import escape
from nbformat.v4 import new_output, new_raw_cell
from support.browser import barriers
from support.notebooks import PNG, code, markdown, notebook, write

from fmkit.runs.gallery import (
    Cell,
    Figure,
    Result,
    extract_figures,
    groups_of,
    with_page,
    write_page,
    write_table,
)
from fmkit.runs.readable import write_readable
from fmkit.runs.record import new_record

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="{}" height="{}" viewBox="{}"/>'


def result(metrics, *, holds=True, seconds=1.0, status="finished", **varied):
    """A point that never ran."""
    record = new_record("tiny", {"seed": 0, **varied}, device="cpu")
    bounds = {"values": [1.0], "unit": "", "at_least": None, "at_most": 1.0}
    findings = {
        "a <finding>": {**bounds, "holds": holds},
        "other": {**bounds, "holds": True},
    }
    record |= {"metrics": metrics, "findings": findings, "seconds": seconds}
    return Result(named(varied), varied, status, None, record)


def failed(error, **varied):
    return Result(named(varied), varied, "failed", error)


def named(varied):
    return ",".join(f"{key}={str(value)[:20]}" for key, value in varied.items())


def page_of(folder, results, chapter="tiny.ipynb"):
    write_page(folder / "index.html", results, chapter=Path(chapter))
    return (folder / "index.html").read_text(encoding="utf-8")


# The table


def test_table_has_every_metric_of_every_point(tmp_path):
    results = [
        result({"b/c": 0.123456789, "a": 1.0}, tau=0.1),
        failed('cell 3: no, "no"', tau=0.2),
        result({"d": 2.0, "a": 3.0}, tau=0.3, holds=False, seconds=2.5),
        Result("tau=0.4", {"tau": 0.4}),
    ]
    write_table(tmp_path / "table.csv", results)
    with open(tmp_path / "table.csv", encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head[:4] == ["tau", "status", "error", "seconds"]
    assert head[4:] == ["findings", "findings_that_do_not_hold", "b/c", "a", "d"]
    assert rows == [
        ["0.1", "finished", "", "1.0", "2", "0", "0.123456789", "1.0", ""],
        ["0.2", "failed", 'cell 3: no, "no"', "", "", "", "", "", ""],
        ["0.3", "finished", "", "2.5", "2", "1", "", "3.0", "2.0"],
        ["0.4", "not run", "", "", "", "", "", "", ""],
    ]


# The page without its script


def test_page_has_metrics_findings_and_what_is_alike(tmp_path):
    results = [
        result({"<b>": 0.123456789}, tau=0.1),
        result({"<b>": 2.0, "z": 1.0}, tau=0.3, holds=False),
    ]
    write(notebook(), tmp_path / "tau=0.1" / "a&b.ipynb")
    page = page_of(tmp_path, results, "a&b.ipynb")
    assert "<title>Sweep of a&amp;b</title>" in page
    for number, tau in enumerate((0.1, 0.3)):
        assert f'<th scope="col" data-points="{number}">tau = {tau}</th>' in page
    assert '<td data-sort="0.123456789">0.1235</td><td data-sort="2.0">2</td>' in page
    assert '<th scope="row">z</th><td></td><td data-sort="1.0">1</td>' in page
    assert '<td data-sort="1.0">2 of 2</td>' in page
    assert '<td data-sort="0.5">1 of 2</td>' in page
    row = '<th scope="row">a &lt;finding&gt; (at most 1)</th><td>1</td>'
    bad = '<span class="bad">1</span><br><small class="bad">does not hold</small>'
    assert f"{row}<td>{bad}</td>" in page
    assert "Alike in all: seed = 0<" in page
    assert 'href="tau%3D0.1/a%26b.ipynb"' in page
    assert "tau%3D0.3/" not in page  # which left no notebook
    assert "means" not in page.partition("<main>")[2].partition("<script")[0]


def test_values_of_every_type(tmp_path):
    """And text that would be markup, a template, or the end of a script."""
    values = [None, float("nan"), True, "$x", "</script><b>", "x" * 300, ["a"], []]
    results = [result({"</script>": 1.0, "$y": 2.0}, p=value) for value in values]
    page = page_of(tmp_path, results)
    body, _, script = page.partition('<script type="application/json"')
    for text in ("null", "NaN", "true", "$x", "&lt;/script&gt;&lt;b&gt;", "[]"):
        assert f">{text}</th>" in body
    assert page.count("</script>") == 2
    assert "NaN," not in script.partition("</script>")[0].replace('"NaN",', "")


@pytest.mark.parametrize(
    ("values", "text", "detail"),
    [
        ([0.5], "0.5", ""),
        ([0.25, 0.5, 0.75], "0.5", "0.25, 0.5, 0.75"),
        ([1, 2, None], "1.5", "1, 2 (2 of 3 seeds)"),
        ([1, 2, 3, 4, 5], "3", "1, 2, 3, 4, 5"),
        ([1, 2, 3, 4, 5, 6], "3.5", "± 1.9, 1 to 6"),
        ([None, None], "", ""),
    ],
)
def test_a_mean_shows_its_values_or_their_spread(values, text, detail):
    points = [
        result({} if value is None else {"m": value}, tau=0.5, seed=seed)
        for seed, value in enumerate(values)
    ]
    points.append(result({"m": 9.0}, tau=1.0, seed=0))
    groups = groups_of(points) or groups_of([*points, result({}, tau=1.0, seed=1)])
    cell = groups[0].metric("m")
    assert (cell.text, cell.detail) == (text, detail)


def test_points_that_differ_in_their_seed_are_a_group():
    grid = itertools.product([1, True, "1"], [0, 1])
    points = [result({}, p=p, seed=seed) for p, seed in grid]
    groups = groups_of(points)
    assert [group.points for group in groups] == ["0 1", "2 3", "4 5"]
    assert [group.head for group in groups] == [["p = 1"], ["p = true"], ["p = 1"]]
    assert groups_of([result({}, p=p) for p in (1, 2)]) == []
    [whole] = groups_of([result({}, seed=seed) for seed in (1, 2)])
    assert whole.head == ["all seeds"]


def test_a_group_has_mean_seconds_and_says_how_often_findings_hold():
    points = [
        result({}, tau=1, seed=seed, seconds=seed + 1.0, holds=seed == 1)
        for seed in range(6)
    ]
    [group] = groups_of(points[:3])
    assert group.seconds == Cell("2.0", sort=2.0)
    assert group.hold == Cell("4 of 6", sort=4 / 6)
    assert group.finding("a <finding>") == Cell("holds at 1 of 3", "1; 1; 1", bad=True)
    assert group.finding("other") == Cell("holds at 3 of 3", "1; 1; 1")
    [group] = groups_of(points)  # too many to show each
    assert group.finding("other") == Cell("holds at 6 of 6")


def test_a_group_says_what_failed(tmp_path):
    results = [result({"m": 1.0}, tau=1, seed=0), failed("cell 2: no", tau=1, seed=1)]
    page = page_of(tmp_path, results)
    means = page.partition("<tbody>")[2].partition("</tbody>")[0]
    assert '<span>1 finished</span>, <span class="bad">1 failed</span>' in means
    assert 'seed 1: <span class="bad">cell 2: no</span>' in means


def test_a_group_leads_to_the_notebook_of_each_seed(tmp_path):
    """As a page if there is one, else as a file, under the name that is shown."""
    results = [result({}, tau=1, seed=seed) for seed in range(3)]
    results[0] = replace(results[0], page="tiny.html")
    running = Result("tau=1,seed=3", {"tau": 1, "seed": 3}, "started")
    for point in (*results[:2], running):  # the third left no notebook
        write(notebook(), tmp_path / point.name / "tiny.ipynb")
    page = page_of(tmp_path, [*results, running])
    row = page.partition("<tbody>")[2].partition("</tbody>")[0]
    link = r'<a href="[^"]*/([^"]*)" aria-label="([^"]*)"[^>]*>(.*?)</a>'
    assert re.findall(link, row) == [
        ("tiny.html", "0: the notebook of tau = 1, seed = 0", "0"),
        ("tiny.ipynb", "1.ipynb of tau = 1, seed = 1", "1.ipynb"),
    ]
    assert row.count(">seed <a ") == 1


def test_the_first_metric_that_varies_is_shown_first(tmp_path):
    grid = itertools.product((0.1, 1.0, 5.0), range(3))
    results = [
        result({"start": seed / 7, "end": tau * seed}, tau=tau, seed=seed)
        if tau < 5
        else result({"end": 1.0}, tau=tau, seed=seed)  # no start is no other start
        for tau, seed in grid
    ]
    page = page_of(tmp_path, results)
    assert '<th scope="col" class="chosen long">end</th>' in page
    assert "<option selected>end</option>" in page


def test_a_chart_is_first_over_a_number_that_is_no_seed(tmp_path):
    grid = itertools.product((0, 1), ("a", "b"), (0.1, 1.0))
    results = [result({"m": 1.0}, seed=s, kind=kind, tau=tau) for s, kind, tau in grid]
    _, _, rest = page_of(tmp_path, results).partition('<select id="across">')
    options = re.findall("<option>(.*?)</option>", rest.partition("</select>")[0])
    assert options == ["tau", "kind", "seed"]


# Figures


def test_a_figure_has_the_same_place_with_and_without_injected_parameters(tmp_path):
    shows = new_output("display_data", {"image/png": PNG})
    cell = code("draw()")
    cell["outputs"] = [shows, shows]
    plain = write(notebook(cell), tmp_path / "a" / "tiny.ipynb")
    given = notebook(cell)
    given.cells.insert(2, code("tau = 1", "injected-parameters"))
    injected = write(given, tmp_path / "b" / "tiny.ipynb")
    (tmp_path / "a" / "figure-7-1.png").touch()  # of a run before
    (tmp_path / "a" / "figure-7-2.svg").touch()
    files = [f"figure-2-{which}.png" for which in (1, 2)]
    text = "Output of cell 2"
    digest = hashlib.sha256(base64.b64decode(PNG)).hexdigest()
    expected = [
        Figure((2, which), text, text, file, (2, 1), digest)
        for which, file in enumerate(files, 1)
    ]
    assert [*extract_figures(plain)] == [*extract_figures(injected)] == expected
    assert sorted(p.name for p in (tmp_path / "a").glob("figure*")) == files


@pytest.mark.parametrize(
    ("said", "size"),
    [
        (("460.8pt", "345.6pt", ""), (461, 346)),
        (("100%", "100%", "0 0 30 20"), (30, 20)),
        (("", "", ""), (0, 0)),
    ],
)
def test_a_figure_in_svg(tmp_path, said, size):
    drawing = SVG.format(*said)
    cell = code("draw()")
    both = {"image/svg+xml": drawing, "image/png": PNG}
    cell["outputs"] = [new_output("display_data", both)]
    [figure] = extract_figures(write(notebook(cell), tmp_path / "tiny.ipynb"))
    assert (figure.file, figure.size) == ("figure-2-1.svg", size)
    assert (tmp_path / figure.file).read_text(encoding="utf-8") == drawing


def test_a_picture_that_is_the_same_at_all_points_is_shown_once(tmp_path):
    def page(*digests):
        figures = [Figure((1, 1), "c", "a", "f.png", (2, 1), d) for d in digests]
        names = [f"seed={seed}" for seed in range(len(digests))]
        pairs = zip(names, figures, strict=True)
        results = [Result(n, {"seed": n[5:]}, figures=(f,)) for n, f in pairs]
        return page_of(tmp_path, results)

    assert page("x", "x").count("<img ") == 1
    assert "<figcaption>the same at 2 points</figcaption>" in page("x", "x")
    assert page("x", "y").count("<img ") == 2
    assert "<figcaption>seed = 0</figcaption>" in page("x")


def test_figures_of_one_place_are_side_by_side(tmp_path):
    def figures(tau):
        for cell in (2, 10):
            about = f"in {cell}", "a", f"{cell}.png", (2, 1), f"of {tau} in {cell}"
            yield Figure((cell, 1), *about)

    results = [Result(f"{tau}", {"tau": tau}, figures=(*figures(tau),)) for tau in "xy"]
    shown = re.findall(
        '<h3>(.*?)<|<figure data-points="(.)"><a href="(.*?)"',
        page_of(tmp_path, results),
    )
    assert [*map("".join, shown)] == [
        *("in 2", "0x/2.png", "1y/2.png"),
        *("in 10", "0x/10.png", "1y/10.png"),
    ]


# Notebooks as pages


@pytest.fixture
def executed(tmp_path):
    """A notebook with outputs of each kind, of which two cells did not run."""
    cells = [
        markdown("## A $\\tau < 1$\n\n| a |\n|---|\n| `<b>` |"),
        code("print('x')", text="\x1b[31mred\x1b[0m <b>"),
        code("draw()", mystnb={"image": {"alt": 'A "wave"'}}),
        code("table()"),
        code("raise ValueError"),
        code("late()"),
    ]
    kinds = {"image/png": PNG}, {"image/svg+xml": SVG.format(3, 4, "")}
    shown = [new_output("display_data", {"text/plain": "a", **kind}) for kind in kinds]
    cells[2]["outputs"] = shown
    html = {"text/html": "<table><tr><td>7</td></tr></table>", "text/plain": "seven"}
    script = {"application/javascript": "alert(1)", "text/plain": "<a script>"}
    outputs = [new_output("display_data", data) for data in (html, script)]
    cells[3]["outputs"] = outputs
    trace = {"ename": "ValueError", "evalue": "no <b>", "traceback": ["ValueError: <"]}
    cells[4]["outputs"] = [new_output("error", **trace)]
    whole = notebook(*cells)
    whole.cells[-1]["execution_count"] = None
    return write(whole, tmp_path / "tau=1" / "a&b.ipynb")


def readable(path, status="failed", error="cell 6: ValueError: no <b>"):
    page = write_readable(
        path, title="a: tau = 1", status=status, error=error, gallery="../index.html"
    )
    assert page == path.with_suffix(".html")
    return page.read_text(encoding="utf-8")


def test_a_notebook_as_a_page(executed):
    page = readable(executed)
    assert "<h2>A $\\tau &lt; 1$</h2>" in page
    assert '<span class="ansi-red-fg">red</span> &lt;b&gt;' in page
    assert f'src="data:image/png;base64,{PNG}" alt="A &#34;wave&#34;"' in page
    drawing = base64.b64encode(SVG.format(3, 4, "").encode()).decode()
    assert f'src="data:image/svg+xml;base64,{drawing}"' in page
    assert "<td>7</td>" in page
    assert "alert(1)" not in page
    assert "&lt;a script&gt;" in page
    assert "<details open>" in page  # the code that failed
    assert page.count("cell 6: ValueError: no &lt;b&gt;") == 2  # at the top and the end
    numbers = re.findall(r"<summary>\[(.*?)\]", page)
    assert len({*numbers}) == len(numbers) == 5
    assert page.count("<details>") == 4
    assert "ValueError: &lt;</pre>" in page
    assert "late()" not in page
    assert "Code cells that did not run: 1." in page
    assert '<a href="a%26b.ipynb" download>a&amp;b.ipynb</a>' in page
    assert not re.search(r"(src|href)=.?https?://|@import|url\(", page)


def test_a_page_has_captions_attachments_and_raw_cells(tmp_path):
    attached, raw = markdown("![a](attachment:a.png)"), new_raw_cell("<b>raw")
    attached["attachments"] = {"a.png": {"image/png": PNG}}
    about = {"image": {"alt": "a"}, "figure": {"caption": "A <wave>"}}
    drawn, said = code("draw()", mystnb=about), code("say()")
    size = {"image/png": {"width": 40}}
    drawn["outputs"] = [new_output("display_data", {"image/png": PNG}, metadata=size)]
    both = {"text/markdown": "**7** < $x$", "text/plain": "seven"}
    said["outputs"] = [new_output("display_data", both)]
    whole = notebook(attached, raw, drawn, said)
    page = readable(write(whole, tmp_path / "a.ipynb"), status="finished", error=None)
    assert page.count(f'src="data:image/png;base64,{PNG}"') == 2
    assert "<pre>&lt;b&gt;raw</pre>" in page
    assert 'alt="a" width="40"' in page
    assert "<figcaption>A &lt;wave&gt;</figcaption>" in page
    assert "<strong>7</strong> &lt; $x$" in page
    assert "seven" not in page
    assert '<a href="../index.html">' in page
    assert "The run ended here" not in page


def test_a_page_is_made_again_only_if_its_notebook_is_newer(executed):
    readable(executed)
    page = executed.with_suffix(".html")
    page.write_text("kept", encoding="utf-8")
    assert readable(executed) == "kept"
    later = page.stat().st_mtime + 5
    os.utime(executed, (later, later))
    assert "late()" in readable(executed, status="finished", error=None)


def test_a_notebook_that_cannot_be_shown_does_not_cost_a_point(tmp_path):
    done = result({}, tau=1)
    path = tmp_path / "tau=1" / "tiny.ipynb"
    assert with_page(done, path) == done  # it left none
    write(notebook(), path)
    assert with_page(done, path).page == "tiny.html"
    path.write_text("{}", encoding="utf-8")
    os.utime(path, (2**32, 2**32))
    after = with_page(done, path)
    assert (after.status, after.page) == ("finished", None)
    assert after.unread
    page = page_of(tmp_path, [after])
    assert f"cannot be shown as a page ({escape(after.unread)})." in page
    assert "tiny.html" not in page


# The page with its script, in a browser without a network

KINDS, TAUS = ("simclr", "masked"), (0.01, 0.1, 1.0)
FAILS = {"kind": "masked", "tau": 1.0, "seed": 2}


def swept():
    """Eighteen points of which one failed: accuracy is 10 tau, 1 more if masked."""
    for kind, tau, seed in itertools.product(KINDS, TAUS, range(3)):
        varied = {"kind": kind, "tau": tau, "seed": seed}
        accuracy = 10 * tau + KINDS.index(kind) + seed / 10
        metrics = {"accuracy": accuracy, "a/loss": -accuracy}
        if varied == FAILS:
            yield failed("cell 9: ValueError: no", **varied)
        else:
            yield result(metrics, **varied)


@pytest.fixture
def opened(browser, tmp_path):
    """A function that opens the gallery of results; pages must not complain."""
    complaints = []
    contexts = []

    def open_(results, *, width=1280, scheme="light", scripts=True):
        page_of(tmp_path, [*results])
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            offline=True,
            java_script_enabled=scripts,
        )
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(error.message))
        tab.goto((tmp_path / "index.html").as_uri())
        return tab

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


def choose(tab, label, value):
    tab.get_by_role("combobox", name=label, exact=True).select_option(value)


def rows(tab):
    """The texts of the rows that are shown in the table of points, cell by cell."""
    return tab.evaluate("""() => [...document.querySelectorAll(".points-table tr")]
      .filter(row => row.checkVisibility())
      .map(row => [...row.cells].map(cell => cell.innerText))""")


def column(tab, number):
    return [row[number] for row in rows(tab)[1:]]


def test_means_and_points(opened):
    tab = opened(swept())
    assert len(rows(tab)) == 1 + 6
    assert column(tab, 3)[0] == "0.2\n0.1, 0.2, 0.3"
    assert column(tab, 2)[-1] == "2 finished, 1 failed"
    tab.get_by_role("radio", name="single points").check()
    assert len(rows(tab)) == 1 + 18
    assert column(tab, 3)[-1] == "failed"
    assert column(tab, -1)[-1] == "cell 9: ValueError: no"


def test_without_scripts_all_is_there(opened):
    tab = opened(swept(), scripts=False)
    assert not tab.locator("#controls").is_visible()
    assert not tab.locator("#chart").is_visible()
    assert tab.locator(".points-table tbody tr:visible").count() == 6 + 18
    assert tab.locator(".metrics tbody tr:visible").count() == 2 + 2
    assert tab.locator("button").count() == 0


def test_sorting_by_mouse_and_keyboard(opened):
    tab = opened(swept())
    tab.get_by_role("radio", name="single points").check()
    head = tab.locator("table[data-view=points] thead th")
    head.nth(4).get_by_role("button").click()
    numbers = [float(text) for text in column(tab, 4) if text]
    assert numbers == sorted(numbers)
    assert column(tab, 4)[-1] == ""  # the point without a number is last
    assert head.nth(4).get_attribute("aria-sort") == "ascending"
    head.nth(4).get_by_role("button").focus()
    tab.keyboard.press("Enter")
    assert [float(text) for text in column(tab, 4)[:-1]] == numbers[::-1]
    assert column(tab, 4)[-1] == ""
    assert head.nth(4).get_attribute("aria-sort") == "descending"
    tab.keyboard.press("Shift+Tab")  # the head before it
    tab.keyboard.press("Space")
    assert column(tab, 3)[0] == "failed"
    assert tab.locator("table[data-view=points] [aria-sort]").count() == 1


def test_numbers_are_sorted_as_numbers(opened):
    values = [100.0, 9.0, 20.0, 1e-5]
    tab = opened(result({"m": 1.0}, tau=tau) for tau in values)
    tab.locator(".points-table thead button").first.click()
    assert column(tab, 0) == ["1e-05", "9.0", "20.0", "100.0"]


def test_filters(opened):
    tab = opened(swept())
    choose(tab, "kind", "masked")
    assert {row[0] for row in rows(tab)[1:]} == {"masked"}
    assert tab.get_by_role("status").inner_text() == "9 of 18 points shown"
    heads = tab.locator(".metrics.means thead th:visible")
    assert [text for text in heads.all_inner_texts() if "simclr" in text] == []
    assert heads.count() == 1 + 3
    tab.get_by_label("Words").fill("FAILED")
    assert [row[1] for row in rows(tab)[1:]] == ["1.0"]
    tab.get_by_label("Words").fill("")
    tab.get_by_role("radio", name="single points").check()
    choose(tab, "seed", "2")
    assert [row[2] for row in rows(tab)[1:]] == ["2"] * 3
    tab.get_by_role("radio", name="means over seeds").check()  # over all of them
    assert len(rows(tab)) == 1 + 3
    assert tab.get_by_role("status").inner_text() == "9 of 18 points shown"


def test_filters_apply_to_figures_findings_and_the_chart(opened, tmp_path):
    points = []
    for number, point in enumerate(swept()):
        write(notebook(), tmp_path / point.name / "tiny.ipynb")
        (tmp_path / point.name / "f.png").write_bytes(base64.b64decode(PNG))
        figure = Figure((1, 1), "c", "a", "f.png", (2, 1), f"{number}")
        points.append(replace(point, figures=(figure,)))
    tab = opened(points)
    choose(tab, "kind", "masked")
    figures = tab.locator("figure[data-points]:visible")
    assert figures.count() == 9
    assert "kind = masked" in figures.first.inner_text()
    assert tab.locator(".findings.means thead th:visible").count() == 1 + 3
    words = tab.get_by_label("Words")
    words.fill("no such point")
    words.press("Enter")  # which sends no form
    assert (
        tab.locator("#note").inner_text() == "No point that is shown has this metric."
    )
    assert len(rows(tab)) == 1
    assert "?" not in tab.url


def test_another_metric(opened):
    tab = opened(swept())
    choose(tab, "Metric", "a/loss")
    assert rows(tab)[0][3].startswith("a/loss")
    assert column(tab, 3)[0] == "-0.2\n-0.1, -0.2, -0.3"
    assert tab.locator("#up").inner_text() == "a/loss"
    tab.locator("#names input").fill("acc")
    assert tab.locator(".metrics.means tbody tr:visible").count() == 1
    cells = tab.locator(".points-table.means tbody td:visible")
    shown = cells.count()
    choose(tab, "kind", "masked")
    tab.locator(".points-table.means thead button").nth(3).click()
    choose(tab, "Metric", "accuracy")
    choose(tab, "kind", "all")
    assert cells.count() == shown
    means = [float(text.split()[0]) for text in column(tab, 3)]
    assert means == sorted(means)  # which they were before, by the other metric


def marks(tab):
    """The places of the means in the chart, line by line."""
    return tab.evaluate("""() => {
      const lines = {};
      for (const mark of document.querySelectorAll("#drawing .mark")) {
        const place = mark.getAttribute("transform").match(/[-\\d.]+/g).map(Number);
        (lines[mark.style.fill] ??= []).push(place);
      }
      return Object.values(lines);
    }""")


def levels(tab):
    """The heights of the numbers beside the chart, and these numbers."""
    return tab.evaluate("""() =>
      [...document.querySelectorAll("#drawing text[text-anchor=end]")]
        .map(text => [Number(text.getAttribute("y")) - 4, Number(text.textContent)])
    """)


def test_the_chart(opened):
    tab = opened(swept())
    first, second = marks(tab)
    assert len(first) == len(second) == 3
    across = [x for x, _ in first]
    logarithmic = across[1] - across[0]
    assert across[2] - across[1] == pytest.approx(logarithmic, rel=1e-6)
    # Means at tau 1 are 10.1 and, over the two seeds that ended, 11.05
    (_, low), (_, middle), (_, high) = first
    scale = (low - high) / (10.1 - 0.2)
    assert low - middle == pytest.approx(scale * 0.9, rel=1e-6)
    assert low - second[-1][1] == pytest.approx(scale * (11.05 - 0.2), rel=1e-6)
    (y, level), *_, (y_other, other) = levels(tab)
    read = level + (low - y) * (other - level) / (y_other - y)
    assert high < low  # a larger value is higher
    assert read == pytest.approx(0.2)
    assert tab.locator("#drawing .dot").count() == 17
    assert tab.locator("#lines li").all_inner_texts() == [
        "kind = simclr",
        "kind = masked",
    ]
    assert tab.locator("#right").inner_text() == "tau (logarithmic)"
    choose(tab, "tau", "0.1")
    assert [len(line) for line in marks(tab)] == [1, 1]
    choose(tab, "Horizontal axis", "kind")
    [line] = marks(tab)
    assert len(line) == 2
    assert tab.locator("#drawing text", has_text="masked").count() == 1


@pytest.mark.parametrize(
    ("values", "shares"),
    [
        ([0, 10, 30], [1 / 3, 1]),
        ([1, 10, 100], [0.5, 1]),  # by their logarithm
        ([0, 1, 100], [0.5, 1]),  # zero has none: evenly
        (["b", "a", "c"], [0.5, 1]),
        ([True, False], [1]),
    ],
)
def test_places_on_the_axis(opened, values, shares):
    tab = opened(result({"m": 1.0}, p=value) for value in values)
    [line] = marks(tab)
    start, *rest = [x for x, _ in line]
    assert [(x - start) / (rest[-1] - start) for x in rest] == pytest.approx(shares)


def test_more_lines_than_one_can_tell_apart(opened):
    grid = itertools.product(range(12), (1, 2))
    tab = opened([result({"m": kind * x}, x=x, kind=kind) for kind, x in grid])
    assert len(marks(tab)) == 8
    assert "8 of 12 lines are drawn" in tab.locator("#note").inner_text()


def test_by_keyboard_alone(opened):
    tab = opened(swept())
    reached = []
    for _ in range(8):
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("document.activeElement.id"))
    assert [one for one in reached if one] == ["metric", "words", "across"]
    tab.locator("[name=view]").first.focus()
    tab.keyboard.press("ArrowDown")
    assert len(rows(tab)) == 1 + 18


@pytest.mark.parametrize(
    "results",
    [
        [result({"m": 1.0}, tau=1.0)],
        [result({}, tau=1.0), result({}, tau=2.0)],
        [Result("tau=1", {"tau": 1}), Result("tau=2", {"tau": 2})],
        [failed("its process ended with status -9", seed=seed) for seed in (0, 1)],
        [result({"m": 1.0}, seed=seed) for seed in range(3)],
    ],
    ids=["one", "no metrics", "not run", "all failed", "seeds"],
)
def test_small_sweeps(opened, results):
    tab = opened(results)
    assert len(rows(tab)) > 1
    expected = {1: 0, 2: 0, 3: 1}[len(results)]
    assert tab.locator("#drawing svg").count() == expected


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", ["means over seeds", "single points"])
def test_the_gallery_has_no_barriers(opened, view, scheme):
    tab = opened(swept(), width=390, scheme=scheme)
    tab.get_by_role("radio", name=view).check()
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert barriers(tab) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_notebook_as_a_page_has_no_barriers(opened, executed, scheme):
    readable(executed)
    tab = opened(swept(), width=390, scheme=scheme)
    tab.goto(executed.with_suffix(".html").as_uri())
    assert tab.locator("details:not([open])").count() == 4
    tab.get_by_role("button", name="Unfold all code").press("Enter")
    assert tab.locator("details:not([open])").count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert barriers(tab) == []
