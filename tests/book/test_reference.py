"""The reference shows all that the science offers, and nothing twice."""

import html
import re
from importlib import import_module
from types import ModuleType

import pytest
from support.pages import ROOT, Page

from fmkit.book.reference import public, source_of

PAGES = sorted((ROOT / "chapters" / "api").glob("*.md"))
SHOWN = [
    name
    for page in PAGES
    for name in re.findall(
        r"^\.\. contents-of:: (\S+)$", page.read_text(encoding="utf-8"), re.M
    )
]
OTHER_ROOMS = ("runs", "book", "cli")
NO_NEED = ("assets",)  # the package alone says what others use
OF_AN_EXTRA = ("harness",)  # pages are built without it; the how-to page shows it


def offered():
    """The modules of the science and those that all rooms share."""
    for path in sorted((ROOT / "fmkit").rglob("*.py")):
        parts = path.relative_to(ROOT / "fmkit").with_suffix("").parts
        inside = len(parts) > 1 and parts[0] in NO_NEED and parts[1] != "__init__"
        private = any(re.match("_[a-z]", part) for part in parts)
        elsewhere = parts[0] in (*OTHER_ROOMS, *OF_AN_EXTRA)
        if not elsewhere and not inside and not private:
            yield ".".join(["fmkit", *(p for p in parts if p != "__init__")])


def test_every_module_has_one_place():
    wanted = [name for name in offered() if public(import_module(name))]
    assert sorted(SHOWN) == sorted(wanted)


def test_every_page_is_in_the_table():
    linked = re.findall(
        r"\{doc\}`api/(\w+)`",
        (ROOT / "chapters" / "api.md").read_text(encoding="utf-8"),
    )
    assert sorted(linked) == [page.stem for page in PAGES]
    for page in PAGES:
        row = f"{{doc}}`api/{page.stem}`"
        [line] = [
            x
            for x in (ROOT / "chapters" / "api.md")
            .read_text(encoding="utf-8")
            .splitlines()
            if row in x
        ]
        named = re.findall(r"`(fmkit[\w.]*)`", line)
        assert named == re.findall(
            r"^\.\. contents-of:: (\S+)$", page.read_text(encoding="utf-8"), re.M
        )


def test_what_a_module_offers():
    module = ModuleType("tiny")
    source = """
def loss(): ...
class Model: ...
def _inside(): ...
number = 3
"""
    exec(source, vars(module))
    module.public = public  # from elsewhere
    assert [*public(module)] == ["tiny.loss", "tiny.Model"]
    lines = source_of(module)
    assert lines[:2] == [".. automodule:: tiny", ""]
    assert ".. autofunction:: tiny.loss" in lines
    assert lines[-2:] == [".. autoclass:: tiny.Model", "   :members:"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_name_is_on_its_page(site, page):
    shown = Page(
        (site / "chapters" / "api" / f"{page.stem}.html").read_text(encoding="utf-8")
    )
    ids = {attributes.get("id") for attributes in shown.of("dt")}
    for module in re.findall(
        r"^\.\. contents-of:: (\S+)$", page.read_text(encoding="utf-8"), re.M
    ):
        assert {*public(import_module(module))} - ids == set()


def test_formulas_and_shapes_are_rendered(site):
    text = (site / "chapters" / "api" / "losses.html").read_text(encoding="utf-8")
    assert r"\frac{\exp(\phi(\hat x^{(i)})" in text
    plain = html.unescape(re.sub("<[^>]*>", "", text))
    assert "phi_hat: Float[Tensor, 'B m']" in plain
    assert 'href="#fmkit.losses.nt_xent_loss"' in text


def test_the_map_of_the_notes_leads_to_functions(site):
    text = (site / "chapters" / "notes_map.html").read_text(encoding="utf-8")
    assert 'href="api/losses.html#fmkit.losses.simclr_loss"' in text
