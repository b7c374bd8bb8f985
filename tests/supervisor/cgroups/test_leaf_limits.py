"""Limits that hold, and proofs of OOM kills, on a cgroup v2 tree with controllers."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import AbstractContextManager

import pytest
from cgroups import Refused, line, python, reap_orphan, sleeper, stat, usage
from leaks import gone

import pyforkfd as ff
from pyforkfd.supervisor.cgroups._file import CgroupError
from pyforkfd.supervisor.cgroups._tree import Tree
from pyforkfd.supervisor.health._memory_guard import Guard
from pyforkfd.supervisor.spec._limits import Limits, MemoryGuard

MIB = 1 << 20
GREEDY = f"held = bytearray(b'x') * {128 * MIB}"
PARENT_OF_GREEDY = f"""
import os
if (child := os.fork()) == 0:
    {GREEDY}
    os._exit(0)
print(child, flush=True)
print(os.waitpid(child, 0)[1], flush=True)
"""
# Burns until it has used so much of a processor itself.
BURNER = """
import sys, time
print("started", flush=True)
while time.process_time() < float(sys.argv[1]): pass
"""
FORKER = """
import os, errno
children = []
try:
    while True:
        if (pid := os.fork()) == 0: __import__("signal").pause()
        children.append(pid)
except BlockingIOError:
    print(len(children), flush=True)
for pid in children:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
"""
# The garbage is a cycle, so only a collection frees it.
GROWING = f"""
import gc, sys
gc.disable()
class Cycle: pass
def grow():
    cycle = Cycle()
    cycle.itself, cycle.held = cycle, bytearray(b"x") * {40 * MIB}
orders = {{"grow": grow, "collect": gc.collect}}
"""
OBEY = """
for order in sys.stdin:
    orders.get(order.strip(), list)()
    print(order.strip(), flush=True)
"""
# A page is charged to its first reader, so it must not be in memory yet; and some
# filesystems drop the pages of a file that no process has open.
READER = f"""{GROWING}
import os
held = []
def read():
    amount = 0
    for directory, _, names in os.walk(os.path.dirname(os.__file__)):
        for name in names:
            file = open(os.path.join(directory, name), "rb")
            if os.fstat(file.fileno()).st_size > {64 << 10}:
                held.append(file)
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                amount += len(file.read())
            if amount > {12 * MIB}: return
orders["read"] = read
{OBEY}"""


def test_an_oom_kill_is_proved(limited: Tree) -> None:
    limits = Limits(memory_max=32 * MIB, swap_max=0)
    with limited.leaf("web.1", limits) as leaf, limited.leaf("web.2", limits) as other:
        assert leaf.missing == ()
        with python(GREEDY, cgroup=leaf) as worker, sleeper(cgroup=other) as killed:
            assert worker.wait(timeout=60).signal == signal.SIGKILL
            assert leaf.oom_kills() == 1
            killed.kill()
            assert killed.wait(timeout=10).signal == signal.SIGKILL
            assert other.oom_kills() == 0, "SIGKILL alone proves nothing"
        assert leaf.events()["max"] > 0
        assert gone(leaf.remove) and gone(other.remove)


@pytest.mark.parametrize("together", [True, False])
def test_the_processes_that_are_killed_at_the_limit(limited: Tree, together: bool) -> None:
    limits = Limits(memory_max=32 * MIB, swap_max=0, oom_group=together)
    with (
        limited.leaf("web.1", limits) as leaf,
        python(PARENT_OF_GREEDY, cgroup=leaf, fds={1: ff.PIPE}) as worker,
    ):
        greedy = int(line(worker))
        status = worker.wait(timeout=60)
        kills = leaf.oom_kills()
        assert kills is not None
        if together:
            # The kernel counts the chosen process once more when it kills the group.
            assert (status.signal, kills >= 2) == (signal.SIGKILL, True)
            reap_orphan(greedy)
        else:
            assert (status.code, kills) == (0, 1)
            assert line(worker) == str(int(signal.SIGKILL))
        assert leaf.events()["oom_group_kill"] == together
        assert gone(leaf.remove)


def test_page_cache_is_no_part_of_the_working_set(limited: Tree) -> None:
    with (
        limited.leaf("web.1") as leaf,
        python(READER, cgroup=leaf, fds={0: ff.PIPE, 1: ff.PIPE}) as worker,
    ):
        send(worker, "nothing")
        before = leaf.memory_current(), leaf.working_set()
        assert 0 < before[1] <= before[0]
        send(worker, "read")
        grown = leaf.memory_current() - before[0], leaf.working_set() - before[1]
        assert grown[0] > 8 * MIB > 4 * grown[1], grown
        send(worker, "grow")
        assert leaf.working_set() - before[1] > 36 * MIB


def test_processes_are_counted(limited: Tree) -> None:
    with limited.leaf("web.1", Limits(pids_max=4)) as leaf:
        with python(FORKER, cgroup=leaf, fds={1: ff.PIPE}) as worker:
            assert line(worker) == "3"
            assert worker.wait(timeout=60).success
        assert leaf.events()["pids_max"] == 1
        assert gone(leaf.remove)


def test_weights_divide_a_scarce_processor(limited: Tree) -> None:
    processor = {min(os.sched_getaffinity(0))}
    with (
        limited.leaf("light", Limits(cpu_weight=20)) as light,
        limited.leaf("heavy", Limits(cpu_weight=180)) as heavy,
        burn(light, 1000, processor),
    ):
        with burn(heavy, 2, processor) as much:
            assert line(much) == "started"
            before = usage(light.path), usage(heavy.path)
            assert much.wait(timeout=60).success
            used = usage(light.path) - before[0], usage(heavy.path) - before[1]
        assert used[1] / used[0] > 4, used


def test_a_bound_on_processor_time(limited: Tree) -> None:
    with limited.leaf("web.1", Limits(cpu_max=(20_000, 100_000))) as leaf:
        began = time.monotonic()
        with burn(leaf, 0.4, None) as worker:
            assert worker.wait(timeout=60).success
        took = time.monotonic() - began
        counts = stat(leaf.path)
        assert counts["nr_throttled"] > 0
        # The first period's share, and one more, may come whole at the beginning.
        assert counts["usage_usec"] / 1e6 <= 0.2 * took + 0.04
        assert gone(leaf.remove)


def test_a_fraction_of_a_processor(limited: Tree) -> None:
    with limited.leaf("web.1", Limits(cpu_max=0.25)) as leaf:
        assert (leaf.path / "cpu.max").read_text() == "25000 100000\n"
        assert leaf.remove()


def test_a_limit_that_the_kernel_refuses_leaves_nothing_behind(limited: Tree) -> None:
    with pytest.raises(CgroupError) as caught:
        limited.leaf("web.1", Refused())
    assert str(caught.value).startswith(f"write '1099511627776' to {limited.path}/web.1/pids.max: ")
    assert limited.leftovers() == []


def test_the_memory_guard_on_a_worker_that_grows(limited: Tree) -> None:
    guard = Guard(MemoryGuard(high=40 * MIB, low=25 * MIB, seconds=0.5, keep_accepting=0))
    with (
        limited.leaf("web.1") as leaf,
        python(GROWING + OBEY, cgroup=leaf, fds={0: ff.PIPE, 1: ff.PIPE}) as worker,
    ):

        def next_orders() -> tuple[float, tuple[str, ...]]:
            began = time.monotonic()
            while True:
                now = time.monotonic()
                assert now < began + 30, f"no order at {leaf.working_set()} bytes"
                if orders := guard.sample({1: leaf.working_set()}, now):
                    return now - began, orders[0].orders
                select.select([], [], [], 0.05)  # the time between two samples

        send(worker, "nothing")
        assert guard.sample({1: leaf.working_set()}, time.monotonic()) == []
        send(worker, "grow")
        took, orders = next_orders()
        assert orders == ("stop_accepting", "collect", "buffer_logs")
        assert took >= 0.5
        for order in orders:
            send(worker, order)
        assert next_orders()[1] == ("resume_accepting", "flush_logs")


def burn(
    leaf: object, seconds: float, processors: set[int] | None
) -> AbstractContextManager[ff.Process]:
    return python(BURNER, str(seconds), cgroup=leaf, cpu_affinity=processors, fds={1: ff.PIPE})


def send(worker: ff.Process, order: str) -> None:
    """Send an order, and wait until the worker has obeyed it."""
    assert worker.stdin is not None
    worker.stdin.write(order.encode() + b"\n")
    worker.stdin.flush()
    assert line(worker) == order
