"""The descriptors of a running process: who else has them, and what is wrong."""

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

from ._words import describe, printable

_STREAMS = {0: "standard input", 1: "standard output", 2: "standard error"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Another process that has the same socket or pipe.

    Attributes:
        pid: which.
        program: its name, as in /proc/PID/comm.
        relation: ``parent``, ``ancestor``, ``child``, ``descendant`` or ``unrelated``, seen
            from the process that is examined.
        same_program: it executes the same file; None if that is not known.
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
    """Something that is wrong, or will be.

    Attributes:
        number: the descriptor; None: it is about the whole table.
        name: ``inherited-listener``, ``no-close-on-exec``, ``deleted``, ``stale-epoll-entry``,
            ``full-queue``, ``closed-stream`` or ``near-limit``.
        text: what it is and what follows.
        remedy: what helps.
    """

    number: int | None
    name: str
    text: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What :func:`examine` found.

    Attributes:
        pid: the process.
        program: its name, as in /proc/PID/comm.
        table: its descriptors.
        holders: by descriptor, who else has its socket or pipe; those with nobody are left
            out.  A socket or pipe may be held by several open files.
        problems: what is wrong; empty where all is well.
        unseen: how many processes could not be looked at: they may hold some too.
    """

    pid: int
    program: str
    table: FdTable
    holders: Mapping[int, tuple[Holder, ...]]
    problems: tuple[Problem, ...]
    unseen: int


def examine(pid: int | None = None) -> Examination:
    """Explain the descriptors of a process.

    Looks at the descriptors of every other process too, as far as we may, to see who else
    holds a socket or a pipe of this one.

    Args:
        pid: the process; None: we ourselves.

    Raises:
        ProcessLookupError: there is no such process.
        PermissionError: it may not be looked at, see :func:`pyforkfd.fd_table`.
    """
    return look_at(os.getpid() if pid is None else pid)


def look_at(whose: int, *, ignore: int | None = None) -> Examination:
    """As :func:`examine`; ``ignore`` is a process whose descriptors do not count."""
    table = fd_table(whose)
    names = {row.target for row in table.values()}
    watched = {target for row in table.values() for target in _stale(row, table).values()}
    found, unseen = _scan({*names, *watched}, {whose, ignore})
    family = _Family(whose)
    holders = {
        target: tuple(family.holder(other, numbers) for other, numbers in sorted(held.items()))
        for target, held in found.items()
    }
    by_number = {n: holders[row.target] for n, row in table.items() if row.target in holders}
    return Examination(
        pid=whose,
        program=_program(whose),
        table=table,
        holders=by_number,
        problems=tuple(_problems(whose, table, holders)),
        unseen=unseen,
    )


def _scan(
    targets: set[str], ignored: set[int | None]
) -> tuple[dict[str, dict[int, list[int]]], int]:
    """(target -> process -> numbers, how many processes could not be looked at)."""
    found: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    unseen = 0
    # Anonymous inodes are one inode for all: their names tell nothing.
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
    """Who is whose child, seen from one process."""

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
        return "a process that has ended"


def _stale(row: FdInfo, table: FdTable) -> dict[EpollWatch, str]:
    """Entries of an epoll whose number is closed or another file -> what /proc would call it."""
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
    """All pipes have inodes of one device, all sockets of another."""
    reader, writer = os.pipe()
    with Fd(reader), Fd(writer), socket.socket(socket.AF_UNIX) as made:
        return {os.fstat(reader).st_dev: "pipe", os.fstat(made.fileno()).st_dev: "socket"}


def _problems(
    pid: int, table: FdTable, holders: Mapping[str, tuple[Holder, ...]]
) -> Iterator[Problem]:
    for number, stream in _STREAMS.items():
        if number not in table:
            yield Problem(
                number=number,
                name="closed-stream",
                text=f"is closed: the next file that is opened becomes {stream}",
                remedy="open /dev/null there",
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
                "plainly gets it",
                remedy=f"set_cloexec({number}, True), or start programs by spawn(), whose map "
                "alone passes",
            )
        if isinstance(known, FileDetails) and known.links == 0 and known.size > 0:
            yield Problem(
                number=number,
                name="deleted",
                text=f"({describe(row)}) has no name any more; its {known.size} bytes stay on the "
                "disk until it is closed",
                remedy="close it, or reopen it (logs); temporary files are meant to be so",
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
            text=f"is a listener that another program holds too: {holder}: its address stays "
            "taken until that has ended, and connections wait there if nobody accepts",
            remedy="end that program, and make the listener close-on-exec before starting such",
        )
    waiting, backlog = known.waiting or 0, known.backlog or 0
    if known.backlog is not None and waiting > backlog:  # so the kernel counts
        yield Problem(
            number=number,
            name="full-queue",
            text=f"has {waiting} connections waiting of {backlog}: nobody accepts",
            remedy="accept: is it registered with the poller of this very process?",
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
        text=f"is an epoll that watches descriptor {watch.number}, which is {now}: what it was "
        f"lives on in {others or 'a process we may not see'}, and its events still come",
        remedy="EPOLL_CTL_DEL before close; after a fork, an epoll of the child's own",
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
            remedy="a leak? compare two tables by pyforkfd.diff(); or raise RLIMIT_NOFILE",
        )
