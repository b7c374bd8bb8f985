"""Units of options: how a file writes durations, sizes, limits, signals and permissions."""

from __future__ import annotations

import re
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from ._bounds import Bounds

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(us|ms|min|s|m|h|d)\s*")
_BYTES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_LONGEST = 60  # characters of a number with its unit: no pattern is tried on more
_YEAR = 365 * 86400  # seconds
_LARGEST = 2**50  # bytes; no machine has a memory or a disk for more

RLIMITS = {
    name.removeprefix("RLIMIT_"): getattr(resource, name)
    for name in dir(resource)
    if name.startswith("RLIMIT_")
}
"""Name without RLIMIT_ -> number of the resource."""
UNLIMITED = -1
"""The limit that means no limit, resource.RLIM_INFINITY."""


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit of an option's number.

    Attributes:
        name: a value in a file, "a duration".
        plain: the number in Python, "seconds".
        advice: the ways to write a value in a file.
        parse: a file's string -> the number, or None; None: a file writes no string.
        show: the number as a message writes it.
        most: the largest number of any option; None: the option has its own.
    """

    name: str
    plain: str
    advice: str
    parse: Callable[[str], float | None] | None = None
    show: Callable[[float], str] = "{:g}".format
    most: float | None = None

    def read(self, text: str) -> float:
        """Convert a string of a file into its number.

        Raises:
            ValueError: the string has no such value; the message ends with the advice.
        """
        number = None if self.parse is None or len(text) > _LONGEST else self.parse(text)
        if number is None:
            raise ValueError(self.refusal(f'"{text[:_LONGEST]}"'))
        return number

    def refusal(self, shown: str) -> str:
        """Return the message for a value that is none of this unit."""
        return f"{shown} is not {self.name}; write {self.advice}"


def _parse_duration(text: str) -> float | None:
    """Return the seconds of ``"1m30s"``, 90.0."""
    if not re.fullmatch(f"(?:{_DURATION.pattern})+", text):
        return None
    return float(sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(text)))


def _parse_size(text: str) -> int | None:
    """Return the bytes of ``"512M"``, 536870912; K, KB and KiB are all 1024."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.I)
    return int(float(match[1]) * _BYTES[match[2].upper()]) if match else None


def _parse_limit(text: str) -> int | None:
    """Return a size, or UNLIMITED of ``"unlimited"``."""
    return UNLIMITED if text.strip().lower() in ("unlimited", "infinity") else _parse_size(text)


def _parse_signal(text: str) -> int | None:
    """Return the number of ``"SIGTERM"`` or ``"TERM"``, 15; ``"SIGRTMIN+3"`` as in kill(1)."""
    name, plus, above = text.upper().partition("+")
    name = name if name.startswith("SIG") else f"SIG{name}"
    try:
        number = signal.Signals[name].value + (int(above) if plus else 0)
    except (KeyError, ValueError):
        return None
    return None if plus and not (name == "SIGRTMIN" and number <= signal.SIGRTMAX) else number


DURATION = Unit(
    "a duration",
    "seconds",
    'seconds, or "500ms", "30s", "5m", "2h"',
    _parse_duration,
    lambda number: f"{number / 86400:g}d" if number >= _YEAR else f"{number:g}",
    _YEAR,
)
SIZE = Unit(
    "a size",
    "bytes",
    'bytes, or "64K", "512M", "2G"',
    _parse_size,
    lambda number: f"{number / 2**40:g}T" if number >= _LARGEST else f"{number:.0f}",
    _LARGEST,
)
LIMIT = Unit("a limit", "a limit", 'a number, "64K", "512M", "2G" or "unlimited"', _parse_limit)
SIGNAL = Unit(
    "a signal", "a signal's number", 'a number, or "SIGTERM", "TERM", "SIGRTMIN+3"', _parse_signal
)
MODE = Unit(
    "permissions",
    "permissions",
    "them in octal, 0o660",
    show=lambda number: f"0o{int(number):o}" if number else "0",
)

Seconds: TypeAlias = Annotated[float, DURATION]
"""A duration; in a file also ``"500ms"``, ``"30s"``, ``"5m"``, ``"2h"``, ``"1d"``."""
Bytes: TypeAlias = Annotated[int, SIZE]
"""A size; in a file also ``"64K"``, ``"512M"``, ``"2G"``, in powers of 1024."""
Limit: TypeAlias = Annotated[int, LIMIT]
"""A resource limit, -1 is none; in a file also a size, or ``"unlimited"``."""
Signal: TypeAlias = Annotated[int, SIGNAL]
"""A signal's number; in a file also its name, ``"SIGTERM"``."""
Mode: TypeAlias = Annotated[int, MODE, Bounds(0, 0o777)]
"""Permissions, or a mask of them; a file writes them in octal, ``0o660``."""


def rlimit_number(name: str) -> int:
    """Return the number of a resource: ``"NOFILE"``, ``"nofile"`` or ``"RLIMIT_NOFILE"``.

    Raises:
        ValueError: no resource has this name.
    """
    try:
        return int(RLIMITS[name.upper().removeprefix("RLIMIT_")])
    except KeyError:
        raise ValueError(
            f'there is no resource limit "{name}"; write one of {", ".join(sorted(RLIMITS))}'
        ) from None
