"""The reactor: one epoll, and a callback for each descriptor."""

from __future__ import annotations

import math
import select
import time
from collections.abc import Callable

from pyforkfd._closing import Closing

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT

_MOST_AT_ONCE = 64
_LONGEST_WAIT = 86400.0  # seconds


class Reactor(Closing):
    """Calls back when descriptors are ready, in one thread.  A context manager."""

    def __init__(self) -> None:
        """Make an empty epoll."""
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._resting: dict[int, float] = {}  # until when

    def add(self, fd: int, callback: Callable[[int], None], events: int = READABLE) -> None:
        """Watch a descriptor.

        Args:
            fd: borrowed; it must be removed before it is closed, or its open file would
                stay watched as long as any process has it, epoll(7).
            callback: called with the events that are there; must not block.
            events: to wait for: READABLE, WRITABLE or both.

        Raises:
            OSError: of epoll_ctl(2): EEXIST for a descriptor that is watched already, EPERM
                for a file that is always ready.
        """
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def change(self, fd: int, events: int) -> None:
        """Wait for other events of a descriptor."""
        self._epoll.modify(fd, events)

    def rest(self, fd: int, seconds: float) -> None:
        """Stop watching a descriptor for a while.

        For a listener whose connections cannot be accepted, as no descriptor is free: it would
        be ready all the time.

        Args:
            fd: watched for READABLE.
            seconds: until it is watched again.
        """
        self._epoll.modify(fd, 0)
        self._resting[fd] = time.monotonic() + seconds

    def __contains__(self, fd: int) -> bool:
        """Whether a descriptor is watched."""
        return fd in self._callbacks

    def remove(self, fd: int) -> None:
        """Stop watching a descriptor; events that were found already are dropped."""
        del self._callbacks[fd]
        self._resting.pop(fd, None)
        self._epoll.unregister(fd)

    def run_once(self, timeout: float | None) -> None:
        """Wait for events, then call back for all that are there.

        Args:
            timeout: seconds at most, and never more than a day; None: for ever.
        """
        if self._resting:
            timeout = self._wake(timeout)
        # Rounded up, or the last millisecond before a deadline would be spent in circles.
        # At most a day: epoll_wait(2) takes 24 days, and the caller looks at its clock anyway.
        wait = -1.0
        if timeout is not None:
            wait = math.ceil(min(max(0.0, timeout), _LONGEST_WAIT) * 1000) / 1000
        for fd, events in self._epoll.poll(wait, _MOST_AT_ONCE):
            # One call may remove the descriptor of the next.
            if (callback := self._callbacks.get(fd)) is not None:
                callback(events)

    def _wake(self, timeout: float | None) -> float | None:
        """Watch those that have rested; return the time-out, less where others rest."""
        now = time.monotonic()
        for fd in [fd for fd, until in self._resting.items() if until <= now]:
            del self._resting[fd]
            self._epoll.modify(fd, READABLE)
        left = [until - now for until in self._resting.values()]
        return min([*left, *(() if timeout is None else (timeout,))], default=None)

    def close(self) -> None:
        """Close the epoll; the watched descriptors stay open."""
        self._epoll.close()
        self._callbacks.clear()
