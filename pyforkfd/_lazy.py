"""Names of a package whose modules are imported at the first use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy(
    package: str, elsewhere: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the ``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: the name of the package.
        elsewhere: name -> the module of the package that defines it.
    """

    def find(name: str) -> Any:
        if name not in elsewhere:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f".{elsewhere[name]}", package), name)
        setattr(sys.modules[package], name, found)  # the next access does not come here
        return found

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *elsewhere})

    return find, names
