"""Pressure on workers, as the kernel reports it to the supervisor."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cgroups import cgroup_home as home
from cgroups import cgroup_tree as tree
from leaks import gone
from places import ROOT
from services import service

import pyforkfd as ff
from pyforkfd.supervisor import Component, Pressure
from pyforkfd.supervisor._reactor import Reactor
from pyforkfd.supervisor.cgroups._file import CgroupError
from pyforkfd.supervisor.cgroups._pressure_watch import PressureWatch, unavailable
from pyforkfd.supervisor.cgroups._tree import Tree
from pyforkfd.supervisor.state._model import Phase, Worker

__all__ = ["home", "tree"]

V1 = Path("/sys/fs/cgroup/memory")
MIB = 1 << 20
# Two processes that want one processor.
BURNING = """
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.fork()
worker.ready()
while True:
    worker.beat()
"""
# Reads a file again and again that is larger than the worker's memory limit.
THRASHING = """
for order in ("stop_accepting", "collect", "resume_accepting"):
    worker.on(order, lambda order: print("ORDER", order.name, flush=True))
worker.start_thread()
worker.ready()
file = os.open({file!r}, os.O_RDWR | os.O_CREAT)  # its pages are charged to the writer
for _ in range(48):
    os.write(file, os.urandom(1 << 20))
os.fsync(file)
while not os.path.exists("enough"):
    for at in range(48):
        os.pread(file, 1 << 20, at << 20)
time.sleep(1000)
"""


def config(directory: Path, code: str, *more: str) -> str:
    lines = (
        ["import os, sys, time", f"sys.path.append({str(Path(ff.__file__).parents[1])!r})"],
        ["from pyforkfd.supervisor import worker as helpers", "worker = helpers.current()", code],
    )
    (directory / "worker.py").write_text("\n".join([*lines[0], *lines[1]]))
    return "\n".join(
        [
            "[components.web]",
            f'command = ["{sys.executable}", "-I", "{directory / "worker.py"}"]',
            'cgroup = "require"\nstop_timeout = 1\ndrain_timeout = 1',
            *more,
            f'[metrics]\ntextfile = "{directory / "metrics.prom"}"\ninterval = "100ms"',
        ]
    )


def counted(directory: Path, resource: str) -> float:
    for line in (directory / "metrics.prom").read_text().splitlines():
        if line.startswith(f'forkfd_pressure_total{{component="web",resource="{resource}"}}'):
            return float(line.split()[-1])
    return 0.0


def demand_psi(cgroup: Path) -> None:
    if not (cgroup / "cpu.pressure").exists():
        pytest.skip("this kernel has no pressure stall information (CONFIG_PSI)")


@pytest.fixture
def pressed(home: Path) -> Path:
    demand_psi(home)
    return home


@pytest.fixture
def on_disk(tmp_path: Path) -> Iterator[Path]:
    """A file whose pages the kernel can drop and read again: on no tmpfs, as /tmp often is."""
    places = [tmp_path, Path("/var/tmp"), ROOT]
    for place in places:
        try:
            file = Path(tempfile.mkdtemp(prefix="pyforkfd-disk-", dir=place)) / "file"
        except OSError:
            continue
        try:
            if drops_pages(file):
                yield file
                return
        finally:
            shutil.rmtree(file.parent)
    pytest.skip(f"no directory on a disk to write to: {', '.join(map(str, places))} are tmpfs")


def drops_pages(file: Path) -> bool:
    """Tried, as an overlay does not show what it is on."""
    with open(file, "w+b") as made:
        made.write(os.urandom(MIB))
        os.fsync(made.fileno())
        os.posix_fadvise(made.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(made.fileno(), MIB) as pages:
            resident = (ctypes.c_ubyte * (MIB // mmap.PAGESIZE))()
            address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
            libc = ctypes.CDLL(None, use_errno=True)
            asked = libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(MIB), resident)
            assert asked == 0, os.strerror(ctypes.get_errno())
    return not any(flag & 1 for flag in resident)


@pytest.fixture
def scarce(pressed: Path) -> Iterator[list[str]]:
    """Lines of a component that limit the memory of its worker."""
    if "memory" in (pressed / "cgroup.controllers").read_text().split():
        yield ['limits = { memory_high = "24M" }']
        return
    # The v2 tree counts pressure, also where v1 has the limit.
    group = V1 / f"pyforkfd-scarce-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory controller, neither v2 nor v1: {error}")
    try:
        (group / "memory.limit_in_bytes").write_text(str(24 * MIB))
        yield [f'env = {{ ENTER = "{group}/cgroup.procs" }}']
    finally:
        assert gone(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def test_pressure_is_logged_once_and_always_counted(pressed: Path, tmp_path: Path) -> None:
    warning = "web: worker 1: waited for a processor more than 10 % of 2 s"
    wanted = config(tmp_path, BURNING, "pressure = { cpu = 0.1 }")
    with service(tmp_path, wanted, cgroup=pressed) as running:
        running.log.wait_for(warning)
        assert gone(lambda: counted(tmp_path, "cpu") >= 2)
        assert running.log.text().count(warning) == 1


def test_the_memory_guard_limits_a_worker_under_pressure(
    pressed: Path, scarce: list[str], on_disk: Path, tmp_path: Path
) -> None:
    enter = 'if into := os.environ.get("ENTER"): open(into, "w").write(str(os.getpid()))'
    wanted = config(
        tmp_path,
        enter + THRASHING.replace("{file!r}", repr(str(on_disk))),
        "pressure = { memory = 0.01 }",
        'memory_guard = { high = "1G", seconds = 1, keep_accepting = 0 }',
        f'cwd = "{tmp_path}"',
        *scarce,
    )
    with service(tmp_path, wanted, cgroup=pressed) as running:
        running.log.wait_for("waited for memory more than 1 % of 2 s")
        running.log.wait_for("ORDER stop_accepting")
        running.log.wait_for("ORDER collect")
        (tmp_path / "enough").touch()
        running.log.wait_for("ORDER resume_accepting")
        assert counted(tmp_path, "memory") >= 1


def test_pressure_is_watched_after_an_upgrade(pressed: Path, tmp_path: Path) -> None:
    wanted = config(tmp_path, BURNING, "pressure = { cpu = 0.1 }")
    warning = "web: worker 1: waited for a processor"
    with service(tmp_path, wanted, cgroup=pressed) as running:
        running.log.wait_for(warning)
        after = len(running.log)
        running.process.send_signal(signal.SIGUSR2)
        running.log.wait_for("took over 1 workers", after=after)
        running.log.wait_for(warning, after=after)


def test_a_trigger_ends_with_the_cgroup_of_its_worker(pressed: Path, tree: Tree) -> None:
    spec = Component(name="web", command=("true",), pressure=Pressure(cpu=0.5, memory=0.5))
    worker = Worker(
        id=7, spec=spec, position=0, generation=1, phase=Phase.READY, born=0.0, since=0.0
    )
    reports: list[str] = []
    with (
        Reactor() as reactor,
        PressureWatch(reactor, lambda worker, resource, now: reports.append(resource)) as watch,
    ):
        leaf = tree.leaf("web-7.worker")
        before = len(os.listdir("/proc/self/fd"))
        watch.watch(worker, leaf)
        assert len(os.listdir("/proc/self/fd")) == before + 2
        assert leaf.remove()
        while len(os.listdir("/proc/self/fd")) > before - 1:  # the leaf's own is closed too
            reactor.run_once(10)
        assert reports == []
        watch.forget(7)


def test_in_a_kernel_without_triggers_all_are_unavailable(tmp_path: Path) -> None:
    """Check a directory without the files, as in a kernel without CONFIG_PSI."""
    found = unavailable(tmp_path, ["cpu", "memory"])
    assert [error.errno for error in found.values()] == [errno.ENOENT] * 2
    assert isinstance(found["cpu"], CgroupError)
    assert "CONFIG_PSI" in str(found["cpu"])
    assert unavailable(tmp_path, []) == {}
