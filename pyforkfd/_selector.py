"""A selector on an epoll of its own in every process, also after a fork."""

from __future__ import annotations

import errno
import functools
import os
import select
import sys
import weakref
from collections.abc import Iterator, Mapping
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector, SelectorKey
from typing import Any, TypeVar

from . import _core
from ._types import HasFileno

BORN = os.getpid()  # the process that imported us, though the loops may come later

_T = TypeVar("_T")
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
_EPOLL = {
    EVENT_READ: _IN,
    EVENT_WRITE: _OUT,
    EVENT_READ | EVENT_WRITE: _IN | _OUT,
}
_new_key = tuple.__new__  # half the time of SelectorKey()
_LOST = {errno.EBADF, errno.ENOENT}  # its number is closed, or another file


class ForkSafeSelector(BaseSelector):
    """Like :class:`selectors.EpollSelector`, but parent and child never disturb each other.

    In the child of any fork(2) of the process, a C library's too, a new epoll instance takes
    the old one's number and watches the same descriptors, before any other code runs there:
    a descriptor that either process registers, unregisters or closes from then on does not
    affect the other.  vfork(2) and spawns end in an exec, which closes the epoll (it is
    close-on-exec).

    A file that was closed before it was unregistered stays in the kernel's set as long as
    any process has it open, such as a child that was forked meanwhile.  Where that is found,
    by an unregister() that the kernel refuses or by its events, the instance is rebuilt
    without it.  An edge-triggered selector then reports ready descriptors once more.

    select() waits with the GIL released, goes on after a signal whose handler does not raise
    (PEP 475), and may run while other threads register and unregister.  In all else it is a
    :class:`selectors.BaseSelector`.

    Args:
        edge: EPOLLET: readiness is reported when it changes, so read or write until EAGAIN.
        exclusive: EPOLLEXCLUSIVE: of several epolls that watch one listener, each in its own
            process, not all are woken for one connection.

    Raises:
        OSError: no epoll could be made: EMFILE, ENFILE, ENOMEM, epoll_create1(2).
    """

    def __init__(self, *, edge: bool = False, exclusive: bool = False) -> None:
        self._more = (select.EPOLLET if edge else 0) | (select.EPOLLEXCLUSIVE if exclusive else 0)
        # All that the kernel watches is always in here, so that no event is without its key:
        # a key comes before its registration and goes after it.
        self._keys: dict[int, SelectorKey] = {}
        self._map: _Keys | None = _Keys(self)
        self._set = _core.EpollSet()
        self._add, self._drop, self._wait = self._set.add, self._set.remove, self._set.wait
        _watch_forks()
        _alive.add(self)

    def fileno(self) -> int:
        """Return the epoll's number, the same in all processes; borrowed.

        Raises:
            ValueError: the selector is closed.
        """
        self._demand_open()
        return self._set.fileno()

    @property
    def rebuilds(self) -> int:
        """The number of rebuilds, for forks and for closed files, in this process and before it."""
        return self._set.rebuilds()

    def register(self, fileobj: int | HasFileno, events: int, data: Any = None) -> SelectorKey:
        """Watch a descriptor.

        Args:
            fileobj: the descriptor; borrowed; unregister it before it is closed.
            events: EVENT_READ, EVENT_WRITE or both.
            data: any object; it is in the key.

        Returns:
            The key.

        Raises:
            ValueError: events or fileobj are invalid, or the selector is closed.
            KeyError: the number is registered already.
            OSError: epoll_ctl(2) refuses it: EBADF, EPERM (a regular file), ENOSPC.
        """
        try:
            wanted = _EPOLL[events]
        except (KeyError, TypeError):
            raise ValueError(f"Invalid events: {events!r}") from None
        number = fileobj if isinstance(fileobj, int) and fileobj >= 0 else self._number(fileobj)
        if number in self._keys:
            raise KeyError(f"{fileobj!r} (FD {number}) is already registered")
        key = self._keys[number] = _new_key(SelectorKey, (fileobj, number, events, data))
        try:
            self._add(number, wanted | self._more)
        except BaseException:
            self._keys.pop(number, None)
            self._demand_open()
            raise
        return key

    def unregister(self, fileobj: int | HasFileno) -> SelectorKey:
        """Stop watching a descriptor, whether its number is still open, closed or another file.

        Args:
            fileobj: the descriptor, as it was registered.

        Raises:
            KeyError: the descriptor is not registered.
            ValueError: the object has no number, and is not registered.
        """
        number = fileobj if isinstance(fileobj, int) and fileobj >= 0 else self._number(fileobj)
        if number not in self._keys:
            raise KeyError(f"{fileobj!r} is not registered")
        try:
            self._drop(number)
        except OSError as error:
            # Removed nevertheless, from the kernel's set too; BaseSelector wants no error.
            if error.errno not in _LOST:
                raise
        return self._keys.pop(number)

    def modify(self, fileobj: int | HasFileno, events: int, data: Any = None) -> SelectorKey:
        """Watch a descriptor for other events, or change the data.

        Args:
            fileobj: the descriptor, as it was registered.
            events: EVENT_READ, EVENT_WRITE or both.
            data: any object; it is in the key.

        Raises:
            KeyError: the descriptor is not registered.
            ValueError: events are invalid.
            OSError: epoll_ctl(2) refuses it, as it does (ENOENT, EBADF) where the number was
                closed since; the descriptor is then no longer registered.
        """
        try:
            wanted = _EPOLL[events]
        except (KeyError, TypeError):
            raise ValueError(f"Invalid events: {events!r}") from None
        number = self._number(fileobj)
        try:
            key = self._keys[number]
        except KeyError:
            raise KeyError(f"{fileobj!r} is not registered") from None
        if events != key.events:
            try:
                self._set.modify(number, wanted | self._more)
            except BaseException:
                self.unregister(number)
                raise
        elif data == key.data:
            return key
        key = self._keys[number] = SelectorKey(key.fileobj, number, events, data)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """Wait until a descriptor is ready.

        Args:
            timeout: seconds; None: without end; 0 and less do not wait.

        Returns:
            A key and its events for each descriptor that is ready.

        Raises:
            ValueError: the selector is closed.
            OSError: in the child of a fork, no new instance could be made (EMFILE, ENOMEM);
                the parent's is not used instead.
        """
        keys = self._keys
        try:
            found = self._wait(timeout, len(keys) or 1)
        except OSError:
            self._demand_open()
            raise
        ready = []
        for number, happened in found:
            key = keys.get(number)
            if key is not None:
                # An error or a hang-up is for the one that waits, reader or writer.
                events = EVENT_WRITE if happened & ~_IN else 0
                if happened & ~_OUT:
                    events |= EVENT_READ
                ready.append((key, events & key.events))
        return ready

    def close(self) -> None:
        """Close the epoll, not the descriptors in it; do nothing if it is closed."""
        self._set.close()
        self._keys.clear()
        self._map = None

    def get_map(self) -> Mapping[int | HasFileno, SelectorKey]:
        """Return a view of the keys by file object or number; None once the selector is closed."""
        return self._map  # type: ignore[return-value]  # as BaseSelector has it

    def _number(self, fileobj: int | HasFileno) -> int:
        try:
            number = fileobj if isinstance(fileobj, int) else int(fileobj.fileno())
        except (AttributeError, TypeError, ValueError):
            number = -1
        if number >= 0:
            return number
        for key in self._keys.values():  # closed since
            if key.fileobj is fileobj:
                return key.fd
        raise ValueError(f"Invalid file object: {fileobj!r}")

    def _demand_open(self) -> None:
        if self._map is None:
            raise ValueError("the selector is closed")

    def _settle(self) -> None:
        """Complete, in a child, the operations that another thread had begun."""
        watched = {number: events for number, events, *_ in self._set.registrations()}
        for number, key in list(self._keys.items()):
            if number not in watched:
                del self._keys[number]
            elif watched[number] != (wanted := _EPOLL[key.events] | self._more):
                try:
                    self._set.modify(number, wanted)
                except OSError:
                    self.unregister(number)  # closed since, as modify() does


class _Keys(Mapping[int | HasFileno, SelectorKey]):
    __slots__ = ("_selector",)

    def __init__(self, selector: ForkSafeSelector) -> None:
        self._selector = selector

    def __len__(self) -> int:
        return len(self._selector._keys)

    def __getitem__(self, fileobj: int | HasFileno) -> SelectorKey:
        key = self.get(fileobj)
        if key is None:
            raise KeyError(f"{fileobj!r} is not registered")
        return key

    def get(self, fileobj: int | HasFileno, default: _T | None = None) -> SelectorKey | _T | None:  # type: ignore[override]  # the overloads mean the same
        """Return a key or the default, without an exception: asyncio calls this often."""
        selector = self._selector
        return selector._keys.get(selector._number(fileobj), default)

    def __iter__(self) -> Iterator[int]:
        return iter(self._selector._keys)


_alive: weakref.WeakSet[ForkSafeSelector] = weakref.WeakSet()


_others = True  # whether other threads ran Python when this one forked


def _before_fork() -> None:
    global _others
    _others = len(sys._current_frames()) > 1


def _settle_all() -> None:
    if _others:  # this thread itself completes the operation that it is in
        for selector in list(_alive):
            selector._settle()


@functools.cache  # a hook that has nothing to do costs every fork page faults all the same
def _watch_forks() -> None:
    os.register_at_fork(before=_before_fork, after_in_child=_settle_all)
