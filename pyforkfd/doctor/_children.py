"""Children of the experiments: forked ones, and programs executed plainly."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ._experiments import Impossible, fork

# The code of `in_exec` runs after this, in a Python without site-packages.
_PROLOGUE = """
import errno, os, socket, sys
socket.setdefaulttimeout(10)
def report(act):
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
    """Call ``act`` in a forked child, and return its result as text.

    Args:
        act: for the child.
        meanwhile: called in this process once the child is forked.

    Returns:
        ``str()`` of what ``act`` returned; the name of the errno if it raised an OSError.
    """
    reader, writer = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            try:
                result = str(act())
            except OSError as error:
                result = errno_name(error)
            os.write(writer, result.encode())
        except BaseException as error:  # nothing may run on into the parent's code
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        if meanwhile is not None:
            meanwhile()
    finally:
        result = _output(reader, pid)
    return result


def in_exec(code: str, *args: object) -> str:
    """Run code in a fresh Python that is executed plainly, and return what it prints.

    By vfork and exec, without closing anything: the program has all descriptors that are not
    close-on-exec here, and a pipe as its 1.

    Args:
        code: Python.
        args: its sys.argv[1:].
    """
    if not sys.executable:
        raise Impossible("sys.executable is empty: there is no interpreter to execute")
    return in_program([sys.executable, "-I", "-S", "-c", _PROLOGUE + code, *map(str, args)])


def open_in_exec(fds: list[int]) -> list[int]:
    """Return those of these numbers that are open in a program executed plainly."""
    test = 'for fd; do [ -e "/proc/self/fd/$fd" ] && echo "$fd"; done; true'
    return [int(n) for n in in_program([*shell(test), "sh", *map(str, fds)]).split()]


def shell(script: str) -> list[str]:
    """Return the command that runs a script.

    Raises:
        Impossible: there is no shell, or no /proc, which the scripts read.
    """
    for path in ("/bin/sh", "/proc/self/fd"):
        if not os.access(path, os.X_OK):
            raise Impossible(f"there is no {path}")
    return ["/bin/sh", "-c", script]


def in_program(args: list[str], *, report: int = 1) -> str:
    """Execute a program plainly, and return what it writes to its 1, or another number."""
    reader, writer = os.pipe()
    try:
        actions = [(os.POSIX_SPAWN_DUP2, writer, report)]
        pid = os.posix_spawn(args[0], args, os.environ, file_actions=actions)
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    return _output(reader, pid)


@contextmanager
def holding() -> Iterator[int]:
    """Fork a child that holds our descriptors, and does nothing else, until the block ends.

    Yields:
        The child's pid.
    """
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
    """Receive one descriptor.  Not by socket.recv_fds(), which ignores its flags."""
    for _, kind, data in channel.recvmsg(1, socket.CMSG_SPACE(4), flags)[1]:
        if kind == socket.SCM_RIGHTS:
            return int(struct.unpack("i", data[:4])[0])
    raise OSError(errno.ENOMSG, "no descriptor came")


def errno_name(error: OSError) -> str:
    """Return the name of the errno, such as EBADF."""
    return errno.errorcode.get(error.errno or 0, str(error))


def _output(reader: int, pid: int) -> str:
    with os.fdopen(reader, "rb") as pipe:
        output = pipe.read()
    os.waitpid(pid, 0)
    return output.decode(errors="replace")
