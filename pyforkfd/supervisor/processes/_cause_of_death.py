"""The cause of a worker's death: from its exit status, and for OOM from the kernel's count."""

from __future__ import annotations

import signal

import pyforkfd as ff
from pyforkfd.supervisor.state._events import Cause


def cause(
    status: ff.ExitStatus, *, oom_kills: int = 0, remedy: str | None = None
) -> tuple[Cause, str]:
    """Find the cause of a worker's death.

    Args:
        status: how it ended.
        oom_kills: how many processes of its own cgroup the OOM killer has killed,
            memory.events.local.  Without a cgroup an OOM kill looks like any other.
        remedy: what to write into the specification, for a worker that was root without
            capabilities, and seems to have died of that.

    Returns:
        The label for the counters, and words for people.
    """
    killed = status.signal == signal.SIGKILL or status.code == 128 + signal.SIGKILL
    if oom_kills > 0 and killed:
        return "oom", f"{status}: the OOM killer took {oom_kills} process(es) of its cgroup"
    if status.core_dumped:
        return "core", str(status)
    if status.signal is not None:
        return "signal", str(status)
    if status.lost:
        return "exit", str(status)
    if status.success:
        return "done", str(status)
    assert status.code is not None
    if status.code > 128:  # as a shell reports the end of its child
        try:
            name = signal.Signals(status.code - 128).name
        except ValueError:
            return "exit", str(status)
        return "exit", f"{status} (as a shell reports a child killed by {name})"
    if remedy is not None:
        return "exit", f"{status} (EPERM is likely: it ran as root without capabilities; {remedy})"
    return "exit", str(status)
