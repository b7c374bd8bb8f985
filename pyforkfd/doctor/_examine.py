"""The descriptors of a running process: their other holders, and problems."""

from __future__ import annotations

import functools
import os
import re
import socket
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pyforkfd._fd import Fd
from pyforkfd._fd_details import EpollDetails, EpollWatch, FileDetails, SocketDetails
from pyforkfd._fd_table import FdInfo, FdTable, fd_table
from pyforkfd._tables import printable

from ._words import describe

_STREAMS = {0: "standard input", 1: "standard output", 2: "standard error"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Another process that holds the same socket or pipe.

    Attributes:
        pid: its pid.
        program: its name, as in /proc/PID/comm.
        relation: ``parent``, ``ancestor``, ``child``, ``descendant`` or ``unrelated``, as
            seen from the examined process.
        same_program: whether it executes the same file; None if that is not known.
        numbers: its descriptors.
    """

    pid: int
    program: str
    relation: str
    same_program: bool | None
    numbers: tuple[int, ...]

    def __str__(self) -> str:
        numbers = ", ".join(map(str, self.numbers))
        return f"{self.program} ({self.relation} {self.pid}: {numbers})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A present or coming fault in a process's descriptors.

    Attributes:
        number: the descriptor; None: the whole table.
        name: ``inherited-listener``, ``no-close-on-exec``, ``deleted``, ``stale-epoll-entry``,
            ``full-queue``, ``closed-stream`` or ``near-limit``.
        text: the problem and its consequence.
        remedy: how to solve it.
    """

    number: int | None
    name: str
    text: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """The result of :func:`examine`.

    Attributes:
        pid: the process.
        program: its name, as in /proc/PID/comm.
        table: its descriptors.
        holders: by descriptor, the other processes that hold its socket or pipe; descriptors
            without any are left out.  A socket or pipe may be held by several open files.
        problems: empty where there are none.
        unseen: how many processes could not be examined: they may hold some too.
    """

    pid: int
    program: str
    table: FdTable
    holders: Mapping[int, tuple[Holder, ...]]
    problems: tuple[Problem, ...]
    unseen: int


def examine(pid: int | None = None) -> Examination:
    """Examine the descriptors of a process.

    Reads the descriptors of every other process too, as far as permitted, to find those that
    hold a socket or a pipe of this one.

    Args:
        pid: the process; None: our own.

    Raises:
        ProcessLookupError: there is no such process.
        PermissionError: its descriptors may not be read, see :func:`pyforkfd.fd_table`.
    """
    return examine_process(os.getpid() if pid is None else pid)


def examine_process(pid: int, *, ignore: int | None = None) -> Examination:
    """As :func:`examine`; ``ignore`` is a process whose descriptors do not count."""
    table = fd_table(pid)
    names = {row.target for row in table.values()}
    watched = {target for row in table.values() for target in _stale(row, table).values()}
    found, unseen = _scan({*names, *watched}, {pid, ignore})
    family = _Family(pid)
    holders = {
        target: tuple(family.holder(other, numbers) for other, numbers in sorted(held.items()))
        for target, held in found.items()
    }
    by_number = {n: holders[row.target] for n, row in table.items() if row.target in holders}
    return Examination(
        pid=pid,
        program=_program(pid),
        table=table,
        holders=by_number,
        problems=tuple(_problems(pid, table, holders)),
        unseen=unseen,
    )


def _scan(
    targets: set[str], ignored: set[int | None]
) -> tuple[dict[str, dict[int, list[int]]], int]:
    """Return (target -> process -> numbers, how many processes could not be examined)."""
    found: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    unseen = 0
    # All anonymous inodes are one inode: their names do not distinguish files.
    wanted = {t for t in targets if re.fullmatch(r"(socket|pipe):\[\d+\]", t)}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in ignored:
            continue
        folder = f"/proc/{name}/fd"
        try:
            numbers = os.listdir(folder)
        except PermissionError:
            unseen += 1
            continue
        except OSError:
            continue  # it has ended
        for number in numbers:
            try:
                target = os.readlink(f"{folder}/{number}")
            except OSError:
                continue  # closed meanwhile
            if target in wanted:
                found[target][int(name)].append(int(number))
    return found, unseen


class _Family:
    """The relations of other processes to one process."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._program = _executed(pid)
        self._ancestors = _ancestors(pid)

    def holder(self, other: int, numbers: list[int]) -> Holder:
        executed = _executed(other)
        unknown = executed is None or self._program is None
        return Holder(
            pid=other,
            program=_program(other),
            relation=self._relation(other),
            same_program=None if unknown else executed == self._program,
            numbers=tuple(sorted(numbers)),
        )

    def _relation(self, other: int) -> str:
        if other in self._ancestors:
            return "parent" if self._ancestors[0] == other else "ancestor"
        theirs = _ancestors(other)
        if self._pid in theirs:
            return "child" if theirs[0] == self._pid else "descendant"
        return "unrelated"


def _ancestors(pid: int) -> list[int]:
    found: list[int] = []
    while pid > 1:
        try:
            status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            break
        pid = int(status.rpartition(")")[2].split()[1])  # a name may have spaces and parentheses
        if pid > 0:
            found.append(pid)
    return found


def _executed(pid: int) -> tuple[int, int] | None:
    try:
        info = os.stat(f"/proc/{pid}/exe")
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _program(pid: int) -> str:
    try:
        return printable(Path(f"/proc/{pid}/comm").read_text(errors="replace").strip())
    except OSError:
        return "ended process"


def _stale(row: FdInfo, table: FdTable) -> dict[EpollWatch, str]:
    """Return an epoll's entries whose number is closed or another file -> the file's target."""
    if not isinstance(row.details, EpollDetails):
        return {}
    stale = {}
    for watch in row.details.watches:
        now = table.get(watch.number)
        if now is None or (now.device, now.inode) != (watch.device, watch.inode):
            stale[watch] = f"{_devices().get(watch.device, 'other')}:[{watch.inode}]"
    return stale


@functools.cache
def _devices() -> dict[int, str]:
    """Return the device of all pipes' inodes, and that of all sockets' inodes."""
    reader, writer = os.pipe()
    with Fd(reader), Fd(writer), socket.socket(socket.AF_UNIX) as sock:
        return {os.fstat(reader).st_dev: "pipe", os.fstat(sock.fileno()).st_dev: "socket"}


def _problems(
    pid: int, table: FdTable, holders: Mapping[str, tuple[Holder, ...]]
) -> Iterator[Problem]:
    for number, stream in _STREAMS.items():
        if number not in table:
            yield Problem(
                number=number,
                name="closed-stream",
                text=f"is closed: the next file opened becomes {stream}",
                remedy=f"open /dev/null as {number}",
            )
    for number, row in table.items():
        known = row.details
        if isinstance(known, SocketDetails) and known.listening:
            yield from _listener_problems(number, known, holders.get(row.target, ()))
        if number > 2 and not row.cloexec:
            yield Problem(
                number=number,
                name="no-close-on-exec",
                text=f"({describe(row)}) is not close-on-exec: every program that is executed "
                "plainly inherits it",
                remedy=f"set_cloexec({number}, True), or start programs by spawn(), which passes "
                "only the descriptors in its map",
            )
        if isinstance(known, FileDetails) and known.links == 0 and known.size > 0:
            yield Problem(
                number=number,
                name="deleted",
                text=f"({describe(row)}) is unlinked; its {known.size} bytes stay on the disk "
                "until it is closed",
                remedy="close it, or reopen it (a log); for a temporary file this is intended",
            )
        for watch, target in _stale(row, table).items():
            yield _stale_problem(number, watch, table, holders.get(target, ()))
    yield from _limit_problems(pid, table)


def _listener_problems(
    number: int, known: SocketDetails, holders: tuple[Holder, ...]
) -> Iterator[Problem]:
    for holder in holders:
        # Workers are forks of the same program; a parent that has it may be its manager.
        if holder.relation in ("parent", "ancestor") or holder.same_program:
            continue
        yield Problem(
            number=number,
            name="inherited-listener",
            text=f"is a listener that another program holds too: {holder}: the address stays "
            "taken until that program has ended, and connections wait if none accepts them",
            remedy="end that program; make the listener close-on-exec before starting others",
        )
    waiting, backlog = known.waiting or 0, known.backlog or 0
    if known.backlog is not None and waiting > backlog:  # so the kernel counts
        yield Problem(
            number=number,
            name="full-queue",
            text=f"has {waiting} connections waiting of {backlog}: no process accepts them",
            remedy="accept; register the listener with this process's own poller",
        )


def _stale_problem(
    number: int, watch: EpollWatch, table: FdTable, holders: tuple[Holder, ...]
) -> Problem:
    now = "another file now" if watch.number in table else "closed"
    # Of a pipe these are both ends.
    ours = [n for n, r in table.items() if (r.device, r.inode) == (watch.device, watch.inode)]
    others = ", ".join([f"descriptor {n}" for n in ours] + [str(holder) for holder in holders])
    return Problem(
        number=number,
        name="stale-epoll-entry",
        text=f"is an epoll that watches descriptor {watch.number}, which is {now}: the registered "
        f"file is still open as {others or 'a descriptor of a process that could not be examined'}"
        ", and its events still arrive",
        remedy="EPOLL_CTL_DEL before close; a new epoll in a forked child",
    )


def _limit_problems(pid: int, table: FdTable) -> Iterator[Problem]:
    try:
        limits = Path(f"/proc/{pid}/limits").read_text()
    except OSError:
        return
    soft = re.search(r"^Max open files +(\d+)", limits, re.M)
    if soft is not None and len(table) * 10 >= int(soft[1]) * 9:
        yield Problem(
            number=None,
            name="near-limit",
            text=f"{len(table)} of {soft[1]} descriptors are open: EMFILE is near",
            remedy="find a leak by pyforkfd.diff() of two tables; or raise RLIMIT_NOFILE",
        )
