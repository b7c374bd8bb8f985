"""How much do uvicorn's workers cost under the supervisor, compared with uvicorn alone?

    python benchmarks/bench_overhead.py [--rounds N] [--seconds S]

Beside uvicorn alone there is our recipe without a supervisor, which accepts like the supervised
workers.  All serve at once, on listeners that are made alike; clients send requests to one after
the other, in shuffled order.  Quoted are medians of the rounds: requests per second, and the
workers' processor time for a request, which a busy machine and slow clients disturb less.  The
ratio of a round is between two of its turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from bench_reload import RESULTS
from clients import http_load
from servers import ASGI, KINDS, WORKERS, all_workers, running

import pyforkfd as ff

CLAIM = 0.98
UVICORN, RECIPE, OURS = "uvicorn alone", "the recipe alone", "supervised"
OPTIONS = ("--no-access-log", "--log-level=warning", "application:app")


@dataclass(frozen=True, slots=True)
class Turn:
    """The result of a second or so of load on one of the servers."""

    rate: float
    cpu_us: float  # of all workers, for each request


@contextmanager
def plain(directory: Path, module: str, *arguments: str) -> Iterator[tuple[int, list[int]]]:
    """Run as many processes without a supervisor, with one listener as descriptor 3."""
    (directory / "application.py").write_text(ASGI)
    args = [sys.executable, "-P", "-m", module, *arguments, *OPTIONS]
    env = {**os.environ, "PYTHONPATH": str(directory)}
    with ExitStack() as stack, ff.bind("tcp://127.0.0.1:0") as listener:
        for _ in range(WORKERS):
            process = ff.spawn(
                args, listen={"web": listener}, fds={1: ff.INHERIT, 2: ff.INHERIT}, env=env
            )
            stack.callback(process.close)
            stack.callback(process.wait)
            stack.callback(process.kill)
        port = listener.getsockname()[1]
        yield port, all_workers(port)


def cpu(pids: list[int]) -> float:
    """Return the processor time of these processes, seconds, from schedstat of all threads."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def take_turn(port: int, pids: list[int], seconds: float) -> Turn:
    with http_load(port, keep_alive=16, new=0, pause=0) as counted:
        time.sleep(0.3)  # until the clients run
        begin = cpu(pids)
        time.sleep(seconds)
        used = cpu(pids) - begin
    rate = counted["rate"]
    return Turn(rate, used / (rate * seconds) * 1e6)


def compare(plain: list[Turn], ours: list[Turn]) -> tuple[float, float]:
    """Return the medians of the ratios, of requests per second and of processor time."""
    pairs = list(zip(plain, ours, strict=True))
    rate = statistics.median(ours.rate / plain.rate for plain, ours in pairs)
    return rate, statistics.median(plain.cpu_us / ours.cpu_us for plain, ours in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn")
    args = parser.parse_args()
    kind = next(kind for kind in KINDS if kind.name == "pyforkfd (uvicorn)")
    turns: dict[str, list[Turn]] = {UVICORN: [], RECIPE: [], OURS: []}
    with ExitStack() as stack:
        directories = [Path(tempfile.mkdtemp(prefix="bench-overhead-")) for _ in range(3)]
        for directory in directories:
            stack.callback(shutil.rmtree, directory)
        server = stack.enter_context(running(kind, directories[0]))
        recipe = "pyforkfd.supervisor.asgi"
        sides = [
            (UVICORN, *stack.enter_context(plain(directories[1], "uvicorn", "--fd=3"))),
            (RECIPE, *stack.enter_context(plain(directories[2], recipe))),
        ]
        workers = all_workers(server.port)
        sides.append((OURS, server.port, workers))
        supervisor = [pid for pid in [server.process.pid, *server.tree()] if pid not in workers]
        before, started = cpu(supervisor), time.monotonic()
        for _ in range(args.rounds):
            random.shuffle(sides)
            for side, where, those in sides:
                turns[side].append(take_turn(where, those, args.seconds))
        idle = (cpu(supervisor) - before) / (time.monotonic() - started)
    rates = {side: statistics.median(turn.rate for turn in turns[side]) for side in turns}
    costs = {side: statistics.median(turn.cpu_us for turn in turns[side]) for side in turns}
    ratios = {side: compare(turns[side], turns[OURS]) for side in (UVICORN, RECIPE)}
    command = "python benchmarks/bench_overhead.py " + " ".join(sys.argv[1:])
    machine = f"Python {platform.python_version()}, Linux {platform.release()}"
    machine += f", {os.cpu_count()} processors"
    lines = [
        f"`{command.strip()}`",
        "",
        f"| {WORKERS} workers of uvicorn | requests/s | processor time of a request |",
        "| --- | --- | --- |",
        *(f"| {side} | {rates[side]:,.0f} | {costs[side]:.1f} µs |" for side in turns),
        *(
            f"| supervised to {side}, claim {CLAIM} | {rate:.3f} | {cost:.3f} |"
            for side, (rate, cost) in ratios.items()
        ),
        "",
        f"The supervisor itself takes {idle * 100:.2f} % of a processor meanwhile.",
        f"{args.rounds} rounds; {machine}.",
    ]
    text = "\n".join(lines) + "\n"
    about = {
        "command": command,
        "ratios": ratios,
        "supervisor_cpu": idle,
        "turns": {side: [asdict(turn) for turn in turns[side]] for side in turns},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "overhead.json").write_text(json.dumps(about, indent=1) + "\n")
    (RESULTS / "overhead.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
