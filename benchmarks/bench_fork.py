"""What does fork cost, by the number of at-fork handlers?

Beside os.fork with os.register_at_fork, which has neither statistics nor a pidfd.

A fork write-protects every page, and whoever writes one next pays a page fault.  So a fork
right after another also pays for the pages that the first left protected and that this
call touches: for ours some twenty more, a Process and what makes it.  After a program's own
work nothing is left of that, hence two scenes.
"""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

HANDLERS = (0, 10, 100)
WAYS = ("ff.fork", "os.fork")
SCENES = ("after work", "back to back")
ROUNDS, QUICK_ROUNDS = 2000, 200
BLOCK = 5  # forks of one process before another has its turn
WARM_UP = 1  # of a block, not counted


@dataclass(frozen=True, slots=True)
class ForkCost:
    """Microseconds of processor time, medians; ratios are ours to the other.

    Not of the clock: whether parent or child runs first is the scheduler's whim.

    Attributes:
        scene: "after work": a collection of garbage, which writes to every object's page,
            comes before each fork; or "back to back".
        handlers: registered, each with all three functions.
        call_us: what the call takes in the parent.
        child_us: what the child takes, which exits at once.
    """

    scene: str
    handlers: int
    rounds: int
    call_us: float
    other_call_us: float
    call_ratio: float
    child_us: float
    other_child_us: float
    child_ratio: float


class Worker:
    """A process that forks in one way, asleep until a block is asked for."""

    def __init__(self, way: str, handlers: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", way, str(handlers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, scene: str) -> list[tuple[int, int]]:
        """One block: nanoseconds of the call and of the child."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{scene}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise ChildProcessError(f"a worker ended with {self._process.wait()}")
        return [(call, child) for call, child in json.loads(answer)]

    def close(self) -> None:
        """End the process and wait for it."""
        self._process.communicate()


def cpu_of(usage: resource.struct_rusage) -> int:
    """Nanoseconds."""
    return round((usage.ru_utime + usage.ru_stime) * 1e9)


def fork_by_os() -> tuple[int, int]:
    """Nanoseconds of the call and of the child."""
    start = time.thread_time_ns()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    taken = time.thread_time_ns() - start
    return taken, cpu_of(os.wait4(pid, 0)[2])


def work(way: str, handlers: int) -> None:
    """What the process of a Worker does.

    Both have the same modules, since fork copies what they mapped; only ours has our hooks.
    """
    import asyncio  # noqa: F401  the modules of others, with hooks of theirs

    register = os.register_at_fork
    if way == "os.fork":
        os.register_at_fork = lambda **functions: None
    import pyforkfd as ff

    os.register_at_fork = register

    def fork_by_us() -> tuple[int, int]:
        start = time.thread_time_ns()
        child = ff.fork()
        if child is None:
            os._exit(0)
        taken = time.thread_time_ns() - start
        with child:
            usage = child.wait().rusage
        assert usage is not None
        return taken, cpu_of(usage)

    def nothing() -> None:
        pass

    fork: Callable[[], tuple[int, int]] = fork_by_us if way == "ff.fork" else fork_by_os
    for _ in range(handlers):
        if way == "ff.fork":
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


def measure(quick: bool) -> Iterator[ForkCost]:
    """All processes live at once and take turns, so that all see the same weather."""
    keys = [(way, handlers) for way in WAYS for handlers in HANDLERS]
    workers = {key: Worker(*key) for key in keys}
    times: dict[tuple[str, str, int], list[tuple[int, int]]] = {}
    try:
        for _ in range((QUICK_ROUNDS if quick else ROUNDS) // BLOCK):
            for scene in SCENES:
                for way, handlers in random.sample(keys, len(keys)):
                    taken = workers[way, handlers].run(scene)
                    times.setdefault((scene, way, handlers), []).extend(taken)
    finally:
        for worker in workers.values():
            worker.close()

    def medians(scene: str, way: str, handlers: int) -> tuple[float, float]:
        taken = times[scene, way, handlers]
        return (
            statistics.median(call for call, _ in taken) / 1e3,
            statistics.median(child for _, child in taken) / 1e3,
        )

    for scene in SCENES:
        for handlers in HANDLERS:
            call, child = medians(scene, "ff.fork", handlers)
            other_call, other_child = medians(scene, "os.fork", handlers)
            yield ForkCost(
                scene,
                handlers,
                len(times[scene, "ff.fork", handlers]),
                call,
                other_call,
                call / other_call,
                child,
                other_child,
                child / other_child,
            )


if __name__ == "__main__":
    if "--worker" in sys.argv:
        work(sys.argv[2], int(sys.argv[3]))
    else:
        for row in measure("--quick" in sys.argv):
            print(row)
