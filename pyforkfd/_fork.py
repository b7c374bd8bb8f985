"""fork() that knows its child, and says beside whom it was called."""

from __future__ import annotations

import os
import sys
import threading
import warnings

from . import _core
from ._errors import ForkWarning
from ._fds import as_fd
from ._process import Process
from ._types import PATHS, ExitStatus, HasFileno, StrPath


def fork(*, cgroup: StrPath | int | HasFileno | None = None) -> Process | None:
    """Fork this process, as os.fork does; the parent gets the child as a :class:`Process`.

    The parent waits and signals through its pidfd, as for a spawned child.  The fork lock
    is held, so no descriptor of :func:`inheriting`, :func:`redirected` or :func:`no_forks`
    of another thread gets into the child, and no thread spawns with ``close_others=False``
    meanwhile.  It is taken first, and released when the child exists: ``before`` handlers
    run under it, and must not wait for a thread that wants it.

    A ``before`` handler of :func:`atfork.register` may refuse by an exception, which is
    raised here.  Then nothing was forked.  ``after_in_parent`` is called of those handlers
    whose ``before`` came earlier; of the one that refused, and those after it, nothing
    is; functions of os.register_at_fork have run as for a fork that failed.

    Args:
        cgroup: a cgroup directory, by path or borrowed descriptor, that the child enters
            before any of its code runs: what cgroups(7) has as writing 0 to cgroup.procs.

    Returns:
        The child in the parent, which owns it; None in the child.

    Raises:
        OSError: fork(2) failed; the child could not enter the cgroup, or was killed before
            it had (ECANCELED), and is reaped; no descriptor is free for the pidfd; EDEADLK,
            within :func:`no_forks`.
        RuntimeError: the interpreter shuts down.

    Warns:
        ForkWarning: other threads live, which are named.  If that is an error, nothing was
            forked.
    """
    if sys.is_finalizing():
        raise RuntimeError("fork: the interpreter shuts down")
    # Made before the fork: right after it each page that is written costs a page fault.
    process = Process((), -1, -1, "fork", {}, frozenset())
    if cgroup is None:
        forked = _core.fork(None, _warn_of_threads)
    else:
        procs, name = _open_procs(cgroup)
        try:
            forked = _core.fork((procs, name), _warn_of_threads)
        finally:
            os.close(procs)
    if forked is None:
        return None
    process.pid, process._pidfd = forked
    if process._pidfd < 0:  # reaped by somebody else before it could get one
        process._status = ExitStatus(code=None, signal=None, lost=True)
    return process


def _warn_of_threads() -> None:
    if others := other_threads():
        warnings.warn(ForkWarning(others), stacklevel=3)


def other_threads() -> tuple[str, ...]:
    """The names of all threads but this one, as Python or else the kernel has them.

    From /proc/self/task; a thread that Python does not know is called by its comm.
    """
    for last in (False, True):
        native = _tasks()
        known = {thread.native_id: thread.name for thread in threading.enumerate()}
        if last or native <= known.keys():
            break
        os.sched_yield()  # one that Python has joined is gone from the list a moment later
    names = []
    for task in sorted(native - {threading.get_native_id()}):
        if task in known:
            names.append(f"{known[task]!r}")
        elif (comm := _comm(task)) is not None:
            names.append(f"{comm!r} (native)")
    return tuple(names)


def _tasks() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


def _comm(task: int) -> str | None:
    try:
        with open(f"/proc/self/task/{task}/comm", errors="replace") as file:
            return file.read().rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        return None  # it has ended


def _open_procs(cgroup: StrPath | int | HasFileno) -> tuple[int, str]:
    """cgroup.procs, open for writing and owned by the caller; the cgroup's name."""
    if isinstance(cgroup, PATHS):
        path = os.fsdecode(cgroup)
        if not path:
            raise ValueError("cgroup: the path is empty")
        return os.open(os.path.join(path, "cgroup.procs"), os.O_WRONLY | os.O_CLOEXEC), ascii(path)
    fd = as_fd(cgroup, "cgroup")
    return os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=fd), f"descriptor {fd}"
