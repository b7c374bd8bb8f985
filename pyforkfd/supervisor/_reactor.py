"""Readiness, turned into calls: one epoll, and a callback for each descriptor."""

from __future__ import annotations

import math
import select
from collections.abc import Callable

from pyforkfd._closing import Closing

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT

_MOST_AT_ONCE = 64


class Reactor(Closing):
    """Calls whoever asked, in one thread.  A context manager."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}

    def add(self, fd: int, callback: Callable[[int], None], events: int = READABLE) -> None:
        """Call with what is there (READABLE, ...) whenever it is.

        Args:
            fd: borrowed; it must be removed before it is closed, or its open file would
                stay watched as long as any process has it, epoll(7).
            callback: must not block.
            events: what to wait for.

        Raises:
            OSError: as epoll_ctl(2) says: EEXIST for one that is there, EPERM for a file
                that is always ready.
        """
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def change(self, fd: int, events: int) -> None:
        """Wait for something else."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Call no more for it, not even for what was found already."""
        del self._callbacks[fd]
        self._epoll.unregister(fd)

    def run_once(self, timeout: float | None) -> None:
        """Wait for something, then call for all that is there.

        Args:
            timeout: seconds at most; None: as long as it takes.
        """
        # Rounded up, or the last millisecond before a deadline would be spent in circles.
        wait = -1.0 if timeout is None else math.ceil(max(0.0, timeout) * 1000) / 1000
        for fd, events in self._epoll.poll(wait, _MOST_AT_ONCE):
            # One call may remove the descriptor of the next.
            if (callback := self._callbacks.get(fd)) is not None:
                callback(events)

    def close(self) -> None:
        """Close the epoll; whatever was watched stays open."""
        self._epoll.close()
        self._callbacks.clear()
