"""How long does starting a program take, by the size and descriptors of its parent?"""

from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from parents import Parent, Worker, allow_descriptors
from ways import TRUE, compile_c

MEGABYTES = (0, 256, 1024, 4096)
DESCRIPTORS = (0, 1_000, 20_000)
ROUNDS, QUICK_ROUNDS = 600, 60
BLOCK = 20  # rounds in one parent before the next one has its turn
STATIC = "static"


@dataclass(frozen=True, slots=True)
class Latency:
    """Microseconds from the start of the program until it is reaped, over all rounds.

    ``program`` is /bin/true, or STATIC: nothing.c, which no dynamic loader precedes.
    """

    program: str
    megabytes: int
    descriptors: int
    way: str
    rounds: int
    median_us: float
    lower_quartile_us: float
    upper_quartile_us: float


def parents(static: str) -> tuple[list[Parent], list[str]]:
    """Return the parents that fit into this machine, and a line for each that does not."""
    wanted = [Parent(megabytes=m) for m in MEGABYTES]
    wanted += [Parent(descriptors=allow_descriptors(d)) for d in DESCRIPTORS if d]
    wanted += [Parent(program=static), Parent(megabytes=1024, program=static)]
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    fitting: list[Parent] = []
    skipped: list[str] = []
    for parent in wanted:
        if parent.megabytes * 1.2 > free:
            skipped.append(f"{parent}: only {free} MB of memory are free")
        else:
            free -= parent.megabytes
            fitting.append(parent)
    return fitting, skipped


def summarise(parent: Parent, times: dict[str, list[int]]) -> Iterable[Latency]:
    """Yield a row for each way."""
    program = TRUE if parent.program == TRUE else STATIC
    for way, taken in times.items():
        lower, median, upper = (ns / 1e3 for ns in statistics.quantiles(taken, n=4))
        yield Latency(
            program, parent.megabytes, parent.descriptors, way, len(taken), median, lower, upper
        )


def _take_turns(fitting: list[Parent], rounds: int) -> dict[Parent, dict[str, list[int]]]:
    times: dict[Parent, dict[str, list[int]]] = {parent: {} for parent in fitting}
    workers: dict[Parent, Worker] = {}
    try:
        for parent in fitting:
            workers[parent] = Worker(parent)
        for _ in range(rounds // BLOCK):
            for parent, worker in random.sample(list(workers.items()), len(workers)):
                for way, taken in worker.run(BLOCK).items():
                    times[parent].setdefault(way, []).extend(taken)
    finally:
        for worker in workers.values():
            worker.close()
    return times


def measure(quick: bool) -> tuple[list[Latency], list[str]]:
    """Measure all parents at once, in turns, so that disturbances affect all alike.

    Returns:
        The rows, and a line for every parent that was left out.
    """
    with tempfile.TemporaryDirectory() as directory:
        static = Path(directory) / "nothing"
        compile_c("nothing.c", static, "-static", "-nostdlib")
        fitting, skipped = parents(os.fspath(static))
        times = _take_turns(fitting, QUICK_ROUNDS if quick else ROUNDS)
    return [row for parent in fitting for row in summarise(parent, times[parent])], skipped


if __name__ == "__main__":
    for row in measure("--quick" in sys.argv)[0]:
        print(row)
