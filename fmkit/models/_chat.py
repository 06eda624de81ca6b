"""Render chat templates as transformers does, for which they are written."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    """The tag ``generation``, around what a model wrote: its contents are kept."""

    tags = {"generation"}  # noqa: RUF012 (the base class has a set)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def rendered(
    template: str, messages: Sequence[Mapping[str, str]], **values: object
) -> str:
    """Return the text of a chat; `values` are the names that the template may use.

    Templates run in Jinja's sandbox, because they come from files. Whatever their code
    raises is raised.
    """
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    sandbox.filters["tojson"] = _json
    sandbox.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    # A template may ask whether these are none, which what is not defined is not
    absent = {"tools": None, "documents": None}
    return sandbox.from_string(template).render(messages=messages, **absent, **values)


def _json(value: object, **options: object) -> str:
    """Write characters as they are, where Jinja's own filter escapes them for HTML."""
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
