"""One descriptor: who owns it, and whether a child gets it."""

from __future__ import annotations

import os
import warnings

from . import _core
from ._checks import as_fd
from ._closing import Closing
from ._types import HasFileno

_LAST = 2**32 - 1  # close_range(2): up to whatever is open


class Fd(Closing):
    """A descriptor that is owned: it is closed once, by this object or by nobody.

    The number given is taken: whoever had it must not close it.  Its close-on-exec mark
    stays as it is.  Everything that wants a descriptor or an object with ``fileno()``
    borrows it from here.  As a context manager it closes at the end.  One that is forgotten
    is closed, with a ResourceWarning.  Safe to use from many threads: of two that close or
    detach, one does.
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
        """The number; it stays this object's.

        Raises:
            ValueError: it is closed or detached.
        """
        try:
            return self._held[0]
        except IndexError:
            raise ValueError("the descriptor is closed or detached") from None

    def detach(self) -> int:
        """Give the number away: the caller owns it, and this object is as if closed.

        Raises:
            ValueError: it is closed or detached already.
        """
        number = self.fileno()
        try:
            return self._held.pop()
        except IndexError:  # another thread was faster
            raise ValueError(f"descriptor {number} is closed or detached") from None

    def close(self) -> None:
        """Close the descriptor; once closed or detached, do nothing.

        Raises:
            OSError: what close(2) says, EBADF if somebody else has closed it.  It is closed
                nevertheless, and not tried again.
        """
        try:
            number = self._held.pop()
        except IndexError:
            return
        os.close(number)

    @property
    def closed(self) -> bool:
        """It is closed, or detached."""
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
    """Whether a descriptor is marked FD_CLOEXEC, so that exec closes it: fcntl(F_GETFD).

    Args:
        fd: borrowed.

    Raises:
        OSError: EBADF, it is not open.
    """
    return _core.cloexec(as_fd(fd, "cloexec"))


def set_cloexec(fd: int | HasFileno, on: bool) -> None:
    """Mark a descriptor FD_CLOEXEC, or clear the mark: one fcntl(F_SETFD), so atomic.

    The mark belongs to the number, not to the open file: duplicates have their own.  To
    clear it just for a moment, use :func:`inheriting`.

    Args:
        fd: borrowed; O_PATH descriptors too.
        on: whether exec shall close it.

    Raises:
        OSError: EBADF, it is not open.
    """
    _core.set_cloexec(as_fd(fd, "set_cloexec"), on)


def close_range(
    first: int, last: int | None = None, *, cloexec: bool = False, unshare: bool = False
) -> None:
    """Close all descriptors from ``first`` to ``last``, or mark them.

    By close_range(2).  They are closed whoever owns them.  Where Linux (before 5.9; 5.11 for
    ``cloexec``) or a sandbox refuses the call, what /proc/thread-self/fd lists is closed or
    marked one by one: what another thread opens meanwhile may be missed.  As with the call,
    errors of the files are not reported.

    Args:
        first: the lowest number.
        last: the highest, included; None: all from ``first`` up.
        cloexec: mark them FD_CLOEXEC instead.
        unshare: the calling thread gets a table of its own first, unshare(CLONE_FILES), and
            only what is there is closed.

    Raises:
        ValueError: ``last`` is below ``first``, or either is no descriptor number.
        OSError: the call is refused, and so is what would replace it.
    """
    end = _LAST if last is None else last
    if not 0 <= first <= end <= _LAST:
        raise ValueError(f"close_range: {first} to {end} is not a range of descriptors")
    _core.close_range(first, end, cloexec, unshare)


def same_open_file(a: int | HasFileno, b: int | HasFileno) -> bool:
    """Whether two descriptors are one open file, and so share offset and status flags.

    As one is after dup(2), fork(2) or SCM_RIGHTS; not two times open(2) of one path.
    Asked of fcntl(F_DUPFD_QUERY) (Linux 6.10), else of kcmp(2).  Where a sandbox refuses
    both: different inodes or access modes are different files, and one socket is the same.

    Args:
        a: borrowed.
        b: borrowed.

    Raises:
        OSError: EBADF, one is not open; or kcmp's errno, where it is refused and inodes
            leave the question open.
    """
    return _core.same_open_file(as_fd(a, "same_open_file"), as_fd(b, "same_open_file"))
