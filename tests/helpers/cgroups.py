"""cgroups of our own for tests, and programs that run in them."""

from __future__ import annotations

import errno
import json
import os
import select
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from leaks import gone

import pyforkfd as ff
from pyforkfd.supervisor.cgroups._leaf import Leaf
from pyforkfd.supervisor.cgroups._tree import Tree, open_tree
from pyforkfd.supervisor.spec._limits import Limits

PACKAGES = Path(ff.__file__).parents[1]
CONTROLLERS = ("cpu", "memory", "pids")
# May read the interpreter wherever it is, and write only files of its own.
AS_NOBODY: dict[str, Any] = {
    "user": "nobody",
    "capabilities": ff.Capabilities(
        permitted=["DAC_READ_SEARCH"], ambient=["DAC_READ_SEARCH"], bounding=["DAC_READ_SEARCH"]
    ),
}


def mount() -> Path:
    """Return where the v2 tree is mounted, or the v2 part of a hybrid one."""
    for line in Path("/proc/mounts").read_text().splitlines():
        if line.split()[2] == "cgroup2":
            return Path(line.split()[1])
    pytest.skip("no cgroup v2 tree is mounted")


@contextmanager
def fresh_cgroup(name: str) -> Iterator[Path]:
    """Make a cgroup below the top of the tree; at the end kill its processes and remove it."""
    path = mount() / f"pyforkfd-{name}-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        pytest.skip(f"no cgroup may be made here: {error}")
    with Leaf(path) as leaf:
        try:
            yield path
        finally:
            leaf.kill()
            assert gone(lambda: not leaf.populated()), f"still in {path}: {leaf.procs()}"
            assert gone(leaf.remove), f"{path} cannot be removed"


def demand_controllers(path: Path) -> None:
    available = (path / "cgroup.controllers").read_text().split()
    if missing := set(CONTROLLERS) - set(available):
        pytest.skip(
            f"no {', '.join(sorted(missing))} controller in this machine's cgroup v2 tree: "
            "test_vm.py runs this in one that has it"
        )


@pytest.fixture(name="home")
def cgroup_home() -> Iterator[Path]:
    """An empty cgroup, with the controllers of this machine."""
    with fresh_cgroup("test") as path:
        yield path


@pytest.fixture(name="given")
def cgroup_given(home: Path) -> Path:
    """An empty cgroup with the controllers cpu, memory and pids."""
    demand_controllers(home)
    return home


@pytest.fixture(name="tree")
def cgroup_tree(home: Path) -> Iterator[Tree]:
    """A tree of which no controller is required."""
    opened, missing = open_tree("prefer", start=home)
    assert opened is not None
    with opened:
        assert not missing
        yield opened


@pytest.fixture(name="limited")
def cgroup_limited(given: Path) -> Iterator[Tree]:
    """A tree whose leaves can have every limit."""
    limits = Limits(memory_max=1, cpu_weight=1, pids_max=1)
    opened, missing = open_tree("require", [limits], start=given)
    assert opened is not None
    with opened:
        assert not missing
        assert opened.controllers >= set(CONTROLLERS)
        yield opened


@contextmanager
def running(args: list[ff.StrPath], **options: Any) -> Iterator[ff.Process]:
    """Run a child; kill it at the end, so that a failed test does not wait for it."""
    with ff.spawn(args, **options) as child:
        try:
            yield child
        finally:
            child.kill()


def python(code: str, *args: str, **options: Any) -> AbstractContextManager[ff.Process]:
    """Run code that needs only the standard library in a child."""
    return running([sys.executable, "-I", "-S", "-c", code, *args], **options)


def sleeper(**options: Any) -> AbstractContextManager[ff.Process]:
    """Run a child that does nothing."""
    return running(["sleep", "1000"], **options)


def reap_orphan(pid: int) -> None:
    """Reap a process whose parent has ended, if it is ours: zygotes may make us a sub-reaper."""
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass


def answer(code: str, *args: str, **options: Any) -> Any:
    """Run code that must succeed in a child, and return the JSON that it prints."""
    # Without site: on a machine that reads files slowly it takes as long as all else.
    path = f"import sys; sys.path.append({str(PACKAGES)!r})\n"
    command = [sys.executable, "-I", "-S", "-c", path + code, *args]
    done = ff.run(command, capture=True, text=True, timeout=60, **options)
    assert done.status.success, f"{done.status}: {done.stderr}"
    return json.loads(done.stdout or "")


def line(child: ff.Process, timeout: float = 20) -> str:
    """Return the next line that a child prints."""
    assert child.stdout is not None
    output = b""
    while not output.endswith(b"\n"):  # byte by byte: select does not see what is buffered
        ready, _, _ = select.select([child.stdout], [], [], timeout)
        assert ready, f"{child} prints nothing after {output!r}"
        byte = os.read(child.stdout.fileno(), 1)
        assert byte, f"{child} has closed its output after {output!r}"
        output += byte
    return output.decode().strip()


def usage(cgroup: Path) -> int:
    """Return the processor time used, in microseconds."""
    return stat(cgroup)["usage_usec"]


def stat(cgroup: Path) -> dict[str, int]:
    lines = (cgroup / "cpu.stat").read_text().splitlines()
    return {name: int(value) for name, value in map(str.split, lines)}
