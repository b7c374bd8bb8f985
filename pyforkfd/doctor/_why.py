"""Whether a program would have a descriptor, and why."""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pyforkfd._checks import as_fd
from pyforkfd._fd import cloexec
from pyforkfd._fd_details import FileDetails, SocketDetails
from pyforkfd._fd_table import FdInfo, FdTable, fd_table
from pyforkfd._types import HasFileno, StrPath

from ._children import in_program
from ._words import describe

# Programs that start others, and their treatment of descriptors above 2.
_CLOSERS = {
    "sudo": "closes everything from 3 up (sudo -C, if sudoers allows)",
    "doas": "closes everything from 3 up",
    "su": "closes nothing itself, but its PAM modules may",
    "runuser": "closes nothing itself, but its PAM modules may",
    "ssh": "starts it on another machine",
    "docker": "starts it from a daemon",
    "podman": "passes 3 and up only with --preserve-fds",
    "systemd-run": "starts it from the service manager (use a .socket unit)",
    "at": "starts it from a daemon",
}
_PASSING = {"su", "runuser"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way of starting a program from this process.

    Attributes:
        how: the calls that start it so.
        has: the program has the descriptor then.
        why: the reason, or how to change it.
    """

    how: str
    has: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Whether a program would have a descriptor; ``str()`` is the whole answer.

    Attributes:
        fd: the descriptor.
        command: the program and its arguments; may be empty.
        what: the descriptor's file, in words; empty if it is closed.
        has: executed plainly, the program would have it.
        reason: why, or why not.
        remedy: how to pass it, if it is not passed; else empty.
        ways: the answer for each usual way of starting a program.
        notes: further facts.
        tried: the result of a program that was really executed; None: none was.
    """

    fd: int
    command: tuple[str, ...]
    what: str
    has: bool
    reason: str
    remedy: str
    ways: tuple[Way, ...]
    notes: tuple[str, ...]
    tried: str | None

    def __str__(self) -> str:
        name = self.command[0] if self.command else "a program"
        lines = [
            f"{name} would {'have' if self.has else 'NOT have'} descriptor {self.fd}: {self.reason}"
        ]
        lines += [f"file: {self.what}"] if self.what else []
        lines += [f"remedy: {self.remedy}"] if self.remedy else []
        lines += [f"started by {w.how}: {'yes' if w.has else 'no'}, {w.why}" for w in self.ways]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"tried: {self.tried}"] if self.tried is not None else []
        return "\n".join(lines)


def why(
    fd: int | HasFileno, command: Sequence[StrPath] = (), *, really: bool = False
) -> Explanation:
    """Explain whether a program started by us would have one of our descriptors.

    The answer itself is for a plain exec; ``ways`` has subprocess and others, which close more.

    Args:
        fd: borrowed; it need not be open.
        command: the program and its arguments, which are examined and not started.
        really: also start a small program in place of ``command``, by a plain exec, which
            reports the descriptor that it has.

    Raises:
        ValueError: not the number of a descriptor.
        TypeError: the command is one string.
    """
    if isinstance(command, (str, bytes)):
        raise TypeError(f"why: {command!r} is a string, not a program and its arguments")
    return explain(as_fd(fd, "why"), command, really=really, from_shell=False)


def explain(fd: int, command: Sequence[StrPath], *, really: bool, from_shell: bool) -> Explanation:
    """As :func:`why`.

    Args:
        fd: the number.
        command: as there.
        really: as there.
        from_shell: explain what the shell that started this process would pass.  A process
            begins with unmarked descriptors alone, as exec has closed the others: a marked
            one was opened by this process, so the shell has passed none of that number.
    """
    if fd < 0:
        raise ValueError(f"{fd} is not a descriptor")
    words = tuple(os.fsdecode(word) for word in command)
    table = fd_table()
    row = table.get(fd)
    if from_shell and row is not None and row.cloexec:
        row = None
    has, reason, remedy = _verdict(fd, row, from_shell)
    if has and (obstacle := _obstacle(fd, words)):
        has, reason, remedy = False, obstacle, ""
    return Explanation(
        fd=fd,
        command=words,
        what="" if row is None else describe(row),
        has=has,
        reason=reason,
        remedy=remedy,
        ways=() if from_shell or row is None else tuple(_ways(fd, row)),
        notes=tuple(_notes(fd, row, table, words)),
        tried=_try(fd) if really else None,
    )


def _verdict(fd: int, row: FdInfo | None, from_shell: bool) -> tuple[bool, str, str]:
    """Return (has it, reason, remedy), for a plain exec."""
    if row is None and from_shell:
        remedy = (
            f"a redirection of the command ({fd}<file), or `exec {fd}<file` before it (which ksh "
            "marks close-on-exec); started by a program: it must be open there, and not FD_CLOEXEC"
        )
        return False, "the shell passes none of that number", remedy
    if row is None:
        return False, "it is closed in this process already", "open it; find out who closed it"
    if row.cloexec:
        reason = "it is marked FD_CLOEXEC, so exec closes it (Python marks everything, PEP 446)"
        remedy = (
            f"spawn(fds={{{fd}: {fd}}}); subprocess: pass_fds=({fd},); "
            f"other calls: with inheriting({fd}): ..."
        )
        return False, reason, remedy
    return True, "it is open and not marked FD_CLOEXEC, so exec passes it", ""


def _obstacle(fd: int, words: tuple[str, ...]) -> str:
    """Return why a program would not have a descriptor that exec passes; empty: it would."""
    if not words:
        return ""
    if shutil.which(words[0]) is None:
        return f"{words[0]} is not found, or not executable: nothing would start"
    name = os.path.basename(words[0])
    if name in _CLOSERS and name not in _PASSING and fd > 2:
        inner = words[-1] if len(words) == 2 else "the program after it"
        return f"{name} would have it, but {_CLOSERS[name]}: {inner} would not"
    return ""


def _ways(fd: int, row: FdInfo) -> Iterator[Way]:
    plain = not row.cloexec
    yield Way(
        how="os.posix_spawn, os.exec*, os.system, most C libraries",
        has=plain,
        why="not marked FD_CLOEXEC" if plain else "marked FD_CLOEXEC",
    )
    if fd <= 2:
        yield Way(how="subprocess, asyncio", has=plain, why="0, 1 and 2 are not closed")
        yield Way(
            how="pyforkfd.spawn", has=True, why="0, 1 and 2 are passed unless fds= names them"
        )
        return
    yield Way(
        how="subprocess, asyncio",
        has=False,
        why=f"close_fds=True closes all from 3 up; pass_fds=({fd},) passes it",
    )
    listening = isinstance(row.details, SocketDetails) and row.details.listening
    more = ", or listen={'name': ...} as 3 with LISTEN_FDS" if listening else ""
    yield Way(
        how="pyforkfd.spawn",
        has=False,
        why=f"only the map is passed: fds={{{fd}: {fd}}} passes it{more}",
    )


def _notes(fd: int, row: FdInfo | None, table: FdTable, words: tuple[str, ...]) -> Iterator[str]:
    if row is not None:
        for other in row.shared_with or ():
            if row.cloexec and not table[other].cloexec:
                yield f"descriptor {other} is the same open file and not marked: it would pass"
        if isinstance(row.details, SocketDetails):
            yield from _socket_notes(row.details)
        if isinstance(row.details, FileDetails) and row.details.links == 0:
            yield "the file is unlinked; the descriptor can still be used"
    yield from _command_notes(words, table)
    yield from _activation_notes(fd, row)


def _socket_notes(known: SocketDetails) -> Iterator[str]:
    if known.listening:
        yield "the socket listens: the program accepts at once, without a listen() of its own"
    elif known.peer is None and known.local:
        yield "the socket is bound but does not listen: accept() would fail with EINVAL"


def _command_notes(words: tuple[str, ...], table: FdTable) -> Iterator[str]:
    path = shutil.which(words[0]) if words else None
    if path is None:
        return
    name = os.path.basename(words[0])
    if name in _PASSING:
        yield f"{name} {_CLOSERS[name]}"
    try:
        mode = os.stat(path).st_mode
        with open(path, "rb") as file:
            first = file.readline(256)
    except OSError:
        return
    if first.startswith(b"#!"):
        interpreter = os.fsdecode(first[2:].strip().split(b" ")[0])
        yield f"{path} is a #! script: {interpreter} is executed, and has the descriptors"
        by_number = re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", words[0])
        if by_number and (script := table.get(int(by_number[1]))) and script.cloexec:
            yield f"descriptor {by_number[1]} is marked: the interpreter could not open the script"
    if mode & (stat.S_ISUID | stat.S_ISGID):
        yield f"{path} runs as its owner or group (set-user-ID): descriptors pass all the same"


def _activation_notes(fd: int, row: FdInfo | None) -> Iterator[str]:
    """Check LISTEN_FDS in our environment, which the program would inherit: sd_listen_fds(3)."""
    count, pid = os.environ.get("LISTEN_FDS"), os.environ.get("LISTEN_PID")
    listening = row is not None and isinstance(row.details, SocketDetails) and row.details.listening
    if count is None:
        if listening and fd > 2:
            yield (
                "a program with socket activation takes it only as 3, and only where LISTEN_FDS=1 "
                "and LISTEN_PID, the program's pid, are set"
            )
        return
    if not re.fullmatch("[0-9]{1,9}", count):
        yield f"LISTEN_FDS={count} is not a number"
        return
    last = 3 + int(count) - 1
    if not 3 <= fd <= last:
        covered = "no descriptor" if int(count) == 0 else f"3 to {last}"
        yield f"LISTEN_FDS={count} announces {covered}, not {fd}"
    elif row is None:
        yield f"LISTEN_FDS={count} announces {fd}, which is not open"
    if pid != str(os.getpid()):
        yield (
            f"LISTEN_PID={pid} is not the pid of a program started from here: sd_listen_fds(3) "
            "would return no descriptors there"
        )


_PROBE = """
import os, socket, stat, sys
fd, report = int(sys.argv[1]), int(sys.argv[2])
try:
    info = os.fstat(fd)
    result = f"{info.st_dev} {info.st_ino}"
    if stat.S_ISSOCK(info.st_mode):
        found = socket.socket(fileno=fd)
        result += f" {found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)}"
        found.detach()
except OSError as error:
    result = error.strerror
os.write(report, result.encode())
"""


def _try(fd: int) -> str:
    report = 2 if fd == 1 else 1
    try:
        cloexec(fd)
        info = os.fstat(fd)
        ours = f"{info.st_dev} {info.st_ino}"
    except OSError:
        ours = ""
    args = [sys.executable, "-I", "-S", "-c", _PROBE, str(fd), str(report)]
    result = in_program(args, report=report)
    if not ours or not result.startswith(ours):
        return f"a program was executed, and has no such descriptor ({result})"
    listens = ", and it listens" if result == f"{ours} 1" else ""
    return f"a program was executed, and has the same file as its {fd}{listens}"
