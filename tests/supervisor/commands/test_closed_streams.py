"""Standard descriptors that the starter has closed: nothing else gets their numbers."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import children, descriptors
from services import PATIENCE
from supervised import Supervised

from pyforkfd.supervisor.succession._keeper import keeper_program

SUBSETS = [s for n in (1, 2, 3) for s in itertools.combinations(range(3), n)]
NULL = "/dev/null"
PROGRAM = [sys.executable, "-P", "-m", "pyforkfd"]
CONFIG = """
keeper = KEEPER
[components.web]
command = ["sleep", "1000"]
readiness = "started"
cgroup = "off"
on_crash = [["sh", "-c", "readlink /proc/self/fd/* > hook.new; mv hook.new hook"]]
stdout = "inherit"
stderr = "inherit"
[components.cloned]
function = "time:sleep"
args = [1000]
readiness = "started"
cgroup = "off"
[log]
path = "DIRECTORY/log"
"""
each_subset = pytest.mark.parametrize(
    "closed", SUBSETS, ids=["".join(map(str, subset)) for subset in SUBSETS]
)


def closing(closed: tuple[int, ...]) -> list[str]:
    """A command in front of another that closes descriptors for it."""
    return ["sh", "-c", f'exec "$@" {" ".join(f"{fd}>&-" for fd in closed)}', "sh"]


def showing(path: Path) -> list[str]:
    """A program that writes what its standard descriptors are."""
    text = f'x=$(readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2); echo "$x" > {path}'
    return ["sh", "-c", text]


def run(closed: tuple[int, ...], *words: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*closing(closed), *PROGRAM, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr, done.stderr
    return done


def until_ready(service: Supervised, others_than: set[int]) -> set[int]:
    end = time.monotonic() + PATIENCE
    while True:
        workers = service.workers()
        ready = {worker["pid"] for worker in workers if worker["phase"] == "ready"}
        if len(ready) == 2 and not ready & others_than:
            return ready
        assert time.monotonic() < end, workers
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("keeper", "closed"), [(False, (1,)), (False, (0, 1, 2)), *((True, s) for s in SUBSETS)]
)
def test_a_service(keeper: bool, closed: tuple[int, ...], tmp_path: Path) -> None:
    config = CONFIG.replace("KEEPER", str(keeper).lower()).replace("DIRECTORY", str(tmp_path))
    with Supervised(tmp_path, config, prefix=closing(closed)) as service:
        service.until("^ready: web 1/1, cloned 1/1")

        def look() -> int:
            with service.client() as client:
                pid = int(client.request("status")["status"]["pid"])
            (web,) = service.workers("web")
            for one in {pid, service.process.pid, web["pid"]}:
                found = descriptors(one)
                for fd in closed:
                    assert found[fd] == NULL, (one, fd, found)
            for fd in {1, 2}.difference(closed):
                assert descriptors(pid)[fd] != NULL
            for child in children(pid):  # the zygote and its worker too
                assert {0, 1, 2} <= descriptors(child).keys(), child
            return pid

        pid = look()
        before = until_ready(service, set())
        os.kill(pid, signal.SIGUSR2)
        end = time.monotonic() + PATIENCE
        log = tmp_path / "log"
        while "took over 2 workers" not in log.read_text():
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        assert look() == pid
        assert until_ready(service, set()) == before
        if keeper:
            os.kill(pid, signal.SIGKILL)
            while log.read_text().count("took over 2 workers") < 2:
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.05)
            look()
        for victim in before:
            os.kill(victim, signal.SIGKILL)
        until_ready(service, before)
        look()
        assert len((tmp_path / "hook").read_text().split()) >= 3
        assert service.process.poll() is None
        assert run(closed, "stop", "--control", service.control).returncode == 0
        assert service.wait() == 0


@each_subset
def test_each_command(closed: tuple[int, ...], tmp_path: Path) -> None:
    config = CONFIG.replace("KEEPER", "false").replace("DIRECTORY", str(tmp_path))
    with Supervised(tmp_path, config) as service:
        service.until("^ready: web 1/1, cloned 1/1")
        (web,) = service.workers("web")
        where = ("--control", service.control)
        code = {
            name: run(closed, name, *where, *words).returncode
            for name, words in {
                "status": [],
                "scale": ["web", "1"],
                "signal": ["web", "CONT"],
                "logs": ["-n", "5"],
                "restart": [str(web["id"])],
                "reload": [],
                "rollback": [],
            }.items()
        }
        assert code == dict.fromkeys(code, 0) | {"rollback": 1}
        shown = run(closed, "status", *where, "--json")
        assert shown.returncode == 0 and bool(shown.stdout) == (1 not in closed)
        refused = run(closed, "rollback", *where)
        assert bool(refused.stderr) == (2 not in closed)
    assert run(closed, "serve", "--check", service.config).returncode == 0
    assert run(closed, "serve", tmp_path / "missing.toml").returncode == 2
    assert run(closed, "doctor", "--json").returncode == 0
    assert run(closed, "doctor", str(os.getpid())).returncode in (0, 1)
    assert run(closed, "doctor", "why", "1", "--", "true").returncode == 0
    assert run(closed, "--version").returncode == 0
    assert run(closed, "--help").returncode == 0
    assert run(closed, "no such command").returncode == 2
    ran = tmp_path / "ran"
    assert run(closed, "run", "--close-others", "--", *showing(ran)).returncode == 0
    lines = ran.read_text().splitlines()
    assert [lines[fd] for fd in closed] == [NULL] * len(closed)


@each_subset
def test_the_keeper_by_itself(closed: tuple[int, ...], tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    command = [*closing(closed), str(keeper_program()), "--", *showing(ran)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0
    lines = ran.read_text().splitlines()
    assert [lines[fd] for fd in closed] == [NULL] * len(closed)


IN_PROCESS = """
import os, sys
sys.stdout = sys.__stdout__ = None
from pyforkfd.supervisor import Component, Service, Supervisor
from pyforkfd.supervisor.commands._status import as_text
done = Component(name="a", command=("true",), restart={RESTART}, readiness="started", cgroup="off")
supervisor = Supervisor(Service(name="s", components={{"a": done}}))
as_text(supervisor.status())
os._exit(os.path.samefile("/dev/null", "/proc/self/fd/1") if supervisor.run() in (0, 1) else 9)
"""


def test_a_supervisor_of_a_program_without_standard_output() -> None:
    """It gives up, as nothing can be kept running; descriptor 1 is nobody else's meanwhile."""
    restart = '__import__("pyforkfd.supervisor").supervisor.Restart(max_restarts=0)'
    command = [*closing((1,)), sys.executable, "-P", "-c", IN_PROCESS.format(RESTART=restart)]
    done = subprocess.run(command, timeout=PATIENCE, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
