"""The whole book, on tiny ones: staging, execution, pages, and what stops them."""

import base64
import io
import os
import platform
import re
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from fontTools.ttLib import TTFont
from matplotlib.colors import to_rgb
from nbformat.v4 import new_output
from pikepdf import OutlineItem, Pdf
from PIL import Image
from pypdf import PdfReader
from support.notebooks import RUN, book, code, markdown, notebook, write

from fmkit.book import build as books
from fmkit.book import execute as executing
from fmkit.book import printed
from fmkit.book.contents import BookError, chapters_of
from fmkit.book.execute import execute, strip
from fmkit.cli import main
from fmkit.plot import FREE
from fmkit.runs.parameters import read_notebook
from fmkit.runs.stale import is_stale

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FMKIT_DEVICE", raising=False)
    return tmp_path


def test_chapters_in_the_order_of_the_contents(tmp_path):
    for name in ("b", "a", "left_out"):
        write(notebook(), tmp_path / "chapters" / f"{name}.ipynb")
    book(tmp_path)
    toc = "root: index\nparts:\n- chapters:\n  - file: chapters/b\n"
    toc += "    sections:\n    - file: chapters/a\n  - file: chapters/notation\n"
    (tmp_path / "_toc.yml").write_text(toc, encoding="utf-8")
    assert [path.stem for path in chapters_of(tmp_path)] == ["b", "a"]


@pytest.mark.parametrize("command", ["book", "html", "execute"])
def test_no_book_here(folder, capsys, command):
    assert main([command]) == 1
    assert "holds no book (_" in capsys.readouterr().err
    assert [*folder.iterdir()] == []


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("other: {}", "must have the sections tiny, got other"),
        ("tiny: {}\nother: {}", "must have the sections tiny, got tiny, other"),
        ("tiny: {steeps: 1}", "p.yaml, line 1: no parameter is named steeps"),
    ],
)
def test_a_profile_is_checked_before_anything_runs(folder, capsys, profile, message):
    write(notebook(), folder / "chapters" / "tiny.ipynb")
    book(folder)
    (folder / "p.yaml").write_text(profile, encoding="utf-8")
    assert main(["book", "-f", "p.yaml"]) == 1
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""


def test_book_shows_the_run_that_it_made(folder, capsys):
    """At the parameters of a profile, in a folder of its own; the source is kept."""
    stored = code("print(steps * 1111)", text="never to be seen\n")
    path = write(notebook(stored), folder / "chapters" / "tiny.ipynb")
    before = path.read_text(encoding="utf-8")
    book(folder)
    (folder / "README.md").write_text("# No part of it", encoding="utf-8")
    (folder / "smoke.yaml").write_text("tiny: {steps: 7}", encoding="utf-8")
    assert main(["book", "-f", "smoke.yaml"]) == 0
    page = folder / "_build" / "smoke" / "html" / "chapters" / "tiny.html"
    assert "7777" in page.read_text(encoding="utf-8")
    assert "never to be seen" not in page.read_text(encoding="utf-8")
    assert path.read_text(encoding="utf-8") == before
    out = capsys.readouterr().out
    assert f"open {folder}/_build/smoke/html/index.html" in out
    assert "tiny took" in out
    assert not (folder / "_build" / "html").exists()
    assert not (folder / "_build" / "stage" / "smoke" / "source" / "README.md").exists()


def test_book_stops_at_a_failing_chapter(folder, capsys):
    write(notebook(code("1 / 0")), folder / "chapters" / "tiny.ipynb")
    book(folder)
    old = folder / "_build" / "html" / "index.html"
    old.parent.mkdir(parents=True)
    old.write_text("an earlier build", encoding="utf-8")
    assert main(["book"]) == 1
    assert "tiny.ipynb failed in cell 2: ZeroDivisionError" in capsys.readouterr().err
    assert old.read_text(encoding="utf-8") == "an earlier build"


def test_a_broken_reference_stops_the_pages(folder, capsys):
    book(folder, page="# A page\n\nSee [](#eq-nowhere).\n")
    assert main(["html"]) == 1
    message = capsys.readouterr().err
    assert (
        "chapters/page.md:3: WARNING: 'myst' cross-reference target not found"
        in message
    )
    assert message.count("\n") == 1
    assert not (folder / "_build" / "html").exists()


LAUNCHED = {  # how a button begins that opens the chapter, by the repository's host
    "": (),
    "https://github.com/people/book": (
        "https://mybinder.org/v2/gh/people/book/main?urlpath=lab/tree/",
        "https://colab.research.google.com/github/people/book/blob/main/",
        "https://github.com/people/book/edit/main/",
    ),
    "https://gitlab.com/people/book": (
        "https://mybinder.org/v2/gl/people%2Fbook/main?urlpath=lab/tree/",
        "https://gitlab.com/people/book/-/edit/main/",
    ),
}
HOSTS = r"https://(?:mybinder\.org|colab\.[\w.]+|git\w+\.com)/"


@pytest.mark.parametrize("url", LAUNCHED)
def test_buttons_lead_to_the_repository_that_the_settings_name(folder, url):
    write(notebook(code("print(steps)")), folder / "chapters" / "tiny.ipynb")
    settings = book(folder) / "_config.yml"
    settings.write_text(
        settings.read_text(encoding="utf-8").replace('url: ""', f'url: "{url}"', 1),
        encoding="utf-8",
    )
    page = books.html(folder).with_name("chapters") / "tiny.html"
    text = page.read_text(encoding="utf-8")
    links = re.findall(rf'href="({HOSTS}[^"]+\.ipynb)"', text)
    expected = {f"{start}chapters/tiny.ipynb" for start in LAUNCHED[url]}
    assert set(links) == expected
    assert ("fa-rocket" in text) == bool(url)
    font = ROOT / "_static" / "vendor" / "fontawesome" / "webfonts"
    has = TTFont(next(font.glob("fa-solid-900.woff2"))).getBestCmap()
    assert {0xF135, 0xF303} <= set(has)  # fa-rocket, fa-pencil-alt


FORMULA = "# A page\n\nSo $\\frac{x}{y}$.\n\n$$\nz = 1 \\tag{14.1}\n$$\n"


WIDE = "| a | b |\n|:--|:--|\n| {} | c |\n".format("a_name_without_a_space" * 9)


def test_the_book_is_printed(folder, capsys):
    """A4; a title page, contents that lead to pages, a chapter on a page of its own."""
    if not any(map(shutil.which, printed.BROWSERS)):
        assert os.environ.get("CI") != "true", "CI needs the package chromium"
        pytest.skip("no chromium here, so nothing is paper")
    figure = "import matplotlib.pyplot as plt\nplt.plot([steps, 2]);"
    section = markdown("## A section")
    path = folder / "chapters" / "tiny.ipynb"
    write(notebook(section, code(figure)), path)
    book(folder, page=f"{FORMULA}\n{WIDE}")
    (folder / "CITATION.cff").write_bytes((ROOT / "CITATION.cff").read_bytes())
    (folder / "images").mkdir()
    shutil.copy(ROOT / "images" / "cover.png", folder / "images")
    (folder / "vendor").rmdir()
    for name in ("vendor", "_static"):
        (folder / name).symlink_to(ROOT / name)
    execute(folder)
    site = books.html(folder).parent
    assert "book.pdf" not in (site / "index.html").read_text(encoding="utf-8")
    assert main(["pdf"]) == 0
    out = folder / "_build" / "book.pdf"
    assert str(out) in capsys.readouterr().out
    paper = PdfReader(out)
    pages = paper.pages
    assert [round(float(side)) for side in pages[0].mediabox[2:]] == [595, 842]
    assert paper.page_labels == ["i", "ii", "1", "2", "3"]
    texts = [page.extract_text() for page in pages]
    assert "Version 0.1.0" in texts[0]
    assert [text.split()[0] for text in texts[1:]] == ["ii", "1", "2", "3"]
    assert [len(page.images) for page in pages] == [1, 0, 0, 1, 0]
    titles = ["A tiny book", "Title page", "Contents", "About this book"]
    titles += ["A tiny chapter", "A section", "A page"]
    assert [paper.metadata.title.split(",")[0], *titles_of(paper.outline)] == [
        "Foundation Models",
        *titles[1:],
    ]
    lines = " ".join(texts[1].split())
    assert lines.endswith(
        "Contents About this book 1 1 A tiny chapter 2 A section 2 A page 3"
    )
    links = [link.get_object() for link in pages[1]["/Annots"]]
    led_to = [paper.get_page_number(link["/Dest"][0].get_object()) for link in links]
    assert led_to == [2, 3, 3, 4]
    assert "(14.1)" in texts[4]
    assert "tag" not in texts[4]
    assert "frac" not in texts[4]
    # in points: nothing was shrunk, and 88 columns of code fit
    assert size_of(pages[2], "About this book") == 22
    assert size_of(pages[3], "import matplotlib.pyplot as plt") == 8
    one = (site / "chapters" / "tiny.html").read_text(encoding="utf-8")
    assert '"onlyprint">\n  <h1>A tiny chapter</h1>' in one
    assert "jb-print-toc" not in one  # contents without numbers of pages
    copy = site / "book.pdf"
    assert copy.read_bytes() == out.read_bytes()
    for page, link in (("index", "book.pdf"), ("chapters/tiny", "../book.pdf")):
        text = (site / f"{page}.html").read_text(encoding="utf-8")
        assert f'href="{link}">PDF</a> (0 MB)' in text


def size_of(page, line):
    """The size of a line of text on a page, in points."""
    sizes = []

    def visit(text, matrix, of_text, font, size):
        if len(text.strip()) > 3 and text.strip() in line:
            sizes.append(round(abs(size * of_text[3] * matrix[3]), 1))

    page.extract_text(visitor_text=visit)
    return max(sizes)


def titles_of(outline):
    parts = [titles_of(x) if isinstance(x, list) else [x.title] for x in outline]
    return [title for part in parts for title in part]


def test_a_bookmark_has_its_title_once(tmp_path):
    """Chromium writes the title of a heading that was moved to the next page twice."""
    book(tmp_path, page="# A page\n")
    with Pdf.new() as body:
        body.add_blank_page()
        with body.open_outline() as outline:
            first, second, third = (
                OutlineItem(title, 0)
                for title in ("In orderIn order", "记号记号", "Banana")
            )
            outline.root.append(first)
            first.children.append(second)
            second.children.append(third)
        entries = printed._arrange(body, tmp_path)
        body.save(tmp_path / "after.pdf")
    after = PdfReader(tmp_path / "after.pdf")
    assert titles_of(after.outline) == ["In order", "记号", "Banana"]
    assert [entry.title for entry in entries] == ["In order", "记号"]
    assert [section.title for section in entries[1].sections] == ["Banana"]


def test_without_chromium_nothing_is_printed(folder, capsys, monkeypatch):
    book(folder)
    monkeypatch.setenv("PATH", str(folder))
    assert main(["pdf"]) == 1
    message = capsys.readouterr().err
    assert "apt-get install chromium" in message
    assert message.count("\n") == 1


def test_execute_replaces_what_is_stale_once_it_ran(folder, capsys):
    for name, source in {"good": "print(6 * 7)", "worse": "1 / 0"}.items():
        write(notebook(code(source)), folder / "chapters" / f"{name}.ipynb")
    book(folder)
    worse = (folder / "chapters" / "worse.ipynb").read_text(encoding="utf-8")
    assert main(["execute"]) == 1
    good = folder / "chapters" / "good.ipynb"
    executed = read_notebook(good)
    assert executed.cells[-1].outputs[0].text == "42\n"
    assert not is_stale(executed)
    assert (folder / "chapters" / "worse.ipynb").read_text(encoding="utf-8") == worse
    write(notebook(code("print(1)")), folder / "chapters" / "worse.ipynb")
    time, capsys_before = good.stat().st_mtime_ns, capsys.readouterr()
    assert "worse.ipynb failed in cell 2" in capsys_before.err
    assert [path.stem for path in execute(folder)] == ["worse"]
    assert good.stat().st_mtime_ns == time
    assert execute(folder) == []
    assert sorted(os.listdir(folder / "chapters")) == ["good.ipynb", "worse.ipynb"]


def test_two_runs_give_equal_notebooks(folder):
    """Images too, with metadata and cell ids, except for what papermill adds."""
    draw = "import matplotlib.pyplot as plt\n\nplt.plot(sizes);"
    cells = [markdown("Text."), code(draw), code("print(device)", "a-tag")]
    path = write(notebook(*cells), folder / "tiny.ipynb")
    one, two = (
        executing.execute_one(
            path, folder / name, given={"sizes": [3, 4]}, figures=folder / "figures"
        )
        for name in "ab"
    )
    assert one == two
    assert [o.output_type for o in one.cells[-2].outputs] == ["display_data"]
    ids = [cell["id"] for cell in read_notebook(path).cells]
    assert [c["id"] for c in one.cells if c["id"] != "injected-parameters"] == ids
    metadata = {key for cell in one.cells for key in cell.metadata}
    assert metadata == {"tags"}
    assert set(one.metadata) == {"kernelspec", "language_info"}
    # as JupyterLab writes them: else a notebook has unsaved changes when it is opened
    assert one.metadata["kernelspec"]["display_name"] == "Python 3 (ipykernel)"
    assert one.metadata["language_info"]["version"] == platform.python_version()


def test_strip_keeps_what_belongs_to_the_page():
    whole = notebook(code("1", "finding", mystnb={"image": {"alt": "One."}}))
    whole.cells[-1].metadata |= {"papermill": {"duration": 1}, "execution": {}}
    stripped = strip(whole).cells[-1].metadata
    assert stripped == {"tags": ["finding"], "mystnb": {"image": {"alt": "One."}}}


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


def stripped(pixels):
    """What is shown of a figure after it was stripped."""
    cell = code("draw()")
    cell.outputs = [new_output("display_data", data={"image/png": png(pixels)})]
    [output] = strip(notebook(cell)).cells[-1].outputs
    small = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
    assert small.mode == "P"
    return np.asarray(small.convert("RGB")).astype(int)


def test_strip_gives_figures_a_palette():
    rng = np.random.default_rng(0)
    pixels = np.full((80, 60, 4), 255, dtype=np.uint8)
    pixels[10:40, 10:40, :3] = rng.integers(100, 120, (30, 30, 3))  # 8,000 colours
    pixels[50:60] = (9, 9, 9, 0)  # nothing is there
    shown = stripped(pixels)
    assert abs(shown[10:40, 10:40] - pixels[10:40, 10:40, :3]).max() < 16
    assert (shown[50:60] == 255).all()


def test_strip_keeps_the_colours_of_thin_lines():
    """Ten lines of one pixel beside shades of blue that fill most of the figure."""
    lines = [to_rgb(colour) for colour in (*FREE, "grey", "purple", "brown")]
    pixels = np.full((64, 200, 4), 255, dtype=np.uint8)
    pixels[:, :160, :2] = np.arange(160)[:, None] + np.arange(64)[:, None, None]
    for x, colour in enumerate(lines):
        pixels[:, 170 + 3 * x, :3] = [round(255 * part) for part in colour]
    shown = stripped(pixels)
    assert abs(shown[:, 170::3] - pixels[:, 170::3, :3]).max() < 24


def test_strip_leaves_a_grey_grid_grey():
    """In a figure as the book has them, with lines and clouds of every colour."""
    figure, ax = plt.subplots(figsize=(4, 3), dpi=100)
    ax.grid(alpha=0.3)
    for i, colour in enumerate(FREE):
        ax.plot(np.arange(30) * (i + 1), "o-", color=colour, alpha=0.6)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())
    plt.close(figure)
    grey = (np.ptp(pixels[..., :3], axis=2) < 4) & (pixels[..., 0] < 250)
    assert grey.sum() > 1000
    assert (np.ptp(stripped(pixels)[grey], axis=1) > 8).mean() < 0.01


def test_committed_outputs_are_made_on_the_cpu(folder):
    cells = [
        code("import os\n\nprint(os.environ['FMKIT_DEVICE'], run.record['device'])")
    ]
    path = write(notebook(*cells, derived=RUN), folder / "chapters" / "tiny.ipynb")
    execute(book(folder))
    assert read_notebook(path).cells[-1].outputs[0].text.startswith("cpu cpu")


def test_a_build_without_a_configuration(folder):
    book(folder)
    (folder / "_config.yml").unlink()
    with pytest.raises(BookError, match=r"_config\.yml is missing"):
        books.html(folder)
