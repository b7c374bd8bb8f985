"""Experiments: which calls of this Python mark the descriptors they open FD_CLOEXEC."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import multiprocessing
import os
import select
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TypeAlias

from pyforkfd._fd import cloexec, set_cloexec

from ._children import receive, shell
from ._experiments import Impossible, Observation, Section

SECTION = Section("Which calls of Python mark descriptors close-on-exec")

Make: TypeAlias = Callable[[ExitStack], Iterable[int]]
"""Opens descriptors that the stack owns."""


def _trial(make: Make, marked: bool, other: Make | None) -> Callable[[bool], Observation]:
    def trial(control: bool) -> Observation:
        with ExitStack() as stack:
            numbers = list((other or make)(stack) if control else make(stack))
            if control and other is None:
                for number in numbers:
                    set_cloexec(number, not cloexec(number))
            marks = [cloexec(number) for number in numbers]
        seen = " and ".join("marked" if mark else "not marked" for mark in dict.fromkeys(marks))
        return Observation(bool(marks) and all(mark is marked for mark in marks), seen)

    return trial


def _marks(name: str, call: str, make: Make, *, belief: str = "it is inherited, as in C") -> None:
    SECTION.add(
        f"marks-{name}",
        _trial(make, True, None),
        statement=f"{call} marks FD_CLOEXEC",
        belief=belief,
        control="the mark is cleared again",
    )


def _does_not_mark(
    name: str, call: str, make: Make, *, belief: str, control: str, other: Make
) -> None:
    SECTION.add(
        f"does-not-mark-{name}",
        _trial(make, False, other),
        statement=f"{call} does not mark",
        belief=belief,
        control=control,
    )


def _own(stack: ExitStack, *fds: int) -> list[int]:
    for fd in fds:
        stack.callback(os.close, fd)
    return list(fds)


def _pipe(stack: ExitStack) -> list[int]:
    return _own(stack, *os.pipe())


def _null(stack: ExitStack) -> int:
    return _own(stack, os.open(os.devnull, os.O_RDONLY))[0]


def _open(stack: ExitStack) -> list[int]:
    return [stack.enter_context(open(os.devnull)).fileno()]


def _tempfile(stack: ExitStack) -> list[int]:
    return [
        stack.enter_context(tempfile.TemporaryFile()).fileno(),
        stack.enter_context(tempfile.NamedTemporaryFile()).fileno(),
    ]


def _socket(stack: ExitStack) -> list[int]:
    return [stack.enter_context(socket.socket(socket.AF_UNIX)).fileno()]


def _socketpair(stack: ExitStack) -> list[int]:
    return [stack.enter_context(end).fileno() for end in socket.socketpair()]


def _accept(stack: ExitStack) -> list[int]:
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind("")  # an abstract name of the kernel's choice
    listener.listen()
    client = stack.enter_context(socket.socket(socket.AF_UNIX))
    client.connect(listener.getsockname())
    return [stack.enter_context(listener.accept()[0]).fileno()]


def _socket_dup(stack: ExitStack) -> list[int]:
    made = stack.enter_context(socket.socket(socket.AF_UNIX))
    copy = socket.fromfd(made.fileno(), made.family, made.type)
    return [stack.enter_context(made.dup()).fileno(), stack.enter_context(copy).fileno()]


def _epoll(stack: ExitStack) -> list[int]:
    return [stack.enter_context(select.epoll()).fileno()]


def _timerfd(stack: ExitStack) -> list[int]:
    create = getattr(os, "timerfd_create", None)
    if create is None:
        raise Impossible("this Python has no os.timerfd_create (new in 3.13)")
    return _own(stack, create(1))


def _subprocess(stack: ExitStack) -> list[int]:
    command = shell("read end")
    pipe = subprocess.PIPE
    child = stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe))
    return [end.fileno() for end in (child.stdin, child.stdout, child.stderr) if end is not None]


def _asyncio(stack: ExitStack) -> list[int]:
    before = set(os.listdir("/proc/self/fd"))
    loop = asyncio.new_event_loop()
    stack.callback(loop.close)
    opened = (int(name) for name in os.listdir("/proc/self/fd") if name not in before)
    return [fd for fd in opened if os.path.exists(f"/proc/self/fd/{fd}")]


def _multiprocessing(stack: ExitStack) -> list[int]:
    return [stack.enter_context(end).fileno() for end in multiprocessing.Pipe()]


_marks("open", "`open()`", _open)
_marks("os-open", "`os.open()`", lambda stack: [_null(stack)])
_marks("tempfile", "`tempfile`", _tempfile)
_marks("socket", "`socket.socket()`", _socket)
_marks("accept", "`socket.accept()`", _accept, belief="accept() takes the listener's flags over")
_marks("socketpair", "`socket.socketpair()`", _socketpair)
_marks("socket-dup", "`socket.dup()` or `socket.fromfd()`", _socket_dup, belief="as dup() in C")
_marks("pipe", "`os.pipe()`", _pipe)
_marks("dup", "`os.dup()`", lambda s: _own(s, os.dup(_null(s))), belief="as dup() in C")
_marks("memfd", "`os.memfd_create(name)`", lambda s: _own(s, os.memfd_create("doctor")))
_marks("epoll", "`select.epoll()`", _epoll)
_marks("eventfd", "`os.eventfd(n)`", lambda s: _own(s, os.eventfd(0)))
_marks("timerfd", "`os.timerfd_create(clock)`", _timerfd)
_marks("pidfd", "`os.pidfd_open()`", lambda s: _own(s, os.pidfd_open(os.getpid())))
_marks("openpty", "`os.openpty()`", lambda s: _own(s, *os.openpty()))
_marks("subprocess", "`subprocess.Popen` (our ends of its pipes)", _subprocess)
_marks("asyncio", "an event loop of `asyncio`", _asyncio)
_marks("multiprocessing", "`multiprocessing.Pipe()`", _multiprocessing)


def _dup2(stack: ExitStack, *, inheritable: bool) -> list[int]:
    target = _null(stack)
    os.dup2(_null(stack), target, inheritable)
    return [target]


def _recv_fds(stack: ExitStack) -> list[int]:
    here, there = (stack.enter_context(end) for end in socket.socketpair())
    socket.send_fds(here, [b"x"], [here.fileno()])
    return _own(stack, *socket.recv_fds(there, 1, 1)[1])


def _recvmsg(stack: ExitStack, flags: int) -> list[int]:
    here, there = (stack.enter_context(end) for end in socket.socketpair())
    socket.send_fds(here, [b"x"], [here.fileno()])
    return _own(stack, receive(there, flags))


def _c_open(stack: ExitStack, flags: int) -> list[int]:
    try:
        fd = ctypes.CDLL(None).open(os.fsencode(os.devnull), os.O_RDONLY | flags)
    except (AttributeError, OSError) as error:
        raise Impossible(f"libc cannot be called by ctypes: {error}") from None
    return _own(stack, fd)


_does_not_mark(
    "dup2",
    "`os.dup2(a, b)`",
    lambda stack: _dup2(stack, inheritable=True),
    belief="Python marks everything (PEP 446)",
    control="`os.dup2(a, b, inheritable=False)`",
    other=lambda stack: _dup2(stack, inheritable=False),
)
_does_not_mark(
    "f-dupfd",
    "`fcntl.fcntl(fd, F_DUPFD)`",
    lambda stack: _own(stack, fcntl.fcntl(_null(stack), fcntl.F_DUPFD, 0)),
    belief="as `os.dup()`",
    control="F_DUPFD_CLOEXEC",
    other=lambda stack: _own(stack, fcntl.fcntl(_null(stack), fcntl.F_DUPFD_CLOEXEC, 0)),
)
_does_not_mark(
    "recv-fds",
    "`socket.recv_fds()`",
    _recv_fds,
    belief="Python marks everything (PEP 446)",
    control="recvmsg(2) with MSG_CMSG_CLOEXEC",
    other=lambda stack: _recvmsg(stack, socket.MSG_CMSG_CLOEXEC),
)
_does_not_mark(
    "recvmsg",
    "`socket.recvmsg()` with SCM_RIGHTS",
    lambda stack: _recvmsg(stack, 0),
    belief="the sender's mark comes along",
    control="`flags=MSG_CMSG_CLOEXEC`",
    other=lambda stack: _recvmsg(stack, socket.MSG_CMSG_CLOEXEC),
)
_does_not_mark(
    "memfd-with-flags",
    "`os.memfd_create(name, flags)` with flags of your own",
    lambda stack: _own(stack, os.memfd_create("doctor", os.MFD_ALLOW_SEALING)),
    belief="the flag is always added",
    control="MFD_CLOEXEC among them",
    other=lambda s: _own(s, os.memfd_create("doctor", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)),
)
_does_not_mark(
    "eventfd-with-flags",
    "`os.eventfd(n, flags)` with flags of your own",
    lambda stack: _own(stack, os.eventfd(0, os.EFD_NONBLOCK)),
    belief="the flag is always added",
    control="EFD_CLOEXEC among them",
    other=lambda stack: _own(stack, os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)),
)
_does_not_mark(
    "pipe2",
    "`os.pipe2(flags)`",
    lambda stack: _own(stack, *os.pipe2(os.O_NONBLOCK)),
    belief="as `os.pipe()`",
    control="O_CLOEXEC among them",
    other=lambda stack: _own(stack, *os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)),
)
_does_not_mark(
    "c-library",
    "a C library's open(2) without O_CLOEXEC",
    lambda stack: _c_open(stack, 0),
    belief="PEP 446 covers the whole process",
    control="O_CLOEXEC",
    other=lambda stack: _c_open(stack, os.O_CLOEXEC),
)
