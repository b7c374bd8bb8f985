"""Our engine installed under the standard modules of the process, and removed again."""

from __future__ import annotations

import _posixsubprocess
import os
import posix
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ._posix_spawn import posix_spawn, posix_spawnp
from ._seams import (
    STOCK_EXECUTE_CHILD,
    STOCK_FORK_EXEC,
    UnknownInterpreterError,
    demand_known,
    execute_child,
    fork_exec,
)

# A builtin does not become a method where a class has it as an attribute; nor may this.
_FORK_EXEC = staticmethod(fork_exec)

# The owner, the name, the stock function, ours.
_SEAMS: tuple[tuple[Any, str, Any, Any], ...] = (
    (subprocess.Popen, "_execute_child", STOCK_EXECUTE_CHILD, execute_child),
    (_posixsubprocess, "fork_exec", STOCK_FORK_EXEC, _FORK_EXEC),
    (os, "posix_spawn", os.posix_spawn, posix_spawn),
    (os, "posix_spawnp", os.posix_spawnp, posix_spawnp),
    (posix, "posix_spawn", posix.posix_spawn, posix_spawn),
    (posix, "posix_spawnp", posix.posix_spawnp, posix_spawnp),
)
_lock = threading.Lock()
_depth = 0
_forks_are_watched = False  # a hook that has nothing to do costs every fork page faults


def _watch_forks() -> None:
    """Hold the lock in forks: the child has only the thread that forked, which releases it."""
    global _forks_are_watched
    if not _forks_are_watched:
        os.register_at_fork(
            before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
        )
        _forks_are_watched = True


def _demand(position: int, advice: str) -> None:
    for seam in _SEAMS:
        found = vars(seam[0]).get(seam[1])
        if found is not seam[position]:
            raise UnknownInterpreterError(
                f"{seam[0].__name__}.{seam[1]} is {found!r}, which another library or test "
                f"has put there: {advice}"
            )


def install() -> None:
    """Put our engine under subprocess, asyncio, multiprocessing and os.posix_spawn.

    For the whole process, third-party code included; only names that were imported before
    (``from os import posix_spawn``) stay as they were.  Behaviour and errors are the same;
    the child starts as :meth:`Command.spawn` starts it.  ``preexec_fn`` is delegated to the
    standard path with a :class:`PreexecFnWarning`.  Calls are counted: as many
    :func:`uninstall` undo it.  Safe from many threads, also while others start children.

    Raises:
        UnknownInterpreterError: this Python starts children in a way that is not known here,
            or another library has replaced its functions; nothing was changed.
    """
    global _depth
    with _lock:
        if _depth == 0:
            demand_known()
            _watch_forks()
            _demand(2, "install() would undo that")
            for owner, name, _, ours in _SEAMS:
                setattr(owner, name, ours)
        _depth += 1


def uninstall() -> None:
    """Undo one :func:`install`; the last one restores the very objects that were there.

    Raises:
        RuntimeError: there is no install() to undo.
        UnknownInterpreterError: other code has replaced our functions since; nothing was
            changed.
    """
    global _depth
    with _lock:
        if _depth == 0:
            raise RuntimeError("uninstall() without install()")
        if _depth == 1:
            _demand(3, "it must go before uninstall()")
            for owner, name, stock, _ in _SEAMS:
                setattr(owner, name, stock)
        _depth -= 1


@contextmanager
def installed() -> Iterator[None]:
    """Call :func:`install` for the time of a ``with`` block; blocks may nest and overlap."""
    install()
    try:
        yield
    finally:
        uninstall()
