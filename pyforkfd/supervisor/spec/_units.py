"""What a file may write instead of a plain number: durations, sizes, names of signals."""

from __future__ import annotations

import re
import resource
import signal

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

RLIMITS = {
    name.removeprefix("RLIMIT_"): getattr(resource, name)
    for name in dir(resource)
    if name.startswith("RLIMIT_")
}
"""Name without RLIMIT_ -> number of the resource."""
UNLIMITED = -1
"""As a limit: none, resource.RLIM_INFINITY."""


def seconds(text: str) -> float:
    """``"1m30s"`` -> 90.0."""
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)\s*(us|ms|min|s|m|h|d)\s*", text)
    if not parts or not re.fullmatch(
        r"(?:\s*[0-9]+(?:\.[0-9]+)?\s*(?:us|ms|min|s|m|h|d)\s*)+", text
    ):
        raise ValueError(f'"{text}" is no duration: write seconds, or "500ms", "30s", "5m", "2h"')
    return float(sum(float(number) * _SECONDS[unit] for number, unit in parts))


def size(text: str) -> int:
    """``"512M"`` -> 536870912; K, KB and KiB are all 1024."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.I)
    if not match:
        raise ValueError(f'"{text}" is no size: write bytes, or "64K", "512M", "2G"')
    return int(float(match[1]) * _BYTES[match[2].upper()])


def limit(text: str) -> int:
    """A size, or ``"unlimited"``."""
    return UNLIMITED if text.strip().lower() in ("unlimited", "infinity") else size(text)


def signal_number(text: str) -> int:
    """``"SIGTERM"`` or ``"TERM"`` -> 15; ``"SIGRTMIN+3"`` as kill(1) has it."""
    name, plus, above = text.upper().partition("+")
    name = name if name.startswith("SIG") else f"SIG{name}"
    try:
        number = signal.Signals[name].value + (int(above) if plus else 0)
    except (KeyError, ValueError):
        raise ValueError(f'there is no signal "{text}"') from None
    if plus and not (name == "SIGRTMIN" and number <= signal.SIGRTMAX):
        raise ValueError(f'there is no signal "{text}"')
    return number


def rlimit_number(name: str) -> int:
    """``"NOFILE"``, ``"nofile"`` or ``"RLIMIT_NOFILE"`` -> number of the resource."""
    try:
        return int(RLIMITS[name.upper().removeprefix("RLIMIT_")])
    except KeyError:
        raise ValueError(f'there is no resource limit "{name}"') from None
