"""``package.module:function``: a function by its name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from ._checks import show


def is_target(text: object) -> bool:
    """Return whether a text has the form ``package.module:function``."""
    if not isinstance(text, str):
        return False
    module, colon, function = text.partition(":")
    return bool(colon) and all(
        part.isidentifier() for part in (*module.split("."), *function.split("."))
    )


def demand_target(text: str, name: str) -> None:
    """Raise a ValueError unless a text has the form ``package.module:function``.

    Args:
        text: the target.
        name: the option that has it, for the message.
    """
    if not is_target(text):
        raise ValueError(f"{name}: {show(text)} is not 'package.module:function'")


def module_of(target: str) -> str:
    """Return the module's part of ``package.module:function``."""
    return target.partition(":")[0]


def resolve(target: str) -> Callable[..., Any]:
    """Import a module and return a function of it.

    Args:
        target: ``package.module:function``, or ``package.module:name.of.function``.

    Raises:
        ImportError, AttributeError: there is no such module or function; or what the module
            raises while it is imported.
    """
    module, _, names = target.partition(":")
    found: Any = importlib.import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    function: Callable[..., Any] = found
    return function
