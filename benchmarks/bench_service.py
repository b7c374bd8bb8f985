"""What does a service of many workers cost its supervisor?

A C program that waits for signals, 1 to 1,000 times.  Measured is the supervisor's processor time,
by schedstat in /proc, its keeper's included: to start all workers, in an idle second, to replace
one that is killed, and to end all.  supervisord does the same, where it is installed, without
logs.  The ways take turns.

    python bench_service.py [--quick] [--checkout DIR]...

--checkout adds the `pyforkfd serve` of another checkout with a .venv of its own, such as the commit
before.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TypeAlias

from ways import compile_c

HERE = Path(__file__).parent
COUNTS, QUICK_COUNTS = (1, 10, 100, 300, 1000), (10, 100)
ROUNDS, IDLE, KILLS = 3, 5.0, 10
PATIENCE = 300.0

Command: TypeAlias = Callable[[Path, int, Path], list[str]]
"""Of a program, a count of workers and a directory: the command that starts a supervisor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The figures of one way and count, medians of the rounds; seconds of processor time."""

    way: str
    workers: int
    boot: float
    idle: float
    kill: float
    stop: float
    megabytes: float
    descriptors: int


def ours(python: str) -> Command:
    def command(program: Path, count: int, directory: Path) -> list[str]:
        config = directory / "service.toml"
        config.write_text(
            f'[control]\npath = "{directory}/control"\n[components.a]\n'
            f"command = [{json.dumps(str(program))}]\nworkers = {count}\n"
            'readiness = "started"\nstdout = "inherit"\nstderr = "inherit"\n'
        )
        return [python, "-P", "-m", "pyforkfd", "serve", str(config)]

    return command


def supervisord(program: Path, count: int, directory: Path) -> list[str]:
    config = directory / "supervisord.conf"
    config.write_text(
        "[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\n"
        f"minfds={count * 4 + 100}\npidfile={directory}/pid\nchildlogdir={directory}\n"
        f"[program:a]\ncommand={program}\nnumprocs={count}\nprocess_name=%(process_num)s\n"
        "startsecs=0\nautorestart=true\nstdout_logfile=NONE\nstderr_logfile=NONE\n"
    )
    return [sys.executable, "-m", "supervisor.supervisord", "-c", str(config)]


def processor_time(pids: Iterable[int]) -> float:
    """Seconds of all threads so far."""
    files = [file for pid in pids for file in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


def children(pid: int) -> list[int]:
    """Return the children of a process; none where it has ended."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(word) for word in text.split()]


def measure(command: Command, program: Path, count: int) -> Row:
    with tempfile.TemporaryDirectory() as name:
        words = command(program, count, Path(name))
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as top:
            try:
                return _measure(top, program, count)
            finally:
                top.kill()


def _measure(top: subprocess.Popen[bytes], program: Path, count: int) -> Row:
    def supervisors() -> list[int]:
        """The process itself, and the supervisor that it started if it is a keeper."""
        return [top.pid, *(pid for pid in children(top.pid) if not is_worker(pid))]

    def is_worker(pid: int) -> bool:
        try:
            return os.path.samefile(f"/proc/{pid}/exe", program)
        except FileNotFoundError:
            return False

    def workers() -> list[int]:
        return [n for pid in supervisors() for n in children(pid) if is_worker(n)]

    def wait_for(number: int, but: frozenset[int] = frozenset()) -> None:
        end = time.monotonic() + PATIENCE
        while len([pid for pid in workers() if pid not in but]) != number:
            if top.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{top.args!r}: not {number} workers in {PATIENCE:g} s")
            time.sleep(0.05)

    wait_for(count)
    time.sleep(2.0)  # those that report no readiness are ready after a second
    pids = supervisors()
    boot = processor_time(pids)
    time.sleep(IDLE)
    idle = (processor_time(pids) - boot) / IDLE
    killed = workers()[: min(KILLS, count)]
    before, start = processor_time(pids), time.monotonic()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    wait_for(count, frozenset(killed))
    time.sleep(0.2)
    spent = processor_time(pids) - before - idle * (time.monotonic() - start)
    status = Path(f"/proc/{pids[-1]}/status").read_text()
    descriptors = len(os.listdir(f"/proc/{pids[-1]}/fd"))
    before = after = processor_time(pids)
    os.kill(top.pid, signal.SIGTERM)
    while top.poll() is None:
        try:
            after = max(after, processor_time(pids))
        except (FileNotFoundError, ProcessLookupError):
            pass  # at its end
        time.sleep(0.002)
    return Row(
        way="",
        workers=count,
        boot=boot,
        idle=idle,
        kill=max(0.0, spent) / len(killed),
        stop=after - before,
        megabytes=int(status.partition("VmRSS:")[2].split()[0]) / 1024,
        descriptors=descriptors,
    )


def slope(rows: list[Row]) -> float:
    """The exponent by which the boot of workers grows with their number, by least squares."""
    base = min(row.boot for row in rows)
    points = [(math.log(r.workers), math.log(r.boot - base)) for r in rows if r.boot > base]
    if len(points) < 2:
        return math.nan
    sizes, costs = zip(*points, strict=True)
    return statistics.linear_regression(sizes, costs).slope


def table(rows: list[Row]) -> list[str]:
    lines = [
        "| way | workers | start, s | idle, % | one killed, ms | end, s | MB | descriptors |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.way} | {row.workers:,} | {row.boot:.2f} | {row.idle * 100:.2f} | "
        f"{row.kill * 1e3:.1f} | {row.stop:.2f} | {row.megabytes:.0f} | {row.descriptors:,} |"
        for row in rows
    ]
    for way in dict.fromkeys(row.way for row in rows):
        grows = slope([row for row in rows if row.way == way])
        lines += ["", f"{way}: starting n workers costs n to the power of {grows:.2f}."]
    return lines


def median(way: str, rows: list[Row]) -> Row:
    figures = [asdict(row) for row in rows]
    middle = {key: statistics.median(f[key] for f in figures) for key in figures[0] if key != "way"}
    return Row(**{**middle, "way": way})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--checkout", type=Path, action="append", default=[])
    arguments = parser.parse_args()
    ways: dict[str, Command] = {"pyforkfd": ours(sys.executable)}
    for checkout in arguments.checkout:
        ways[f"pyforkfd of {checkout.name}"] = ours(str(checkout / ".venv/bin/python"))
    try:
        import_module("supervisor.supervisord")
    except ImportError:
        print("not installed: supervisord (pip install supervisor)")
    else:
        ways["supervisord"] = supervisord
    counts, rounds = (QUICK_COUNTS, 1) if arguments.quick else (COUNTS, ROUNDS)
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "pause"
        compile_c("pause.c", program, "-static")
        rows = []
        for count in counts:
            found: dict[str, list[Row]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way, command in ways.items():
                    found[way].append(measure(command, program, count))
            rows += [median(way, each) for way, each in found.items()]
    print("\n".join(table(rows)))
    if not arguments.quick:
        results = HERE / "results"
        (results / "service.md").write_text("\n".join(table(rows)) + "\n")
        (results / "service.json").write_text(
            json.dumps([asdict(row) for row in rows], indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
