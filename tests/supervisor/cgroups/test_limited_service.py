"""A whole service in cgroups with controllers: limits, the proof of an OOM kill, whole trees."""

from __future__ import annotations

import functools
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from cgroups import cgroup_delegated as delegated
from cgroups import cgroup_home as home
from cgroups import mount, reap_orphan
from leaks import gone
from services import Running, service

__all__ = ["delegated", "home"]

# A worker that sends nothing but READY.  On SIGUSR1 it grows.  Its daemon has another session and
# process group.
WORKER = """
import os, signal, socket, sys, time
def grow(*_):
    held = []
    while True:
        held.append(bytearray(1 << 20))
signal.signal(signal.SIGUSR1, grow)
daemon = os.fork()
if daemon == 0:
    os.setsid()
    time.sleep(1000)
print(f"daemon {daemon}", flush=True)  # before READY, after which a test may kill at once
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
    manager.connect(os.environ["NOTIFY_SOCKET"])
    manager.send(f"READY=1\\nSTATUS={daemon}".encode())
while True:
    time.sleep(1000)
"""


def config(directory: Path) -> str:
    (directory / "worker.py").write_text(WORKER)
    return f"""
    [components.web]
    command = ["{sys.executable}", "-I", "-S", "{directory / "worker.py"}"]
    cgroup = "require"
    limits = {{ memory_max = "48M", swap_max = 0 }}
    stop_timeout = 1
    drain_timeout = 1
    """


def worker(running: Running) -> int:
    """Return the pid of the worker."""
    leafs = [path for path in own_cgroup(running).iterdir() if path.name.startswith("web-")]
    (leaf,) = [leaf for leaf in leafs if (leaf / "cgroup.procs").read_text()]
    return min(map(int, (leaf / "cgroup.procs").read_text().split()))


def own_cgroup(running: Running) -> Path:
    """Return the cgroup of the service: the supervisor has moved to a leaf below it."""
    lines = Path(f"/proc/{running.process.pid}/cgroup").read_text().splitlines()
    path = next(line for line in lines if line.startswith("0::")).removeprefix("0::")
    assert path.endswith("/supervisor")
    return (mount() / path.lstrip("/")).parent


def test_an_oom_kill_is_distinguished_from_another_kill(delegated: Path, tmp_path: Path) -> None:
    with service(tmp_path, config(tmp_path), cgroup=delegated) as running:
        os.kill(worker(running), signal.SIGUSR1)
        running.log.wait_for(r"died \(oom\): killed by SIGKILL")
        running.log.wait_for("ready after", count=2)
        os.kill(worker(running), signal.SIGKILL)
        running.log.wait_for(r"died \(signal\): killed by SIGKILL")
        running.log.wait_for("ready after", count=3)
    reap_daemons(running)


def test_a_worker_leaves_nothing_behind(delegated: Path, tmp_path: Path) -> None:
    with service(tmp_path, config(tmp_path), cgroup=delegated) as running:
        daemon = int(running.log.wait_for(r"daemon (\d+)")[1])
        os.kill(worker(running), signal.SIGKILL)
        running.log.wait_for("ready after", count=2)
        assert gone(functools.partial(has_ended, daemon))
        home = own_cgroup(running)
        assert gone(lambda: len([p for p in home.iterdir() if p.name.startswith("web-")]) == 1)
    assert gone(lambda: [p for p in home.iterdir() if p.is_dir()] == [home / "supervisor"])
    reap_daemons(running)


def reap_daemons(running: Running) -> None:
    """Reap the orphans, which are children of this process where it is a sub-reaper."""
    for daemon in re.findall(r"daemon (\d+)", running.log.text()):
        assert gone(functools.partial(has_ended, int(daemon)))
        reap_orphan(int(daemon))


def has_ended(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def test_pressure_in_a_kernel_without_it(delegated: Path, tmp_path: Path) -> None:
    if (delegated / "cpu.pressure").exists():
        pytest.skip(
            "this kernel has pressure stall information: test_pressure_watch.py is for those"
        )
    wanted = config(tmp_path) + "pressure = { memory = 0.1 }\n"
    with service(tmp_path, wanted.replace("require", "prefer"), cgroup=delegated) as running:
        running.log.wait_for("WARNING: open .*/memory.pressure: .*CONFIG_PSI")
        home = own_cgroup(running)
    reap_daemons(running)
    refused = r"CgroupError: open .*/memory\.pressure: .*CONFIG_PSI"
    again = service(tmp_path, wanted, cgroup=home / "supervisor")
    with pytest.raises(AssertionError, match=refused), again:
        pass


def test_leftovers_of_a_killed_supervisor_are_ended(delegated: Path, tmp_path: Path) -> None:
    with service(tmp_path, config(tmp_path), cgroup=delegated) as running:
        home = own_cgroup(running)
        daemon, process = int(running.log.wait_for(r"daemon (\d+)")[1]), worker(running)
        running.process.kill()
        running.process.wait()
    reap_orphan(process)  # the worker dies with its supervisor, its daemon does not
    assert not has_ended(daemon)
    with service(tmp_path, config(tmp_path), cgroup=home / "supervisor") as again:
        assert gone(functools.partial(has_ended, daemon))
        reap_orphan(daemon)
        left = sorted(path.name for path in home.iterdir() if path.is_dir())
        assert left == ["supervisor", "web-1.worker"]  # the new one's
    reap_daemons(again)
