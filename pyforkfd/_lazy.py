"""Names of a package whose modules are imported at the first use."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

BORN = os.getpid()
"""The process that imported the package, though its loops may come later, in a child."""


def lazy(
    package: str, elsewhere: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the ``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: the name of the package.
        elsewhere: name -> the module of the package that defines it; with a dot at its end: the
            module that has this name.
    """

    def find(name: str) -> Any:
        if name not in elsewhere:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f".{elsewhere[name].rstrip('.')}", package)
        found = module if elsewhere[name].endswith(".") else getattr(module, name)
        setattr(sys.modules[package], name, found)  # the next access does not come here
        return found

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *elsewhere})

    return find, names
