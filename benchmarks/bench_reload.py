"""How many requests does a reload lose, and what else can fail?  Servers side by side.

    python benchmarks/bench_reload.py [--reloads N] [--seconds S] [--only NAME ...]

Every server runs the same application with three workers, one server after the other, while
clients with keep-alive and with new connections send requests without pause (clients.py).  Then:
reloads in the server's own documented way; silent connections, accepted before a reload, that
send a request after it; a deploy that cannot be imported; a handler that blocks the loop;
SIGKILL to the master.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from clients import http_load
from servers import KINDS, STALE, Kind, Server, alive, answer, kill, running

RESULTS = Path(__file__).parent / "results"
SILENT = 8  # connections before each reload
SETTLE = 0.5  # seconds after a reload until the silent connections send
DEPLOY = 12.0  # seconds during which a broken deploy must do no harm
PACKAGES = ("uvicorn", "gunicorn", "granian", "httptools", "uvloop")


@dataclass
class Row:
    """The results of one server."""

    name: str
    rate: float = 0.0
    reloads: int = 0
    requests: int = 0
    new_failed: dict[str, int] = field(default_factory=dict)
    keep_alive_failed: dict[str, int] = field(default_factory=dict)
    silent_answered: int = 0
    silent_sent: int = 0
    broken_survived: bool = False
    blocked: str = ""
    orphans: int = 0

    def cells(self) -> list[str]:
        return [
            self.name,
            str(sum(self.new_failed.values())),
            str(sum(self.keep_alive_failed.values())),
            f"{self.silent_answered} of {self.silent_sent}",
            "yes" if self.broken_survived else "no",
            str(self.orphans),
            self.blocked,
            f"{self.rate:,.0f}",
            f"{self.reloads}",
            f"{self.requests:,}",
        ]


HEADS = (
    *("server", "failed new connections", "failed keep-alive requests"),
    *("silent connections answered", "broken deploy survived", "orphans 1 s after kill -9"),
    *("blocked loop evicted, stack shown", "requests/s", "reloads", "requests meanwhile"),
)


def measure(kind: Kind, directory: Path, reloads: int, seconds: float) -> Row:
    row = Row(kind.name)
    with running(kind, directory) as server:
        with http_load(server.port, keep_alive=16, new=0, pause=0) as counted:
            time.sleep(seconds)
        row.rate = counted["rate"]
        with http_load(server.port) as counted:
            time.sleep(1.0)
            for _ in range(reloads):
                row.reloads += reload(server, row)
            time.sleep(1.0)
        row.new_failed = counted["new"]["failed"]
        row.keep_alive_failed = counted["keep_alive"]["failed"]
        row.requests = counted["new"]["done"] + counted["keep_alive"]["done"]
        row.broken_survived = survives(server)
    with running(kind, directory) as server:
        row.blocked = "no loop" if kind.wsgi else block(server)
    with running(kind, directory) as server:
        row.orphans = orphans(server)
    return row


def reload(server: Server, row: Row) -> bool:
    """Reload once, with connections that are silent meanwhile; return whether it succeeded."""
    old = set(server.tree())
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(SILENT)]
    try:
        time.sleep(0.2)  # they are accepted meanwhile
        server.reload()
        done = server.all_answer(old, 30.0) is not None
        time.sleep(SETTLE)
        for sock in silent:
            row.silent_sent += 1
            sock.settimeout(5.0)
            try:
                row.silent_answered += answer(sock) is not None
            except OSError:
                pass
        return done
    finally:
        for sock in silent:
            sock.close()


def survives(server: Server) -> bool:
    """Return whether the server goes on to answer after a deploy that cannot be imported."""
    server.deploy(broken=True)
    server.reload()
    end = time.monotonic() + DEPLOY
    answered = True
    while time.monotonic() < end:
        answered = answered and server.request_pid(timeout=2.0) is not None
        time.sleep(0.05)
    return answered and server.process.poll() is None


def block(server: Server) -> str:
    """Return whether a worker with a blocked loop is replaced, and its stack is in the log."""
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(b"GET /block HTTP/1.1\r\nHost: x\r\n\r\n")
        sock.settimeout(STALE + 8.0)
        begin = time.monotonic()
        try:
            evicted = not sock.recv(1)
        except TimeoutError:
            evicted = False
        except OSError:
            evicted = True
        took = time.monotonic() - begin
    if not evicted:
        return "no"
    shown = "a_handler_that_blocks" in server.log.read_text(errors="replace")
    return f"yes, {took:.1f} s" if shown else f"without its stack, {took:.1f} s"


def orphans(server: Server) -> int:
    """Return how many of the server's processes live on without their master."""
    pids = server.tree()
    server.process.kill()
    server.process.wait()
    time.sleep(1.0)
    left = alive(pids)
    kill(left)
    return len(left)


def table(rows: list[Row]) -> str:
    lines = ["| " + " | ".join(HEADS) + " |", "|" + " --- |" * len(HEADS)]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reloads", type=int, default=3, help="of each server")
    parser.add_argument("--seconds", type=float, default=2.0, help="for requests/s")
    parser.add_argument("--only", nargs="*", default=[], help="names of servers, or parts of them")
    parser.add_argument("--output", default="reload", help="name of the files in results/")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that no server lives on
    rows = []
    for kind in KINDS:
        if args.only and not any(part in kind.name for part in args.only):
            continue
        directory = Path(tempfile.mkdtemp(prefix="bench-reload-"))
        try:
            rows.append(measure(kind, directory, args.reloads, args.seconds))
        finally:
            shutil.rmtree(directory)
        print(
            " | ".join(rows[-1].cells()),
            rows[-1].new_failed,
            rows[-1].keep_alive_failed,
            flush=True,
        )
    about = {
        "command": shlex.join(["python", "benchmarks/bench_reload.py", *sys.argv[1:]]),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "versions": {name: version(name) for name in PACKAGES},
        "rows": [asdict(row) for row in rows],
    }
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    text = f"`{about['command']}`\n\n{table(rows)}\nPython {about['python']}, Linux "
    text += f"{about['kernel']}; {versions}.\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{args.output}.json").write_text(json.dumps(about, indent=1) + "\n")
    (RESULTS / f"{args.output}.md").write_text(text)
    print("\n" + text)


if __name__ == "__main__":
    main()
