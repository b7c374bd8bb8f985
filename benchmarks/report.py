"""Run every benchmark; write results/latest.json, results/latest.md and two pictures."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import bench_drop_in
import bench_spawn
import bench_stall
import bench_throughput
import matplotlib
from bench_drop_in import INSTALLED, DropIn, DropInShare
from bench_spawn import STATIC, Latency
from bench_stall import Stall
from bench_throughput import THREADS, Rate, Share
from ways import COMMAND, FORK, LIMIT, POPEN, POPEN_PREEXEC, POSIX_SPAWN, SPAWN, TRUE

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "latency.png"
WAYS = (LIMIT, COMMAND, SPAWN, POSIX_SPAWN, POPEN, POPEN_PREEXEC, FORK)


class Latencies:
    """The medians by parent and way, in microseconds."""

    def __init__(self, rows: Sequence[Latency]) -> None:
        self._rows = rows
        self._at = {(r.program, r.megabytes, r.descriptors, r.way): r.median_us for r in rows}

    def median(
        self, way: str, megabytes: int = 0, descriptors: int = 0, program: str = TRUE
    ) -> float:
        """Return a median; not a number where that parent was left out."""
        return self._at.get((program, megabytes, descriptors, way), float("nan"))

    def parents(self) -> list[tuple[str, int, int]]:
        """Return program, size and descriptors of each parent, in the order of the run."""
        return list(dict.fromkeys((r.program, r.megabytes, r.descriptors) for r in self._rows))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def latency_table(latencies: Latencies) -> list[str]:
    """Return a line for each parent; in brackets the ratio to the bare C loop."""
    rows = []
    for program, megabytes, descriptors in latencies.parents():
        limit = latencies.median(LIMIT, megabytes, descriptors, program)
        cells = [latencies.median(way, megabytes, descriptors, program) for way in WAYS]
        rows.append(
            [program, str(megabytes), str(descriptors)]
            + [f"{cell:.0f} ({cell / limit:.2f})" for cell in cells]
        )
    return table(["program", "MB touched", "extra descriptors", *WAYS], rows)


def claims(
    latencies: Latencies,
    stalls: Sequence[Stall],
    drop_in: Sequence[DropIn],
    drop_in_share: Sequence[DropInShare],
) -> list[str]:
    """Return the table of claims: the limit, the measured value, and whether it holds."""
    rows = []

    def claim(text: str, value: float, limit: float, at_least: bool = False) -> None:
        holds = value >= limit if at_least else value <= limit
        verdict = "holds" if holds else "does not hold"
        rows.append([text, f"{'>=' if at_least else '<='} {limit:g}", f"{value:.2f}", verdict])

    us = latencies.median
    for program in (TRUE, STATIC):
        base = us(LIMIT, program=program)
        claim(f"{COMMAND} / C, {program}", us(COMMAND, program=program) / base, 1.10)
        claim(f"{SPAWN} / C, {program}", us(SPAWN, program=program) / base, 1.30)
        popen = us(POPEN, program=program)
        claim(f"{POPEN} / {SPAWN}, {program}", popen / us(SPAWN, program=program), 2, True)
    for program in (TRUE, STATIC):
        fork = us(FORK, 1024, program=program)
        claim(
            f"{FORK} / {COMMAND}, {program}, 1 GB",
            fork / us(COMMAND, 1024, program=program),
            100,
            True,
        )
    preexec = us(POPEN_PREEXEC, 1024)
    claim(f"{POPEN_PREEXEC} / {SPAWN}, {TRUE}, 1 GB", preexec / us(SPAWN, 1024), 2, True)
    claim(f"{COMMAND}, 4 GB / 0 MB", us(COMMAND, 4096) / us(COMMAND), 1.15)
    most = max(descriptors for _, _, descriptors in latencies.parents())
    claim(f"{COMMAND}, {most} descriptors / none", us(COMMAND, 0, most) / us(COMMAND), 1.5)
    longest = {stall.way: stall.longest_ms for stall in stalls}
    claim("stall of another thread, ms: spawn", longest[SPAWN], 20)
    for row in drop_in:
        where = f"{row.program}, {row.descriptors} extra descriptors"
        claim(f"{row.call}, installed / stock, {where}", row.ratio, 1)
    if (os.cpu_count() or 1) >= 2 and os.getloadavg()[0] < (os.cpu_count() or 1):
        share = {row.how: row.share for row in drop_in_share}
        text = "speed of a thread beside installed Popen, share of alone"
        claim(text, share[INSTALLED], 0.9, True)
    return table(["claim", "wanted", "measured", "verdict"], rows)


def draw_latency(latencies: Latencies) -> None:
    """Draw the latency against the parent's size, both axes logarithmic."""
    figure, axes = plt.subplots(figsize=(7, 4.2))
    sizes = [m for p, m, d in latencies.parents() if p == TRUE and d == 0]
    for way in WAYS:
        axes.plot(
            [max(size, 16) for size in sizes],  # a bare interpreter is about 16 MB
            [latencies.median(way, size) for size in sizes],
            "--" if way == LIMIT else "-",
            marker="o",
            label=way,
        )
    axes.set(xscale="log", yscale="log", xlabel="size of the parent, MB")
    axes.set_ylabel("start and wait for /bin/true, µs (median)")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


def draw_rate(rates: Sequence[Rate], picture: Path) -> None:
    """Draw children per second against threads."""
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for way in dict.fromkeys(rate.way for rate in rates):
        axes.plot(THREADS, [r.per_second for r in rates if r.way == way], marker="o", label=way)
    axes.set(xlabel="threads that spawn", ylabel="/bin/true started per second", ylim=(0, None))
    axes.set_xticks(THREADS)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


def throughput_tables(shares: Sequence[Share], rates: Sequence[Rate]) -> list[str]:
    """Return the tables of a computing thread's speed, and of the rate of many threads."""
    lines = [
        "## Speed of a computing thread while another starts programs, as a share of its speed"
    ]
    lines[-1] += " alone"
    lines += [""]
    lines += table(
        ["the other thread", "share", "programs per second"],
        [[row.way, f"{row.share:.0%}", f"{row.per_second:.0f}"] for row in shares],
    )
    lines += ["## Programs per second, from 1, 2 and 4 threads", ""]
    by_way = {
        way: [r.per_second for r in rates if r.way == way] for way in {r.way: 0 for r in rates}
    }
    rows = [[way, *(f"{rate:.0f}" for rate in of)] for way, of in by_way.items()]
    return lines + table(["way", *map(str, THREADS)], rows)


def drop_in_tables(rows: Sequence[DropIn], shares: Sequence[DropInShare]) -> list[str]:
    """Return the tables of the standard calls with and without install()."""
    lines = ["## The standard modules, stock and with install(), microseconds", ""]
    lines += table(
        ["call", "program", "extra descriptors", "stock", "installed", "ratio, round by round"],
        [
            [
                row.call,
                row.program,
                str(row.descriptors),
                f"{row.stock_us:.0f}",
                f"{row.installed_us:.0f}",
                f"{row.ratio:.3f}",
            ]
            for row in rows
        ],
    )
    head = "## Speed of a computing thread beside one that loops over Popen(...).wait(), "
    lines += [head + "as a share of alone", ""]
    return lines + table(
        ["Popen", "share", "programs per second"],
        [[row.how, f"{row.share:.0%}", f"{row.per_second:.0f}"] for row in shares],
    )


def stall_table(stalls: Sequence[Stall]) -> list[str]:
    """Return the table of the longest stalls of another thread."""
    lines = ["## Longest stall of another thread while a child blocks for 1 s before its exec", ""]
    rows = [
        [s.way, f"{s.longest_ms:.1f} ms", f"{s.blocked_ms:.0f} ms", str(s.runs)] for s in stalls
    ]
    return lines + table(["way", "stall", "the start took", "runs"], rows)


def main() -> None:
    """Run all benchmarks, and print and write their results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    quick = parser.parse_args().quick
    load = os.getloadavg()[0]
    rows, skipped = bench_spawn.measure(quick)
    latencies = Latencies(rows)
    share, rates = bench_throughput.measure_share(quick), bench_throughput.measure_rate(quick)
    stalls = bench_stall.measure(quick)
    drop_in, drop_in_share = bench_drop_in.measure(quick), bench_drop_in.measure_share(quick)

    command = "make bench" + (" QUICK=1" if quick else "")
    machine = (
        f"{platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}, "
        f"Python {platform.python_version()}, load {load:.1f} at the start"
    )
    rounds = statistics.median(row.rounds for row in rows)
    lines = [f"# Made by `{command}`", "", f"{machine}; medians of {rounds:.0f} rounds.", ""]
    lines += ["## Claims", "", *claims(latencies, stalls, drop_in, drop_in_share)]
    lines += ["## Start and wait, microseconds, and the ratio to the bare C loop", ""]
    lines += [*latency_table(latencies), *(f"Left out: {line}." for line in skipped)]
    lines += [*throughput_tables(share, rates), *stall_table(stalls)]
    lines += drop_in_tables(drop_in, drop_in_share)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "latest.md").write_text("\n".join(lines).rstrip() + "\n")
    data: dict[str, object] = {"command": command, "machine": machine, "skipped": skipped}
    parts: dict[str, Sequence[Latency | Share | Rate | Stall | DropIn | DropInShare]] = {
        "latency": rows,
        "share": share,
        "rate": rates,
        "stall": stalls,
        "drop_in": drop_in,
        "drop_in_share": drop_in_share,
    }
    for name, part in parts.items():
        data[name] = [asdict(row) for row in part]
    (results / "latest.json").write_text(json.dumps(data, indent=1) + "\n")
    draw_latency(latencies)
    draw_rate(rates, results / "rate.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
