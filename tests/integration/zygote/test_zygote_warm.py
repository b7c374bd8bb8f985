"""Workers that a zygote makes ahead: their parent, and their end."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import resource_tracker
from pathlib import Path

import pytest
from children import needs_root
from leaks import gone
from places import HELPERS

import pyforkfd as ff
from pyforkfd.zygote import Zygote, ZygoteError, get_context

WARM = 2


def children_of(pid: int) -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(") ")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


class Pool:
    """A zygote with known idle workers: the children that we have by it."""

    def __init__(self, zygote: Zygote) -> None:
        self.before = children_of(os.getpid())
        self.zygote = zygote

    def idle(self) -> set[int]:
        """Wait for all idle workers, and return their pids."""
        found: set[int] = set()

        def complete() -> bool:
            found.clear()
            found.update(children_of(os.getpid()) - self.before - {self.zygote.pid or 0})
            return len(found) == WARM

        assert gone(complete), found
        return found


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Zygote(preload=["zygote_jobs"], warm=WARM) as zygote:
        pool = Pool(zygote)
        zygote.start()
        yield pool
    assert children_of(os.getpid()) == pool.before


def test_they_wait_are_taken_and_replaced(pool: Pool) -> None:
    seen = pool.idle()
    for code in range(5):
        worker = pool.zygote.spawn("zygote_jobs:leave", args=(code,))
        assert worker.pid in seen
        assert worker.wait().code == code
        seen |= pool.idle()
    assert len(seen) == WARM + 5  # each served once
    assert pool.zygote.generation == 1


def minor_faults_at_rest(pid: int) -> int:
    """Of a process that is not waited for: when it sleeps, and goes on sleeping."""
    seen: list[tuple[str, int]] = []

    def rests() -> bool:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        seen.append((fields[0], int(fields[7])))
        return len(seen) > 300 and set(seen[-300:]) == {("S", seen[-1][1])}

    assert gone(rests)
    return seen[-1][1]


def test_they_have_copied_what_a_request_writes_to(pool: Pool) -> None:
    at_rest = {pid: minor_faults_at_rest(pid) for pid in pool.idle()}
    for _ in range(WARM):
        with pool.zygote.spawn("zygote_jobs:faults", args=(9,), fds={9: ff.PIPE}) as worker:
            at_start = int(worker.pipes[9].read())
        assert at_start - at_rest[worker.pid] < 60  # some 20; without rehearsal 200


def test_they_are_replaced_when_the_worker_has_started() -> None:
    with Zygote(preload=["zygote_jobs"], setup="zygote_jobs:note_births", warm=WARM) as zygote:
        pool = Pool(zygote)
        zygote.start()
        pool.idle()
        requested = time.monotonic_ns()
        assert zygote.spawn("zygote_jobs:nothing").wait().success
        pool.idle()
        for _ in range(WARM):  # the last of them is the new one
            with zygote.spawn("zygote_jobs:report_hooks", args=(9,), fds={9: ff.PIPE}) as worker:
                born = json.loads(worker.pipes[9].read())[-1]
        assert born - requested > 4e6


def test_who_finds_none_born_does_not_wait_for_one(pool: Pool) -> None:
    pool.idle()
    workers = [pool.zygote.spawn("zygote_jobs:nothing") for _ in range(4 * WARM)]
    assert all(worker.wait().success for worker in workers)
    assert len({worker.pid for worker in workers}) == 4 * WARM


def test_threads_are_named_all_the_same() -> None:
    with Zygote(preload=["zygote_jobs"], setup="zygote_jobs:start_thread", warm=WARM) as zygote:
        for _ in range(3):
            with pytest.raises(ff.ThreadsError, match="forgotten pool"):
                zygote.spawn("zygote_jobs:nothing")


def test_what_an_idle_worker_holds(pool: Pool, other_fd: int) -> None:
    with pool.zygote.spawn("zygote_jobs:wait", fds={3: other_fd, 0: ff.PIPE}) as busy:
        pool.before |= {busy.pid}
        for pid in pool.idle():
            # Its connection; the pidfds of us and of the zygote; the zygote's 0 to 2.
            assert gone(lambda: len(os.listdir(f"/proc/{pid}/fd")) == 6)  # noqa: B023
            targets = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
            assert os.readlink(f"/proc/self/fd/{other_fd}") not in targets
            assert sum(target.startswith("socket:") for target in targets) == 1
        busy.kill()
    pool.before.discard(busy.pid)


def test_they_end_with_close_and_refork(pool: Pool) -> None:
    first = pool.idle()
    pool.zygote.refork()
    second = pool.idle()
    assert not first & second
    with pool.zygote.spawn("zygote_jobs:nothing") as worker:
        assert worker.pid in second
    pool.zygote.close()
    assert children_of(os.getpid()) == pool.before


def test_they_end_with_the_zygote(pool: Pool) -> None:
    pidfds = [ff.Fd(os.pidfd_open(pid)) for pid in pool.idle()]
    assert pool.zygote.pid is not None
    os.kill(pool.zygote.pid, signal.SIGKILL)
    for pidfd in pidfds:
        with pidfd:
            assert ff._core.wait_pidfd(pidfd.fileno(), 30)
    assert pool.zygote.spawn("zygote_jobs:nothing").wait().success
    assert pool.zygote.generation == 2


def test_killed_while_they_are_idle(pool: Pool) -> None:
    for pid in pool.idle():
        os.kill(pid, signal.SIGKILL)
    assert pool.zygote.spawn("zygote_jobs:leave", args=(7,)).wait().code == 7
    assert pool.zygote.generation == 1
    assert len(pool.idle()) == WARM


def test_one_that_is_stopped_is_waited_for(pool: Pool) -> None:
    idle = pool.idle()
    for pid in idle:
        os.kill(pid, signal.SIGSTOP)
    # Goes on before our call or during it.
    with ff.spawn(["/bin/sh", "-c", "kill -CONT $*", "sh", *map(str, idle)]):
        worker = pool.zygote.spawn("zygote_jobs:leave", args=(4,))
    assert worker.pid in idle and worker.wait().code == 4


def test_what_they_cannot_be_is_made_as_always(pool: Pool) -> None:
    idle = pool.idle()
    try:
        with pool.zygote.spawn("zygote_jobs:nothing", namespaces=["user"]) as worker:
            pass
    except ff.SpawnError as error:
        assert error.stage == "clone"  # refused here
    else:
        assert worker.pid not in idle
    assert pool.idle() == idle


@needs_root
def test_a_cgroup_is_born_into(pool: Pool, cgroup: Path) -> None:
    idle = pool.idle()
    with pool.zygote.spawn("zygote_jobs:facts", args=(9,), cgroup=cgroup, fds={9: ff.PIPE}) as made:
        seen = json.loads(made.pipes[9].read())
    assert made.pid not in idle and seen["cgroup"].strip().endswith(cgroup.name)


def test_a_failed_request_costs_one(pool: Pool) -> None:
    idle = pool.idle()
    with pytest.raises(FileNotFoundError, match="change directory: /nowhere"):
        pool.zygote.spawn("zygote_jobs:nothing", cwd="/nowhere")
    with pytest.raises(ZygoteError, match="could not find zygote_jobs:no_such"):
        pool.zygote.spawn("zygote_jobs:no_such")
    assert pool.zygote.spawn("zygote_jobs:nothing").wait().success
    assert not pool.idle() & idle


def test_more_descriptors_than_one_may_have(pool: Pool, other_fd: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for pid in pool.idle():
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (90, hard))
    with pytest.raises(ZygoteError, match="worker could not receive its descriptors") as error:
        pool.zygote.spawn("zygote_jobs:nothing", fds=dict.fromkeys(range(3, 100), other_fd))
    assert "Too many open files" in error.value.traceback


def test_no_two_draw_the_same() -> None:
    with Zygote(preload=["zygote_jobs", "random", "ssl"], warm=WARM) as zygote:
        drawn = []
        for _ in range(2 * WARM):
            with zygote.spawn("zygote_jobs:draw", args=(9,), fds={9: ff.PIPE}) as worker:
                drawn.append(json.loads(worker.pipes[9].read()))
            assert drawn[-1][1] == worker.pid
    for values in zip(*drawn, strict=True):
        assert len(set(values)) == len(drawn)


def test_they_are_the_parents(pool: Pool) -> None:
    """A forked child has none of them, and does not end them."""
    idle = pool.idle()
    if (pid := os.fork()) == 0:
        code = 99
        try:
            with pool.zygote:
                worker = pool.zygote.spawn("zygote_jobs:leave", args=(5,))
                code = 98 if worker.pid in idle else worker.wait().code or 97
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    assert pool.idle() == idle
    with pool.zygote.spawn("zygote_jobs:nothing") as worker:
        assert worker.pid in idle


APPLICATION = """
import ctypes, os, signal, sys
sys.path.insert(0, sys.argv[1])
from pyforkfd.zygote import Zygote
zygote = Zygote(preload=["zygote_jobs"], warm=2)
zygote.start()
if (holder := ctypes.CDLL(None).fork()) == 0:  # it holds our ends, for it runs no hook
    signal.pause()
print(os.getpid(), holder, zygote.pid, flush=True)
signal.pause()
"""


def test_they_end_with_the_application() -> None:
    """However it ends, and though another process holds its ends of their connections."""
    application = subprocess.Popen(
        [sys.executable, "-P", "-c", APPLICATION, HELPERS], stdout=subprocess.PIPE
    )
    assert application.stdout is not None
    with application.stdout:
        us, holder, zygote = map(int, application.stdout.readline().split())
    born: set[int] = set()

    def complete() -> bool:
        born.clear()
        born.update(children_of(us) - {holder, zygote})
        return len(born) == 2

    try:
        assert gone(complete)
        pidfds = [ff.Fd(os.pidfd_open(pid)) for pid in born]
    finally:
        application.kill()
        application.wait()
    try:
        for pidfd in pidfds:
            with pidfd:
                assert ff._core.wait_pidfd(pidfd.fileno(), 30)
    finally:
        os.kill(holder, signal.SIGKILL)


@pytest.fixture(scope="module")
def tracker() -> None:
    resource_tracker.ensure_running()  # multiprocessing's own, which lives as long as we do


def test_multiprocessing_takes_them(tracker: None, pool: Pool) -> None:
    idle = pool.idle()
    with ProcessPoolExecutor(WARM, mp_context=get_context(pool.zygote)) as executor:
        assert executor.submit(os.getpid).result() in idle
        assert list(executor.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]


def test_how_many() -> None:
    with pytest.raises(ValueError, match="warm: -1 is not a number of workers"):
        Zygote(warm=-1)
    assert Zygote.shared(warm=1) is not Zygote.shared(warm=2)
