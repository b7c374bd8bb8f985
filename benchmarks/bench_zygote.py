"""How long does a Python worker take from a zygote, forkserver, spawn; and a bare fork in C?

    python benchmarks/bench_zygote.py [--quick] [MEGABYTES ...]

For each size of the parent (0 and 4096 MB) all ways take turns in one process, so that
disturbances affect all alike.  Then the memory of 8 workers that have numpy and scipy, if they are
installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import multiprocessing.connection
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ways import compile_c

import pyforkfd as ff
from pyforkfd.zygote import Zygote, get_context

MEGABYTES = (0, 4096)
ROUNDS, QUICK_ROUNDS = 200, 20
LIMIT, ZYGOTE, CONTEXT = "C fork", "zygote.spawn", "zygote context"
WARM, WARM_CONTEXT = "zygote.spawn, warm", "zygote context, warm"
FORKSERVER, SPAWN = "forkserver", "spawn"
ALL = (LIMIT, ZYGOTE, WARM, CONTEXT, WARM_CONTEXT, FORKSERVER, SPAWN)
# Zygotes and the C program are started anew after so many rounds: whether their memory is
# contiguous is chance, lasts as long as the process, and makes a fork up to twice as slow.
BLOCK = 20
FEW = 2  # of spawn, which is slow
IDLE = 2  # workers made ahead
PAUSE = 0.015  # seconds in which an idle worker is replaced, so that no way's time includes it
WORKERS = 8
LIBRARIES = [name for name in ("numpy", "scipy.special") if importlib.util.find_spec(name[:5])]
PRELOAD = ["__main__", "bench_zygote"]

Way: TypeAlias = Callable[[], tuple[int, int]]
"""Starts a worker; returns the nanoseconds until its first line, and until it is reaped."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The nanoseconds of one way from a parent of one size, by round."""

    megabytes: int
    way: str
    first: dict[int, int]
    end: dict[int, int]


def stamp(fd: int) -> None:
    """Report the time of the worker's first line."""
    os.write(fd, b"%d" % time.monotonic_ns())


def stamp_on(connection: multiprocessing.connection.Connection) -> None:
    """Report the same over a connection of multiprocessing."""
    connection.send_bytes(b"%d" % time.monotonic_ns())


def through_spawn(zygote: Zygote) -> Way:
    def way() -> tuple[int, int]:
        begin = time.monotonic_ns()
        with zygote.spawn("bench_zygote:stamp", args=(3,), fds={3: ff.PIPE}) as worker:
            first = int(worker.pipes[3].read())
        return first - begin, time.monotonic_ns() - begin

    return way


def through_context(context: multiprocessing.context.BaseContext) -> Way:
    def way() -> tuple[int, int]:
        ours, theirs = context.Pipe(duplex=False)
        begin = time.monotonic_ns()
        process = context.Process(target=stamp_on, args=(theirs,))  # type: ignore[attr-defined]
        process.start()
        first = int(ours.recv_bytes())
        process.join()
        end = time.monotonic_ns()
        process.close()
        ours.close()
        theirs.close()
        return first - begin, end - begin

    return way


class Limit:
    """The C program that forks itself."""

    def __init__(self, megabytes: int, directory: str) -> None:
        program = Path(directory) / "fork"
        compile_c("fork.c", program)
        self._process = subprocess.Popen(
            [program, str(megabytes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def __call__(self) -> tuple[int, int]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(b"x")
        first, end = self._process.stdout.readline().split()
        return int(first), int(end)

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def memory_of(pid: int, field: str) -> int:
    """Return a field of smaps_rollup, in kilobytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise LookupError(field)


def measure(megabytes: int, rounds: int) -> list[Cost]:
    """Measure all ways, in turns, from a parent of this size."""
    ballast = bytearray(os.urandom(1 << 20)) * megabytes
    stock = multiprocessing.get_context("forkserver")
    stock.set_forkserver_preload(PRELOAD)
    costs = {name: Cost(megabytes, name, {}, {}) for name in ALL}
    for begin in range(0, rounds, BLOCK):
        with (
            Zygote(preload=PRELOAD) as zygote,
            Zygote(preload=PRELOAD, warm=IDLE) as warm,
            tempfile.TemporaryDirectory() as directory,
        ):
            zygote.start()
            assert zygote.pid is not None
            limit = Limit(memory_of(zygote.pid, "Rss") >> 10, directory)
            ways: dict[str, Way] = {
                LIMIT: limit,
                ZYGOTE: through_spawn(zygote),
                WARM: through_spawn(warm),
                CONTEXT: through_context(get_context(zygote)),
                WARM_CONTEXT: through_context(get_context(warm)),
                FORKSERVER: through_context(stock),
                SPAWN: through_context(multiprocessing.get_context("spawn")),
            }
            take_turns(ways, range(begin, min(begin + BLOCK, rounds)), costs)
            limit.close()
    del ballast
    return list(costs.values())


def take_turns(ways: dict[str, Way], numbers: range, costs: dict[str, Cost]) -> None:
    """Run rounds of all ways, each round in another order; of spawn only a few."""
    for name, way in ways.items():
        if name != SPAWN:
            way()  # starts the zygote or server
    time.sleep(PAUSE)
    for number in numbers:
        for name, way in random.sample(list(ways.items()), len(ways)):
            if name != SPAWN or number % BLOCK < FEW:
                costs[name].first[number], costs[name].end[number] = way()
                time.sleep(PAUSE)


def hold(ready: int, stop: int) -> None:
    """Use the libraries a little, and wait while the worker's memory is measured."""
    for name in LIBRARIES:
        importlib.import_module(name)
    import numpy

    numpy.arange(1000).sum()
    os.write(ready, b".")
    os.read(stop, 1)


def measure_memory() -> dict[str, int]:
    """Return the proportional memory (PSS) of 8 workers, and of the zygote, in kilobytes."""
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    found = {}
    with Zygote(preload=["bench_zygote", *LIBRARIES], env=env) as zygote:
        fds = {3: ff.PIPE, 4: ff.PIPE_TO_CHILD}
        workers = [zygote.spawn("bench_zygote:hold", args=(3, 4), fds=fds) for _ in range(WORKERS)]
        for worker in workers:
            worker.pipes[3].read(1)
        assert zygote.pid is not None
        found["zygote's workers"] = sum(memory_of(w.pid, "Pss") for w in workers)
        found["and the zygote"] = memory_of(zygote.pid, "Pss")
        for worker in workers:
            worker.__exit__(None, None, None)
    code = "import sys; sys.path[:] = sys.argv[1:]; import bench_zygote; bench_zygote.hold(3, 4)"
    command = ff.Command([sys.executable, "-c", code, *sys.path], env=env, fds=fds)
    workers = [command.spawn() for _ in range(WORKERS)]
    for worker in workers:
        worker.pipes[3].read(1)
    found["spawned"] = sum(memory_of(w.pid, "Pss") for w in workers)
    for worker in workers:
        worker.__exit__(None, None, None)
    return found


def median_us(times: dict[int, int]) -> float:
    return statistics.median(times.values()) / 1e3


def times_of(mine: dict[int, int], others: dict[int, int]) -> float:
    """Return the median ratio over the rounds of both.

    Disturbances affect both of one round alike, so this varies less than a ratio of medians.
    """
    return statistics.median(mine[n] / others[n] for n in mine.keys() & others.keys())


def report(costs: list[Cost]) -> None:
    print("| parent | way | first line, µs | of C fork | of forkserver | least, µs ", end="")
    print("| until reaped, µs | of C fork |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    by_name = {(cost.megabytes, cost.way): cost for cost in costs}
    for cost in costs:
        limit, stock = (by_name[cost.megabytes, name] for name in (LIMIT, FORKSERVER))
        print(
            f"| {cost.megabytes} MB | {cost.way} | {median_us(cost.first):.0f} "
            f"| {times_of(cost.first, limit.first):.2f} "
            f"| 1/{times_of(stock.first, cost.first):.1f} | {min(cost.first.values()) / 1e3:.0f} "
            f"| {median_us(cost.end):.0f} | {times_of(cost.end, limit.end):.2f} |"
        )


def main() -> None:
    rounds = QUICK_ROUNDS if "--quick" in sys.argv else ROUNDS
    os.chdir(Path(__file__).parent)  # where forkserver looks for what it is to preload
    sizes = [int(arg) for arg in sys.argv[1:] if arg.isdigit()] or MEGABYTES
    report([cost for megabytes in sizes for cost in measure(megabytes, rounds)])
    if not LIBRARIES:
        print("no numpy: the memory of workers was not measured")
        return
    for what, kilobytes in measure_memory().items():
        names = ", ".join(LIBRARIES)
        print(f"{WORKERS} workers with {names}, PSS, {what}: {kilobytes / 1024:.1f} MB")


if __name__ == "__main__":
    main()
