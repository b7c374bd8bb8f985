"""How long does it take to replace a killed worker?  From SIGKILL until another is ready.

A service of uvicorn workers of a zygote, under `pyforkfd serve`; times are those of its log lines.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from pyforkfd.supervisor.control._client import ControlClient

KILLS, QUICK_KILLS = 100, 20
WORKERS = 3
APP = """
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})
"""
CONFIG = """
[listeners.http]
address = "tcp://127.0.0.1:0"
[components.web]
function = "pyforkfd.supervisor.asgi:serve"
args = ["application:app"]
listen = ["http"]
workers = %d
zygote = "z"
restart = { max_restarts = 100000, backoff = 0 }
[zygotes.z]
preload = ["application"]
"""


def workers(client: ControlClient) -> dict[int, int]:
    """Return id -> pid of the workers that are ready."""
    (web,) = client.request("status")["status"]["components"]
    return {w["id"]: w["pid"] for w in web["workers"] if w["phase"] == "ready"}


def main() -> None:
    kills = QUICK_KILLS if "--quick" in sys.argv else KILLS
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "application.py").write_text(APP)
        (directory / "service.toml").write_text(CONFIG % WORKERS)
        control = directory / "control"
        with subprocess.Popen(
            [sys.executable, "-m", "pyforkfd", "serve", "--control", control, "service.toml"],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": name},
            stdout=subprocess.PIPE,
            text=True,
        ) as service:
            try:
                assert service.stdout is not None
                print(json.dumps(measure(service.stdout, control, kills)))
            finally:
                service.terminate()


def wait_for_ready(log: IO[str]) -> None:
    """Read the log until the next worker is ready."""
    while "ready after" not in (line := log.readline()):
        assert line, "the service has ended"


def measure(log: IO[str], control: Path, kills: int) -> dict[str, float]:
    """Kill and await so many workers; return the figures, in milliseconds."""
    times = []
    for _ in range(WORKERS):
        wait_for_ready(log)
    with ControlClient(str(control)) as client:
        for _ in range(kills):
            victim = random.choice(sorted(workers(client).values()))
            start = time.monotonic_ns()
            os.kill(victim, signal.SIGKILL)
            wait_for_ready(log)
            times.append((time.monotonic_ns() - start) / 1e6)
    return {
        "kills": kills,
        "median_ms": statistics.median(times),
        "p95_ms": statistics.quantiles(times, n=20)[-1],
        "longest_ms": max(times),
    }


if __name__ == "__main__":
    main()
