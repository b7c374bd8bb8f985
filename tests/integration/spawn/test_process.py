"""Process: waits, signals, pipes, and what happens when nobody or somebody else waits."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from interrupts import interrupted_after

import pyforkfd as ff


@pytest.fixture
def cat() -> Iterator[ff.Process]:
    """A child that runs until its input ends."""
    with ff.spawn(["cat"], fds={0: ff.PIPE, 1: ff.PIPE}) as child:
        yield child


def test_exit_code() -> None:
    with ff.spawn(["sh", "-c", "exit 7"]) as child:
        status = child.wait()
    assert (status.code, status.signal, status.returncode, status.shell_code) == (7, None, 7, 7)
    assert status.rusage is not None and status.rusage.ru_maxrss > 0
    assert not status.success and str(status) == "exit code 7"
    assert child.poll() is status and child.wait(timeout=0) is status


def test_signal(cat: ff.Process) -> None:
    cat.kill()
    status = cat.wait()
    assert (status.code, status.signal) == (None, signal.SIGKILL)
    assert (status.returncode, status.shell_code) == (-9, 137)
    assert str(status) == "killed by SIGKILL"
    cat.send_signal(signal.SIGTERM)  # ended: no error, and no other process hit


def test_core_dump(tmp_path: Path) -> None:
    with open("/proc/sys/kernel/core_pattern") as pattern:
        if pattern.read().startswith(("|", "/")):
            pytest.skip("core dumps leave the current directory here (core_pattern)")
    unlimited = {resource.RLIMIT_CORE: (resource.RLIM_INFINITY, resource.RLIM_INFINITY)}
    with ff.spawn(["/bin/sh", "-c", "kill -ABRT $$"], rlimits=unlimited, cwd=tmp_path, env={}) as p:
        status = p.wait()
    assert (status.signal, status.core_dumped) == (signal.SIGABRT, True)
    assert str(status) == "killed by SIGABRT (core dumped)"


def test_running_then_ended(cat: ff.Process) -> None:
    assert cat.poll() is None and cat.returncode is None
    with pytest.raises(TimeoutError, match=f"pid {cat.pid} still runs after 0.01 s"):
        cat.wait(timeout=0.01)
    assert cat.stdin is not None and cat.stdout is not None and cat.stderr is None
    cat.stdin.write(b"through and through")
    cat.stdin.close()
    assert cat.stdout.read() == b"through and through"
    assert cat.wait().success


def test_many_threads_wait(cat: ff.Process) -> None:
    seen: list[ff.ExitStatus] = []
    threads = [threading.Thread(target=lambda: seen.append(cat.wait())) for _ in range(8)]
    for thread in threads:
        thread.start()
    cat.terminate()
    for thread in threads:
        thread.join()
    assert [s.signal for s in seen] == [signal.SIGTERM] * 8
    assert len(set(map(id, seen))) == 1, "one status, taken once"


def test_others_poll_signal_and_close_while_one_waits() -> None:
    """The waiting thread is in waitid(2): it holds no lock, and it alone knows the resources."""
    for closes in (False, True):
        with ff.spawn(["cat"], fds={0: ff.PIPE}) as child:
            seen: list[ff.ExitStatus] = []
            number = child.pidfd
            thread = threading.Thread(target=lambda c=child, s=seen: s.append(c.wait()))
            thread.start()
            tid = thread.native_id
            while "wait" not in Path(f"/proc/self/task/{tid}/wchan").read_text():
                time.sleep(0.001)
            assert child.poll() is None
            if closes:
                child.close_pipes()
                child.close()
                assert child.pidfd == -1
            else:
                child.send_signal(signal.SIGTERM)
                while child.poll() is None:
                    pass
            thread.join(10)
            assert not thread.is_alive()
            assert seen[0].rusage is not None and child.status is seen[0]
            if closes:
                with pytest.raises(OSError, match="Bad file descriptor"):
                    os.fstat(number)
                assert seen[0].success


def test_nobody_loses_what_another_thread_has_reaped() -> None:
    """One of them gets the resources from waitid(2), the others ECHILD, in any order."""
    for _ in range(60):
        with ff.spawn(["cat"], fds={0: ff.PIPE}) as child:
            seen: list[ff.ExitStatus] = []
            waiters = [
                threading.Thread(target=lambda c=child, s=seen: s.append(c.wait()))
                for _ in range(8)
            ]
            for thread in waiters:
                thread.start()
            child.close_pipes()
            for thread in waiters:
                thread.join()
            assert len(seen) == 8
            assert [status.rusage is None for status in seen] == [False] * 8


def test_asyncio_waits_without_thread_or_watcher() -> None:
    async def main() -> list[ff.ExitStatus]:
        with ff.spawn(["cat"], fds={0: ff.PIPE}) as child:
            waiters = [asyncio.create_task(child.wait_async()) for _ in range(3)]
            await asyncio.sleep(0)
            assert threading.active_count() == 1
            cancelled = waiters.pop()
            cancelled.cancel()
            assert child.stdin is not None
            child.stdin.close()
            return list(await asyncio.gather(*waiters))

    assert [s.code for s in asyncio.run(main())] == [0, 0]


def test_wait_lets_signal_handlers_run(cat: ff.Process) -> None:
    with interrupted_after(0.05):
        cat.wait()
    cat.kill()


def test_somebody_else_reaps() -> None:
    child = ff.spawn(["sh", "-c", "exit 5"])
    assert os.waitpid(child.pid, 0)[1] == 5 << 8
    status = child.wait()
    child.close()
    # Linux 6.15 keeps the code for holders of the pidfd; before, it is gone, and said so.
    assert (status.code, status.lost) in {(5, False), (None, True)}
    assert status.rusage is None


def test_sigchld_ignored() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with ff.spawn(["sh", "-c", "exit 6"]) as child:
            status = child.wait()
        with pytest.raises(FileNotFoundError):
            ff.spawn(["/does/not/exist"])
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert (status.code, status.lost) in {(6, False), (None, True)}


def test_forgotten_child_warns_and_is_reaped_later() -> None:
    reader, writer = os.pipe()
    child = ff.spawn(["cat"], fds={0: reader})
    os.close(reader)
    pid = child.pid
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        del child
        gc.collect()
    assert [w.category for w in seen] == [ResourceWarning]
    assert f"child {pid} (cat) still runs and is not waited for" in str(seen[0].message)
    ended = os.pidfd_open(pid)
    os.close(writer)
    os.waitid(os.P_PIDFD, ended, os.WEXITED | os.WNOWAIT)
    os.close(ended)
    with ff.spawn(["true"]):
        pass
    assert not os.path.exists(f"/proc/{pid}"), "the next spawn reaps it"


def test_ended_child_may_be_dropped_without_a_word() -> None:
    child = ff.spawn(["true"])
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    del child
    gc.collect()


def test_child_of_another_process() -> None:
    """After os.fork the copy in the child says so, and its end takes nothing away."""
    with ff.spawn(["cat"], fds={0: ff.PIPE}) as child:
        pid = os.fork()
        if pid == 0:
            try:
                child.poll()
            except ChildProcessError as error:
                os._exit(0 if f"is a child of process {os.getppid()}" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert child.poll() is None
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait().success


def test_fork_then_spawn_in_both() -> None:
    """The report page is shared memory: a forked child must make one of its own."""
    with ff.spawn(["true"]):
        pass
    script = (
        "import os, pyforkfd as ff\n"
        "ff.spawn(['true']).wait()\n"
        "pid = os.fork()\n"
        "for _ in range(200):\n"
        "    assert ff.spawn(['true']).wait().success\n"
        "    try: ff.spawn(['/does/not/exist'])\n"
        "    except FileNotFoundError: pass\n"
        "    else: raise SystemExit('a failed spawn was taken for a good one')\n"
        "if pid: raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_context_manager_waits_and_closes() -> None:
    with ff.spawn(["cat"], fds={0: ff.PIPE}) as child:
        pidfd = child.pidfd
        assert pidfd >= 0 and child.fileno() == pidfd
    assert child.status is not None and child.status.success
    assert child.pidfd == -1
    with pytest.raises(OSError):
        os.fstat(pidfd)


def test_closed_without_wait_is_said() -> None:
    child = ff.spawn(["true"])
    pid = child.pid
    child.close()
    with pytest.raises(ValueError, match=f"wait for pid {pid}: its pidfd is closed"):
        child.wait()
    os.waitpid(pid, 0)


def test_blocked_exec_leaves_other_threads_alone(tmp_path: Path) -> None:
    """The child blocks in opening a FIFO; this thread goes on and is what unblocks it."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    statuses: list[ff.ExitStatus] = []

    def start() -> None:
        with ff.spawn(["true"], fds={3: ff.Open(fifo, os.O_RDONLY)}) as child:
            statuses.append(child.wait())

    thread = threading.Thread(target=start)
    thread.start()
    # With the GIL held through the exec nobody could ever open the other end.
    deadline = time.monotonic() + 30
    while True:
        try:
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
            break
        except OSError:  # ENXIO: the child is not there yet
            assert time.monotonic() < deadline
    thread.join()
    assert [s.code for s in statuses] == [0]
