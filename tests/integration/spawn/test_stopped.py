"""A child that another user's processes stop between its change of user and its exec."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import pyforkfd as ff

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a child of another user wants root")

OTHER = 54_321  # nobody's processes are not ours to stop


@contextmanager
def stopper() -> Iterator[None]:
    """Run a process of the other user that stops each process which is about to be started."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(OTHER, OTHER, OTHER)
            os.setresuid(OTHER, OTHER, OTHER)
            while True:
                last = int(Path("/proc/loadavg").read_text().split()[-1])
                for _ in range(30):
                    for each in range(last, last + 6):
                        try:
                            os.kill(each, signal.SIGSTOP)
                        except OSError:
                            pass
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_stopped_child_executes_all_the_same() -> None:
    """Under CLONE_VFORK the parent waits in the kernel for ever: this test hangs then."""
    with stopper():
        until = time.monotonic() + 4
        started = 0
        while time.monotonic() < until or started < 100:
            with ff.spawn(["/bin/true"], user=OTHER, group=OTHER) as child:
                child.kill()  # it may be stopped as well after its exec
                child.wait()
            started += 1


@pytest.fixture
def leased(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A program whose exec waits, as long as a descriptor has a lease on it: fcntl(2)."""
    program = tmp_path / "program"
    shutil.copy("/bin/true", program)
    for place in (program, *tmp_path.parents[:2], tmp_path):
        place.chmod(0o755)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # sent when another wants to open it
    fd = os.open(program, os.O_RDONLY)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    try:
        yield str(program), fd
    finally:
        os.close(fd)
        signal.signal(signal.SIGIO, before)


def test_a_child_that_does_not_execute_is_given_up(leased: tuple[str, int]) -> None:
    """Its new user can keep it from its exec by other means than signals."""
    begun = time.monotonic()
    with pytest.raises(ff.SpawnError, match="not done within 10 s of the change of user") as why:
        ff.spawn([leased[0]], user=OTHER, group=OTHER)
    assert (why.value.stage, why.value.errno) == ("exec", errno.ETIMEDOUT)
    assert 8 < time.monotonic() - begun < 40  # the kernel itself waits for 45 seconds


def test_forks_that_have_the_pipe_delay_nothing() -> None:
    """The pipe by which the exec is seen is copied by forks of other threads, and stays open."""
    ended = threading.Event()

    def spawn() -> None:
        for _ in range(100):
            with ff.spawn(["/bin/sleep", "60"], user=OTHER, group=OTHER) as child:
                child.kill()
                child.wait()
        ended.set()

    reader, writer = os.pipe()
    thread = threading.Thread(target=spawn)
    thread.start()
    forks: list[int] = []
    try:
        while not ended.is_set() and len(forks) < 200:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a fork with threads, since Python 3.12
                pid = os.fork()
            if pid == 0:
                os.close(writer)
                os.read(reader, 1)  # lives until we close the pipe
                os._exit(0)
            forks.append(pid)
        assert ended.wait(20)
    finally:
        os.close(writer)
        for pid in forks:
            os.waitpid(pid, 0)
        thread.join()
        os.close(reader)
