"""Errors of spawns, of listeners, channels and pages, and of passing descriptors."""

from __future__ import annotations

import os
from typing import Any

from . import _core


class SpawnError(OSError):
    """A child could not be started; nothing of it is left behind.

    The message reads ``spawn PROGRAM: STEP: SUBJECT: REASON``, for example
    ``spawn /srv/app/worker: set user: www-data: Operation not permitted``.
    Where errno belongs to one of Python's own kinds of OSError, the error is an instance of
    that too: ``except FileNotFoundError`` and ``except PermissionError`` work.

    Attributes:
        program: the program that was to be executed.
        stage: name of the step that failed, one of :data:`STAGES`.
        subject: the object that the step was applied to.
        errno: the kernel's error number.
    """

    program: str
    stage: str
    subject: str

    def __new__(cls, program: str, stage: str, err: int, subject: str, text: str) -> SpawnError:
        kind = _KINDS.get(type(OSError(err, "")), cls) if cls is SpawnError else cls
        return OSError.__new__(kind, err, os.strerror(err))

    def __init__(self, program: str, stage: str, err: int, subject: str, text: str) -> None:
        super().__init__(err, os.strerror(err))
        self.program = program
        self.stage = stage
        self.subject = subject
        self._text = text

    def __str__(self) -> str:
        # The program is named once, also where it is the subject.
        subject = "" if self.subject == self.program else f"{self.subject}: "
        return f"spawn {self.program}: {self._text}: {subject}{self.strerror}"

    def __reduce__(self) -> tuple[Any, ...]:
        return SpawnError, (self.program, self.stage, self.errno, self.subject, self._text)


def _kin(base: type[OSError]) -> type[SpawnError]:
    return type(f"Spawn{base.__name__}", (SpawnError, base), {"__module__": __name__})


_KINDS: dict[type[OSError], type[SpawnError]] = {
    kind: _kin(kind) for kind in OSError.__subclasses__() if kind.__module__ == "builtins"
}

STAGES: tuple[str, ...] = tuple(_core.stages())
"""The steps of a spawn at which it can fail, in the order in which they happen."""


def from_core(program: str, error: _core.SysError) -> SpawnError:
    """Return the core's error with the program's name."""
    stage, err, subject, text = error.args
    return SpawnError(program, stage, err, subject, text)


class ThreadsError(RuntimeError):
    """The process was not cloned, since it has more than one thread.

    The message reads ``the process has other threads: worker-1 (4711), OpenBLAS (4712)``.

    Attributes:
        threads: thread id -> name, of all but the calling one: Python's name, or that of
            prctl(2) PR_SET_NAME; a library's threads often have the program's name.
        remedy: what keeps a library from starting them, where that is known; else empty.
    """

    threads: dict[int, str]
    remedy: str

    def __init__(self, threads: dict[int, str], remedy: str = "") -> None:
        """Name the threads.

        Args:
            threads: thread id -> name.
            remedy: what keeps them from being started; empty: nothing is known.
        """
        named = ", ".join(f"{name} ({tid})" for tid, name in sorted(threads.items()))
        hint = f"; {remedy}" if remedy else ""
        super().__init__(f"the process has other threads: {named}{hint}")
        self.threads = threads
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        return ThreadsError, (self.threads, self.remedy)


class DescriptorError(OSError):
    """A descriptor is not of the kind that is needed; it was left as it is.

    Attributes:
        fd: the descriptor's number.
        reason: what the descriptor is instead.
        errno: the error number of the reason.
    """

    fd: int
    reason: str

    def __init__(self, err: int, fd: int, reason: str) -> None:
        super().__init__(err, os.strerror(err))
        self.fd = fd
        self.reason = reason

    def __str__(self) -> str:
        return f"descriptor {self.fd} {self.reason}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.errno, self.fd, self.reason)


class ListenerError(DescriptorError):
    """A descriptor is not the listener that is needed; it was left as it is.

    The message reads ``descriptor 3 is a TCP socket but not listening``.

    Attributes:
        fd: the descriptor's number.
        reason: what the descriptor is instead.
        errno: EBADF (closed), ENOTSOCK, EINVAL (does not listen), EAFNOSUPPORT, EPROTOTYPE.
    """


class ChannelError(DescriptorError):
    """A descriptor is not the connection that is needed; it was left as it is.

    The message reads ``descriptor 3 is a Unix stream socket, not a Unix seqpacket socket``.

    Attributes:
        fd: the descriptor's number.
        reason: what the descriptor is instead.
        errno: EBADF (closed), ENOTSOCK, EPROTOTYPE, EINVAL (listens), ENOTCONN.
    """


class PageError(DescriptorError):
    """A descriptor is not the page of slots that is needed; it was left as it is.

    The message reads ``descriptor 5 is a page of version 2; this program knows version 1``.

    Attributes:
        fd: the descriptor's number.
        reason: what the descriptor is instead.
        errno: EINVAL; or EBADF (closed), EACCES (not open for writing), ENOMEM, EMFILE.
    """


class PassingError(OSError):
    """A message did not arrive whole; the descriptors that came with it are closed.

    Attributes:
        errno: EMSGSIZE (too large), EMFILE (RLIMIT_NOFILE), EPROTO, ECONNRESET, EACCES.
        data: the bytes that came.
        closed: number of the descriptors that came, and are closed.
    """

    data: bytes
    closed: int

    def __init__(self, err: int, text: str, data: bytes, closed: int) -> None:
        super().__init__(err, text)
        self.data = data
        self.closed = closed

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[Any, ...]:
        return PassingError, (self.errno, self.strerror, self.data, self.closed)


class ForkWarning(RuntimeWarning):
    """Other threads live in a process that forks: the locks they hold stay locked in the child.

    Attributes:
        threads: names of the threads; one that Python does not know is marked as native.
    """

    threads: tuple[str, ...]

    def __init__(self, threads: tuple[str, ...]) -> None:
        super().__init__(threads)
        self.threads = threads

    def __str__(self) -> str:
        return (
            f"fork beside {len(self.threads)} other thread{'s' * (len(self.threads) != 1)} "
            f"({', '.join(self.threads)}): they are not in the child, but the locks they hold "
            "are; spawn() is safe"
        )
