"""What does fork cost, by the number of at-fork handlers?

Beside os.fork with os.register_at_fork, which has neither statistics nor a pidfd.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

HANDLERS = (0, 10, 100)
WAYS = ("ff.fork", "os.fork")
ROUNDS, QUICK_ROUNDS = 2000, 200
BLOCK = 5  # forks of one process before another has its turn
WARM_UP = 1  # of a block, not counted


@dataclass(frozen=True, slots=True)
class ForkCost:
    """Microseconds, medians; ratios are those of the medians, ours to the other.

    Attributes:
        handlers: registered, each with all three functions.
        call_us: from the call to its return in the parent.
        life_us: from the call until the child has exited and is reaped.
    """

    handlers: int
    rounds: int
    call_us: float
    other_call_us: float
    call_ratio: float
    life_us: float
    other_life_us: float
    life_ratio: float


class Worker:
    """A process that forks in one way, asleep until a block is asked for."""

    def __init__(self, way: str, handlers: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", way, str(handlers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self) -> list[tuple[int, int]]:
        """One block: nanoseconds of the call and of the child's life."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise ChildProcessError(f"a worker ended with {self._process.wait()}")
        return [(call, life) for call, life in json.loads(answer)]

    def close(self) -> None:
        """End the process and wait for it."""
        self._process.communicate()


def fork_by_os() -> tuple[int, int]:
    """Nanoseconds of the call and of the child's life."""
    start = time.perf_counter_ns()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    called = time.perf_counter_ns()
    os.waitpid(pid, 0)
    return called - start, time.perf_counter_ns() - start


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
        start = time.perf_counter_ns()
        child = ff.fork()
        if child is None:
            os._exit(0)
        called = time.perf_counter_ns()
        with child:
            child.wait()
            taken = time.perf_counter_ns() - start
        return called - start, taken

    def nothing() -> None:
        pass

    fork: Callable[[], tuple[int, int]] = fork_by_us if way == "ff.fork" else fork_by_os
    for _ in range(handlers):
        if way == "ff.fork":
            ff.atfork.register(before=nothing, after_in_parent=nothing, after_in_child=nothing)
        else:
            register(before=nothing, after_in_parent=nothing, after_in_child=nothing)
    for _ in sys.stdin:
        print(json.dumps([fork() for _ in range(BLOCK + WARM_UP)][WARM_UP:]), flush=True)


def measure(quick: bool) -> Iterator[ForkCost]:
    """All processes live at once and take turns, so that all see the same weather."""
    keys = [(way, handlers) for way in WAYS for handlers in HANDLERS]
    workers = {key: Worker(*key) for key in keys}
    times: dict[tuple[str, int], list[tuple[int, int]]] = {key: [] for key in keys}
    try:
        for _ in range((QUICK_ROUNDS if quick else ROUNDS) // BLOCK):
            for key in random.sample(keys, len(keys)):
                times[key] += workers[key].run()
    finally:
        for worker in workers.values():
            worker.close()
    for handlers in HANDLERS:
        ours, others = times["ff.fork", handlers], times["os.fork", handlers]
        call, life = (statistics.median(t[i] for t in ours) / 1e3 for i in (0, 1))
        other_call, other_life = (statistics.median(t[i] for t in others) / 1e3 for i in (0, 1))
        yield ForkCost(
            handlers,
            len(ours),
            call,
            other_call,
            call / other_call,
            life,
            other_life,
            life / other_life,
        )


if __name__ == "__main__":
    if "--worker" in sys.argv:
        work(sys.argv[2], int(sys.argv[3]))
    else:
        for row in measure("--quick" in sys.argv):
            print(row)
