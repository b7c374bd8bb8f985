"""What does a Python worker cost: from a zygote, forkserver, spawn; and a bare fork in C?

    python benchmarks/bench_zygote.py [--quick] [MEGABYTES ...]

For each size of the parent (0 and 4096 MB) all ways take turns in one process, so that all see
the same weather.  Then the memory of 8 workers that have numpy and scipy, if they are installed.
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
# Zygotes and the C program are started anew after so many rounds: how their memory lies, in one
# piece or scattered, is luck that lasts, and makes a fork up to twice as dear.
BLOCK = 20
FEW = 2  # of spawn, which is slow
IDLE = 2  # workers made ahead
PAUSE = 0.015  # seconds in which an idle worker is replaced: not in the time of the next way
WORKERS = 8
LIBRARIES = [name for name in ("numpy", "scipy.special") if importlib.util.find_spec(name[:5])]
PRELOAD = ["__main__", "bench_zygote"]

Way: TypeAlias = Callable[[], tuple[int, int]]
"""Nanoseconds from the start until the worker's first line, and until it is reaped."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One way, from a parent of this size: for each round it took part in, the nanoseconds."""

    megabytes: int
    way: str
    first: dict[int, int]
    end: dict[int, int]


def stamp(fd: int) -> None:
    """The worker: says when it is there."""
    os.write(fd, b"%d" % time.monotonic_ns())


def stamp_on(connection: multiprocessing.connection.Connection) -> None:
    """The same for multiprocessing, over what it has."""
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
    """Kilobytes, from smaps_rollup."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise LookupError(field)


def measure(megabytes: int, rounds: int) -> list[Cost]:
    """All ways, in turn, from a parent of this size."""
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
    """Rounds of all ways, each round in another order; of spawn only a few."""
    for name, way in ways.items():
        if name != SPAWN:
            way()  # starts its server
    time.sleep(PAUSE)
    for number in numbers:
        for name, way in random.sample(list(ways.items()), len(ways)):
            if name != SPAWN or number % BLOCK < FEW:
                costs[name].first[number], costs[name].end[number] = way()
                time.sleep(PAUSE)


def hold(ready: int, stop: int) -> None:
    """The worker whose memory is looked at: it has used the libraries a little."""
    for name in LIBRARIES:
        importlib.import_module(name)
    import numpy

    numpy.arange(1000).sum()
    os.write(ready, b".")
    os.read(stop, 1)


def measure_memory() -> dict[str, int]:
    """Kilobytes of proportional memory (PSS) of 8 workers, and of the zygote."""
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
    """How many times as long it took, in the median of the rounds that both took part in.

    Neighbours in time see the same weather, so this varies less than the ratio of two medians.
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
