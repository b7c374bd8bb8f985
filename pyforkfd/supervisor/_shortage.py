"""Shortages of the supervisor itself: the errors that pass, and its limit of descriptors."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from resource import RLIMIT_NOFILE, getrlimit, setrlimit

log = logging.getLogger("pyforkfd.supervisor")

VARIABLE = "FORKFD_NOFILE"
"""The soft limit that a supervisor was started with, for a successor that has it raised."""

_PASSING = frozenset(
    {
        *(errno.EMFILE, errno.ENFILE, errno.ETOOMANYREFS),  # descriptors
        *(errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC),  # memory, watches of epoll, cgroups
        errno.EAGAIN,  # processes: RLIMIT_NPROC, pids.max, kernel.pid_max
    }
)
_MOST_RESERVED = 32

# The limit is the process's, so this is too.  None: not raised.
_original: int | None = None


def is_shortage(error: BaseException) -> bool:
    """Return whether an error is a shortage that may pass: nothing is to be concluded from it."""
    return isinstance(error, OSError) and error.errno in _PASSING


@contextmanager
def raised_limit() -> Iterator[None]:
    """Raise the soft limit of descriptors to the hard one, until the block ends.

    Children get the former soft limit by :func:`child_limits`; a program that is executed in
    our place gets it by :func:`environment`.
    """
    global _original
    soft, hard = getrlimit(RLIMIT_NOFILE)
    before = os.environ.pop(VARIABLE, "")
    _original = int(before) if before.isascii() and before.isdecimal() else soft
    try:
        setrlimit(RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # above fs.nr_open, which was lowered since
        log.warning("RLIMIT_NOFILE: stays at %d: %s", soft, error)
    try:
        yield
    finally:
        setrlimit(RLIMIT_NOFILE, (_original, hard))
        _original = None


def child_limits() -> dict[int, tuple[int, int]]:
    """Return the limits for a child, as an option of a spawn; none where nothing was raised."""
    if _original is None:
        return {}
    return {RLIMIT_NOFILE: (_original, getrlimit(RLIMIT_NOFILE)[1])}


def environment() -> dict[str, str]:
    """Return the variable for a program that is executed in our place."""
    return {} if _original is None else {VARIABLE: str(_original)}


def reserve(limit: int) -> int:
    """Return how many descriptors of a limit are not for workers."""
    return min(_MOST_RESERVED, limit // 8)


@contextmanager
def reserved(share: float = 1.0) -> Iterator[None]:
    """Leave the reserve alone in the block: what would need it fails with EMFILE.

    So workers cannot take the descriptors by which requests are received, logs reopened and
    files of /proc read.  It has no effect where the limit was not raised.

    Args:
        share: of the reserve; less than 1 for clients, which come after workers.
    """
    if _original is None:
        yield
        return
    soft, hard = getrlimit(RLIMIT_NOFILE)
    setrlimit(RLIMIT_NOFILE, (soft - round(reserve(soft) * share), hard))
    try:
        yield
    finally:
        setrlimit(RLIMIT_NOFILE, (soft, hard))
