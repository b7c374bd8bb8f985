"""One descriptor: its ownership, and its close-on-exec mark."""

from __future__ import annotations

import os
import warnings

from . import _core
from ._checks import as_fd
from ._closing import Closing
from ._types import HasFileno

_LAST = 2**32 - 1  # close_range(2): up to whatever is open


class Fd(Closing):
    """A descriptor that is owned: no code but this object closes it.

    The number given is taken: its former owner must not close it.  Its close-on-exec mark
    stays as it is.  A function that takes a descriptor or an object with ``fileno()`` borrows
    it from here.  As a context manager it closes at the end.  One that is dropped while it is
    open is closed, with a ResourceWarning.  Safe to use from many threads: of two that close
    or detach, one does.
    """

    __slots__ = ("__weakref__", "_held")

    def __init__(self, fd: int) -> None:
        self._held: list[int] = []  # one number or none: list.pop() is atomic
        if isinstance(fd, bool) or not isinstance(fd, int):
            raise TypeError(f"Fd: {fd!r} is not a descriptor number")
        if fd < 0:
            raise ValueError(f"Fd: {fd} is not a descriptor")
        self._held.append(fd)

    def fileno(self) -> int:
        """Return the number; it stays this object's.

        Raises:
            ValueError: the descriptor is closed or detached.
        """
        try:
            return self._held[0]
        except IndexError:
            raise ValueError("the descriptor is closed or detached") from None

    def detach(self) -> int:
        """Give the number to the caller, who owns it then; this object is as if closed.

        Raises:
            ValueError: the descriptor is closed or detached already.
        """
        number = self.fileno()
        try:
            return self._held.pop()
        except IndexError:  # another thread was faster
            raise ValueError(f"descriptor {number} is closed or detached") from None

    def close(self) -> None:
        """Close the descriptor; do nothing if it is closed or detached.

        Raises:
            OSError: close(2) failed, with EBADF if other code has closed the number.  It is
                closed nevertheless, and not tried again.
        """
        try:
            number = self._held.pop()
        except IndexError:
            return
        os.close(number)

    @property
    def closed(self) -> bool:
        """Whether the descriptor is closed or detached."""
        return not self._held

    def __del__(self) -> None:
        if self._held:
            # Closed first: where warnings are errors, nothing after this one is run.
            text = f"{self!r} was forgotten: close it, detach it or use it as a context manager"
            try:
                self.close()
            finally:
                warnings.warn(text, ResourceWarning, source=self)

    def __repr__(self) -> str:
        return f"<Fd {self._held[0]}>" if self._held else "<Fd closed>"


def cloexec(fd: int | HasFileno) -> bool:
    """Return whether a descriptor is marked FD_CLOEXEC, so that exec closes it: fcntl(F_GETFD).

    Args:
        fd: the descriptor; borrowed.

    Raises:
        OSError: EBADF, the descriptor is not open.
    """
    return _core.cloexec(as_fd(fd, "cloexec"))


def set_cloexec(fd: int | HasFileno, on: bool) -> None:
    """Mark a descriptor FD_CLOEXEC, or clear the mark: one fcntl(F_SETFD), so atomic.

    The mark belongs to the number, not to the open file: duplicates have their own.  To
    clear it just for a moment, use :func:`inheriting`.

    Args:
        fd: the descriptor; borrowed; one of O_PATH too.
        on: whether exec shall close it.

    Raises:
        OSError: EBADF, the descriptor is not open.
    """
    _core.set_cloexec(as_fd(fd, "set_cloexec"), on)


def close_range(
    first: int, last: int | None = None, *, cloexec: bool = False, unshare: bool = False
) -> None:
    """Close all descriptors from ``first`` to ``last``, or mark them.

    By close_range(2).  They are closed whatever their owner.  Where Linux (before 5.9; 5.11
    for ``cloexec``) or a sandbox refuses the call, the descriptors that /proc/thread-self/fd
    lists are closed or marked one by one: one that another thread opens meanwhile may be
    missed.  As with the call, errors of the files are not reported.

    Args:
        first: the lowest number.
        last: the highest, included; None: all from ``first`` up.
        cloexec: mark them FD_CLOEXEC instead.
        unshare: the calling thread gets a table of its own first, unshare(CLONE_FILES), and
            only descriptors of that are closed.

    Raises:
        ValueError: ``last`` is below ``first``, or either is no descriptor number.
        OSError: the call is refused, and so is its replacement.
    """
    end = _LAST if last is None else last
    if not 0 <= first <= end <= _LAST:
        raise ValueError(f"close_range: {first} to {end} is not a range of descriptors")
    _core.close_range(first, end, cloexec, unshare)


def same_open_file(a: int | HasFileno, b: int | HasFileno) -> bool:
    """Return whether two descriptors are one open file, and so share offset and status flags.

    They are after dup(2), fork(2) or SCM_RIGHTS, but not after two calls of open(2) with one
    path.  Found by fcntl(F_DUPFD_QUERY) (Linux 6.10), else by kcmp(2).  Where a sandbox
    refuses both: different inodes or access modes are different files, and one socket is the
    same.

    Args:
        a: a descriptor; borrowed.
        b: another; borrowed.

    Raises:
        OSError: EBADF, one is not open; or kcmp's errno, where it is refused and inodes do
            not decide.
    """
    return _core.same_open_file(as_fd(a, "same_open_file"), as_fd(b, "same_open_file"))
