"""Pids of a predecessor's children, read from /proc."""

from __future__ import annotations

import re

from pyforkfd._fd import Fd


def pid_of(pidfd: int | Fd) -> int | None:
    """Return the pid of a pidfd, proc_pid_fdinfo(5); None: it was reaped, or is no pidfd."""
    number = pidfd if isinstance(pidfd, int) else pidfd.fileno()
    with open(f"/proc/self/fdinfo/{number}", "rb") as file:
        match = re.search(rb"^Pid:\s*([0-9]+)", file.read(), re.MULTILINE)
    return None if match is None or match[1] == b"0" else int(match[1])


def children_of(pid: int) -> set[int]:
    """Return the children of a process's first thread; none where the kernel does not list them."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            return {int(child) for child in file.read().split()}
    except OSError:
        return set()
