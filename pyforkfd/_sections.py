"""Blocks in which descriptors are changed or half made, under the fork lock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from . import _core
from ._checks import as_fd
from ._types import HasFileno


@contextmanager
def no_forks() -> Iterator[None]:
    """Exclude :func:`fork` and its kin for the time of a ``with`` block.

    For code that makes a descriptor in more than one step, such as a C library that opens
    without O_CLOEXEC and marks afterwards.  Many threads may be in such blocks at once; the
    fork lock is held shared.  Meanwhile :func:`fork`, :func:`inheriting` and
    :func:`redirected` of other threads wait; within the block they raise.  Forks of other
    code, os.fork included, do not wait: at-fork handlers run with locks of others held, so
    to wait there would deadlock.

    Raises:
        OSError: EDEADLK, raised by those three within the block.
    """
    _core.lock_fork_lock(False)
    try:
        yield
    finally:
        _core.unlock_fork_lock(False)


@contextmanager
def inheriting(*fds: int | HasFileno) -> Iterator[None]:
    """Clear FD_CLOEXEC for the time of a ``with`` block, for code that spawns on its own.

    At its end each mark is what it was, also after an error; a descriptor that is closed in
    the block is left alone.  If one of them is not open, none is changed.

    Meanwhile no other thread's :func:`spawn` with ``close_others=False`` and no
    :func:`fork` starts a child that would get them: the fork lock is held.  The thread that
    holds it may spawn and fork, and nest such blocks.  Do not wait in the block for another
    thread that does so.  Strict spawns (the default) need no lock and pass on nothing but
    their map.  A child that other code forks meanwhile in another thread, be it in C, has
    the marks set again before it runs; vfork(2) and posix_spawn(3) of other code are not
    noticed, and pass the descriptors on.

    Args:
        fds: descriptors; borrowed.

    Raises:
        OSError: EBADF, one is not open; EDEADLK, within :func:`no_forks`.
    """
    numbers = [as_fd(fd, "inheriting") for fd in fds]
    with _section(lambda: _core.FdSection(numbers)):
        yield


@contextmanager
def redirected(
    fds: Mapping[int, int | HasFileno], *, in_: Literal["both", "parent", "child"] = "both"
) -> Iterator[None]:
    """Put other descriptors at some numbers for the time of a ``with`` block.

    As by dup2(2), but all at once: ``{1: 2, 2: 1}`` swaps.  At the end of the block, however
    it ends, each number is what it was: the open file, its close-on-exec mark, or closed.
    The duplicates are not close-on-exec, as with dup2.

    The fork lock is held, so other threads' :func:`fork` and :func:`spawn` with
    ``close_others=False`` wait; and a child that other code forks meanwhile in another
    thread, be it in C, gets all descriptors as they were.  vfork(2) and posix_spawn(3) of
    other code are not noticed, and get the descriptors as they are.  Threads share
    descriptors: other threads of this process see the change.

    Buffers of Python's files are not flushed: flush ``sys.stdout`` before and in the block.
    The end of the block in a child ends the section there.

    Args:
        fds: number to descriptor; borrowed, and duplicated for the time of the block, so
            they may be closed in it.
        in_: the processes: ``"both"``: this one, and so the children that this thread forks
            in the block; ``"parent"``: this one, while those children get the descriptors as
            they were; ``"child"``: those children only.

    Raises:
        ValueError: a number is negative, or ``in_`` is none of the three.
        OSError: EBADF, a descriptor is not open or a number not below RLIMIT_NOFILE; EMFILE;
            EDEADLK, within :func:`no_forks`.  Nothing has changed then.  At the end: one of
            our duplicates was closed by other code, so that number could not be restored.
    """
    if in_ not in ("both", "parent", "child"):
        raise ValueError(f"redirected: in_={in_!r} is none of 'both', 'parent', 'child'")
    redirect = [(_number(number), as_fd(fd, "redirected")) for number, fd in fds.items()]
    with _section(lambda: _core.FdSection(redirect, in_ != "child", in_ != "parent")):
        yield


@contextmanager
def _section(begin: Callable[[], _core.FdSection]) -> Iterator[None]:
    """Change descriptors for the time of a ``with`` block, under the fork lock."""
    _core.lock_fork_lock(True)
    try:
        section = begin()
        try:
            yield
        finally:
            section.end()
    finally:
        _core.unlock_fork_lock(True)


def _number(number: int) -> int:
    if number < 0:
        raise ValueError(f"redirected: {number} is not a descriptor")
    return number
