"""The memory of a process that has no cgroup with a memory controller."""

from __future__ import annotations

import os
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_memory(pid: int, exact_above: int = 0) -> int | None:
    """Return the memory of one process in bytes, with its share of what others have as well.

    The resident set (/proc/PID/statm) is cheap to read, but counts in full what a process
    shares with the zygote that it was cloned from.  The proportional set (PSS of
    /proc/PID/smaps_rollup, Linux 4.14) counts a share of that.  It is read only where it
    decides, as it costs a walk through all page tables; it is never above the resident set.

    Args:
        pid: the process; its children are not counted.
        exact_above: a resident set up to so many bytes is returned as it is.

    Returns:
        Bytes; None if the process has ended.

    Raises:
        OSError: /proc is not mounted, or hides the process from us.
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
        return resident  # an older kernel, a process that has just ended, or another user's
    proportional = next(ln.split()[1] for ln in rollup.splitlines() if ln.startswith("Pss:"))
    return int(proportional) * 1024
