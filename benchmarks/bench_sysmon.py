"""How much processor time do a Sysmon's two threads take in an idle process?

From /proc/PID/task/TID/schedstat, so the waking itself is counted, to the nanosecond.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pyforkfd as ff

SECONDS, QUICK_SECONDS = 30.0, 5.0
INTERVALS = (0.005, 0.02, 0.1)
DEFAULT = 0.02


@dataclass(frozen=True, slots=True)
class Cost:
    """Percent of one processor, by thread.

    Attributes:
        native: of forkfd-sysmon, which watches.
        events: of forkfd-events, which takes the GIL to show that it moves.
    """

    interval: float
    descriptors: int
    native: float
    events: float

    @property
    def total(self) -> float:
        return self.native + self.events


def _times() -> dict[str, int]:
    """Return the nanoseconds on a processor, by the thread's name."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        name = (task / "comm").read_text().strip()
        found[name] = int((task / "schedstat").read_text().split()[0])
    return found


def once(interval: float, seconds: float) -> Cost:
    """Run a Sysmon with all its defaults for so many seconds."""
    with ff.Sysmon(interval=interval):
        time.sleep(0.5)  # started
        before, began = _times(), time.monotonic()
        time.sleep(seconds)
        after, took = _times(), time.monotonic() - began
    native, events = (
        (after[name] - before[name]) / took / 1e9 * 100
        for name in ("forkfd-sysmon", "forkfd-events")
    )
    return Cost(interval, len(ff.fd_table()), native, events)


def measure(quick: bool) -> list[Cost]:
    return [once(interval, QUICK_SECONDS if quick else SECONDS) for interval in INTERVALS]


if __name__ == "__main__":
    for row in measure("--quick" in sys.argv):
        holds = "" if row.interval != DEFAULT else " (claim: < 0.1: " + str(row.total < 0.1) + ")"
        print(row, f"total={row.total:.4f} %{holds}")
