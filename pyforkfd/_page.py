"""A page of slots that a supervisor and its workers share: heartbeats and counters."""

from __future__ import annotations

import errno
import os

from ._closing import Closing
from ._core import PageMapping, Slot, SlotSnapshot, create_page, set_cloexec
from ._errors import PageError
from ._fd import Fd

__all__ = ["SharedPage", "Slot", "SlotSnapshot"]


class SharedPage(Closing):
    """A sealed memfd of cache lines, one per worker, which all processes that have it map.

    The supervisor makes it by :meth:`create` and passes the descriptor on, ``spawn(...,
    fds={5: page})``; the worker calls ``SharedPage(5).slot(3)``.  Workers write and the
    supervisor reads, without waiting for one another.  Its size cannot change
    (F_SEAL_SHRINK, F_SEAL_GROW, fcntl(2)), so no access is ever a SIGBUS.  A process that has
    the descriptor may write to every slot: workers that do not trust one another need pages
    of their own.

    A context manager; safe to use from many threads.  Linux 3.17.
    """

    __slots__ = ("_fd", "_mapping")

    def __init__(self, fd: int) -> None:
        """Adopt the descriptor of a page, once it has proved to be one.

        Args:
            fd: the descriptor; taken (made close-on-exec) on success, left as it was on an
                error.

        Raises:
            PageError: the descriptor is no page, or one of another version; the message
                names what it is.
        """
        self._mapping = _map(fd)
        set_cloexec(fd, True)
        self._fd = Fd(fd)

    @classmethod
    def create(cls, slots: int) -> SharedPage:
        """Make a page, whose slots are all free.

        Args:
            slots: number of slots, 1 to 65,536; 64 bytes each.

        Raises:
            ValueError: a page cannot have so many.
            OSError: memfd_create(2) or fallocate(2) failed.
        """
        if not 0 <= slots < 2**32:
            raise ValueError(f"SharedPage.create: slots={slots} is not 1 to 65536")
        fd = create_page(slots)
        try:
            return cls(fd)
        except BaseException:
            os.close(fd)
            raise

    def fileno(self) -> int:
        """Return the descriptor's number; it stays this object's.

        Raises:
            ValueError: the page is closed.
        """
        return self._fd.fileno()

    def __len__(self) -> int:
        """Return the number of slots."""
        return len(self._mapping)

    def slot(self, index: int) -> Slot:
        """Return one slot, which may be used after the page is closed.

        Args:
            index: 0 to ``len(page) - 1``.

        Raises:
            IndexError: there is no such slot.
        """
        if index < 0:
            raise IndexError(f"slot {index} of {len(self)}")
        return self._mapping.slot(index)

    def snapshots(self) -> list[SlotSnapshot]:
        """Read every slot, in order, by one native call."""
        return self._mapping.snapshots()

    @property
    def generation(self) -> int:
        """The service's current generation, which the supervisor sets and workers read."""
        return self._mapping.generation

    @generation.setter
    def generation(self, value: int) -> None:
        self._mapping.generation = value

    def close(self) -> None:
        """Close the descriptor; the memory stays as long as a slot or this object exists."""
        self._fd.close()


def _map(fd: int) -> PageMapping:
    if isinstance(fd, bool) or not isinstance(fd, int):
        raise TypeError(f"SharedPage: {fd!r} is not a descriptor number")
    if not 0 <= fd < 2**31:
        raise PageError(errno.EBADF, fd, "is not open")
    try:
        return PageMapping(fd)
    except ValueError as error:
        raise PageError(errno.EINVAL, fd, str(error)) from None
    except OSError as error:
        reason = "is not open" if error.errno == errno.EBADF else f"cannot be mapped: {error}"
        raise PageError(error.errno or errno.EINVAL, fd, reason) from None
