"""How long do a heartbeat, a count and the supervisor's reading of all slots take?

Compared with reading the clock, which a beat does too.
Nothing waits, so the processor time of the thread is taken.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import pyforkfd as ff

SLOTS = 64
ROUNDS, QUICK_ROUNDS = 60, 10
BEAT_NS = 100.0  # the claim: a beat costs less


@dataclass(frozen=True, slots=True)
class Cost:
    """Nanoseconds of processor time per call: the median of all rounds, and the best."""

    what: str
    median_ns: float
    best_ns: float


def measure(quick: bool) -> list[Cost]:
    """Measure all calls in turns."""
    with ff.SharedPage.create(SLOTS) as page:
        slots = [page.slot(index) for index in range(SLOTS)]
        for worker, slot in enumerate(slots, start=1):
            slot.claim(worker=worker, generation=1)
            slot.beat()
            slot.add(10**6)
        one = slots[0]
        calls: dict[str, tuple[Callable[[], object], int]] = {
            "slot.beat()": (one.beat, 20000),
            "slot.add()": (one.add, 20000),
            "slot.begin()": (one.begin, 20000),
            f"page.snapshots(), {SLOTS} slots": (page.snapshots, 200),
            "time.monotonic_ns()": (time.monotonic_ns, 20000),
        }
        taken: dict[str, list[float]] = {what: [] for what in calls}
        for _ in range(QUICK_ROUNDS if quick else ROUNDS):
            for what, (call, times) in calls.items():
                turns = range(times)
                begin = time.thread_time_ns()
                for _ in turns:
                    call()
                taken[what].append((time.thread_time_ns() - begin) / times)
    return [Cost(what, statistics.median(ns), min(ns)) for what, ns in taken.items()]


if __name__ == "__main__":
    for row in measure("--quick" in sys.argv):
        holds = ""
        if row.what == "slot.beat()":
            holds = f"  (claim: < {BEAT_NS:.0f}: {row.median_ns < BEAT_NS})"
        print(f"{row.what:28} {row.median_ns:8.1f} {row.best_ns:8.1f}{holds}")
