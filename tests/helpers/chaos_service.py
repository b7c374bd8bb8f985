"""The service of the chaos test: how it is configured, started, inspected and requested."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chaos_load import Address
from chaos_log import LogWatch
from leaks import gone
from places import HELPERS
from processes import alive, children, descriptors, kill
from services import Service, free_port

from pyforkfd.supervisor.cgroups._delegation import OWN_LEAF
from pyforkfd.supervisor.control._client import ControlClient
from pyforkfd.supervisor.control._messages import ControlError

PATIENCE = 60.0  # seconds; the machine may be busy with other things than us
BASE = {"web": 2, "fn": 2, "plain": 2, "printer": 1}
DISK_BYTES = 64 << 20
_MARK = "PYFORKFD_CHAOS_MARK"
# In a mount namespace of its own, so that whatever becomes of the test, all of it goes with the
# last process: a small disk for the log, and nothing else can be written but the test's folder.
_ROOM = """
set -e
root=$1 bytes=$2
shift 2
mount --bind "$root" "$root"
mount -t tmpfs -o "size=$bytes" chaos "$root/disk"
for place in / /tmp /var/tmp /run /dev/shm; do
    if mountpoint -q "$place"; then mount -o remount,bind,ro "$place"; fi
done
cd "$root"
exec "$@"
"""
# What supervisor and keeper write to standard error where something of ours has failed.
_FAULTS = re.compile(
    r"CRITICAL|has failed|makes no sense|giving up|cannot hold"
    r"|the supervisor has died: (?!signal 9$)|keeper: .*: not sent"
)


def config(
    root: Path,
    ports: Mapping[str, int],
    *,
    counts: Mapping[str, int] = BASE,
    version: int = 0,
    extra: bool = False,
    web: str = "",
    head: str = "",
) -> str:
    """Return the file of the service; the component plain is restarted as by default.

    Args:
        root: directory of the test.
        ports: name -> port of the loopback.
        counts: component -> workers.
        version: changes the environment, and so replaces workers.
        extra: whether there is one more component.
        web: further keys of the component web.
        head: further keys of the file.
    """
    python = sys.executable
    limits = "restart = { backoff = 0.05, backoff_cap = 1, max_restarts = 100_000 }"
    text = f"""
{head}
name = "chaos"
keeper = true
[listeners.http]
address = "tcp://127.0.0.1:{ports["web"]}"
[listeners.fn]
address = "tcp://127.0.0.1:{ports["fn"]}"
[listeners.plain]
address = "unix:{root}/plain.sock"
[components.web]
command = ["{python}", "-S", "{HELPERS}/pid_server.py"]
workers = {counts["web"]}
listen = ["http"]
env = {{ VERSION = "{version}" }}
{limits}
{web}
[components.fn]
function = "chaos_worker:serve"
args = ["fn"]
zygote = "python"
workers = {counts["fn"]}
listen = ["fn"]
env = {{ VERSION = "{version}" }}
heartbeat = {{ stale_after = 30 }}
{limits}
[components.plain]
command = ["{python}", "-S", "{HELPERS}/tiny_server.py", "plain", "mute"]
workers = {counts["plain"]}
listen = ["plain"]
readiness = "accept"
cgroup = "off"
[components.printer]
command = ["{python}", "-S", "{HELPERS}/chaos_worker.py", "print"]
workers = {counts["printer"]}
readiness = "started"
cgroup = "off"
{limits}
[zygotes.python]
preload = ["logging"]
[control]
path = "{root}/control"
[metrics]
address = "tcp://127.0.0.1:{ports["metrics"]}"
[log]
path = "{root}/disk/app.log"
stdout = false
max_bytes = "512K"
keep = 20
"""
    if extra:
        text += '[components.extra]\ncommand = ["sleep", "1000"]\nreadiness = "started"\n'
    return text


class ChaosService:
    """The service, which is started again whenever its keeper was killed.

    Attributes:
        root: directory of the test.
        ports: of its listeners.
        addresses: component -> where its workers listen.
        logs: of each start.
        killed: when the test has killed a supervisor, since the last start.
        has_disk: the log is on a small disk of its own.
    """

    def __init__(self, root: Path, cgroup: Path | None) -> None:
        self.root = root
        self.file = root / "service.toml"
        self.ports = {name: free_port() for name in ("web", "fn", "metrics")}
        self.addresses: dict[str, Address] = {
            "web": ("127.0.0.1", self.ports["web"]),
            "fn": ("127.0.0.1", self.ports["fn"]),
            "plain": f"{root}/plain.sock",
        }
        self.logs: list[LogWatch] = []
        self.killed: list[float] = []
        self._past = ""  # the standard error of those that have ended
        self._cgroup = cgroup
        self._seen = 0  # lines of standard error
        self._mark = f"{os.getpid()}-{time.monotonic_ns()}"
        self._service: Service | None = None
        (root / "disk").mkdir()
        (root / "tmp").mkdir()
        self.has_disk = os.geteuid() == 0 and subprocess.run(self._in_room("true")).returncode == 0

    def write(self, text: str) -> None:
        """Replace the service's file."""
        self.file.unlink(missing_ok=True)
        self.file.write_text(text)

    def start(self) -> None:
        """Start it, with a disk and a cgroup of its own; wait until it is ready."""
        number = len(self.logs)
        if self._service is not None:
            self._past = self.stderr(200)
        command = [sys.executable, "-P", "-m", "pyforkfd", "serve", str(self.file)]
        disk = self.root / "disk"
        if self.has_disk:
            command = self._in_room(*command)
        cgroup = None
        if self._cgroup is not None:
            cgroup = self._cgroup / f"start-{number}"
            cgroup.mkdir()
        env = {
            _MARK: self._mark,
            "TMPDIR": str(self.root / "tmp"),
            "PYTHONPATH": str(HELPERS),
        }
        self._service = Service(command, self.root, env=env, cgroup=cgroup)
        self.killed.clear()
        self._seen = 0
        self.await_status(lambda status: status["condition"] == "ready")
        path = f"/proc/{self.keeper}/root{disk}"
        watch = LogWatch(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        self.logs.append(watch)
        watch.start()

    def _in_room(self, *command: str) -> list[str]:
        unshare = ["unshare", "--mount", "--propagation", "private"]
        return [*unshare, "sh", "-c", _ROOM, "sh", str(self.root), str(DISK_BYTES), *command]

    # Processes

    @property
    def keeper(self) -> int:
        assert self._service is not None
        return self._service.process.pid

    def stderr(self, lines: int = 40) -> str:
        """Return the last lines of standard error."""
        now = "" if self._service is None else self._service.log.text()
        return "\n".join([*self._past.splitlines(), *now.splitlines()][-lines:])

    def lines(self) -> int:
        """Return how many lines standard error has."""
        assert self._service is not None
        return len(self._service.log)

    def wait_for(self, pattern: str, *, after: int) -> str:
        """Wait for a line of standard error; return what the pattern matches."""
        assert self._service is not None
        return self._service.log.wait_for(pattern, after=after)[0]

    def supervisor(self) -> int | None:
        """Return the pid of the supervisor that the keeper has now, if there is one."""
        for pid in children(self.keeper):
            if _is_supervisor(_arguments(pid)):
                return pid
        return None

    def zygotes(self, status: Mapping[str, Any]) -> list[int]:
        """Return the pids of the zygotes of the supervisor of a status."""
        workers = set(pids(status))
        found = children(status["pid"]) - workers
        return sorted(pid for pid in found if any(b"zygote" in arg for arg in _arguments(pid)))

    def marked(self) -> dict[int, str]:
        """Return every process that this service has started, whoever its parent is now."""
        mark = f"{_MARK}={self._mark}".encode()
        found = {}
        for name in os.listdir("/proc"):
            if name.isdigit() and alive(int(name)):
                try:
                    environment = Path(f"/proc/{name}/environ").read_bytes()
                except OSError:
                    continue
                if mark in environment.split(b"\0"):
                    found[int(name)] = b" ".join(_arguments(int(name))).decode(errors="replace")
        return found

    def kill_supervisor(self) -> bool:
        """Kill the supervisor, if there is one."""
        if (pid := self.supervisor()) is None:
            return False
        self.killed.append(time.monotonic())
        kill(pid)
        return True

    # Requests

    def request(self, do: str, timeout: float = PATIENCE, **fields: Any) -> dict[str, Any]:
        """Send one request.

        Raises:
            ControlError: it was refused, or the supervisor has ended.
            OSError: no supervisor listens.
        """
        with ControlClient(str(self.root / "control")) as client:
            return client.request(do, timeout=timeout, **fields)

    def status(self, patience: float = PATIENCE) -> dict[str, Any]:
        """Return the status, from the next supervisor where there is none just now."""
        return self.await_status(lambda _: True, patience)

    def await_status(self, is_wanted: Any, patience: float = PATIENCE) -> dict[str, Any]:
        """Return the first status that is wanted."""
        end = time.monotonic() + patience
        last: object = None
        while True:
            try:
                last = self.request("status", timeout=patience)["status"]
                if is_wanted(last):
                    assert isinstance(last, dict)
                    return last
            except (OSError, ControlError) as error:
                last = error
            assert time.monotonic() < end, f"after {patience:g} s the status is {brief(last)}"
            assert self._service is not None
            assert self._service.process.poll() is None, f"it has ended:\n{self.stderr()}"
            time.sleep(0.05)

    # What it holds

    def holdings(self) -> dict[str, Counter[str]]:
        """Return what supervisor and keeper have open, by kinds."""
        pid = self.supervisor()
        return {"supervisor": kinds(pid) if pid else Counter(), "keeper": kinds(self.keeper)}

    def find_faults(self) -> list[str]:
        """Return what was written to standard error and must not be, since the last call."""
        assert self._service is not None
        lines = self._service.log.text(after=self._seen).splitlines()
        self._seen += len(lines)
        found = [line for line in lines if _FAULTS.search(line)]
        deaths = self._service.log.text().count("the supervisor has died: signal 9")
        if deaths > len(self.killed):
            found.append(f"{deaths} deaths of the supervisor, {len(self.killed)} kills")
        return found

    # Its end

    def await_end(self) -> list[str]:
        """Wait until all has ended; return what is left behind."""
        assert self._service is not None
        service = self._service
        service.process.wait(timeout=PATIENCE)
        left = []
        if not gone(lambda: not self.marked(), PATIENCE):
            left = [f"process {pid}: {what}" for pid, what in self.marked().items()]
        service.log.join()
        service.process.close()
        left += [str(path) for path in (self.root / "tmp").iterdir()]
        # A Unix listener's path stays, as in systemd; the next one replaces it.
        (self.root / "plain.sock").unlink()
        if (self.root / "control").exists():
            left.append("control")
        if self._cgroup is not None:
            cgroup = self._cgroup / f"start-{len(self.logs) - 1}"
            # No process can remove the one that it is in.
            assert gone(lambda: _is_removed(cgroup / OWN_LEAF), PATIENCE)
            left += [str(path) for path in cgroup.rglob("*") if path.is_dir()]
            if not left:
                cgroup.rmdir()
        return left

    def kill_keeper(self) -> list[str]:
        """Kill the keeper: the supervisor stops in order; return what is left behind."""
        assert self._service is not None
        self._service.process.kill()
        return self.await_end()

    def stop(self) -> list[str]:
        """Stop it in order; return what is left behind."""
        assert self._service is not None
        self._service.process.terminate()
        left = self.await_end()
        if (status := self._service.process.returncode) != 0:
            left.append(f"exit status {status}")
        return left

    def destroy(self) -> None:
        """Kill all that is left, whatever has happened, and close everything."""
        if self._service is not None and self._service.process.poll() is None:
            self._service.process.kill()
        for _ in range(100):  # what they start meanwhile is found by the next look
            if not (marked := self.marked()):
                break
            for pid in marked:
                kill(pid)
            time.sleep(0.02)
        if self._service is not None:
            self._service.process.wait()
            self._service.log.join()
            self._service.process.close()


def pids(status: Mapping[str, Any], component: str | None = None) -> list[int]:
    """Return the pids of the workers of a status."""
    return [
        worker["pid"]
        for one in status["components"]
        for worker in one["workers"]
        if component in (None, one["name"]) and worker["pid"] is not None
    ]


def counts(status: Mapping[str, Any]) -> dict[str, int]:
    """Return component -> how many workers are wanted."""
    return {one["name"]: one["wanted"] for one in status["components"]}


def is_settled(status: Mapping[str, Any], wanted: Mapping[str, int]) -> bool:
    """Whether exactly these workers run, all of them ready, and nothing is under way."""
    return (
        status["condition"] == "ready"
        and counts(status) == dict(wanted)
        and all(
            one["ready"] == one["wanted"] == len(one["workers"]) and not one["fatal"]
            for one in status["components"]
        )
    )


def brief(status: object) -> str:
    """Return a status in a few lines."""
    if not isinstance(status, dict):
        return repr(status)
    lines = [f"{status['condition']}, generation {status['generation']}: {status['reasons']}"]
    for one in status["components"]:
        workers = [
            f"{w['id']}:{w['phase']}{'*' if w['retiring'] else ''}/{w['generation']}"
            for w in one["workers"]
        ]
        lines.append(
            f"  {one['name']}: {one['ready']} of {one['wanted']}, "
            f"generation {one['generation']}: {' '.join(workers)}"
        )
    return "\n".join(lines)


def kinds(pid: int) -> Counter[str]:
    """Return kind -> number of the descriptors of a process, without inodes and numbers."""
    found: Counter[str] = Counter()
    for target in descriptors(pid).values():
        found[re.sub(r"(?<=:)\[\d+\]|-\d+\.worker.*$|(?<=/start-)\d+", "", target)] += 1
    return found


def resident(pid: int) -> int:
    """Return the bytes of memory that are a process's own."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(size) << 10 for size in re.findall(r"^Private_\w+: +(\d+)", text, re.MULTILINE))


def _is_removed(cgroup: Path) -> bool:
    """Remove a cgroup; False while a process that has ended is still in it."""
    try:
        cgroup.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _arguments(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _is_supervisor(arguments: list[bytes]) -> bool:
    return b"serve" in arguments and not arguments[0].endswith(b"forkfd-keeper")
