"""Nothing grows: descriptors, memory and processes over many reloads."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from leaks import gone, steady
from places import HELPERS
from processes import children
from services import Running, service

# PYFORKFD_STRESS=1000 is the full run.
RELOADS = int(os.environ.get("PYFORKFD_STRESS", "40"))
WARM_UP = 10
SERVER = HELPERS / "tiny_server.py"
CONFIG = f"""
[listeners.web]
address = "systemd:web"

[components.tiny]
command = ["{sys.executable}", "-S", "{SERVER}", "tiny"]
listen = ["web"]
workers = 1
"""


def holdings(running: Running) -> Mapping[str, object]:
    """Count the supervisor's descriptors by kind, and its processes: equal in each generation."""
    pid = running.process.pid
    kinds: dict[str, int] = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            kind = re.sub(r":.*|-\d+\.worker.*$", "", os.readlink(f"/proc/{pid}/fd/{fd}"))
        except FileNotFoundError:
            continue
        kinds[kind] = kinds.get(kind, 0) + 1
    return {"descriptors": kinds, "processes": len(children(pid))}


def memory(running: Running) -> int:
    """Bytes."""
    statm = Path(f"/proc/{running.process.pid}/statm").read_text().split()
    return int(statm[1]) * os.sysconf("SC_PAGE_SIZE")


def test_descriptors_memory_and_processes_are_flat(tmp_path: Path) -> None:
    with service(tmp_path, CONFIG) as running:
        for _ in range(WARM_UP):
            reload(running)
        before, size = steady(lambda: holdings(running)), memory(running)
        for _ in range(RELOADS):
            reload(running)
        # The last worker's cgroup is removed a moment after it has left.
        assert gone(lambda: holdings(running) == before), (holdings(running), before)
        # A leak of a page for each reload would show; the allocator's own whims do not.
        assert memory(running) < size + 2**20 + RELOADS * 1024, (memory(running), size)


def reload(running: Running) -> None:
    """And wait until the old worker has left."""
    after = len(running.log)
    running.reload()
    running.log.wait_for("has left", after=after)
