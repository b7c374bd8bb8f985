"""Functions by name: ``package.module:function``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from ._checks import show

FORM = "package.module:function"


def is_entry_point(text: object) -> bool:
    """Return whether a text has the form ``package.module:function``; import nothing."""
    if not isinstance(text, str):
        return False
    module, colon, function = text.partition(":")
    return bool(colon) and all(
        part.isidentifier() for part in (*module.split("."), *function.split("."))
    )


def check_entry_point(text: str, option: str) -> None:
    """Refuse a text that names no function.

    Raises:
        ValueError: it has not the form ``package.module:function``.
    """
    if not is_entry_point(text):
        raise ValueError(f"{option}: {show(text)} is not {FORM!r}")


def find(text: str) -> Any:
    """Import the module that a text names, and return the object in it.

    Args:
        text: ``package.module:name``, ``package.module:class.name``; or ``package.module``,
            which is the module itself.

    Raises:
        ModuleNotFoundError: there is no such module; or it imports another that is missing.
        AttributeError: the module has no such name.
        Exception: the module raised it while it was imported.
    """
    name, _, path = text.partition(":")
    try:
        found: Any = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None:
            raise
        if f"{name}.".startswith(f"{error.name}."):  # the module, or a package that it is in
            reason = f"there is no module {error.name!r}"
        else:
            reason = f"module {name!r} imports {error.name!r}, and there is no such module"
        raise ModuleNotFoundError(reason, name=error.name, path=error.path) from error
    for part in path.split(".") if path else ():
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise AttributeError(f"module {name!r} has no attribute {path!r}") from error
    return found


def resolve(text: str) -> Callable[..., object]:
    """Import the module that a text names, and return the function in it.

    Raises:
        ValueError: the text has not the form ``package.module:function``.
        ModuleNotFoundError, AttributeError, Exception: as :func:`find`.
        TypeError: what it names cannot be called.
    """
    if not is_entry_point(text):
        raise ValueError(f"{text!r} is not {FORM!r}")
    found = find(text)
    if not callable(found):
        raise TypeError(f"{text!r} is of type {type(found).__name__!r}, which cannot be called")
    function: Callable[..., object] = found
    return function
