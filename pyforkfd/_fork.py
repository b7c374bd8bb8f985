"""fork() with a Process for its child, and a warning that names other threads."""

from __future__ import annotations

import os
import threading
import warnings

from . import _core
from ._checks import path_or_fd
from ._core import fork
from ._errors import ForkWarning
from ._process import Process
from ._types import HasFileno, StrPath

__all__ = ["fork", "other_threads"]


def _warn_of_threads() -> None:
    if others := other_threads():
        warnings.warn(ForkWarning(others), stacklevel=2)


def other_threads() -> tuple[str, ...]:
    """Return the names of all threads but the calling one.

    They are found in /proc/self/task; a thread that Python does not know has its comm.
    """
    for last in (False, True):
        native = _tasks()
        known = {thread.native_id: thread.name for thread in threading.enumerate()}
        if last or native <= known.keys():
            break
        os.sched_yield()  # a thread that Python has joined leaves the list a moment later
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
    """Open cgroup.procs for writing; the caller owns it.

    Returns:
        The descriptor, and the cgroup's name for messages.
    """
    where = path_or_fd(cgroup, "cgroup")
    if isinstance(where, bytes):
        procs = os.open(os.path.join(where, b"cgroup.procs"), os.O_WRONLY | os.O_CLOEXEC)
        return procs, ascii(os.fsdecode(where))
    procs = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=where)
    return procs, f"descriptor {where}"


_core.prepare_fork(Process, _open_procs, _warn_of_threads)
