"""How much does install() gain for programs that use subprocess and asyncio unchanged?"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from bench_throughput import SLICES, _compute, _start, together
from parents import allow_descriptors, open_descriptors
from ways import TRUE, Way, compile_c

from pyforkfd import subprocess as drop_in

STATIC = "static"
ROUNDS, QUICK_ROUNDS, WARM_UP = 1000, 60, 5
STOCK, INSTALLED = "stock", "installed"
DESCRIPTORS = 20_000
QUICK_SLICES = 3


@dataclass(frozen=True, slots=True)
class DropIn:
    """Medians in microseconds, of the same call with and without install(), in turn.

    Attributes:
        ratio: median of installed / stock, round by round: disturbances of the machine, which
            affect both, cancel out.
    """

    call: str
    program: str
    descriptors: int
    rounds: int
    stock_us: float
    installed_us: float
    ratio: float


@dataclass(frozen=True, slots=True)
class DropInShare:
    """The speed of a computing thread beside one that starts programs, as a share of alone."""

    how: str
    share: float
    per_second: float


def calls(program: str, loop: asyncio.AbstractEventLoop) -> dict[str, Callable[[], object]]:
    """Return calls that programs make today."""

    async def start() -> None:
        await (await asyncio.create_subprocess_exec(program)).wait()

    return {
        "Popen(...).wait()": lambda: subprocess.Popen([program]).wait(),
        "run(capture_output=True)": lambda: subprocess.run([program], capture_output=True),
        "create_subprocess_exec": lambda: loop.run_until_complete(start()),
    }


def _times(program: str, rounds: int) -> dict[str, dict[str, list[int]]]:
    """Return the nanoseconds of every call, stock and installed, in shuffled turns."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    ways = calls(program, loop)
    taken: dict[str, dict[str, list[int]]] = {n: {STOCK: [], INSTALLED: []} for n in ways}
    turns = [(name, how) for name in ways for how in (STOCK, INSTALLED)]
    try:
        for number in range(rounds + WARM_UP):
            for name, how in random.sample(turns, len(turns)):
                with drop_in.installed() if how == INSTALLED else nullcontext():
                    begin = time.perf_counter_ns()
                    ways[name]()
                    took = time.perf_counter_ns() - begin
                if number >= WARM_UP:
                    taken[name][how].append(took)
    finally:
        loop.close()
        asyncio.set_event_loop(None)
    return taken


def measure(quick: bool) -> list[DropIn]:
    """Measure the calls with few descriptors open, then with many."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        static = Path(directory) / "nothing"
        compile_c("nothing.c", static, "-static", "-nostdlib")
        for program, descriptors in ((TRUE, 0), (os.fspath(static), 0), (TRUE, DESCRIPTORS)):
            before = set(os.listdir("/proc/self/fd"))
            descriptors = allow_descriptors(descriptors) if descriptors else 0
            open_descriptors(descriptors)
            for name, taken in _times(program, rounds).items():
                stock, installed = taken[STOCK], taken[INSTALLED]
                rows.append(
                    DropIn(
                        name,
                        TRUE if program == TRUE else STATIC,
                        descriptors,
                        rounds,
                        statistics.median(stock) / 1e3,
                        statistics.median(installed) / 1e3,
                        statistics.median(b / a for a, b in zip(stock, installed, strict=True)),
                    )
                )
            for number in set(os.listdir("/proc/self/fd")) - before:
                with suppress(OSError):  # listdir's own is closed already
                    os.close(int(number))
    return rows


def _popen() -> int:
    return subprocess.Popen([TRUE]).wait()


def measure_share(quick: bool) -> list[DropInShare]:
    """Measure the computing thread's speed; its speed alone is taken anew beside each slice."""
    way: Way = _popen
    share: dict[str, list[float]] = {STOCK: [], INSTALLED: []}
    rates: dict[str, list[float]] = {STOCK: [], INSTALLED: []}
    for _ in range(QUICK_SLICES if quick else SLICES):
        for how in random.sample([STOCK, INSTALLED], 2):
            with drop_in.installed() if how == INSTALLED else nullcontext():
                (alone,) = together([_compute])
                computed, started = together([_compute, lambda stop: _start(way, stop)])
            share[how].append(computed / alone)
            rates[how].append(started)
    return [DropInShare(h, statistics.median(share[h]), statistics.median(rates[h])) for h in share]


if __name__ == "__main__":
    for share_row in measure_share("--quick" in sys.argv):
        print(share_row)
    for row in measure("--quick" in sys.argv):
        print(row)
