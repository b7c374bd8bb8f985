"""How long does another Python thread stall while a child blocks before its exec?

The child opens a FIFO that another process opens for writing only a second later, as a
file on a slow disk or a network would block it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ways import POSIX_SPAWN, SPAWN, TRUE

import pyforkfd as ff

BLOCKED = 1.0  # seconds until the writer comes
TICK = 0.001  # seconds that the watching thread sleeps between two readings of the clock
RUNS, QUICK_RUNS = 10, 2
IDLE = "nothing started"


@dataclass(frozen=True, slots=True)
class Stall:
    """The stall of another thread, in milliseconds.

    Attributes:
        longest_ms: the longest time between two ticks of another thread, worst of all runs;
            a tick is 1 ms of sleep, so 1.1 is no stall at all.
        blocked_ms: how long the start took, shortest of all runs; shows that the child blocked.
    """

    way: str
    runs: int
    longest_ms: float
    blocked_ms: float


class Watcher:
    """A thread that reads the clock every TICK, and records the longest gap."""

    def __init__(self) -> None:
        self.longest = 0.0  # seconds
        self._stop = threading.Event()
        self._ticking = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Watcher:
        self._thread.start()
        self._ticking.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        last = time.perf_counter()
        while not self._stop.is_set():
            time.sleep(TICK)
            now = time.perf_counter()
            self.longest = max(self.longest, now - last)
            last = now
            self._ticking.set()


def _spawn(fifo: Path) -> None:
    ff.spawn([TRUE], fds={3: ff.Open(fifo, os.O_RDONLY)}).wait()


def _posix_spawn(fifo: Path) -> None:
    actions = [(os.POSIX_SPAWN_OPEN, 3, os.fspath(fifo), os.O_RDONLY, 0)]
    os.waitpid(os.posix_spawn(TRUE, [TRUE], os.environ, file_actions=actions), 0)


def _idle(fifo: Path) -> None:
    with fifo.open("rb"):
        pass  # open() releases the GIL


def once(start: Callable[[Path], None]) -> tuple[float, float]:
    """Run once; return the longest gap of the other thread and the time of the start, seconds."""
    with tempfile.TemporaryDirectory() as directory:
        fifo = Path(directory) / "fifo"
        os.mkfifo(fifo)
        script = f'sleep {BLOCKED}; : > "$0"'
        # Both ends are always opened: neither waits for ever if the other is late.
        with subprocess.Popen(["/bin/sh", "-c", script, fifo]), Watcher() as watcher:
            begin = time.perf_counter()
            start(fifo)
            blocked = time.perf_counter() - begin
        return watcher.longest, blocked


def measure(quick: bool) -> list[Stall]:
    """Measure all ways in turns."""
    ways = {IDLE: _idle, SPAWN: _spawn, POSIX_SPAWN: _posix_spawn}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(QUICK_RUNS if quick else RUNS):
        for name, start in ways.items():
            taken[name].append(once(start))
    return [
        Stall(
            name, len(runs), max(gap for gap, _ in runs) * 1e3, min(took for _, took in runs) * 1e3
        )
        for name, runs in taken.items()
    ]


if __name__ == "__main__":
    for row in measure("--quick" in sys.argv):
        print(row)
