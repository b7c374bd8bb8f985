"""Other processes, as /proc shows them."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def kill(pid: int) -> None:
    """SIGKILL, if it is still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def children(pid: int) -> set[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return {int(word) for word in text.split()}


def descendants(pid: int) -> set[int]:
    below = children(pid)
    return below.union(*(descendants(child) for child in below))


def alive(pid: int) -> bool:
    """It has not ended, whether or not it was reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat[stat.rindex(")") + 2] != "Z"


def descriptors(pid: int) -> dict[int, str]:
    """What a process has open, but for numbers that differ from one moment to the next."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            pass
    return found
