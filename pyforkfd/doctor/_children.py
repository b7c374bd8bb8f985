"""Children of the experiments: forked ones, and plainly executed ones."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ._experiments import Impossible, fork

# What is given to `in_exec` runs after this, in a Python without site-packages.
_PROLOGUE = """
import errno, os, socket, sys
socket.setdefaulttimeout(10)
def tell(act):
    try:
        print(act(), end="")
    except OSError as error:
        print(errno.errorcode.get(error.errno, error), end="")
def accept(listener):
    connection, _ = listener.accept()
    connection.sendall(b"hello")
    return "accepted"
def receive(fd):
    with socket.socket(fileno=fd) as channel:
        return socket.recv_fds(channel, 1, 1)[1][0]
"""


def in_fork(act: Callable[[], object], *, meanwhile: Callable[[], object] | None = None) -> str:
    """What ``act`` returns in a forked child, as text; the name of the errno if it raises.

    ``meanwhile`` is called here once the child is there.
    """
    reader, writer = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            try:
                said = str(act())
            except OSError as error:
                said = errno_name(error)
            os.write(writer, said.encode())
        except BaseException as error:  # nothing may run on into the parent's code
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        if meanwhile is not None:
            meanwhile()
    finally:
        said = _answer(reader, pid)
    return said


def in_exec(code: str, *args: object) -> str:
    """What a program prints that is executed plainly, by vfork and exec without any closing.

    It has what is not close-on-exec here, with 1 on a pipe, and is a fresh Python that runs
    ``code``; sys.argv[1:] are ``args``.
    """
    if not sys.executable:
        raise Impossible("this Python does not know its own executable")
    return in_program([sys.executable, "-I", "-S", "-c", _PROLOGUE + code, *map(str, args)])


def open_in_exec(fds: list[int]) -> list[int]:
    """Which of these numbers are open in a program that is executed plainly."""
    test = 'for fd; do [ -e "/proc/self/fd/$fd" ] && echo "$fd"; done; true'
    return [int(n) for n in in_program([*shell(test), "sh", *map(str, fds)]).split()]


def shell(script: str) -> list[str]:
    """What executes it; scripts look into /proc, so that must be there too."""
    for path in ("/bin/sh", "/proc/self/fd"):
        if not os.access(path, os.X_OK):
            raise Impossible(f"there is no {path}")
    return ["/bin/sh", "-c", script]


def in_program(args: list[str], *, report: int = 1) -> str:
    """What a plainly executed program writes to its 1, or another number."""
    reader, writer = os.pipe()
    try:
        actions = [(os.POSIX_SPAWN_DUP2, writer, report)]
        pid = os.posix_spawn(args[0], args, os.environ, file_actions=actions)
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    return _answer(reader, pid)


@contextmanager
def holding() -> Iterator[int]:
    """A forked child that does nothing but hold what we held, until the block ends: its pid."""
    reader, writer = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            os.close(writer)
            os.read(reader, 1)
        finally:
            os._exit(0)
    os.close(reader)
    try:
        yield pid
    finally:
        os.close(writer)
        os.waitpid(pid, 0)


def receive(channel: socket.socket, flags: int = socket.MSG_CMSG_CLOEXEC) -> int:
    """One descriptor that was sent.  Not by socket.recv_fds(), which ignores its flags."""
    for _, kind, data in channel.recvmsg(1, socket.CMSG_SPACE(4), flags)[1]:
        if kind == socket.SCM_RIGHTS:
            return int(struct.unpack("i", data[:4])[0])
    raise OSError(errno.ENOMSG, "no descriptor came")


def errno_name(error: OSError) -> str:
    """EBADF and kin."""
    return errno.errorcode.get(error.errno or 0, str(error))


def _answer(reader: int, pid: int) -> str:
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said.decode(errors="replace")
