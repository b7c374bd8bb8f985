"""Many short programs at once: how many per second, and what does each cost our process?

Writes results/tools.json, results/tools.md and docs/tools.png.  The ways take turns in shuffled
order, in parents of two sizes, which are processes of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from blocks import BlockProcess
from parents import allow_descriptors, touch
from tool_ways import (
    ASYNCIO_OURS,
    ASYNCIO_STOCK,
    LOADS,
    OURS,
    PIPES,
    SH,
    THREADS_OURS,
    THREADS_STOCK,
    all_ways,
)

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PICTURE = HERE.parent / "docs" / "tools.png"
AT_ONCE = (1, 16, 64, 256)
OTHER_AT_ONCE = (16, 64)  # of other loads than PIPES, and of the large parent
MEGABYTES = (0, 4096)
ROUNDS, QUICK_ROUNDS = 15, 3
PROGRAMS = 128  # of one turn; twice as many as run at once at least
SLOW_PROGRAMS = 16  # of sh


@dataclass(frozen=True, slots=True)
class Point:
    """One thing to measure."""

    megabytes: int
    load: str
    at_once: int
    way: str


@dataclass(frozen=True, slots=True)
class Tool:
    """Medians of the turns.

    Attributes:
        per_second: programs started, read to their end and reaped.
        own_us: processor time of our process for each of them, microseconds: RUSAGE_SELF.
    """

    megabytes: int
    load: str
    at_once: int
    way: str
    turns: int
    per_second: float
    own_us: float


def points(ways: Sequence[str], sizes: Sequence[int]) -> list[Point]:
    """Return all points of these ways and sizes."""
    found = []
    for megabytes in sizes:
        for load in LOADS if megabytes == 0 else (PIPES.name,):
            plain = megabytes == 0 and load == PIPES.name
            for at_once in AT_ONCE if plain else OTHER_AT_ONCE:
                found += [Point(megabytes, load, at_once, way) for way in ways]
    return found


def _self_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def serve(megabytes: int) -> None:
    """Serve turns, as a process of its own: a way, a load, numbers in; seconds out."""
    memory = touch(megabytes)
    allow_descriptors(4096)
    ways = all_ways()
    for line in sys.stdin:
        request = json.loads(line)
        if not request:
            print(json.dumps(list(ways)), flush=True)
            continue
        name, load, at_once, programs = request
        begin, own = time.perf_counter(), _self_seconds()
        ways[name](LOADS[load], at_once, programs)
        taken = [time.perf_counter() - begin, _self_seconds() - own]
        print(json.dumps(taken), flush=True)
    del memory


def measure(
    rounds: int, wanted: Sequence[str] = (), sizes: Sequence[int] = MEGABYTES
) -> tuple[list[Tool], list[str]]:
    """Measure all points, interleaved.

    Args:
        rounds: turns of each point.
        wanted: the ways; none: all.
        sizes: sizes of the parents, in MB.

    Returns:
        The rows, and a line for each parent that was left out.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    fitting = [size for size in sizes if size * 1.2 < free]
    skipped = [f"{m} MB: only {free} MB are free" for m in sizes if m not in fitting]
    workers = {size: BlockProcess([__file__, "--serve", str(size)]) for size in fitting}
    try:
        names = next(worker.request("[]") for worker in workers.values())
        ways = [name for name in names if not wanted or name in wanted]
        taken: dict[Point, list[tuple[float, float]]] = {p: [] for p in points(ways, fitting)}
        for number in range(-1, rounds):
            for point in random.sample(list(taken), len(taken)):
                programs = max(2 * point.at_once, PROGRAMS)
                if point.way == SH:
                    programs = SLOW_PROGRAMS
                request = [point.way, point.load, point.at_once, programs]
                wall, own = workers[point.megabytes].request(json.dumps(request))
                if number >= 0:
                    taken[point].append((programs / wall, own / programs * 1e6))
    finally:
        for worker in workers.values():
            worker.close()
    rows = [
        Tool(
            **asdict(point),
            turns=len(turns),
            per_second=statistics.median(rate for rate, _ in turns),
            own_us=statistics.median(own for _, own in turns),
        )
        for point, turns in taken.items()
    ]
    return rows, skipped


class Figures:
    """The rows by point."""

    def __init__(self, rows: Sequence[Tool]) -> None:
        self._at = {(r.megabytes, r.load, r.at_once, r.way): r for r in rows}
        self.ways = list(dict.fromkeys(row.way for row in rows))
        self.groups = list(dict.fromkeys((r.megabytes, r.load, r.at_once) for r in rows))

    def at(self, way: str, at_once: int, load: str = PIPES.name, megabytes: int = 0) -> Tool:
        """Return one row."""
        return self._at[megabytes, load, at_once, way]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def figure_tables(figures: Figures) -> list[str]:
    """Return the table of all points: programs per second, and our time of each."""
    rows = []
    for megabytes, load, at_once in figures.groups:
        cells = [figures.at(way, at_once, load, megabytes) for way in figures.ways]
        rows.append(
            [str(megabytes), load, str(at_once)]
            + [f"{cell.per_second:.0f} / {cell.own_us:.0f}" for cell in cells]
        )
    return table(["MB", "load", "at once", *figures.ways], rows)


def claims(figures: Figures) -> list[str]:
    """Return the table of claims: the limit, the measured value, and whether it holds."""
    rows = []

    def claim(text: str, value: float, limit: float, at_least: bool = False) -> None:
        holds = value >= limit if at_least else value <= limit
        sign = ">=" if at_least else "<="
        verdict = "holds" if holds else "does not hold"
        rows.append([text, f"{sign} {limit:g}", f"{value:.2f}", verdict])

    for ours, stock, at_once, ratio, most in (
        (THREADS_OURS, THREADS_STOCK, 16, 2.2, 180),
        (ASYNCIO_OURS, ASYNCIO_STOCK, 64, 1.6, 150),
    ):
        if not {ours, stock} <= set(figures.ways):
            continue
        mine, theirs = figures.at(ours, at_once), figures.at(stock, at_once)
        claim(f"{ours} / stock, rate, {at_once} at once", mine.per_second / theirs.per_second,
              ratio, True)  # fmt: skip
        claim(f"{ours}, our microseconds, {at_once} at once", mine.own_us, most)
    for ours, stock in OURS.items():
        if not {ours, stock} <= set(figures.ways):
            continue
        lowest = min(
            figures.at(ours, at_once, load, size).per_second
            / figures.at(stock, at_once, load, size).per_second
            for size, load, at_once in figures.groups
        )
        claim(f"{ours} / stock, rate, the lowest of all points", lowest, 1, True)
    return table(["claim", "wanted", "measured", "verdict"], rows)


def draw(figures: Figures) -> None:
    """Draw rate and cost of each way against the number at once."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
    for way in figures.ways:
        rows = [figures.at(way, at_once) for at_once in AT_ONCE]
        style = "-" if way in OURS else "--"
        left.plot(AT_ONCE, [row.per_second for row in rows], style, marker="o", label=way)
        right.plot(AT_ONCE, [row.own_us for row in rows], style, marker="o", label=way)
    left.set_ylabel("/bin/echo, output captured: programs per second")
    right.set_ylabel("processor time of our process for each, µs (log)")
    right.set_yscale("log")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="at once")
        axes.set_xticks(AT_ONCE, [str(at_once) for at_once in AT_ONCE])
        axes.minorticks_off()
        axes.grid(visible=True, alpha=0.3)
    left.set_ylim(0, None)
    left.legend(fontsize="x-small")
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    """Run all, and print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--rounds", type=int, help="turns of each point")
    parser.add_argument("--way", action="append", default=[], help="only this way; writes nothing")
    parser.add_argument("--size", action="append", default=[], type=int, help="only this size, MB")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
        return
    load = os.getloadavg()[0]
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    rows, skipped = measure(rounds, options.way, options.size or MEGABYTES)
    figures = Figures(rows)
    machine = (
        f"{platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}, "
        f"Python {platform.python_version()}, load {load:.1f} at the start"
    )
    command = "make bench-tools" + (" QUICK=1" if options.quick else "")
    lines = [f"# Made by `{command}`", "", f"{machine}; medians of {rounds} turns.", ""]
    lines += [f"- left out: {line}" for line in skipped]
    lines += ["## Claims", "", *claims(figures)]
    lines += ["## Programs per second / our processor time of each, microseconds", ""]
    lines += figure_tables(figures)
    print("\n".join(lines))
    if options.way or options.size:
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "tools.md").write_text("\n".join(lines).rstrip() + "\n")
    data = {"command": command, "machine": machine, "skipped": skipped}
    everything = {**data, "tools": [asdict(row) for row in rows]}
    (RESULTS / "tools.json").write_text(json.dumps(everything, indent=1) + "\n")
    draw(figures)


if __name__ == "__main__":
    main()
