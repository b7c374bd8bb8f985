"""How long does a table of 20,000 descriptors take, and how long does it stall other threads?

Run alone: ``python benchmarks/bench_fd_table.py``.  Beside it, in the same rounds, a plain loop in
Python: a listing with a link, a stat and the text of fdinfo for each number.
"""

from __future__ import annotations

import os
import socket
import statistics
import threading
import time
from collections.abc import Callable

from parents import allow_descriptors

import pyforkfd as ff

WANTED = 20_000
ROUNDS = 7


def in_python() -> int:
    """Read all descriptors in Python, without addresses, marks and shared open files."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            os.readlink(f"/proc/self/fd/{name}")
            os.fstat(int(name))
            with open(f"/proc/self/fdinfo/{name}") as info:
                info.read()
        except OSError:
            continue
        found += 1
    return found


def timed(call: Callable[[], object]) -> float:
    """Return the wall time of a call, in milliseconds."""
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6


def longest_gap(call: Callable[[], object]) -> float:
    """Return the longest stall, in milliseconds, of a thread that sleeps 1 ms at a time."""
    gaps: list[float] = []
    done = threading.Event()

    def watch() -> None:
        last = time.perf_counter_ns()
        while not done.is_set():
            time.sleep(0.001)
            now = time.perf_counter_ns()
            gaps.append((now - last) / 1e6)
            last = now

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    done.set()
    watcher.join()
    return max(gaps)


def many(kind: str, count: int) -> list[int]:
    if kind == "files":
        return [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]
    if kind == "duplicates":
        first = os.open("/dev/null", os.O_RDONLY)
        return [first, *(os.dup(first) for _ in range(count - 1))]
    return [socket.socket().detach() for _ in range(count)]


def main() -> None:
    count = allow_descriptors(WANTED) - 100
    print(f"{count} descriptors, medians of {ROUNDS} interleaved rounds, milliseconds")
    for kind in ("files", "duplicates", "sockets"):
        held = many(kind, count)
        ours, python = [], []
        for _ in range(ROUNDS):
            ours.append(timed(ff.fd_table))
            python.append(timed(in_python))
        gap = longest_gap(ff.fd_table)
        print(
            f"{kind:<11} fd_table {statistics.median(ours):6.0f}   "
            f"a loop in Python {statistics.median(python):6.0f}   "
            f"longest stall of another thread {gap:.0f}"
        )
        for fd in held:
            os.close(fd)


if __name__ == "__main__":
    main()
