"""The resources together: counters, logs, hooks and memory of a service that runs."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

from leaks import gone
from prometheus_client.parser import text_string_to_metric_families
from services import Running, service

# Counts a request for each connection, logs it, prints it, and grows when it is asked to.
WORKER = """
import logging
from pyforkfd.supervisor import worker as helpers

def serve():
    worker = helpers.current()
    worker.setup_logging()
    (listener,) = worker.listeners().values()
    kept = []
    for order in ("stop_accepting", "resume_accepting", "collect"):
        worker.on(order, lambda order: print("ORDER", order.name, flush=True))
    worker.start_thread()
    worker.ready()
    while True:
        connection, _ = listener.accept()
        with connection:
            asked = connection.recv(100)
            worker.count(1, errors=asked == b"fail")
            logging.warning("asked %s", asked.decode())
            print("printed", asked.decode(), flush=True)
            if asked == b"grow":
                kept.append(bytearray(b"x" * (64 << 20)))
            if asked == b"crash":
                raise SystemExit(3)
            connection.sendall(b"done")
"""


def config(directory: Path, *more: str) -> str:
    (directory / "counting.py").write_text(WORKER)
    lines = [
        '[listeners.web]\naddress = "systemd:web"',
        '[components.web]\nfunction = "counting:serve"\nlisten = ["web"]\nzygote = "z"',
        'cgroup = "off"\nstop_timeout = 1\ndrain_timeout = 0.1',
        *more,
        '[zygotes.z]\npreload = ["counting"]',
    ]
    return "\n".join(lines)


def fetch(running: Running, what: str) -> bytes:
    with socket.create_connection(("127.0.0.1", running.port), timeout=30) as client:
        client.sendall(what.encode())
        return client.recv(100)


def scrape(port: int) -> dict[tuple[str, ...], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {
        (sample.name, *(f"{k}={v}" for k, v in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_what_a_dead_worker_has_counted_stays(tmp_path: Path) -> None:
    port = free_port()
    metrics = f'[metrics]\naddress = "tcp://127.0.0.1:{port}"\ntextfile = "{tmp_path}/m.prom"'
    with service(tmp_path, config(tmp_path, metrics)) as running:
        for what in ("a", "b", "fail"):
            assert fetch(running, what) == b"done"
        assert fetch(running, "crash") == b""
        running.log.wait_for("ready after", count=2)
        assert fetch(running, "c") == b"done"
        found = scrape(port)
    by_name = {key[0]: [v for k, v in found.items() if k[0] == key[0]] for key in found}
    assert sum(by_name["forkfd_requests_total"]) == 5
    assert sum(by_name["forkfd_errors_total"]) == 1
    assert found["process_crash_total", "cause=exit", "component=web"] == 1
    assert "process_crash_total" in (tmp_path / "m.prom").read_text()


def test_records_and_captured_lines_are_in_one_file_in_their_order(tmp_path: Path) -> None:
    log = tmp_path / "log"
    control = tmp_path / "control"
    where = f'[log]\npath = "{log}"\n[control]\npath = "{control}"'
    with service(tmp_path, config(tmp_path, where)) as running:
        for number in range(3):
            fetch(running, str(number))
        running.log.wait_for("printed 2")
        log.rename(tmp_path / "moved")  # as logrotate does
        running.process.send_signal(signal.SIGUSR1)
        assert gone(lambda: log.exists() and _turned(running, log))
        records = [json.loads(line) for line in (tmp_path / "moved").read_text().splitlines()]
        logs = [sys.executable, "-P", "-m", "pyforkfd", "logs", "--control", str(control)]
        done = subprocess.run(logs, capture_output=True, text=True, check=True).stdout
    mine = [r["message"] for r in records if r.get("component") == "web" and r.get("worker") == 1]
    asked = [message for message in mine if message.startswith("asked")]
    printed = [message for message in mine if message.startswith("printed")]
    assert asked[:3] == ["asked 0", "asked 1", "asked 2"]
    assert printed[:3] == ["printed 0", "printed 1", "printed 2"]
    assert "asked 2" in done


def _turned(running: Running, log: Path) -> bool:
    """The worker writes to the new file."""
    fetch(running, "later")
    return "asked later" in log.read_text()


def test_a_hook_is_told_of_a_crash(tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(
        "from pathlib import Path\n"
        "def crashed(about):\n"
        "    print('HOOK {component} {cause} {worker}'.format(**about), flush=True)\n"
    )
    hooks = (
        'on_crash = ["hooks:crashed", '
        '["/bin/sh", "-c", "echo SHELL $FORKFD_CRASH_CAUSE $FORKFD_CRASH_DETAIL"]]'
    )
    with service(tmp_path, config(tmp_path, hooks)) as running:
        fetch(running, "crash")
        running.log.wait_for("SHELL exit exit code 3")
        running.log.wait_for("HOOK web exit 1")
        running.log.wait_for("ready after", count=2)


def test_a_worker_that_has_grown_stops_accepting_and_is_replaced(tmp_path: Path) -> None:
    guard = """workers = 2
    [components.web.memory_guard]
    high = "100M"
    seconds = 0.1
    recycle_after = 0.5
    """
    with service(tmp_path, config(tmp_path, guard), ready=2) as running:
        fetch(running, "grow")
        fetch(running, "grow")
        fetch(running, "grow")
        fetch(running, "grow")  # one of the two has got two of them at least
        running.log.wait_for("ORDER stop_accepting")
        running.log.wait_for("ORDER collect")
        running.log.wait_for("uses .* for too long")
        running.log.wait_for("ready after", count=3)
        running.log.wait_for("has left")


def test_workers_that_have_served_enough_are_replaced(tmp_path: Path) -> None:
    recycle = "recycle = { requests = 5, jitter = 0 }"
    with service(tmp_path, config(tmp_path, recycle)) as running:
        for _ in range(5):
            fetch(running, "x")
        running.log.wait_for("to be replaced: 5 requests")
        running.log.wait_for("ready after", count=2)
        running.log.wait_for("worker 1: has left")
        assert fetch(running, "x") == b"done"
