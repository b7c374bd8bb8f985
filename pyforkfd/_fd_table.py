"""The descriptors of a process, and the difference between two snapshots of them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from . import _core
from ._fd_details import (
    EpollDetails,
    EpollWatch,
    EventfdDetails,
    FdDetails,
    FileDetails,
    InotifyDetails,
    InotifyWatch,
    MemfdDetails,
    PidfdDetails,
    PipeDetails,
    SignalfdDetails,
    SocketDetails,
    TimerfdDetails,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FdInfo:
    """One descriptor at the moment of a snapshot.

    None means that a value could not be found out, except where noted.

    Attributes:
        number: its number.
        kind: ``file``, ``directory``, ``symlink``, ``block device``, ``character device``,
            ``tty``, ``pipe`` (FIFOs too), ``socket``, ``namespace``, ``memfd``, ``epoll``,
            ``eventfd``, ``timerfd``, ``signalfd``, ``inotify``, ``pidfd``, or another
            name of the kernel's: ``io_uring``, ``fanotify``, ``bpf-map``, ...; ``unknown``.
        target: the text of its link in /proc/PID/fd: a path, which ends in `` (deleted)``
            when that is gone, or ``socket:[INODE]``, ``anon_inode:[eventfd]``; empty where
            the path is longer than the kernel prints (4096 bytes).
        cloexec: marked FD_CLOEXEC: exec closes it.
        flags: access mode and status flags, as fcntl(F_GETFL) returns them.
        offset: position in the file; None also where a file has none.
        device: device of its inode, as ``st_dev``.
        inode: number of its inode, as ``st_ino``.
        details: details of its kind; None also for kinds that have none.
        open_file: all numbers in the table that are this open file, this one included: they
            share offset and status flags.  Equality ignores it, since it changes when another
            descriptor does.
    """

    number: int
    kind: str
    target: str
    cloexec: bool
    flags: int
    offset: int | None
    device: int | None
    inode: int | None
    details: FdDetails | None
    open_file: tuple[int, ...] | None = field(compare=False)

    @property
    def access(self) -> Literal["r", "w", "rw", "path"]:
        """The access mode: reading, writing, both, or just a name (O_PATH)."""
        if self.flags & os.O_PATH:
            return "path"
        return _ACCESS[self.flags & os.O_ACCMODE]

    @property
    def nonblocking(self) -> bool:
        """Whether O_NONBLOCK is set on the open file."""
        return bool(self.flags & os.O_NONBLOCK)

    @property
    def shared_with(self) -> tuple[int, ...] | None:
        """The other numbers in the table that are the same open file; None if not known."""
        if self.open_file is None:
            return None
        return tuple(n for n in self.open_file if n != self.number)


class FdTable(Mapping[int, FdInfo]):
    """The descriptors of a process by number, ascending.  Made by :func:`fd_table`.

    Attributes:
        pid: the process that has them.
    """

    __slots__ = ("_rows", "pid")

    def __init__(self, rows: Mapping[int, FdInfo | _core._FdRow], *, pid: int) -> None:
        self._rows = dict(sorted(rows.items()))
        self.pid = pid

    def __getitem__(self, number: int) -> FdInfo:
        row = self._rows[number]
        if not isinstance(row, FdInfo):  # of many thousand rows few are ever read
            self._rows[number] = row = _row(row)
        return row

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<FdTable of process {self.pid}: {len(self)} descriptors>"


@dataclass(frozen=True, slots=True, kw_only=True)
class FdDiff:
    """The difference between two tables; false where there is none.

    Attributes:
        closed: rows of the first table that are gone.
        opened: rows of the second table that are new.
        changed: (before, after) of descriptors that stayed open but differ: in mark, flags,
            offset, name or details.
    """

    closed: tuple[FdInfo, ...]
    opened: tuple[FdInfo, ...]
    changed: tuple[tuple[FdInfo, FdInfo], ...]

    def __bool__(self) -> bool:
        return bool(self.closed or self.opened or self.changed)


def fd_table(pid: int | None = None) -> FdTable:
    """Return all descriptors of a process, as proc(5) and sock_diag(7) report them.

    The table is read row by row while other threads go on: each row is of one file, but the
    table is not of one moment.  The descriptors that are opened for reading it (up to seven)
    are not in it, those of a call in another thread may be.  No descriptor is duplicated,
    read or otherwise touched, with one exception: a socket of another process that
    sock_diag(7) does not know, being of another network namespace or family, is duplicated
    for a moment by pidfd_getfd(2) (Linux 5.6), if that is allowed.

    In another process a pipe has no details, a memfd no seals, and a socket that is neither
    known nor allowed to be duplicated has no details.  kcmp(2) finds out which descriptors
    are the same open file; where a sandbox refuses that, this is known of sockets and of
    inodes that are open once.

    Args:
        pid: the process, in our pid namespace; None: the calling thread, whose table is
            another than the process's only after unshare(CLONE_FILES).

    Raises:
        ProcessLookupError: there is no such process (any more).
        OSError: EMFILE, RLIMIT_NOFILE leaves no descriptor for reading.
        PermissionError: the process may not be inspected: it is another user's, or has more
            capabilities than we do, or is not dumpable (PTRACE_MODE_READ, ptrace(2)).
        FileNotFoundError: /proc is not mounted.
    """
    if pid is not None and pid <= 0:
        raise ValueError(f"{pid} is not a process")
    return FdTable({row[0]: row for row in _core.fd_table(pid or 0)}, pid=pid or os.getpid())


def diff(before: Mapping[int, FdInfo], after: Mapping[int, FdInfo]) -> FdDiff:
    """Compare two tables by number: what was closed, opened and changed.

    A number that is open in both and another file in ``after`` is both closed and opened.
    Files are distinguished by kind, inode and access mode, eventfds by their id.  Files
    without an inode of their own (epolls, timerfds) are distinguished by their details alone.

    Args:
        before: the first table.
        after: the second.
    """
    same = {n for n in before if n in after and _identity(before[n]) == _identity(after[n])}
    return FdDiff(
        closed=tuple(row for n, row in sorted(before.items()) if n not in same),
        opened=tuple(row for n, row in sorted(after.items()) if n not in same),
        changed=tuple((before[n], after[n]) for n in sorted(same) if before[n] != after[n]),
    )


_ACCESS: dict[int, Literal["r", "w", "rw"]] = {
    os.O_RDONLY: "r",
    os.O_WRONLY: "w",
    os.O_RDWR: "rw",
    os.O_ACCMODE: "rw",  # for ioctl alone, open(2)
}


def _identity(row: FdInfo) -> tuple[object, ...]:
    known = row.details.id if isinstance(row.details, EventfdDetails) else None
    return row.kind, row.device, row.inode, row.access, known


def _row(row: _core._FdRow) -> FdInfo:
    number, kind, target, cloexec, flags, offset, device, inode, details, open_file = row
    return FdInfo(
        number=number,
        kind=kind,
        target=target,
        cloexec=cloexec,
        flags=flags,
        offset=offset,
        device=device,
        inode=inode,
        details=None if details is None else _DETAILS[kind](**details),
        open_file=open_file,
    )


def _socket(**fields: Any) -> SocketDetails:
    for name, enumeration in (("family", socket.AddressFamily), ("type", socket.SocketKind)):
        try:
            fields[name] = enumeration(fields[name])
        except ValueError:
            pass  # younger than this Python
    return SocketDetails(**fields)


def _signalfd(mask: int) -> SignalfdDetails:
    return SignalfdDetails(signals=frozenset(n for n in range(1, 65) if mask >> (n - 1) & 1))


_DETAILS: dict[str, Any] = {
    "file": FileDetails,
    "directory": FileDetails,
    "pipe": PipeDetails,
    "socket": _socket,
    "epoll": lambda watches: EpollDetails(watches=tuple(EpollWatch(**w) for w in watches)),
    "eventfd": EventfdDetails,
    "timerfd": TimerfdDetails,
    "signalfd": _signalfd,
    "inotify": lambda watches: InotifyDetails(watches=tuple(InotifyWatch(**w) for w in watches)),
    "pidfd": PidfdDetails,
    "memfd": MemfdDetails,
}
