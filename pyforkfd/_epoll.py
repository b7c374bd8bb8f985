"""The watch set of an epoll, and its differences from the map of its owner."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from . import _core
from ._checks import as_fd
from ._fd_details import EpollWatch
from ._selector import ForkSafeSelector
from ._types import HasFileno

if TYPE_CHECKING:
    import asyncio

DriftKind: TypeAlias = Literal[
    "unknown", "unregistered", "events", "replaced", "closed", "inherited"
]
"""A kind of difference between an epoll and its owner's map, see :class:`Drift`."""

# The kernel adds the first two by itself; those of how it waits are compared for our own
# selector only, since other maps do not have them.
_ALWAYS = select.EPOLLERR | select.EPOLLHUP
_HOW = select.EPOLLET | select.EPOLLEXCLUSIVE | select.EPOLLONESHOT | 1 << 29  # EPOLLWAKEUP


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One difference between the watch set of an epoll and the map of its owner.

    Its ``str()`` is the sentence.

    Attributes:
        kind: ``unknown``: registered, but not in the owner's map. ``unregistered``: in the
            owner's map, but not registered. ``events``: registered for other events than the
            map has. ``replaced``: the number is another file now, and the file that was
            registered is still watched, or is watched no more. ``closed``: the number is not
            open here, but another process (or number) holds the open file, so it is still
            watched. ``inherited``: the whole instance is the parent's: each process changes
            the other's set.
        number: the descriptor's number; the epoll's where it is ``inherited``.
        watch: the kernel's entry; None where there is none.
        held_by: our other numbers that are the open file of the entry; empty where only
            another process holds it, and where kcmp(2) is refused.
        sentence: the difference and its effect.
    """

    kind: DriftKind
    number: int
    watch: EpollWatch | None = None
    held_by: tuple[int, ...] = ()
    sentence: str

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True, slots=True)
class _Known:
    """The owner's entry for a number."""

    events: int
    heeded: int  # the events that the owner's map can have
    file: tuple[int, int] | None = None  # device and inode, where the map has them
    err: int = 0


def epoll_entries(epfd: int | HasFileno) -> tuple[EpollWatch, ...]:
    """Return the watch set of an epoll as the kernel has it.

    Read from /proc/thread-self/fdinfo, proc(5), of any epoll: of :mod:`select`, of a C
    library, inherited.  A change that another thread makes meanwhile may be in it or not.

    Args:
        epfd: the epoll; borrowed.

    Raises:
        OSError: EBADF, it is not open; EINVAL, it is no epoll; ENOENT, /proc is not mounted.
    """
    rows = _core.epoll_entries(as_fd(epfd, "epoll_entries"))
    return tuple(EpollWatch(**row) for row in rows)


def audit(
    target: BaseSelector | asyncio.AbstractEventLoop | int | HasFileno,
    *,
    known: Mapping[int, int] | None = None,
) -> list[Drift]:
    """Compare the watch set of an epoll with the map of its owner.

    Each entry is also compared with the file that its number is here and now, by kcmp(2)
    (KCMP_EPOLL_TFD, Linux 4.13); where that is refused, by inode, which does not distinguish
    one epoll, eventfd or timerfd from another.  kcmp(2) also finds out whether the instance
    is the parent's; that is not reported where the parent may not be inspected or is another
    process than the one that forked.  Nothing is changed.  No other thread should change the
    set meanwhile.

    Args:
        target: a selector on an epoll, an asyncio loop with one, an epoll; borrowed.
        known: the map of an epoll that is no selector's, from number to EPOLL* events.
            Without it, the kernel's entries alone are examined.

    Returns:
        The differences; empty where there are none.

    Raises:
        TypeError: a selector without an epoll (poll, select), a loop that does not show its
            selector (uvloop), or ``known`` of a selector.
        ValueError: the selector or loop is closed.
        OSError: as in :func:`epoll_entries`.
    """
    epfd, believed = _owner(target, known)
    own = isinstance(_selector_of(target), ForkSafeSelector)
    found = list(_inherited(epfd))
    seen: set[int] = set()
    nth: dict[int, int] = {}
    for watch in epoll_entries(epfd):
        number = watch.number
        nth[number] = nth.get(number, -1) + 1
        drift = _of_entry(epfd, watch, nth[number])
        if drift is None and believed is not None:
            seen.add(number)
            drift = _of_belief(watch, believed.get(number), exact=own)
        if drift is not None:
            found.append(drift)
    reported = {drift.number for drift in found if drift.kind in ("closed", "replaced")}
    for number, belief in sorted((believed or {}).items()):
        if number not in seen and number not in reported:
            found.append(_missing(number, belief))
    return found


def _selector_of(target: object) -> object:
    import asyncio  # here: a third of what importing us would cost

    if not isinstance(target, asyncio.AbstractEventLoop):
        return target
    selector = getattr(target, "_selector", None)
    if isinstance(selector, BaseSelector):
        return selector
    if target.is_closed():
        raise ValueError(f"audit: {target!r} is closed")
    raise TypeError(f"audit: {type(target).__name__} does not show its selector")


def _owner(
    target: BaseSelector | asyncio.AbstractEventLoop | int | HasFileno,
    known: Mapping[int, int] | None,
) -> tuple[int, dict[int, _Known] | None]:
    selector = _selector_of(target)
    if not isinstance(selector, BaseSelector):
        epfd = as_fd(cast(int | HasFileno, target), "audit")
        if known is None:
            return epfd, None
        return epfd, {n: _Known(events, ~(_ALWAYS | _HOW)) for n, events in known.items()}
    if known is not None:
        raise TypeError("audit: a selector has its own map: known is for a bare epoll")
    if selector.get_map() is None:
        raise ValueError("audit: the selector is closed")
    if isinstance(selector, ForkSafeSelector):
        return selector.fileno(), {
            number: _Known(events, ~_ALWAYS, (device, inode), err)
            for number, events, _, device, inode, err in selector._set.registrations()
        }
    if not hasattr(selector, "fileno"):
        raise TypeError(f"audit: {type(selector).__name__} has no watch set in the kernel")
    return selector.fileno(), {
        key.fd: _Known(_bits(key.events), select.EPOLLIN | select.EPOLLOUT)
        for key in selector.get_map().values()
    }


def _bits(events: int) -> int:
    return (select.EPOLLIN if events & EVENT_READ else 0) | (
        select.EPOLLOUT if events & EVENT_WRITE else 0
    )


def _inherited(epfd: int) -> Iterator[Drift]:
    if _core.is_parents(epfd):
        yield Drift(
            kind="inherited",
            number=epfd,
            sentence=f"epoll {epfd} is the instance of process {os.getppid()}, our parent: each "
            "process changes the watch set of both, and an event may go to either",
        )


def _of_entry(epfd: int, watch: EpollWatch, nth: int) -> Drift | None:
    """Compare the number of an entry with the open file that is watched."""
    number = watch.number
    try:
        here = os.fstat(number)
    except OSError:
        kind: DriftKind = "closed"
        now = "is closed here"
    else:
        same = _core.watches_file(epfd, number, nth, number)
        if same is None:
            same = (here.st_dev, here.st_ino) == (watch.device, watch.inode)
        if same:
            return None
        kind = "replaced"
        now = f"is another file now, {_name(here.st_dev, here.st_ino)}"
    held = tuple(n for n in _same_inode(watch) if _core.watches_file(epfd, number, nth, n))
    who = f"our {', '.join(map(str, held))} holds" if held else "another process holds"
    sentence = (
        f"descriptor {number} {now}, but {who} the file that was registered, "
        f"{_name(watch.device, watch.inode)}: it is still watched under that number"
    )
    return Drift(kind=kind, number=number, watch=watch, held_by=held, sentence=sentence)


def _same_inode(watch: EpollWatch) -> Iterator[int]:
    for name in os.listdir("/proc/thread-self/fd"):
        try:
            found = os.fstat(int(name))
        except OSError:
            continue  # the directory's own, closed by now
        if (found.st_dev, found.st_ino) == (watch.device, watch.inode):
            yield int(name)


def _of_belief(watch: EpollWatch, belief: _Known | None, *, exact: bool) -> Drift | None:
    if belief is None:
        sentence = (
            f"descriptor {watch.number} is registered, but not in its owner's map: its "
            "events are lost, or wake for nothing"
        )
        return Drift(kind="unknown", number=watch.number, watch=watch, sentence=sentence)
    spent = not exact and watch.events & select.EPOLLONESHOT  # until it is armed again
    heeded = belief.heeded
    if spent or watch.events & heeded == belief.events & heeded:
        return None
    sentence = (
        f"descriptor {watch.number} is registered for events {watch.events & heeded:#x}, but "
        f"its owner's map has {belief.events & heeded:#x}"
    )
    return Drift(kind="events", number=watch.number, watch=watch, sentence=sentence)


def _missing(number: int, belief: _Known) -> Drift:
    why = f" ({os.strerror(belief.err)}, when this process was forked)" if belief.err else ""
    try:
        here = os.fstat(number)
    except OSError:
        now = "is closed"
    else:
        if belief.file not in (None, (here.st_dev, here.st_ino)):
            assert belief.file is not None
            sentence = (
                f"descriptor {number} was {_name(*belief.file)} when it was registered and is "
                f"{_name(here.st_dev, here.st_ino)} now; neither is watched{why}"
            )
            return Drift(kind="replaced", number=number, sentence=sentence)
        now = "is open"
    sentence = (
        f"descriptor {number} {now} and is not registered{why}, but is in its owner's map: "
        "its events are not reported"
    )
    return Drift(kind="unregistered", number=number, sentence=sentence)


def _name(device: int, inode: int) -> str:
    return f"inode {inode} of device {os.major(device)}:{os.minor(device)}"
