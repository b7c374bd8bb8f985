"""One check for each kind of value that an option takes.

Each returns the value in the form that the core takes, or raises a TypeError or ValueError
whose message begins with the option's name.  Code of the caller that runs meanwhile (an
iterator, ``fileno()``, ``__fspath__``) may fail as it likes: that becomes a ValueError too.
"""

from __future__ import annotations

import itertools
import math
import operator
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from ._types import PATHS, HasFileno, StrPath

MAX_INT = 2**31 - 1
"""The largest descriptor, process group or resource: C's int."""
UNCHANGEABLE = 1 << (signal.SIGKILL - 1) | 1 << (signal.SIGSTOP - 1)
"""SIGKILL and SIGSTOP as bits: their action is fixed, signal(7)."""
MOST_ITEMS = 1 << 20
"""More than any child can take: execve(2) refuses that many arguments."""
PYTHON_IGNORES = (signal.SIGPIPE, signal.SIGXFSZ)
"""The signals that Python ignores; a fresh program expects neither."""

PYTHON_IGNORES_BITS = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
_ENCODING = sys.getfilesystemencoding()
_SIGNALS = 64
# Iterable, some of them, but a value by themselves.
_NO_SEQUENCES = (str, bytes, bytearray, memoryview, os.PathLike, Mapping)


def show(value: object, write: Callable[[Any], str] = repr) -> str:
    """Return a short text for any value, for messages."""
    try:
        text = write(value)
    except Exception:  # its own repr() fails, or it is an int with too many digits for one
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 100 else f"{text[:97]}..."


def integer(
    value: object,
    name: str,
    least: int,
    most: int,
    kind: str,
    write: Callable[[int], str] = repr,
) -> int:
    """Return a whole number within bounds.

    Args:
        value: an int, or an object with ``__index__``; no bool.
        name: the option, for messages.
        least: the smallest.
        most: the largest.
        kind: what the number stands for, in messages: "is not {kind}".
        write: how messages write the number.
    """
    if type(value) is int:
        number = value
    else:
        try:
            if isinstance(value, bool):
                raise TypeError
            number = operator.index(value)  # type: ignore[arg-type]  # it raises what is meant
        except Exception:
            raise TypeError(f"{name}: {show(value)} is not {kind}: expected an int") from None
    if not least <= number <= most:
        raise ValueError(f"{name}: {show(number, write)} is not {kind}")
    return number


def seconds(value: object, name: str) -> float:
    """Return a time in seconds; it may be infinite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: {show(value)} is not a number of seconds")
    try:
        number = float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    if math.isnan(number):
        raise ValueError(f"{name}: {number} is not a number of seconds")
    return number


def flag(value: object, name: str) -> bool:
    """Return True or False; nothing else is one of them."""
    if value is True or value is False:
        return value
    raise TypeError(f"{name}: expected True or False, not {show(value)}")


def choice(value: object, name: str, choices: Collection[str]) -> str:
    """Return one of several words."""
    if isinstance(value, str) and value in choices:
        return value
    kind = ValueError if isinstance(value, str) else TypeError
    raise kind(f"{name}: {show(value)} is none of {', '.join(sorted(choices))}")


def text(value: StrPath, name: str) -> bytes:
    """Return a string as the kernel takes it: encoded, without a null byte."""
    try:
        if type(value) is str:  # os.fsencode() does the same, in more steps
            encoded = value.encode(_ENCODING, "surrogateescape")
        else:
            encoded = os.fsencode(value)
    except TypeError as error:
        raise TypeError(f"{name}: {error}: {show(value)}") from None
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: {show(value)} cannot be encoded: {error.reason}") from None
    except Exception as error:
        raise ValueError(f"{name}: {show(value)} has no path: {error!r}") from error
    if b"\0" in encoded:
        raise ValueError(f"{name}: null byte in {encoded!r}")
    return encoded


def path(value: StrPath, name: str) -> bytes:
    """Return the encoded name of a file, which is not empty."""
    encoded = text(value, name)
    if not encoded:
        raise ValueError(f"{name}: the path is empty")
    return encoded


def as_fd(source: int | HasFileno, name: str, *, otherwise: str = "") -> int:
    """Return the number of a borrowed descriptor.

    Args:
        source: the number, or an object with fileno().
        name: the option or operation, for messages.
        otherwise: what else the option may be, in messages.
    """
    if isinstance(source, int) and not isinstance(source, bool):
        fd = source
    else:
        try:
            fileno = source.fileno  # type: ignore[union-attr]  # a bool has none
        except Exception:
            raise TypeError(
                f"{name}: {show(source)} is neither a descriptor nor has a fileno(){otherwise}"
            ) from None
        try:
            fd = fileno()
        except Exception as error:
            raise ValueError(f"{name}: {show(source)} has no descriptor: {error}") from error
        if not isinstance(fd, int) or isinstance(fd, bool):
            raise TypeError(f"{name}: fileno() of {show(source)} returned {show(fd)}")
    if not 0 <= fd <= MAX_INT:
        closed = " (closed?)" if fd == -1 else ""
        raise ValueError(f"{name}: {show(fd)} is not a descriptor{closed}")
    return fd


def path_or_fd(value: StrPath | int | HasFileno, name: str) -> bytes | int:
    """Return an encoded path, or the number of a borrowed descriptor."""
    if isinstance(value, PATHS):
        return path(value, name)
    return as_fd(value, name, otherwise=" nor is a path")


def items(value: object, name: str, *, most: int = MOST_ITEMS) -> tuple[Any, ...]:
    """Return the items of an iterable; a string is none.

    Args:
        value: any iterable; it is read once.
        name: the option, for messages.
        most: how many there may be: an endless iterator has more.
    """
    if type(value) is tuple:
        return value
    if type(value) is list:
        return tuple(value)
    if isinstance(value, _NO_SEQUENCES):
        raise TypeError(f"{name}: a sequence is wanted, not {show(value)}: try [{show(value)}]")
    try:
        iterator = iter(value)  # type: ignore[call-overload]  # it raises what is meant
    except Exception:
        raise TypeError(f"{name}: a sequence is wanted, not {show(value)}") from None
    try:
        found = tuple(itertools.islice(iterator, most + 1))
    except Exception as error:
        raise ValueError(f"{name}: reading the sequence failed: {error!r}") from error
    if len(found) > most:
        raise ValueError(f"{name}: more than {most} items")
    return found


def pairs(value: object, name: str) -> list[tuple[Any, Any]]:
    """Return the items of a mapping."""
    if type(value) is dict:
        return list(value.items())
    try:
        items_of: Callable[[], Any] = value.items  # type: ignore[attr-defined]  # or it has none
        if isinstance(value, type):
            raise TypeError
    except Exception:
        raise TypeError(f"{name}: a mapping is wanted, not {show(value)}") from None
    try:
        return [(key, item) for key, item in items_of()]
    except Exception as error:
        raise ValueError(f"{name}: reading the mapping failed: {error!r}") from error


def signum(value: object, name: str) -> int:
    """Return the number of a signal."""
    if isinstance(value, str):
        named = value.upper() if value.upper().startswith("SIG") else f"SIG{value.upper()}"
        advice = f": write signal.{named}" if hasattr(signal, named) else ": expected an int"
        raise TypeError(f"{name}: {show(value)} is not a signal{advice}")
    return integer(value, name, 1, _SIGNALS, "a signal")


def signal_bits(signals: Iterable[int], name: str) -> int:
    """Return signals as the kernel's set of them, of 64 bits."""
    if signals is PYTHON_IGNORES:
        return PYTHON_IGNORES_BITS
    bits = 0
    for value in items(signals, name):
        bits |= 1 << (signum(value, name) - 1)
    return bits
