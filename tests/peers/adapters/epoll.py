"""select.epoll's interface over the set that our selector is made of."""

from __future__ import annotations

import select
from typing import Any

from pyforkfd import _core

waits = 0
by_number: dict[int, _core.EpollSet] = {}


def number(fileobj: Any) -> int:
    try:
        found = int(fileobj if isinstance(fileobj, int) else fileobj.fileno())
    except AttributeError:
        raise TypeError("argument must be an int, or have a fileno() method") from None
    if found < 0:
        raise ValueError(f"file descriptor cannot be a negative integer ({found})")
    return found


class Epoll:
    def __init__(self, sizehint: int = -1, flags: int = 0) -> None:
        if not isinstance(sizehint, int):
            raise TypeError(sizehint)
        if sizehint != -1 and sizehint <= 0:
            raise ValueError("negative sizehint")
        if flags & ~select.EPOLL_CLOEXEC:
            raise OSError("invalid flags")
        self._set = _core.EpollSet()
        self._closed = False
        by_number[self._set.fileno()] = self._set

    @classmethod
    def fromfd(cls, fd: int) -> Epoll:
        same = cls.__new__(cls)
        same._set, same._closed = by_number[fd], False
        return same

    def _open(self) -> _core.EpollSet:
        if self._closed:
            raise ValueError("I/O operation on closed epoll object")
        return self._set

    def fileno(self) -> int:
        return self._open().fileno()

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            by_number.pop(self._set.fileno(), None)
            self._set.close()

    def register(self, fd: Any, eventmask: int = 7) -> None:  # IN, PRI and OUT
        self._open().add(number(fd), eventmask & 0xFFFFFFFF)

    def modify(self, fd: Any, eventmask: int) -> None:
        self._open().modify(number(fd), eventmask)

    def unregister(self, fd: Any) -> None:
        self._open().remove(number(fd))

    def poll(self, timeout: float | None = None, maxevents: int = -1) -> list[tuple[int, int]]:
        global waits
        waits += 1
        forever = timeout is None or timeout < 0
        return self._open().wait(None if forever else timeout, maxevents if maxevents > 0 else 1023)

    def __enter__(self) -> Epoll:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


select.epoll = Epoll  # type: ignore[misc, assignment]


def calls() -> int:
    return waits
