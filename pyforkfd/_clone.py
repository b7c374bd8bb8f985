"""clone(2) of the calling process, for flags that fork does not take."""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import dataclass

from . import _core
from ._checks import integer, path_or_fd
from ._errors import ThreadsError
from ._fd import Fd
from ._process import Process
from ._types import CloneFlag, HasFileno, StrPath


@dataclass(frozen=True, slots=True, kw_only=True)
class Sibling:
    """A process that we made and that is our parent's child: only the parent may wait for it.

    Attributes:
        pid: its number, in our pid namespace.
        pidfd: the process's pidfd; owned, to be closed or passed to the parent.
    """

    pid: int
    pidfd: Fd


def clone(
    flags: int = 0,
    *,
    exit_signal: int = signal.SIGCHLD,
    cgroup: StrPath | int | HasFileno | None = None,
) -> Process | Sibling | None:
    """Clone the calling process, as fork does, with any flags that make a process.

    For processes with one thread only: locks of other threads would stay locked in the child.
    libc's fork() is not called, so other libraries' handlers of pthread_atfork(3) do not run;
    ours do (:func:`atfork.in_child`, a :class:`ForkSafeSelector`), and those of
    :func:`os.register_at_fork`.  The child has a thread id, a robust list and a signal mask
    that are right, and may start threads.

    By clone3(2), else clone(2), which has no CLEAR_SIGHAND and NEWTIME.

    Args:
        flags: a combination of :class:`CloneFlag`.  With PARENT the child is our parent's:
            we get its pid and pidfd alone, and its end sends the signal that ours does.
        exit_signal: signal that is sent to us when the child ends; 0 for none.
        cgroup: directory in the cgroup v2 tree, path or descriptor (borrowed), for the child:
            CLONE_INTO_CGROUP (Linux 5.7), else it enters by itself before it returns.

    Returns:
        None in the child; to the parent the child, which it owns.

    Raises:
        ThreadsError: there are other threads, which the error names.
        TypeError, ValueError: an option makes no sense, or flags share memory, descriptors
            or handlers; the message begins with the option.
        OSError: the kernel refuses; ENOTSUP where libc (musl) or the kernel does not support
            a correct child, or with PARENT as pid 1 of a pid namespace, whose sibling no
            process would reap.
    """
    flags = integer(flags, "flags", 0, 2**64 - 1, "a combination of CloneFlag")
    if unfit := flags & ~_core.CLONE_FLAGS:
        raise ValueError(f"flags: {unfit:#x} do not make a process")
    exit_signal = integer(exit_signal, "exit_signal", 0, 64, "a signal")
    sibling = bool(flags & CloneFlag.PARENT)
    opened = -1
    into = -1 if cgroup is None else path_or_fd(cgroup, "cgroup")
    if isinstance(into, bytes):
        into = opened = os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sys.audit("os.fork")
        pid, pidfd = core_clone(flags, 0 if sibling else exit_signal, into)
    finally:
        if opened >= 0:
            os.close(opened)
    if pid == 0:
        return None
    if sibling:
        return Sibling(pid=pid, pidfd=Fd(pidfd))
    return Process((sys.executable, *sys.argv), pid, pidfd, "fork-like", {}, frozenset())


def core_clone(
    flags: int, exit_signal: int, cgroup: int = -1, slot: memoryview | None = None
) -> tuple[int, int]:
    """Call the core's clone; turn OtherThreads into a ThreadsError with Python's names."""
    try:
        return _core.clone(flags, exit_signal, cgroup, slot)
    except _core.OtherThreads as error:
        (tasks,) = error.args
    raise _threads_error(tasks)


def demand_one_thread() -> None:
    """Raise a ThreadsError if there are other threads."""
    if tasks := _core.other_threads():
        raise _threads_error(tasks)


def _threads_error(tasks: list[tuple[int, bytes]]) -> ThreadsError:
    known = {thread.native_id: thread.name for thread in threading.enumerate()}
    return ThreadsError({tid: known.get(tid) or os.fsdecode(name) for tid, name in tasks})
