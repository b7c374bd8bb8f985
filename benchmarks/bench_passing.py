"""How long does passing descriptors take?  Writes results/passing.json and results/passing.md.

One message: one byte and 1, 16 or 253 descriptors, sent, received and closed again, over a
SOCK_SEQPACKET pair within this process.  The ways take turns in shuffled order.  Nothing waits, so
the processor time of the thread is taken.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import random
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

from ways import compile_c

import pyforkfd as ff

C = "C sendmsg+recvmsg+close"
STANDARD = "socket.send_fds, recv_fds, os.close"
OURS = "send_fds, recv_fds, with"
EACH = "send_fds, recv_fds, Fd.close"
CHANNEL = "FdChannel.send, recv, with"
MESSAGES = {1: 400, 16: 100, 253: 10}  # in one turn, by the descriptors of each
TURNS, QUICK_TURNS = 400, 60
RESULTS = Path(__file__).parent / "results"

Way: TypeAlias = Callable[[list[int], int], int]
"""Passes these descriptors so many times; returns nanoseconds of processor time."""


@dataclass(frozen=True, slots=True)
class Passing:
    """Microseconds per message: median and lower quartile of the turns."""

    way: str
    descriptors: int
    median_us: float
    quartile_us: float


def _c_loop(sender: int, receiver: int) -> Way:
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory) / "passing.so"
        compile_c("passing.c", library, "-shared", "-fPIC")
        run = ctypes.CDLL(os.fspath(library)).pass_run
    run.restype = ctypes.c_longlong

    def way(fds: list[int], messages: int) -> int:
        taken = int(run(sender, receiver, fds[0], len(fds), messages))
        if taken < 0:
            raise OSError(-taken, os.strerror(-taken))
        return taken

    return way


def _ways(one: socket.socket, other: socket.socket) -> dict[str, Way]:
    sender = ff.FdChannel(os.dup(one.fileno()))
    receiver = ff.FdChannel(os.dup(other.fileno()))

    def standard(fds: list[int], messages: int) -> int:
        begin = time.thread_time_ns()
        for _ in range(messages):
            socket.send_fds(one, [b"x"], fds)
            for fd in socket.recv_fds(other, 1, len(fds))[1]:
                os.close(fd)
        return time.thread_time_ns() - begin

    def ours(fds: list[int], messages: int) -> int:
        begin = time.thread_time_ns()
        for _ in range(messages):
            ff.send_fds(one, b"x", fds)
            with ff.recv_fds(other, 1, len(fds)):
                pass
        return time.thread_time_ns() - begin

    def each(fds: list[int], messages: int) -> int:
        begin = time.thread_time_ns()
        for _ in range(messages):
            ff.send_fds(one, b"x", fds)
            for fd in ff.recv_fds(other, 1, len(fds)).fds:
                fd.close()
        return time.thread_time_ns() - begin

    def channel(fds: list[int], messages: int) -> int:
        begin = time.thread_time_ns()
        for _ in range(messages):
            sender.send(b"x", fds)
            with receiver.recv():
                pass
        return time.thread_time_ns() - begin

    return {
        C: _c_loop(one.fileno(), other.fileno()),
        STANDARD: standard,
        OURS: ours,
        EACH: each,
        CHANNEL: channel,
    }


def measure(quick: bool) -> list[Passing]:
    """Measure all ways, interleaved."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fd = os.open(os.devnull, os.O_RDONLY)
    ways = _ways(one, other)
    points = [(name, count) for name in ways for count in MESSAGES]
    taken: dict[tuple[str, int], list[float]] = {point: [] for point in points}
    for turn in range(-3, QUICK_TURNS if quick else TURNS):
        for name, count in random.sample(points, len(points)):
            us = ways[name]([fd] * count, MESSAGES[count]) / MESSAGES[count] / 1000
            if turn >= 0:
                taken[name, count].append(us)
    return [
        Passing(name, count, statistics.median(us), statistics.quantiles(us, n=4)[0])
        for (name, count), us in taken.items()
    ]


def tables(rows: list[Passing]) -> list[str]:
    """Return the lines of two Markdown tables: the figures, and the claims."""
    at = {(row.way, row.descriptors): row for row in rows}
    lines = ["| way | " + " | ".join(f"{n} per message" for n in MESSAGES) + " |"]
    lines += ["| --- |" + " --- |" * len(MESSAGES)]
    for way in dict.fromkeys(row.way for row in rows):
        cells = [
            f"{at[way, n].median_us:.2f} ({at[way, n].median_us / at[C, n].median_us:.2f})"
            for n in MESSAGES
        ]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    lines += ["", "| claim | wanted | measured | C would reach | verdict |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for n in MESSAGES:
        c, standard, ours = (at[way, n].median_us for way in (C, STANDARD, OURS))
        verdict = "holds" if ours <= 1.3 * c else "does not hold"
        lines.append(f"| ours / C, {n} | <= 1.3 | {ours / c:.2f} | 1 | {verdict} |")
        verdict = "holds" if standard >= 2 * ours else "does not hold"
        lines.append(
            f"| standard library / ours, {n} | >= 2 | {standard / ours:.2f} | "
            f"{standard / c:.2f} | {verdict} |"
        )
    return lines


def main() -> None:
    """Run all, and print and write the results."""
    quick = "--quick" in sys.argv
    load = os.getloadavg()[0]
    rows = measure(quick)
    command = "make bench-passing" + (" QUICK=1" if quick else "")
    machine = (
        f"{platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}, "
        f"Python {platform.python_version()}, load {load:.1f} at the start"
    )
    lines = [f"# Made by `{command}`", "", f"{machine}.", ""]
    lines += ["Microseconds per message, medians; in brackets the ratio to C.", "", *tables(rows)]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "passing.md").write_text("\n".join(lines) + "\n")
    data = {"command": command, "machine": machine, "passing": [asdict(row) for row in rows]}
    (RESULTS / "passing.json").write_text(json.dumps(data, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
