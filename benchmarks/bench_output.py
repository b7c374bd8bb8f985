"""How many lines of its workers' output does a supervisor take, and at what cost?

1 and 8 workers write lines of 100 bytes without a pause, into a file that is rotated at 64 MB on a
tmpfs.  Lines are those that the workers have got rid of, by `wchar` in /proc/PID/io; the processor
time is that of the process that reads, by schedstat.  Meanwhile `status` is requested, fifty times
a second.  supervisord, s6-log and multilog do the same, those that are installed; they write plain
lines, and ours records.  supervisord does not look for lines at all.  The ways take turns.

    python bench_output.py [--quick] [--checkout DIR]...

--checkout adds the `pyforkfd serve` of another checkout with a .venv of its own, such as the commit
before.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from ways import compile_c

from pyforkfd.supervisor.control._client import ControlClient

HERE = Path(__file__).parent
LINE = 100  # bytes
WORKERS = (1, 8)
ROUNDS, SECONDS = 5, 2.0
QUICK_ROUNDS, QUICK_SECONDS = 1, 1.0
WARM_UP = 0.5  # seconds
PAUSE = 0.02  # seconds between two requests
MAX_BYTES = 64 << 20
PATIENCE = 30.0  # seconds for the workers to write
OURS, OURS_TOO = "pyforkfd", "pyforkfd, stdout as well"
PACKAGES = {"supervisord": "supervisor", "s6-log": "s6", "multilog": "daemontools"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A supervisor that runs.

    Attributes:
        readers: pids of the processes that read the workers' output.
        status: requests the state of the workers; None: there is no such request.
    """

    readers: tuple[int, ...]
    status: Callable[[], object] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The figures of one way: medians of the rounds; and of all requests of all rounds."""

    way: str
    workers: int
    lines_per_second: float
    us_per_line: float
    status_ms: float | None
    p95_status_ms: float | None
    longest_status_ms: float | None
    rounds: int


Way: TypeAlias = Callable[[Path, int, Path], AbstractContextManager[Running]]
"""Of a program, a count of workers and a directory."""


@contextmanager
def serve(python: str, sinks: str, flood: Path, count: int, directory: Path) -> Iterator[Running]:
    """Run `pyforkfd serve`."""
    config = directory / "service.toml"
    config.write_text(
        f"[log]\n{sinks}\npath = {json.dumps(str(directory / 'log'))}\n"
        f"max_bytes = {MAX_BYTES}\nkeep = 1\n"
        f"[components.flood]\ncommand = [{json.dumps(str(flood))}]\nworkers = {count}\n"
    )
    control = directory / "control"
    with subprocess.Popen(
        [python, "-P", "-m", "pyforkfd", "serve", "--control", control, config],
        stdout=subprocess.DEVNULL,
    ) as service:

        def status() -> object:
            with ControlClient(str(control)) as client:
                return client.request("status")

        try:
            yield Running(readers=(service.pid,), status=status)
        finally:
            service.terminate()


class _Connection(http.client.HTTPConnection):
    """HTTP over a UNIX socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.host)


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: object) -> http.client.HTTPConnection:
        return _Connection(self._path)


@contextmanager
def supervisord(program: str, flood: Path, count: int, directory: Path) -> Iterator[Running]:
    """Run supervisord."""
    path, config = directory / "socket", directory / "supervisord.conf"
    config.write_text(
        f"[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\n"
        f"pidfile={directory}/pid\nchildlogdir={directory}\n"
        f"[unix_http_server]\nfile={path}\n"
        "[rpcinterface:supervisor]\n"
        "supervisor.rpcinterface_factory = "
        "supervisor.rpcinterface:make_main_rpcinterface\n"
        f"[program:flood]\ncommand={flood}\nnumprocs={count}\n"
        "process_name=%(program_name)s_%(process_num)s\nstartsecs=0\n"
        f"stdout_logfile={directory}/%(process_num)s.log\n"
        f"stdout_logfile_maxbytes={MAX_BYTES}\nstdout_logfile_backups=1\n"
    )
    with subprocess.Popen([program, "-c", config], stdout=subprocess.DEVNULL) as service:

        def status() -> object:
            proxy = xmlrpc.client.ServerProxy("http://localhost", _Transport(str(path)))
            return proxy.supervisor.getAllProcessInfo()

        try:
            yield Running(readers=(service.pid,), status=status)
        finally:
            service.terminate()


@contextmanager
def logger(
    program: str, options: tuple[str, ...], flood: Path, count: int, directory: Path
) -> Iterator[Running]:
    """Run a logger of its own for each worker: s6-log, multilog."""
    with ExitStack() as stack:
        pids = []
        for number in range(count):
            worker = stack.enter_context(subprocess.Popen([flood], stdout=subprocess.PIPE))
            assert worker.stdout is not None
            (target := directory / str(number)).mkdir()
            command = [program, *options, str(target)]
            process = stack.enter_context(subprocess.Popen(command, stdin=worker.stdout))
            worker.stdout.close()
            stack.callback(worker.kill)  # before the wait for the logger, which ends with its input
            pids.append(process.pid)
        yield Running(readers=tuple(pids), status=None)


def processor_ns(pid: int) -> int:
    """Return the processor time of a process's threads, in nanoseconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def floods(flood: Path) -> list[int]:
    """Return the pids of the workers that run."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and os.readlink(entry / "exe") == str(flood):
                found.append(int(entry.name))
    return found


def written(pids: list[int]) -> int:
    """Return the count of the bytes that processes have written."""
    total = 0
    for pid in pids:
        fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
        total += int(fields["wchar"])
    return total


def measure_round(
    running: Running, flood: Path, count: int, seconds: float
) -> tuple[float, float, list[float]]:
    """Return lines per second, processor time per line in us, times of `status` in ms."""
    give_up = time.monotonic() + PATIENCE
    while len(pids := floods(flood)) < count or not all(written([pid]) for pid in pids):
        assert time.monotonic() < give_up, "the workers do not write"
        time.sleep(0.01)
    time.sleep(WARM_UP)
    times = []
    begin, used, bytes_before = time.monotonic(), 0, written(pids)
    used = sum(map(processor_ns, running.readers))
    while (now := time.monotonic()) < begin + seconds:
        if running.status is not None:
            running.status()
            times.append((time.monotonic() - now) * 1e3)
        time.sleep(PAUSE)
    lines = (written(pids) - bytes_before) / LINE
    took = time.monotonic() - begin
    used = sum(map(processor_ns, running.readers)) - used
    return lines / took, used / 1e3 / lines, times


def ways(checkouts: list[str]) -> tuple[dict[str, Way], list[str]]:
    """Return the ways that can be run here, and the names of the packages of the others."""
    found: dict[str, Way] = {}
    for checkout in checkouts:
        python = str(Path(checkout).absolute() / ".venv/bin/python")
        found[f"pyforkfd, checkout {Path(checkout).name}"] = partial(
            serve, python, "stdout = false"
        )
    found[OURS] = partial(serve, sys.executable, "stdout = false")
    found[OURS_TOO] = partial(serve, sys.executable, "stdout = true")
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    options = {
        "s6-log": ("n1", f"s{MAX_BYTES}"),
        "multilog": ("n2", f"s{min(MAX_BYTES, 16777215)}"),
    }
    skipped = []
    for name, package in PACKAGES.items():
        if (program := shutil.which(name, path=os.pathsep.join(places))) is None:
            skipped.append(f"{name}: package {package}")
        elif name == "supervisord":
            found[name] = partial(supervisord, program)
        else:
            found[name] = partial(logger, program, options[name])
    return found, skipped


def measure(quick: bool, checkouts: list[str]) -> tuple[list[Row], list[str]]:
    """Measure every way, in turns; return the rows, and the packages that are not installed."""
    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if quick else (ROUNDS, SECONDS)
    found, skipped = ways(checkouts)
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    figures: dict[tuple[str, int], list[tuple[float, float, list[float]]]] = {}
    with tempfile.TemporaryDirectory() as programs:
        compile_c("flood.c", flood := Path(programs).resolve() / "flood")
        for _ in range(rounds):
            for count in WORKERS:
                for name, way in found.items():
                    with (
                        tempfile.TemporaryDirectory(dir=place) as directory,
                        way(flood, count, Path(directory)) as running,
                    ):
                        one = measure_round(running, flood, count, seconds)
                    figures.setdefault((name, count), []).append(one)
    rows = []
    for (name, count), values in sorted(figures.items(), key=lambda pair: pair[0][1]):
        times = [one for _, _, each in values for one in each]
        rows.append(
            Row(
                way=name,
                workers=count,
                lines_per_second=statistics.median(value[0] for value in values),
                us_per_line=statistics.median(value[1] for value in values),
                status_ms=statistics.median(times) if times else None,
                p95_status_ms=statistics.quantiles(times, n=20)[-1] if times else None,
                longest_status_ms=max(times) if times else None,
                rounds=len(values),
            )
        )
    return rows, skipped


def table(rows: list[Row]) -> list[str]:
    """Return the lines of a Markdown table."""
    head = "way | workers | lines/s | processor, us a line | `status`, ms: median | 95 % | longest"
    lines = [f"| {head} |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        times = (row.status_ms, row.p95_status_ms, row.longest_status_ms)
        cells = [
            row.way,
            str(row.workers),
            f"{row.lines_per_second:,.0f}",
            f"{row.us_per_line:.2f}",
        ]
        cells += ["-" if one is None else f"{one:.1f}" for one in times]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Print the table, and write it with the data into results/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--checkout", action="append", default=[], help="another one, beside this")
    arguments = parser.parse_args()
    rows, skipped = measure(arguments.quick, arguments.checkout)
    lines = [*table(rows), "", *(f"Not installed: {one}." for one in skipped)]
    print("\n".join(lines))
    if not arguments.quick:
        results = HERE / "results"
        (results / "output.md").write_text("\n".join(lines).rstrip() + "\n")
        data = {"rows": [asdict(row) for row in rows], "skipped": skipped}
        (results / "output.json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
