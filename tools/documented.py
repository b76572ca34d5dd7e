"""An extension of griffe, which reads the code for the site: names without a docstring warn.

mkdocs counts warnings, and a strict build fails by them.
"""

from __future__ import annotations

from typing import Any

from griffe import Extension, Module, get_logger

LOG = get_logger("documented")


class Documented(Extension):
    """Looks at every name of ``__all__``, and at those of the modules among them."""

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Warns of what has no docstring."""
        public = [pkg[str(name)] for name in pkg.exports or ()]
        for module in [found for found in public if found.is_module]:
            public += [
                module[name] for name in map(str, module.exports or ()) if name in module.members
            ]
        for found in public:
            if not found.has_docstring:
                LOG.warning("%s has no docstring", found.path)
