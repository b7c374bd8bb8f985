"""How far does starting programs slow other threads, and do more threads start more programs?"""

from __future__ import annotations

import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ways import FORKING, Way, all_ways

SECONDS = 0.5  # one slice
SLICES, QUICK_SLICES = 9, 3
THREADS = (1, 2, 4)


@dataclass(frozen=True, slots=True)
class Share:
    """Medians over the slices, with one thread computing and one starting programs.

    Attributes:
        share: speed of the computing thread, as a share of its speed alone.
        per_second: programs that the other thread starts and reaps meanwhile.
    """

    way: str
    share: float
    per_second: float


@dataclass(frozen=True, slots=True)
class Rate:
    """The programs started and reaped per second, by all threads together; median."""

    way: str
    threads: int
    per_second: float


def _compute(stop: threading.Event) -> float:
    count = 0
    begin = time.perf_counter()
    while not stop.is_set():
        for _ in range(200):
            count += 1
    return count / (time.perf_counter() - begin)


def _start(way: Way, stop: threading.Event) -> float:
    count = 0
    begin = time.perf_counter()
    while not stop.is_set():
        way()
        count += 1
    return count / (time.perf_counter() - begin)


def together(tasks: list[Callable[[threading.Event], float]]) -> list[float]:
    """Run tasks in threads of their own for one slice, and return their results."""
    stop = threading.Event()
    results: list[float | BaseException] = [0.0] * len(tasks)

    def run(index: int) -> None:
        try:
            results[index] = tasks[index](stop)
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(tasks))]
    for thread in threads:
        thread.start()
    time.sleep(SECONDS)
    stop.set()
    for thread in threads:
        thread.join()
    rates = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        rates.append(result)
    return rates


def _task(way: Way) -> Callable[[threading.Event], float]:
    return lambda stop: _start(way, stop)


def measure_share(quick: bool) -> list[Share]:
    """Measure a computing thread beside each way; its speed alone is taken beside each slice."""
    ways = all_ways()
    share: dict[str, list[float]] = {name: [] for name in ways}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(QUICK_SLICES if quick else SLICES):
        (alone,) = together([_compute])
        for name, way in random.sample(list(ways.items()), len(ways)):
            computed, started = together([_compute, _task(way)])
            share[name].append(computed / alone)
            rates[name].append(started)
    return [Share(n, statistics.median(share[n]), statistics.median(rates[n])) for n in ways]


def measure_rate(quick: bool) -> list[Rate]:
    """Measure 1, 2 and 4 threads that do nothing but start programs."""
    ways = {name: way for name, way in all_ways().items() if name not in FORKING}
    plan = [(name, threads) for name in ways for threads in THREADS]
    rates: dict[tuple[str, int], list[float]] = {point: [] for point in plan}
    for _ in range(QUICK_SLICES if quick else SLICES):
        for name, threads in random.sample(plan, len(plan)):
            rates[name, threads].append(sum(together([_task(ways[name])] * threads)))
    return [Rate(name, n, statistics.median(rates[name, n])) for name, n in plan]


if __name__ == "__main__":
    for share_row in measure_share("--quick" in sys.argv):
        print(share_row)
    for rate_row in measure_rate("--quick" in sys.argv):
        print(rate_row)
