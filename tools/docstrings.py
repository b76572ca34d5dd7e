"""An extension of griffe, which reads the code for the site: prepares docstrings.

Marks examples as code. A public name without a docstring gives a warning, which fails a strict
build.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Alias, AliasResolutionError, Extension, Module, Object, get_logger

LOG = get_logger("docstrings")
EXAMPLE = re.compile(r"^>>> .*?(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)


class Docstrings(Extension):
    """Checks every docstring, and every name of ``__all__`` and of the modules in it."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Puts fences around examples, which Markdown would read as quotations."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Warns of public names without docstrings."""
        public = members(pkg)
        for module in [found for found in public if found.is_module]:
            public += members(module)
        for found in public:
            if not found.has_docstring:
                LOG.warning("%s has no docstring", found.path)


def members(module: Object | Alias) -> list[Object | Alias]:
    """The names that a module exports and this package defines, not those from torch."""
    names = [name for name in module.exports or () if isinstance(name, str)]
    return [module[name] for name in names if name in module.members and is_ours(module[name])]


def is_ours(found: Object | Alias) -> bool:
    """Whether the definition can be found in the package."""
    try:
        return bool(found.canonical_path)
    except AliasResolutionError:
        return False
