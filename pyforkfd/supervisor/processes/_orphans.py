"""Orphans: children that pid 1 and sub-reapers inherit, and must reap."""

from __future__ import annotations

import os
from collections.abc import Container


def reap_orphans(ours: Container[int]) -> list[int]:
    """Reap children that have ended and that this process has not started.

    The pid is read first (waitid(2) with WNOWAIT), so that no status is taken from the code
    that has started the process.

    Args:
        ours: pids of processes that are waited for by their pidfd.

    Returns:
        The pids that were reaped.
    """
    reaped: list[int] = []
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return reaped
        # The kernel shows the first that has ended: one of ours is reaped first, by its pidfd.
        if found is None or found.si_pid in ours:
            return reaped
        os.waitid(os.P_PID, found.si_pid, os.WEXITED | os.WNOHANG)
        reaped.append(found.si_pid)
