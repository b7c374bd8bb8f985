"""Signals that the starter ignores or blocks do not reach workers, hooks or the Loki sender."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from leaks import gone as reached
from supervised import Supervised

from pyforkfd.supervisor.logs._loki_sink import LokiSink
from pyforkfd.supervisor.spec._spec import Loki

# As nohup, a shell without job control, and a parent that wants no zombies.
STARTER = """
import os, signal, sys
for number in set(range(1, signal.NSIG)) - {signal.SIGKILL, signal.SIGSTOP, 32, 33}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
os.execv(sys.argv[1], sys.argv[1:])
"""
WORKERS = """
import os, pathlib, signal, sys, time

def note(name):
    text = pathlib.Path("/proc/self/status").read_text()
    pathlib.Path(name + ".new").write_text(f"{text}SigInt:\\t{signal.getsignal(signal.SIGINT)}\\n")
    os.rename(name + ".new", name)

IMPORTED = note("zygote")

def function():
    note("function")
    time.sleep(1000)

def hook(crash):
    note("hook")
"""
CONFIG = """
[components.command]
command = ["sh", "-c", "cat /proc/self/status > new; mv new command; exec sleep 1000"]
readiness = "started"
[components.function]
function = "signals_of_workers:function"
readiness = "started"
[components.crashes]
command = ["sh", "-c", "sleep 2; exit 7"]
readiness = "started"
on_crash = [
    "signals_of_workers:hook",
    ["sh", "-c", "cat /proc/self/status > hook.command.new; mv hook.command.new hook.command"],
]
"""
PYTHON_IGNORES = {signal.SIGPIPE, signal.SIGXFSZ}


def read(path: Path) -> dict[str, str]:
    assert reached(path.exists), path
    return dict(re.findall(r"(?m)^(Sig\w+):\t(.*)$", path.read_text()))


def numbers(mask: str) -> set[int]:
    return {number for number in range(1, 65) if int(mask, 16) >> number - 1 & 1}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Supervised]:
    (tmp_path / "signals_of_workers.py").write_text(WORKERS)
    with Supervised(
        tmp_path,
        CONFIG,
        prefix=[sys.executable, "-c", STARTER],
        env={"PYTHONPATH": str(tmp_path)},
    ) as service:
        yield service


def test_workers_and_hooks_begin_with_the_defaults(running: Supervised) -> None:
    for name in "command", "hook.command":
        found = read(running.directory / name)
        assert (numbers(found["SigIgn"]), numbers(found["SigBlk"])) == (set(), set()), name
    for name in "zygote", "function", "hook":
        found = read(running.directory / name)
        # Python's own, as in any program written in it.
        assert numbers(found["SigIgn"]) == PYTHON_IGNORES, name
        assert numbers(found["SigBlk"]) == set(), name
        assert "default_int_handler" in found["SigInt"], name
    # The supervisor has what it was given, acts on signals, and knows how its children ended.
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    ignored = numbers(re.search(r"SigIgn:\t(.*)", status)[1])  # type: ignore[index]
    assert signal.SIGALRM in ignored and signal.SIGCHLD not in ignored
    running.log.wait_for(r"worker \d+ died \(exit\): exit code 7")
    after = len(running.log)
    running.process.send_signal(signal.SIGHUP)
    running.log.wait_for("generation 2", after=after)


def test_the_sender_for_loki_ends_with_its_link_alone() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        sink = LokiSink(Loki(url="http://127.0.0.1:9/"))
    finally:
        signal.signal(signal.SIGUSR1, before)
    try:
        status = Path(f"/proc/{sink.process.pid}/status").read_text()
        ignored = numbers(re.search(r"SigIgn:\t(.*)", status)[1])  # type: ignore[index]
        a_group = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM}
        assert ignored - PYTHON_IGNORES == a_group
        assert "SigBlk:\t0000000000000000" in status
    finally:
        sink.process.kill()
        sink.process.wait()
        sink.close()
