"""The cards that citations and terms of the glossary open."""

import pytest
from support.browser import DESKTOP, READY, barriers
from support.pages import Page

CARD = ".link-card"


@pytest.fixture
def chapter(site, browser):
    """Open a chapter for a reader with a mouse, or with fingers."""
    contexts = []

    def open_page(**options):
        context = browser.new_context(viewport=DESKTOP, offline=True, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.goto((site / "chapters" / "zero_shot.html").as_uri())
        tab.evaluate(READY)
        return tab

    yield open_page
    for context in contexts:
        context.close()


CITATION, TERM = ".bibtex-citation a >> nth=0", "a.glossary-term >> nth=0"


@pytest.mark.parametrize(
    ("link", "start", "page"),
    [
        (CITATION, "https://arxiv.org/abs/2502.02737", "bibliography.html#"),
        (TERM, None, "glossary.html#"),
    ],
)
def test_a_card_opens_under_the_pointer(chapter, link, start, page):
    """It stays while the pointer is on it, and leads on; nothing is said twice."""
    tab = chapter()
    assert tab.locator(CARD).count() == 0
    tab.locator(link).hover()
    card = tab.locator(CARD)
    card.wait_for()
    assert tab.locator(link).get_attribute("title") is None
    addresses = card.locator("a").evaluate_all("links => links.map(link => link.href)")
    assert page in addresses[-1]
    assert addresses[:-1] == ([start] if start else [])
    assert len(card.inner_text()) > 40
    card.hover()
    tab.wait_for_timeout(500)
    assert card.is_visible()
    assert barriers(tab) == []
    tab.mouse.move(5, 5)
    card.wait_for(state="detached")


def test_a_card_opens_with_the_keyboard_s_focus(chapter):
    """Tab goes from a link into its card; Escape closes it."""
    tab = chapter()
    link = tab.locator(CITATION)
    link.focus()
    tab.locator(CARD).wait_for()
    tab.keyboard.press("Tab")
    inside = "document.activeElement.closest('.link-card') !== null"
    assert tab.evaluate(inside)
    link.focus()
    tab.keyboard.press("Escape")
    assert tab.locator(CARD).count() == 0
    tab.locator(TERM).focus()
    tab.locator(CARD).wait_for()
    tab.keyboard.press("Shift+Tab")
    tab.locator(f"{TERM} >> xpath=following-sibling::*[1][@popover]").wait_for(
        state="detached"
    )


def test_a_card_opens_at_a_first_touch(chapter):
    """The page stays; a touch elsewhere closes it, a second one follows the link."""
    tab = chapter(has_touch=True)
    address = tab.url
    tab.locator(TERM).tap()
    tab.locator(CARD).wait_for()
    assert tab.url == address
    tab.locator(".bd-article h1").tap()
    tab.locator(CARD).wait_for(state="detached")
    tab.locator(TERM).tap()
    tab.locator(CARD).wait_for()
    tab.locator(TERM).tap()
    tab.wait_for_url("**/glossary.html#*")


def test_without_scripts_a_link_has_a_title(site):
    text = (site / "chapters" / "zero_shot.html").read_text(encoding="utf-8")
    links = [a for a in Page(text).of("a") if "bibliography.html#" in a.get("href", "")]
    assert links
    assert all(len(link["title"]) > 40 for link in links)
