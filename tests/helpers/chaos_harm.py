"""The harm that the chaos test does: kills, floods, a full disk; one method each."""

from __future__ import annotations

import os
import random
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from chaos_load import Load, Outage
from chaos_service import BASE, DISK_BYTES, PATIENCE, ChaosService, pids
from garbage import GARBAGE
from places import HELPERS
from processes import descriptors

_FLOODERS = 3


class Harm:
    """What needs no model of the service.

    Attributes:
        random: of this operation.
        note: details for the report.
        full: times in which the disk was full.
        flood_seconds: for the status while the notify socket is flooded.
        uncertain: a supervisor has ended, or a reload is under way, since the last settling.
        failures: faults that an operation has found.
    """

    def __init__(self, service: ChaosService, load: Load) -> None:
        self.service, self.load = service, load
        self.random = random.Random()
        self.note = ""
        self.full: list[tuple[float, float]] = []
        self.flood_seconds = PATIENCE
        self.uncertain = False
        self.failures: list[str] = []
        self._moved = 0

    def kill_workers(self, component: str, those: Iterable[int]) -> None:
        """Kill workers, and wait until they are gone."""
        with ExitStack() as stack:
            killed = []
            for pid in those:
                try:
                    pidfd = os.pidfd_open(pid)
                except ProcessLookupError:
                    continue
                stack.callback(os.close, pidfd)
                if pid not in self.service.marked():
                    continue  # another process has its number by now
                begun = time.monotonic()
                try:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                killed.append((pid, pidfd, begun))
            for pid, pidfd, begun in killed:
                select.select([pidfd], [], [], PATIENCE)
                over = time.monotonic()
                self.load.outages.append(
                    Outage(component=component, begun=begun, over=over, pid=pid)
                )
        self.note += f" {component} {[pid for pid, _, _ in killed]}"

    def kill_worker(self) -> None:
        """Kill a worker."""
        name = self.random.choice(sorted(BASE))
        found = pids(self.service.status(), name)
        if found:
            self.kill_workers(name, [self.random.choice(found)])

    def kill_all_workers(self) -> None:
        """Kill all workers of a component at once."""
        name = self.random.choice(sorted(BASE))
        self.kill_workers(name, pids(self.service.status(), name))

    def kill_supervisor(self) -> None:
        """Kill the supervisor."""
        self.note = str(self.service.kill_supervisor())
        self.uncertain = True

    def kill_supervisors(self) -> None:
        """Kill the supervisor, and the next while it starts."""
        for _ in range(3):
            self.service.kill_supervisor()
            time.sleep(self.random.uniform(0, 0.6))
        self.uncertain = True

    def kill_supervisor_and_worker(self) -> None:
        """Kill the supervisor and a worker, whose end nobody sees."""
        name = self.random.choice(sorted(BASE))
        found = pids(self.service.status(), name)
        self.service.kill_supervisor()
        self.kill_workers(name, found[:1])
        self.uncertain = True

    def kill_zygote(self) -> None:
        """Kill the zygotes."""
        found = self.service.zygotes(self.service.status())
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        self.note = str(found)
        self.uncertain = True

    def flood_notify_socket(self) -> None:
        """Another user floods the notify socket."""
        paths = list((self.service.root / "tmp").glob("pyforkfd-*/notify"))
        path = str(paths[0]) if paths else "none"
        seconds = self.random.uniform(0.3, 1.0)
        program = str(HELPERS / "chaos_worker.py")
        command = [sys.executable, "-S", program, "flood", path, str(seconds)]
        floods = [subprocess.Popen(command) for _ in range(_FLOODERS)]
        time.sleep(0.2)
        begun = time.monotonic()
        self.service.status()
        took = time.monotonic() - begun
        self.note = f"{seconds:.1f} s, status after {took:.2f} s"
        for flood in floods:
            flood.wait()
        if took > self.flood_seconds and not self.uncertain:
            self.failures.append(f"status took {took:.2f} s under a flood")

    def garbage_on_control_socket(self) -> None:
        """Garbage on the control socket, from many clients."""
        path = str(self.service.root / "control")
        with ExitStack() as stack:
            for number in range(self.random.randint(10, 100)):
                sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                sock.setblocking(False)
                try:
                    sock.connect(path)
                    _, data, _ = self.random.choice(GARBAGE)
                    sock.send(data or b"{}")
                    if number % 3 == 0:
                        sock.send(b'{"v": 1, "do": "logs", "follow": true}')
                    if number % 5 == 0:
                        reader, writer = os.pipe()
                        stack.callback(os.close, reader)
                        socket.send_fds(sock, [b"x"], [writer])
                        os.close(writer)
                except OSError:
                    continue  # not there, full, or disconnected
            time.sleep(self.random.uniform(0, 0.3))

    def garbage_on_channel(self) -> None:
        """Workers send garbage over their channels."""
        self._signal_workers("fn", signal.SIGUSR2)

    def print_without_end(self) -> None:
        """Workers print as fast as they can."""
        self._signal_workers("printer", signal.SIGUSR1)

    def shut_down_listener(self) -> None:
        """A worker shuts down the listener that all share."""
        begun = time.monotonic()
        self._signal_workers("fn", signal.SIGURG)
        time.sleep(0.5)  # the handlers run when the workers come to it
        self.load.wait_for_answers()
        self.load.outages.append(Outage(component="fn", begun=begun, over=time.monotonic()))

    def _signal_workers(self, component: str, signum: signal.Signals) -> None:
        status = self.service.status()
        marked = self.service.marked()
        for one in status["components"]:
            for worker in one["workers"]:
                is_ready = one["name"] == component and worker["phase"] == "ready"
                if is_ready and worker["pid"] in marked:
                    os.kill(worker["pid"], signum)
                    self.note += f" {worker['pid']}"

    def fill_disk(self) -> None:
        """The disk of the log is full for a while."""
        if not self.service.has_disk:
            return
        directory = self.service.logs[-1].directory
        begun = time.monotonic()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open("filler", flags, 0o600, dir_fd=directory)
        try:
            end = begun + self.random.uniform(0.3, 1.5)
            written = 0
            while time.monotonic() < end:  # what is removed meanwhile is filled again
                try:
                    written += os.write(fd, bytes(1 << 16))
                except OSError:
                    time.sleep(0.05)
            assert written < DISK_BYTES
        finally:
            os.unlink("filler", dir_fd=directory)
            os.close(fd)
            self.full.append((begun, time.monotonic()))

    def move_log(self) -> None:
        """Move the log away, as logrotate does, and request another."""
        self._moved += 1
        directory = self.service.logs[-1].directory
        moved = f"moved.log.{self._moved}"
        try:
            os.rename("app.log", moved, src_dir_fd=directory, dst_dir_fd=directory)
        except FileNotFoundError:
            self.note = "moved already"
        os.kill(self.service.keeper, signal.SIGUSR1)


@contextmanager
def short_of_descriptors(pid: int, spare: int) -> Iterator[int]:
    """Limit the descriptors of a process to what it has, and a few."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    limit = min(before[0], max(descriptors(pid)) + 1 + spare)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield limit
    finally:
        if Path(f"/proc/{pid}").exists():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
