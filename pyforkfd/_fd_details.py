"""Plain values: the details of a descriptor, by its kind."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import TypeAlias

Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | tuple[int, int] | str | bytes
"""An address as the socket module has it; of an unknown family, the bytes of the sockaddr."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDetails:
    """A file or directory, statx(2).

    Attributes:
        size: in bytes.
        links: number of its names; 0: it is deleted, or never had one.
    """

    size: int
    links: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PipeDetails:
    """A pipe or FIFO, of our own process only.

    Attributes:
        capacity: bytes that it can hold, F_GETPIPE_SZ.
        unread: bytes that it holds, FIONREAD.
    """

    capacity: int
    unread: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketDetails:
    """A socket, socket(7).

    Attributes:
        family: AF_*.
        type: SOCK_*.
        protocol: IPPROTO_* and the like.
        local: the address that it is bound to; ``""`` for a UNIX socket without a name, bytes
            for an abstract one; None where the family has no addresses.
        peer: the address that it is connected to, else None.
        listening: SO_ACCEPTCONN.
        backlog: number of connections that may wait at a listener; None where the kernel
            does not report it (it does for TCP and UNIX).
        waiting: number of connections that wait to be accepted; None likewise.
    """

    family: socket.AddressFamily | int
    type: socket.SocketKind | int
    protocol: int
    local: Address | None
    peer: Address | None
    listening: bool
    backlog: int | None
    waiting: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EpollWatch:
    """One entry of an epoll's watch set.

    Attributes:
        number: the descriptor's number when it was added.  It may have been closed since, or
            be another file: the open file is watched.
        events: EPOLL* bits.
        data: the 64 bits that epoll_wait(2) returns; Python puts the number in the lower 32.
        inode: inode of the open file that is watched.
        device: device of the open file that is watched.
    """

    number: int
    events: int
    data: int
    inode: int
    device: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EpollDetails:
    """An epoll, epoll(7).

    Attributes:
        watches: the entries of its watch set.
    """

    watches: tuple[EpollWatch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventfdDetails:
    """An eventfd, eventfd(2).

    Attributes:
        count: its counter.
        id: the kernel's number of it, None before Linux 5.2.
        semaphore: made with EFD_SEMAPHORE; None before Linux 6.5.
    """

    count: int
    id: int | None
    semaphore: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerfdDetails:
    """A timerfd, timerfd_create(2).

    Attributes:
        clock: CLOCK_*.
        ticks: expirations that have not been read.
        remaining_ns: nanoseconds until the next; 0: not armed.  Equality ignores it.
        interval_ns: nanoseconds between two; 0: just once.
    """

    clock: int
    ticks: int
    remaining_ns: int = field(compare=False)
    interval_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalfdDetails:
    """A signalfd, signalfd(2).

    Attributes:
        signals: the signals that it reads.
    """

    signals: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class InotifyWatch:
    """One entry of an inotify's watch list.

    Attributes:
        watch: number of the entry.
        mask: IN_* bits.
        inode: inode of the file that is watched.
        device: device of the file that is watched.
    """

    watch: int
    mask: int
    inode: int
    device: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InotifyDetails:
    """An inotify, inotify(7).

    Attributes:
        watches: the entries of its watch list.
    """

    watches: tuple[InotifyWatch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PidfdDetails:
    """A pidfd, pidfd_open(2).

    Attributes:
        pid: the process that it refers to; -1: the process has ended and was reaped, 0: it
            is not in our pid namespace.
    """

    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemfdDetails:
    """A memfd, memfd_create(2).

    Attributes:
        size: in bytes.
        seals: F_SEAL_* bits; None for another process.
    """

    size: int
    seals: int | None


FdDetails: TypeAlias = (
    FileDetails
    | PipeDetails
    | SocketDetails
    | EpollDetails
    | EventfdDetails
    | TimerfdDetails
    | SignalfdDetails
    | InotifyDetails
    | PidfdDetails
    | MemfdDetails
)
"""The details of a descriptor, by its kind."""
