"""How long is a killed worker missed?  From SIGKILL until its replacement is ready.

A service of uvicorn workers that a zygote makes, under `pyforkfd serve`, as its status says.
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

from pyforkfd.supervisor._client import ControlClient

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
    """Id -> pid of those that are ready."""
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
            stdout=subprocess.DEVNULL,
        ) as service:
            try:
                print(json.dumps(measure(control, kills)))
            finally:
                service.terminate()


def measure(control: Path, kills: int) -> dict[str, float]:
    """Milliseconds."""
    until = time.monotonic() + 30
    while not control.exists() and time.monotonic() < until:
        time.sleep(0.01)
    times = []
    with ControlClient(str(control)) as client:
        while len(workers(client)) < WORKERS:
            time.sleep(0.01)
        for _ in range(kills):
            before = workers(client)
            victim = random.choice(sorted(before))
            start = time.monotonic_ns()
            os.kill(before[victim], signal.SIGKILL)
            while victim in (now := workers(client)) or len(now) < WORKERS:
                time.sleep(0.0005)
            times.append((time.monotonic_ns() - start) / 1e6)
    return {
        "kills": kills,
        "median_ms": statistics.median(times),
        "p95_ms": statistics.quantiles(times, n=20)[-1],
        "longest_ms": max(times),
    }


if __name__ == "__main__":
    main()
