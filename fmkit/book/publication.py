"""A Sphinx extension: what makes the pages a publication that can be found and cited.

Authors, version, date and keywords come from ``CITATION.cff`` alone, the address of
the site and that of the repository from ``_config.yml``. The licences are written here
and in ``templates/publication.html``. Where an address is empty, nothing is made up:
the pages say that there is none.
"""

import datetime
import html
import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

from fmkit.assets.catalogue import ASSETS

FILE = "CITATION.cff"
COVER = "images/cover.png"
MARK = "images/mark.svg"  # logo and icon
TEMPLATES = Path(__file__).with_name("templates")
TEXT_LICENCE = "https://creativecommons.org/licenses/by/4.0/"
NO_REPOSITORY = """\
This copy of the book names no repository. Where it is published with one, set as \
`repository.url` in `_config.yml`, links to the source and to its issues are here, and \
every chapter has buttons that open its source or start it in Colab or on Binder."""


@dataclass(frozen=True)
class Publication:
    """What the book is called, who wrote it, which version it is, where it lies."""

    title: str = ""
    abstract: str = ""
    authors: tuple[str, ...] = ()
    groups: frozenset[str] = frozenset()  # of the authors, those that are not persons
    version: str = ""
    date: str = ""  # ISO 8601
    keywords: tuple[str, ...] = ()
    site: str = ""  # address, with a slash at its end
    repository: str = ""

    @property
    def by(self) -> str:
        """Return the authors as a line of text."""
        return ", ".join(self.authors)


def read_publication(path: Path, *, site: str, repository: str) -> Publication:
    """Read what ``CITATION.cff`` says; without the file only addresses are known."""
    site = f"{site.rstrip('/')}/" if site else ""
    repository = repository.rstrip("/")
    if not path.is_file():
        return Publication(site=site, repository=repository)
    said = yaml.safe_load(path.read_text(encoding="utf-8"))
    released = said["date-released"]
    if isinstance(released, datetime.date):
        released = released.isoformat()
    return Publication(
        title=said["title"],
        abstract=said["abstract"],
        authors=tuple(map(_name, said["authors"])),
        groups=frozenset(a["name"] for a in said["authors"] if "name" in a),
        version=str(said["version"]),
        date=released,
        keywords=tuple(said.get("keywords", ())),
        site=site,
        repository=repository,
    )


def _name(author: dict[str, str]) -> str:
    """Return the name of a person or of a group as CITATION.cff gives it."""
    if "name" in author:
        return author["name"]
    parts = ("given-names", "name-particle", "family-names", "name-suffix")
    return " ".join(author[part] for part in parts if part in author)


def bibtex(book: Publication) -> str:
    """Return the entry of the book for a bibliography in BibTeX."""
    key = re.sub(r"\W+", "_", book.title.lower()).strip("_")
    fields = {
        "title": book.title,
        "author": " and ".join(
            f"{{{name}}}" if name in book.groups or "," in name else name
            for name in book.authors
        ),
        "year": book.date[:4],
        "version": book.version,
        "url": book.site or book.repository,
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@book{{{key},", *lines, "}"])


def how_to_cite(book: Publication) -> str:
    """Write how to cite the book, in Markdown."""
    where = f", <{book.site}>" if book.site else ""
    by = book.by[:1].upper() + book.by[1:]
    sentence = f"{by} ({book.date[:4]}). *{book.title}*, version {book.version}"
    return f"{sentence}{where}.\n\n```bibtex\n{bibtex(book)}\n```\n"


def source_and_issues(book: Publication) -> str:
    """Write where the source is and where to report what is wrong, in Markdown."""
    if not book.repository:
        return NO_REPOSITORY
    link = f"[{book.repository.split('://')[-1]}]({book.repository})"
    issues = f"[issues]({book.repository}/issues)"
    return f"The source is {link}. Report what is wrong in its {issues}."


def data_and_weights() -> str:
    """Return a table of the assets with their licences and sources, in Markdown."""
    rows = [
        (asset.name, asset.what, asset.licence, asset.source)
        for asset in ASSETS.values()
    ]
    lines = ["| name | what it is | licence | source |", "|:--|:--|:--|:--|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def tags(book: Publication, title: str, page: str, *, kind: str) -> str:
    """Return the tags by which search engines and reference managers know a page.

    `kind` is the page's type in the vocabulary of schema.org: Book, Chapter or WebPage.
    """
    whole = {"@type": "Book", "name": book.title}
    address = f"{book.site}{page}.html" if book.site else ""
    linked = {
        "@context": "https://schema.org",
        "@type": kind,
        "name": title,
        "author": [
            {"@type": "Organization" if name in book.groups else "Person", "name": name}
            for name in book.authors
        ],
        "datePublished": book.date,
        "version": book.version,
        "inLanguage": "en",
        "license": TEXT_LICENCE,
        "isAccessibleForFree": True,
        "keywords": list(book.keywords),
        "description": book.abstract if kind == "Book" else "",
        "url": address,
        "image": f"{book.site}_static/cover.png" if book.site else "",
        "sameAs": book.repository if kind == "Book" else "",
        "isPartOf": {} if kind == "Book" else whole | _given(url=book.site),
    }
    highwire = [("citation_title", title)]
    highwire += [("citation_author", name) for name in book.authors]
    highwire += [("citation_publication_date", book.date.replace("-", "/"))]
    highwire += [("citation_language", "en")]
    highwire += [("citation_inbook_title", book.title)] * (kind == "Chapter")
    highwire += [("citation_public_url", address)] * bool(address)
    lines = [_meta(name, value) for name, value in highwire]
    text = json.dumps(_given(**linked), ensure_ascii=False).replace("</", "<\\/")
    return "\n".join([*lines, f'<script type="application/ld+json">{text}</script>'])


def _given(**fields: object) -> dict[str, object]:
    """Return the fields that have a value."""
    return {name: value for name, value in fields.items() if value}


def _meta(name: str, value: str) -> str:
    return f'<meta name="{name}" content="{html.escape(value)}"/>'


def _configure(app: Sphinx, config: Config) -> None:
    """Pass on what the file says to the settings of Sphinx and of its extensions."""
    source = Path(app.srcdir)
    book = read_publication(
        source / FILE,
        site=config.html_baseurl or "",
        repository=config.html_theme_options.get("repository_url", ""),
    )
    config.fmkit_publication = book
    config.html_baseurl = config.ogp_site_url = book.site
    config.templates_path = [*config.templates_path, str(TEMPLATES)]
    said = {"data_and_weights": data_and_weights()}
    if book.title:
        config.author, config.release = book.by, book.version
        said["how_to_cite"] = how_to_cite(book)
        said["source_and_issues"] = source_and_issues(book)
    config.myst_substitutions = config.myst_substitutions | said
    if (source / MARK).is_file():
        config.html_favicon = MARK
        images = dict.fromkeys(("image_light", "image_dark"), MARK)
        logo = images | {"text": config.html_title, "alt_text": "Front page"}
        config.html_theme_options["logo"] = logo
    if (source / COVER).is_file():
        config.html_static_path = [*config.html_static_path, COVER]


def _add_tags(
    app: Sphinx, page: str, template: str, context: dict, document: nodes.document
) -> None:
    """Add a page's tags, and repair those of other extensions."""
    book = app.config.fmkit_publication
    context["publication"] = book
    found = context.get("metatags", "")
    found = re.sub(r'<meta name="viewport"[^>]*>', "", found)  # the theme has its own
    if not book.site:  # then these would be no addresses
        found = re.sub(r'<meta property="og:url"[^>]*>\n?', "", found)
        cover = context["pathto"]("_static/cover.png", resource=True)
        found = re.sub(r'(property="og:image" content=")[^"]*', rf"\1{cover}", found)
    if page == app.config.root_doc and book.abstract:  # not the caption of the cover
        description = r'((?:property="og:|name=")description" content=")[^"]*'
        said = html.escape(book.abstract)
        found = re.sub(description, lambda match: match[1] + said, found)
    context["metatags"] = found
    if document is not None and book.title:
        kind = "Chapter" if app.env.doc2path(page).endswith(".ipynb") else "WebPage"
        kind = "Book" if page == app.config.root_doc else kind
        title = app.env.titles[page].astext()
        context["metadata"] = tags(book, title, page, kind=kind)


def _write_robots(app: Sphinx, error: Exception | None) -> None:
    """Let every robot in, and tell it where the map of the site is if there is one."""
    if error is None and app.builder.name == "html":
        lines = ["User-agent: *", "Allow: /"]
        if app.config.html_baseurl:
            lines += [f"Sitemap: {app.config.html_baseurl}sitemap.xml"]
        text = "\n".join(lines) + "\n"
        (Path(app.outdir) / "robots.txt").write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx, which calls this if ``_config.yml`` names the module."""
    app.add_config_value("fmkit_publication", Publication(), "", [Publication])
    app.connect("config-inited", _configure)
    app.connect("html-page-context", _add_tags, priority=800)
    app.connect("build-finished", _write_robots)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
