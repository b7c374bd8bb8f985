"""What a process has in memory, where it has no cgroup that would count it."""

from __future__ import annotations

import os
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_memory(pid: int, exact_above: int = 0) -> int | None:
    """Bytes of memory of one process, without those that others share with it.

    Its resident set (/proc/PID/statm) is cheap to know, but counts what it shares with the
    zygote it was cloned from as its own.  The proportional set (PSS of /proc/PID/smaps_rollup,
    Linux 4.14) does not, and is asked for only where it decides: it costs a walk through all
    page tables, and is never above the resident set.

    Args:
        pid: the process; its children are not counted.
        exact_above: a resident set up to so many bytes is good enough.

    Returns:
        None if there is no such process any more.

    Raises:
        OSError: /proc is not there, or hides the process from us.
    """
    proc = Path(f"/proc/{pid}")
    try:
        resident = int((proc / "statm").read_bytes().split()[1]) * _PAGE
    except (FileNotFoundError, ProcessLookupError):
        return None
    if resident <= exact_above:
        return resident
    try:
        rollup = (proc / "smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return resident  # an older kernel; it has just ended; it is another user's
    proportional = next(ln.split()[1] for ln in rollup.splitlines() if ln.startswith("Pss:"))
    return int(proportional) * 1024
