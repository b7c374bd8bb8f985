"""Leafs: made, entered, killed and removed, on any cgroup v2 tree."""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cgroups import line, python, reap_orphan, sleeper
from leaks import gone

import pyforkfd as ff
from pyforkfd.supervisor.cgroups._file import CgroupError
from pyforkfd.supervisor.cgroups._leaf import Leaf
from pyforkfd.supervisor.cgroups._tree import Tree
from pyforkfd.supervisor.processes._resources import sweep_leafs
from pyforkfd.zygote import Zygote

# A daemon: forked twice, in a session of its own.
DAEMON = """
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        while True: signal = __import__("signal").pause()
    os._exit(0)
os.wait()
print("worker", flush=True)
while True: __import__("signal").pause()
"""


def test_a_worker_starts_in_its_leaf(tree: Tree) -> None:
    with tree.leaf("web.1") as leaf:
        with ff.spawn(["cat", "/proc/self/cgroup"], cgroup=leaf, fds={1: ff.PIPE}) as child:
            assert child.stdout is not None
            assert f"{tree.path.name}/web.1\n" in child.stdout.read().decode()
        assert leaf.remove()
    assert not leaf.path.exists()


def test_a_worker_of_a_zygote_starts_in_its_leaf(tree: Tree) -> None:
    with Zygote() as zygote, tree.leaf("web.1") as leaf:
        with zygote.spawn("signal:pause", cgroup=leaf) as child:
            assert leaf.procs() == [child.pid]
            leaf.kill()
            assert child.wait(timeout=10).signal == signal.SIGKILL
        assert gone(leaf.remove)


def test_a_leaf_is_removed_though_no_descriptor_is_free(tree: Tree) -> None:
    with tree.leaf("web.1") as leaf, no_descriptor_free():
        assert leaf.remove()
        assert not leaf.path.exists()


def test_a_leaf_with_others_below_stays_while_no_descriptor_is_free(tree: Tree) -> None:
    with tree.leaf("web.1") as leaf:
        (leaf.path / "below").mkdir()
        with no_descriptor_free():
            assert not leaf.remove()
        assert leaf.remove()
        assert not leaf.path.exists()


def test_a_sweep_without_a_free_descriptor_is_repeated(tree: Tree) -> None:
    leaf = tree.leaf("web.1")
    with sleeper(cgroup=leaf):
        left = [leaf]
        with no_descriptor_free():
            sweep_leafs(left)
        assert left == [leaf]
        sweep_leafs(left)  # kills
    sweep_leafs(left)
    assert left == []
    assert not leaf.path.exists()


@contextmanager
def no_descriptor_free() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.open("/dev/null", os.O_RDONLY)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("by", ["cgroup.kill", "pidfds"])
def test_the_whole_tree_of_a_worker_is_killed(tree: Tree, by: str) -> None:
    with (
        tree.leaf("web.1") as leaf,
        python(DAEMON, cgroup=leaf, fds={1: ff.PIPE}) as worker,
    ):
        printed = {line(worker), line(worker)}
        (daemon,) = (int(word) for word in printed - {"worker"})
        assert leaf.procs() == sorted([worker.pid, daemon])
        pidfd = os.pidfd_open(daemon)
        try:
            if by == "cgroup.kill":
                leaf.kill()
            else:
                leaf._kill_each()  # as before Linux 5.14
            assert worker.wait(timeout=10).signal == signal.SIGKILL
            assert select.select([pidfd], [], [], 10)[0], "the daemon lives"
        finally:
            os.close(pidfd)
        reap_orphan(daemon)
        assert gone(lambda: not leaf.populated())
        assert gone(leaf.remove)


def test_the_watch_fires_when_the_leaf_is_empty(tree: Tree) -> None:
    with tree.leaf("web.1") as leaf, sleeper(cgroup=leaf) as worker:
        assert leaf.populated()
        with leaf.watch() as fd:
            poll = select.poll()
            poll.register(fd, select.POLLPRI)
            assert poll.poll(0) == []
            leaf.kill()
            worker.wait(timeout=10)
            assert [event & select.POLLPRI for _, event in poll.poll(10_000)]
        assert not leaf.populated()
        assert gone(leaf.remove)


def test_a_leaf_is_removed_with_the_cgroups_that_the_worker_made(tree: Tree) -> None:
    with tree.leaf("web.1") as leaf:
        (leaf.path / "a" / "b").mkdir(parents=True)
        (leaf.path / "c").mkdir()
        with sleeper(cgroup=leaf.path / "a" / "b") as below:
            assert leaf.procs() == [below.pid]
            assert leaf.populated()
            assert not leaf.remove()
            assert leaf.fileno() >= 0, "it is still open"
            leaf.kill()
            below.wait(timeout=10)
        assert gone(leaf.remove)
    assert not leaf.path.exists()


def test_a_name_is_used_once(tree: Tree) -> None:
    with tree.leaf("web.1") as first, tree.leaf("web.1") as second, tree.leaf("web.1") as third:
        assert [first.name, second.name, third.name] == ["web.1", "web.1.1", "web.1.2"]
        assert tree.leftovers() == ["web.1", "web.1.1", "web.1.2"]
        assert first.remove() and second.remove() and third.remove()


def test_the_name_of_a_kernel_file_gets_a_number(tree: Tree) -> None:
    with tree.leaf("cgroup.procs") as leaf:
        assert leaf.name == "cgroup.procs.1"
        assert leaf.remove()


@pytest.mark.parametrize("name", ["", "..", ".x", "a/b", "a\nb", "supervisor", "-x"])
def test_a_name_that_cannot_be_a_cgroup(tree: Tree, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a worker's cgroup"):
        tree.leaf(name)
    with pytest.raises(ValueError, match="cannot be a worker's cgroup"):
        tree.adopt(name)
    assert tree.leftovers() == []


def test_a_leaf_that_does_not_exist(tree: Tree) -> None:
    with pytest.raises(CgroupError) as caught:
        tree.adopt("web.1")
    assert caught.value.errno == errno.ENOENT
    assert str(caught.value) == f"open the cgroup {tree.path}/web.1: No such file or directory"


def test_a_new_cgroup_of_the_same_name_is_not_mistaken_for_it(tree: Tree) -> None:
    with tree.leaf("web.1") as leaf:
        leaf.path.rmdir()
        leaf.path.mkdir()
        with pytest.raises(CgroupError) as caught:
            leaf.populated()
        assert caught.value.errno in (errno.ENOENT, errno.ENODEV)
        leaf.path.rmdir()


def test_without_controllers_there_is_no_proof(home: Path) -> None:
    """Return None, not 0: unknown."""
    (home / "plain").mkdir()
    with Leaf(home / "plain") as leaf:
        assert leaf.oom_kills() is None
        assert leaf.events() == {}
        with pytest.raises(CgroupError) as caught:
            leaf.memory_current()
        assert caught.value.errno == errno.ENOENT
