"""Cgroups for tests, and programs that run in them."""

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
# May read the interpreter wherever that is, and write only its own files.
AS_NOBODY: dict[str, Any] = {
    "user": "nobody",
    "capabilities": ff.Capabilities(
        permitted=["DAC_READ_SEARCH"], ambient=["DAC_READ_SEARCH"], bounding=["DAC_READ_SEARCH"]
    ),
}


class Refused(Limits):
    """A limit that the kernel refuses: more processes than there are numbers for."""

    def files(self) -> dict[str, str]:
        return {"pids.max": str(2**40)}


def mount() -> Path:
    """Return the mount point of the v2 tree, or of the v2 part of a hybrid one."""
    for line in Path("/proc/mounts").read_text().splitlines():
        if line.split()[2] == "cgroup2":
            return Path(line.split()[1])
    pytest.skip("no cgroup v2 tree is mounted")


@contextmanager
def fresh_cgroup(name: str) -> Iterator[Path]:
    """Make a cgroup below the top of the tree; its processes are killed at the end."""
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
    has = (path / "cgroup.controllers").read_text().split()
    if missing := set(CONTROLLERS) - set(has):
        pytest.skip(
            f"no {', '.join(sorted(missing))} controller in this machine's cgroup v2 tree: "
            "test_vm.py runs this in one that has it"
        )


@pytest.fixture(name="home")
def cgroup_home() -> Iterator[Path]:
    """An empty cgroup, with the controllers that this machine has."""
    with fresh_cgroup("test") as path:
        yield path


@pytest.fixture(name="delegated")
def cgroup_delegated(home: Path) -> Path:
    """An empty cgroup with the controllers cpu, memory and pids."""
    demand_controllers(home)
    return home


@pytest.fixture(name="tree")
def cgroup_tree(home: Path) -> Iterator[Tree]:
    """A tree without required controllers."""
    opened, missing = open_tree("prefer", start=home)
    assert opened is not None
    with opened:
        assert not missing
        yield opened


@pytest.fixture(name="limited")
def cgroup_limited(delegated: Path) -> Iterator[Tree]:
    """A tree whose leafs can have every limit."""
    limits = Limits(memory_max=1, cpu_weight=1, pids_max=1)
    opened, missing = open_tree("require", [limits], start=delegated)
    assert opened is not None
    with opened:
        assert not missing
        assert opened.controllers >= set(CONTROLLERS)
        yield opened


@contextmanager
def running(args: list[ff.StrPath], **options: Any) -> Iterator[ff.Process]:
    """Run a child that is killed at the end, so that a failed test does not wait for it."""
    with ff.spawn(args, **options) as child:
        try:
            yield child
        finally:
            child.kill()


def python(code: str, *args: str, **options: Any) -> AbstractContextManager[ff.Process]:
    """Run a child with this code, which imports the standard library alone."""
    return running([sys.executable, "-I", "-S", "-c", code, *args], **options)


def sleeper(**options: Any) -> AbstractContextManager[ff.Process]:
    """Run a child that does nothing."""
    return running(["sleep", "1000"], **options)


def reap_orphan(pid: int) -> None:
    """Reap a process whose parent has ended, if it is our child.

    It is where a zygote has made this process a sub-reaper, which is permanent.
    """
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass


def answer(code: str, *args: str, **options: Any) -> Any:
    """Return what a child prints, decoded from JSON; the child must succeed."""
    # No site: in a machine that is slow to read files it costs as much as all else.
    found = f"import sys; sys.path.append({str(PACKAGES)!r})\n"
    command = [sys.executable, "-I", "-S", "-c", found + code, *args]
    done = ff.run(command, capture=True, text=True, timeout=60, **options)
    assert done.status.success, f"{done.status}: {done.stderr}"
    return json.loads(done.stdout or "")


def line(child: ff.Process, timeout: float = 20) -> str:
    """Return the next line that a child prints."""
    assert child.stdout is not None
    text = b""
    while not text.endswith(b"\n"):  # byte by byte: select() does not see buffered bytes
        ready, _, _ = select.select([child.stdout], [], [], timeout)
        assert ready, f"{child} prints nothing after {text!r}"
        byte = os.read(child.stdout.fileno(), 1)
        assert byte, f"{child} has closed its output after {text!r}"
        text += byte
    return text.decode().strip()


def usage(cgroup: Path) -> int:
    """Return the processor time of a cgroup in microseconds."""
    return stat(cgroup)["usage_usec"]


def stat(cgroup: Path) -> dict[str, int]:
    lines = (cgroup / "cpu.stat").read_text().splitlines()
    return {name: int(value) for name, value in map(str.split, lines)}
