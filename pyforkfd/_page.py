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

    The supervisor makes it by :meth:`create` and hands the descriptor on, ``spawn(...,
    fds={5: page})``; the worker says ``SharedPage(5).slot(3)``.  Workers write, the supervisor
    reads, and nobody waits for anybody.  Nobody can change its size (F_SEAL_SHRINK,
    F_SEAL_GROW, fcntl(2)), so no access is ever a SIGBUS.  Whoever has the descriptor may write
    to every slot: workers that do not trust one another need pages of their own.

    A context manager; safe to use from many threads.  Linux 3.17.
    """

    __slots__ = ("_fd", "_mapping")

    def __init__(self, fd: int) -> None:
        """Adopt the descriptor of a page, once it has proved to be one.

        Args:
            fd: taken (made close-on-exec) on success, left as it was on an error.

        Raises:
            PageError: it is no page, or one of another version; the message says what it is.
        """
        self._mapping = _map(fd)
        set_cloexec(fd, True)
        self._fd = Fd(fd)

    @classmethod
    def create(cls, slots: int) -> SharedPage:
        """A new page, whose slots nobody has.

        Args:
            slots: how many, 1 to 65,536; 64 bytes each.

        Raises:
            ValueError: so many cannot be.
            OSError: as memfd_create(2) and fallocate(2) say.
        """
        if not 0 <= slots < 2**32:
            raise ValueError(f"SharedPage.create: slots={slots} cannot be")
        fd = create_page(slots)
        try:
            return cls(fd)
        except BaseException:
            os.close(fd)
            raise

    def fileno(self) -> int:
        """The descriptor; it stays this object's.

        Raises:
            ValueError: the page is closed.
        """
        return self._fd.fileno()

    def __len__(self) -> int:
        """How many slots there are."""
        return len(self._mapping)

    def slot(self, index: int) -> Slot:
        """One slot; it may be used after the page is closed.

        Args:
            index: 0 to ``len(page) - 1``.

        Raises:
            IndexError: there is no such slot.
        """
        if index < 0:
            raise IndexError(f"slot {index} of {len(self)}")
        return self._mapping.slot(index)

    def snapshots(self) -> list[SlotSnapshot]:
        """What every slot says now, in order, by one native call."""
        return self._mapping.snapshots()

    @property
    def generation(self) -> int:
        """The service's current generation, for workers to see; the supervisor sets it."""
        return self._mapping.generation

    @generation.setter
    def generation(self, value: int) -> None:
        self._mapping.generation = value

    def close(self) -> None:
        """Close the descriptor; the memory stays for as long as a slot or this object does."""
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
