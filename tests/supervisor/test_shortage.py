"""A supervisor that is short of something: descriptors, processes, watches, memory."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from leaks import gone, steady
from processes import children, descriptors
from services import free_port
from supervised import Supervised, toml
from tools import NATIVE_TOOLS, tool

from pyforkfd.supervisor import _shortage
from pyforkfd.supervisor._reactor import Reactor
from pyforkfd.supervisor._shortage import child_limits, is_shortage, raised_limit, reserve, reserved
from pyforkfd.supervisor.spec._capacity import capacity
from pyforkfd.supervisor.spec._toml import loads

SLEEP = """
[components.a]
command = ["sleep", "1000"]
readiness = "started"
cgroup = "off"
"""
NOFILE = resource.RLIMIT_NOFILE
PATIENCE = 60.0


def limited(soft: int, hard: int | None = None) -> list[str]:
    """A command in front of another that gives it a limit of descriptors."""
    first = "" if hard is None else f"ulimit -Hn {hard}; "
    return ["sh", "-c", f'ulimit -Sn {soft}; {first}exec "$@"', "sh"]


def limits_of(pid: int) -> tuple[int, int]:
    return resource.prlimit(pid, NOFILE)


def component(service: Supervised) -> dict[str, Any]:
    with service.client() as client:
        (found,) = client.request("status")["status"]["components"]
    return dict(found)


def until(condition: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_errors_that_pass() -> None:
    for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC):
        assert is_shortage(OSError(number, "..."))
    assert not is_shortage(OSError(errno.ENOENT, "..."))
    assert not is_shortage(ValueError("..."))


def test_a_limit_is_raised_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(NOFILE)
    monkeypatch.delenv(_shortage.VARIABLE, raising=False)
    resource.setrlimit(NOFILE, (hard - 1, hard))
    try:
        assert child_limits() == {} and _shortage.environment() == {}
        with raised_limit():
            assert resource.getrlimit(NOFILE) == (hard, hard)
            assert child_limits() == {NOFILE: (hard - 1, hard)}
            assert _shortage.environment() == {"FORKFD_NOFILE": str(hard - 1)}
            with reserved():
                assert resource.getrlimit(NOFILE) == (hard - reserve(hard), hard)
                assert child_limits() == {NOFILE: (hard - 1, hard)}
            assert resource.getrlimit(NOFILE) == (hard, hard)
        assert resource.getrlimit(NOFILE) == (hard - 1, hard)
        with reserved():
            assert resource.getrlimit(NOFILE) == (hard - 1, hard)
        monkeypatch.setenv(_shortage.VARIABLE, "77")  # a predecessor has raised it
        with raised_limit():
            assert child_limits() == {NOFILE: (77, hard)}
            assert _shortage.VARIABLE not in os.environ
        assert resource.getrlimit(NOFILE) == (77, hard)
    finally:
        resource.setrlimit(NOFILE, (soft, hard))


HOOK = f"""
[components.a]
command = ["{sys.executable}", "-S", "-c", '''
import time, signal
signal.pthread_sigmask(signal.SIG_BLOCK, ())
time.sleep(1000)
''']
readiness = "started"
cgroup = "off"
on_crash = [["sh", "-c", "ulimit -Sn > hook.new; mv hook.new hook"]]
"""


@pytest.mark.parametrize("keeper", [False, True])
def test_children_have_the_limit_of_the_starter(keeper: bool, tmp_path: Path) -> None:
    head = f"keeper = {str(keeper).lower()}\n"
    other = f"{SLEEP.replace('.a]', '.b]')}rlimits = {{ NOFILE = [55, 66] }}\n"
    zygote = """
[components.c]
function = "time:sleep"
args = [1000]
readiness = "started"
cgroup = "off"
"""
    with Supervised(tmp_path, head + HOOK + other + zygote, prefix=limited(111, 999)) as service:
        ready = "^ready: a 1/1, b 1/1, c 1/1"
        service.until(ready)

        def look() -> int:
            with service.client() as client:
                state = client.request("status")["status"]
            pid = int(state["pid"])
            assert limits_of(pid) == (999, 999)
            for one in state["components"]:
                (worker,) = one["workers"]
                expected = (55, 66) if one["name"] == "b" else (111, 999)
                assert limits_of(worker["pid"]) == expected, one["name"]
            cloned = [child for child in children(pid) if b"zygote" in cmdline(child)]
            assert len(cloned) == 2, "the zygote, and its worker"
            assert {limits_of(child) for child in cloned} == {(111, 999)}
            return pid

        pid = look()
        if keeper:
            assert limits_of(service.process.pid) == (999, 999)
            os.kill(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGUSR2)
        service.log.wait_for("took over 3 workers")
        before = {worker["id"] for worker in service.workers()}
        for worker in service.workers():
            os.kill(worker["pid"], signal.SIGKILL)
        until(
            lambda: len({w["id"] for w in service.workers() if w["phase"] == "ready"} - before) == 3
        )
        look()
        assert (tmp_path / "hook").read_text() == "111\n"


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_workers_leave_descriptors_for_requests_and_go_on_when_there_are_more(
    tmp_path: Path,
) -> None:
    with Supervised(tmp_path, SLEEP, prefix=limited(64, 64)) as service:
        service.until("^ready: a 1/1")
        assert service.command("scale", "a", "100").returncode == 0
        until(lambda: component(service)["short"])
        time.sleep(1.0)  # tries fail meanwhile
        done = service.command("status")
        assert "workers are not started, a shortage of the supervisor: " in done.stdout
        assert "Too many open files; next try in " in done.stdout
        state = component(service)
        assert not state["fatal"] and state["crashes"] == 0 and 3 <= state["ready"] < 20
        # The connection of the last request is closed a moment after its reply.
        assert gone(lambda: len(descriptors(service.process.pid)) <= 64 - reserve(64))
        cpu = cpu_of(service.process.pid)
        clients = [service.client() for _ in range(reserve(64) + 4)]  # more than can be accepted
        try:
            time.sleep(2.0)
            assert cpu_of(service.process.pid) - cpu < 1.0, "it spins"
        finally:
            for client in clients:
                client.close()
        assert service.command("scale", "a", "2").returncode == 0
        until(lambda: component(service)["ready"] == 2 and len(service.workers()) == 2)
        victim = service.workers()[0]["pid"]
        os.kill(victim, signal.SIGKILL)
        until(lambda: victim not in {w["pid"] for w in service.workers()})
        until(lambda: component(service)["ready"] == 2)
        assert service.command("status").stdout.startswith("service: ready")
    assert service.log.text().count("a shortage of the supervisor") == 1, "said once"


def cpu_of(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def test_shards_that_cannot_be_bound_refuse_the_scaling(tmp_path: Path) -> None:
    config = toml(free_port()).replace("workers = 2", 'workers = 2\ncgroup = "off"')
    config = config.replace("[components", "shards = true\n[components", 1)
    with Supervised(tmp_path, config, prefix=limited(64, 64)) as service:
        service.until("^ready: web 2/2")
        before = steady(lambda: len(descriptors(service.process.pid)))
        done = service.command("scale", "web", "100")
        assert done.returncode == 1 and "Too many open files" in done.stderr
        assert service.command("status").returncode == 0
        until(lambda: len(descriptors(service.process.pid)) <= before)


def test_metrics_wait_while_no_descriptor_is_free(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    port = free_port()
    config = f'{SLEEP}[metrics]\naddress = "tcp://127.0.0.1:{port}"\n'
    with Supervised(tmp_path, config, prefix=limited(64, 64)) as service:
        service.until("^ready: a 1/1")
        assert service.command("scale", "a", "100").returncode == 0
        until(lambda: component(service)["short"])
        socks = [socket.create_connection(("127.0.0.1", port)) for _ in range(12)]
        cpu = cpu_of(service.process.pid)
        time.sleep(2.0)
        assert cpu_of(service.process.pid) - cpu < 1.0, "it spins"
        assert service.command("status").returncode == 1
        for sock in socks:
            sock.close()
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
            sock.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.")


def test_processes_that_cannot_be_made_for_a_moment_are_no_crash(tmp_path: Path) -> None:
    """As with RLIMIT_NPROC, pids.max or kernel.pid_max: EAGAIN of clone(2)."""
    rule = "inject=clone3,clone:error=EAGAIN:when=3..20"
    trace = [
        tool("strace", "strace", NATIVE_TOOLS),
        "-D",
        "-o",
        "/dev/null",
        "-e",
        "trace=clone3,clone",
        "-e",
        rule,
    ]
    config = f"{SLEEP}workers = 4\nrestart = {{ max_restarts = 0 }}\n"
    with Supervised(tmp_path, config, prefix=trace) as service:
        service.until("^(starting|degraded): a [12]/4")
        until(lambda: component(service)["short"])
        state = component(service)
        assert not state["fatal"] and state["crashes"] == 0
        assert "Resource temporarily unavailable" in state["short"][0]["why"]
        service.until("^ready: a 4/4")
        assert not component(service)["short"]
    log = service.log.text()
    assert log.count("a shortage of the supervisor") == 1 and log.count("the shortage is over") == 1


def test_a_descriptor_that_rests_is_watched_again() -> None:
    with Reactor() as reactor:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.send(b"x")
            calls: list[float] = []

            def call(events: int) -> None:
                calls.append(time.monotonic())
                reactor.rest(ours.fileno(), 0.2)

            reactor.add(ours.fileno(), call)
            end = time.monotonic() + 1.0
            while time.monotonic() < end:
                reactor.run_once(end - time.monotonic())
            assert 3 <= len(calls) <= 6, calls
            assert all(b - a >= 0.19 for a, b in itertools.pairwise(calls))
            reactor.remove(ours.fileno())


def test_how_many_workers_fit() -> None:
    service = loads('name = "s"\n' + SLEEP + "workers = 5\n", "s")
    found = capacity(service, 1000)
    assert found.needed == 24 + reserve(1000) + 5 * 6
    assert found.fitting == 5 + (1000 - found.needed) // 6
    assert capacity(service, 48).fitting < 5


def test_check_says_how_many_workers_fit(tmp_path: Path) -> None:
    import subprocess

    path = tmp_path / "s.toml"
    path.write_text('name = "s"\n' + SLEEP + "workers = 5\n")
    command = [
        *limited(200, 200),
        sys.executable,
        "-P",
        "-m",
        "pyforkfd",
        "serve",
        "--check",
        str(path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "5 workers and the supervisor need " in done.stderr and "workers fit" in done.stderr
    path.write_text('name = "s"\n' + SLEEP + "workers = 500\n")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "components.a.workers: 500 workers and the supervisor need " in done.stderr


@pytest.mark.parametrize("workers", [5])
def test_as_many_as_fit_are_started(workers: int, tmp_path: Path) -> None:
    config = f"{SLEEP}workers = {workers}\n"
    assert capacity(loads('name = "s"\n' + config, "s"), 64).fitting == workers
    with Supervised(tmp_path, config, prefix=limited(64, 64)) as service:
        service.until(f"^ready: a {workers}/{workers}")
    assert "a shortage" not in service.log.text()


def test_a_database_that_comes_back(tmp_path: Path) -> None:
    """Given up, one position after the other, and tried again until it works."""
    program = tmp_path / "program"
    program.write_text(f"#!{sys.executable} -S\nimport time\ntime.sleep(1000)\n")
    program.chmod(0o755)
    config = f"""
[components.a]
command = ["{program}"]
readiness = "started"
cgroup = "off"
workers = 2
restart = {{ max_restarts = 1, backoff = 0.05, retry_cap = 2 }}
"""
    with Supervised(tmp_path, config) as service:
        service.until("^ready: a 2/2")
        program.rename(tmp_path / "away")
        for worker in service.workers():
            os.kill(worker["pid"], signal.SIGKILL)
        until(lambda: len(component(service)["given_up"]) == 2)
        done = service.command("status")
        assert "2 of 2 workers are given up; " in done.stdout, done.stdout
        time.sleep(3.0)
        assert service.process.poll() is None, "a service that was ready is tried for ever"
        (tmp_path / "away").rename(program)
        until(lambda: component(service)["ready"] == 2)
        assert service.command("status").returncode == 0
