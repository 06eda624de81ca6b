"""A Sphinx extension: show all that a module offers, from its docstrings.

In a page ``.. contents-of:: fmkit.losses`` shows the docstring of the module, a table
of its public functions and classes, and each of these with its signature.
"""

import importlib
import inspect
from types import ModuleType

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def public(module: ModuleType) -> dict[str, object]:
    """Return what a module itself defines and documents, in its order, by full name.

    These are functions and classes whose names do not begin with an underscore.
    """
    return {
        f"{module.__name__}.{name}": value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    }


def source_of(module: ModuleType) -> list[str]:
    """Return the reStructuredText that shows a module, line by line."""
    members = public(module)
    lines = [f".. automodule:: {module.__name__}", ""]
    lines += [".. autosummary::", "   :nosignatures:", ""]
    lines += [f"   {value.__name__}" for value in members.values()]
    for name, value in members.items():
        if inspect.isclass(value):
            lines += ["", f".. autoclass:: {name}", "   :members:"]
        else:
            lines += ["", f".. autofunction:: {name}"]
    return lines


class ContentsOf(SphinxDirective):
    """The directive ``contents-of``, whose argument is the name of a module."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the nodes of the page."""
        lines = source_of(importlib.import_module(self.arguments[0]))
        source, _ = self.get_source_info()
        shown = nodes.container()
        self.state.nested_parse(StringList(lines, source), self.content_offset, shown)
        return shown.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive; Sphinx calls this if ``_config.yml`` names the module."""
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx.ext.autosummary")
    app.add_directive("contents-of", ContentsOf)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
