"""How much processor time does fork take, by the number of at-fork handlers?

Compared with os.fork and os.register_at_fork, which has neither statistics nor a pidfd, alone and
with os.pidfd_open after it.

A fork write-protects every page, and the next write to each costs a page fault.  So a fork right
after another also pays for the pages that the first left protected and that this call writes to.
After a program's own work none are left, hence two scenes.

Beyond os.fork, ours calls pidfd_open(2), which makes an inode; so does the second of the others.
"""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

from blocks import BlockProcess

HANDLERS = (0, 10, 100)
OURS = "ff.fork"
OTHERS = ("os.fork", "os.fork and pidfd_open")
SCENES = ("after work", "back to back")
# Which objects share a page is chance, and stays the same for as long as a process lives.
PROCESSES, QUICK_PROCESSES = 40, 8  # of each kind, one after the other
BLOCKS = 10  # of each
BLOCK = 5  # forks of one process before the next has its turn
WARM_UP = 1  # of a block, not counted


Block = list[tuple[int, int]]  # nanoseconds of a call and of its child
Times = dict[tuple[str, int], dict[str, list[Block]]]  # by scene and handlers, by way


@dataclass(frozen=True, slots=True)
class ForkCost:
    """Medians of processor time, in microseconds; ratios are ours to the other, see measure().

    Not wall time: the scheduler chooses whether parent or child runs first.

    Attributes:
        other: the way that ours is compared with.
        scene: "after work": a collection of garbage, which writes to every object's page,
            comes before each fork; or "back to back".
        handlers: how many are registered, each with all three functions.
        call_us: of the call in the parent.
        child_us: of the child, which exits at once.
    """

    other: str
    scene: str
    handlers: int
    rounds: int
    call_us: float
    other_call_us: float
    call_ratio: float
    child_us: float
    other_child_us: float
    child_ratio: float


class Worker(BlockProcess):
    """A process that forks in one way, and sleeps between blocks."""

    def __init__(self, way: str, handlers: int) -> None:
        super().__init__([__file__, "--worker", way, str(handlers)])

    def run(self, scene: str) -> Block:
        """Run one block, and return the nanoseconds of each call and of its child."""
        return [(call, child) for call, child in self.request(scene)]


def cpu_of(usage: resource.struct_rusage) -> int:
    """Return the processor time, in nanoseconds."""
    return round((usage.ru_utime + usage.ru_stime) * 1e9)


def fork_by_os() -> tuple[int, int]:
    """Fork by os.fork, and return the nanoseconds of the call and of the child."""
    start = time.thread_time_ns()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    taken = time.thread_time_ns() - start
    return taken, cpu_of(os.wait4(pid, 0)[2])


def fork_by_os_with_pidfd() -> tuple[int, int]:
    """Fork by os.fork and open a pidfd; return the nanoseconds of both and of the child."""
    start = time.thread_time_ns()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    taken = time.thread_time_ns() - start
    usage = os.wait4(pid, 0)[2]
    os.close(pidfd)
    return taken, cpu_of(usage)


def work(way: str, handlers: int) -> None:
    """Serve blocks, as the process of a Worker.

    All ways have the same modules, since fork copies their mappings; only ours has our hooks.
    """
    import asyncio  # noqa: F401  other modules, with hooks of their own

    register = os.register_at_fork
    if way != OURS:
        os.register_at_fork = lambda **functions: None
    import pyforkfd as ff

    os.register_at_fork = register

    def fork_by_us() -> tuple[int, int]:
        start = time.thread_time_ns()
        child = ff.fork()
        if child is None:
            os._exit(0)
        taken = time.thread_time_ns() - start
        # Wait as the others do: an exit that wakes a poll(2) of the pidfd takes 1 % longer.
        usage = os.wait4(child.pid, 0)[2]
        child.close()
        return taken, cpu_of(usage)

    def nothing() -> None:
        pass

    ways = dict(zip((OURS, *OTHERS), (fork_by_us, fork_by_os, fork_by_os_with_pidfd), strict=True))
    fork: Callable[[], tuple[int, int]] = ways[way]
    for _ in range(handlers):
        if way == OURS:
            ff.atfork.register(before=nothing, after_in_parent=nothing, after_in_child=nothing)
        else:
            register(before=nothing, after_in_parent=nothing, after_in_child=nothing)
    gc.disable()
    for line in sys.stdin:
        times = []
        for _ in range(BLOCK + WARM_UP):
            if line.strip() == "after work":
                gc.collect()
            times.append(fork())
        print(json.dumps(times[WARM_UP:]), flush=True)


def compare(handlers: int, times: Times) -> None:
    """Run a process of each way at once, in turns, so that disturbances affect all alike."""
    workers = {way: Worker(way, handlers) for way in (OURS, *OTHERS)}
    try:
        for scene in SCENES * BLOCKS:
            # The order is random: the caches are as the one before has left them.
            for way in random.sample(list(workers), len(workers)):
                times[scene, handlers][way].append(workers[way].run(scene))
    finally:
        for worker in workers.values():
            worker.close()


def measure(quick: bool) -> Iterator[ForkCost]:
    """Measure all; times are medians of all forks, ratios those of blocks of the same turn."""
    times: Times = {(s, n): {w: [] for w in (OURS, *OTHERS)} for s in SCENES for n in HANDLERS}
    for _ in range(QUICK_PROCESSES if quick else PROCESSES):
        for handlers in HANDLERS:
            compare(handlers, times)
    for other in OTHERS:
        for (scene, handlers), by_way in times.items():
            ours, others = by_way[OURS], by_way[other]
            call, child = (column(ours, i) for i in (0, 1))
            other_call, other_child = (column(others, i) for i in (0, 1))
            yield ForkCost(
                other,
                scene,
                handlers,
                len(ours) * BLOCK,
                statistics.median(chain(*call)) / 1e3,
                statistics.median(chain(*other_call)) / 1e3,
                ratio(call, other_call),
                statistics.median(chain(*child)) / 1e3,
                statistics.median(chain(*other_child)) / 1e3,
                ratio(child, other_child),
            )


def column(blocks: list[Block], index: int) -> list[list[int]]:
    """Return the times of the calls, or of the children, of each block."""
    return [[times[index] for times in block] for block in blocks]


def ratio(ours: list[list[int]], others: list[list[int]]) -> float:
    """Return the median ratio over turns."""
    return statistics.median(
        statistics.median(a) / statistics.median(b) for a, b in zip(ours, others, strict=True)
    )


if __name__ == "__main__":
    if "--worker" in sys.argv:
        work(sys.argv[2], int(sys.argv[3]))
    else:
        for row in measure("--quick" in sys.argv):
            print(row)
