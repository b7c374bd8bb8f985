"""One descriptor: who owns it, whether exec closes it, whether it is the same as another."""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import os
import platform
import re
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import Children
from sandbox import CLOSE_RANGE, refuse, refuse_command

import pyforkfd as ff
from pyforkfd import _core

FCNTL, KCMP = {"x86_64": (72, 312), "aarch64": (25, 272)}[platform.machine()]
F_DUPFD_QUERY = 1027


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def marked(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC)


@pytest.fixture
def closed() -> int:
    """A number that is not open."""
    fd = os.dup(0)
    os.close(fd)
    return fd


# Fd.


def test_an_fd_closes_once() -> None:
    with ff.Fd(os.eventfd(0)) as fd:
        number = fd.fileno()
        assert is_open(number) and not fd.closed
        assert repr(fd) == f"<Fd {number}>"
    assert fd.closed and not is_open(number)
    again = os.eventfd(0)
    assert again == number, "the lowest number is used again"
    fd.close()
    assert is_open(again), "not ours any more"
    os.close(again)
    assert repr(fd) == "<Fd closed>"
    with pytest.raises(ValueError, match="closed or detached"):
        fd.fileno()


def test_an_fd_is_taken_as_a_descriptor_everywhere() -> None:
    with ff.Fd(os.memfd_create("lent")) as fd:
        os.write(fd.fileno(), b"written by the parent")
        os.lseek(fd.fileno(), 0, os.SEEK_SET)
        assert ff.cloexec(fd) and ff.same_open_file(fd, fd.fileno())
        with ff.spawn(["cat"], fds={0: fd, 1: ff.PIPE}) as child:
            assert child.stdout is not None
            assert child.stdout.read() == b"written by the parent"


def test_a_detached_fd_is_the_callers() -> None:
    fd = ff.Fd(os.eventfd(0))
    number = fd.detach()
    assert is_open(number) and fd.closed
    with pytest.raises(ValueError, match="closed or detached"):
        fd.detach()
    del fd
    gc.collect()
    assert is_open(number)
    os.close(number)


def test_a_forgotten_fd_is_closed_and_named() -> None:
    fd = ff.Fd(os.eventfd(0))
    number = fd.fileno()
    held = [fd]
    del fd
    with pytest.warns(ResourceWarning, match=f"<Fd {number}> was forgotten"):
        held.clear()
    assert not is_open(number)


def test_a_forgotten_fd_is_closed_where_warnings_are_errors() -> None:
    fd = ff.Fd(os.eventfd(0))
    number = fd.fileno()
    said: list[object] = []
    before, sys.unraisablehook = sys.unraisablehook, said.append
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del fd
            gc.collect()
    finally:
        sys.unraisablehook = before
    assert not is_open(number) and len(said) == 1


def test_an_fd_that_somebody_else_closed() -> None:
    fd = ff.Fd(os.eventfd(0))
    os.close(fd.fileno())
    with pytest.raises(OSError, match="Bad file descriptor"):
        fd.close()
    assert fd.closed, "not tried again"


@pytest.mark.parametrize(
    ("wrong", "error"), [(-1, ValueError), (True, TypeError), ("3", TypeError)]
)
def test_what_is_no_descriptor(wrong: int, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"Fd: {wrong!r} is not"):
        ff.Fd(wrong)


def test_of_many_threads_that_close_one_does() -> None:
    for _ in range(200):
        fd = ff.Fd(os.eventfd(0))
        outcomes: list[str] = []
        barrier = threading.Barrier(4)

        def end(take: bool, fd: ff.Fd = fd, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            if not take:
                fd.close()
                return
            try:
                os.close(fd.detach())
                outcomes.append("taken")  # noqa: B023
            except ValueError:
                pass

        threads = [threading.Thread(target=end, args=(n % 2 == 0,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert fd.closed and len(outcomes) <= 1


# The close-on-exec mark.


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_PATH])
def test_the_mark_is_what_exec_heeds(flags: int, children: Children) -> None:
    with ff.Fd(os.open("/", flags)) as fd, ff.Fd(os.dup(fd.fileno())) as copy:
        assert ff.cloexec(fd) and ff.cloexec(copy)
        ff.set_cloexec(fd, False)
        assert not ff.cloexec(fd) and not marked(fd.fileno())
        assert ff.cloexec(copy), "the mark is the number's, not the open file's"
        seen = children.look(close_others=False)["fds"]
        assert str(fd.fileno()) in seen and str(copy.fileno()) not in seen
        ff.set_cloexec(fd, True)
        assert ff.cloexec(fd) and marked(fd.fileno())
        assert str(fd.fileno()) not in children.look(close_others=False)["fds"]


def test_the_mark_of_what_is_not_open(closed: int) -> None:
    with pytest.raises(OSError, match=f"descriptor {closed}: read close-on-exec: Bad") as caught:
        ff.cloexec(closed)
    assert caught.value.errno == errno.EBADF
    for on, verb in ((True, "set"), (False, "clear")):
        with pytest.raises(OSError, match=f"descriptor {closed}: {verb} close-on-exec: Bad"):
            ff.set_cloexec(closed, on)


# Ranges.

CLOSE_SOME = """
import json, os, sys, threading
import pyforkfd as ff
first, last, cloexec, unshare = json.loads(sys.argv[1])
def open_ones():
    return [n for n in range(40, 60) if os.path.exists(f"/proc/thread-self/fd/{n}")]
def marks():
    return [n for n in open_ones() if ff.cloexec(n)]
for n in range(40, 60):
    os.dup2(0, n)
seen = {}
def work():
    ff.close_range(first, last, cloexec=cloexec, unshare=unshare)
    seen.update(open=open_ones(), marked=marks())
worker = threading.Thread(target=work)
worker.start(); worker.join()
seen.update(others=open_ones())
print(json.dumps(seen))
"""


def close_some(
    first: int, last: int | None, cloexec: bool, unshare: bool, seccomp: bytes | None
) -> dict[str, list[int]]:
    with ff.spawn(
        [sys.executable, "-I", "-c", CLOSE_SOME, json.dumps([first, last, cloexec, unshare])],
        fds={1: ff.PIPE},
        seccomp=seccomp,
        no_new_privs=True,
    ) as child:
        assert child.stdout is not None
        told = child.stdout.read()
    assert child.status is not None and child.status.success, child.status
    found = json.loads(told)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("err", [None, errno.ENOSYS, errno.EPERM], ids=["kernel", "old", "filter"])
@pytest.mark.parametrize("unshare", [False, True])
@pytest.mark.parametrize("cloexec", [False, True])
@pytest.mark.parametrize("last", [49, None])
def test_a_range(last: int | None, cloexec: bool, unshare: bool, err: int | None) -> None:
    seen = close_some(45, last, cloexec, unshare, refuse([CLOSE_RANGE], err) if err else None)
    everything, inside = set(range(40, 60)), set(range(45, (last or 59) + 1))
    left = everything if cloexec else everything - inside
    assert set(seen["open"]) == left
    assert set(seen["marked"]) == (inside if cloexec else set())
    assert set(seen["others"]) == (everything if unshare else left)


@pytest.mark.parametrize(("first", "last"), [(5, 4), (-1, 3), (0, 2**32), (2**32, None)])
def test_what_is_no_range(first: int, last: int | None) -> None:
    with pytest.raises(ValueError, match="is not a range of descriptors"):
        ff.close_range(first, last)


# The same open file.


@pytest.fixture
def others(tmp_path: Path) -> Iterator[list[tuple[int, int, bool]]]:
    """Pairs of descriptors, and whether they are one open file."""
    with socket.socket() as one, socket.socket() as two, one.dup() as copy:
        (tmp_path / "file").touch()
        first, second = (os.open(tmp_path / "file", os.O_RDWR) for _ in range(2))
        reading = os.open(tmp_path / "file", os.O_RDONLY)
        third = os.dup(first)
        events = os.eventfd(0), os.eventfd(0)
        yield [
            (first, third, True),
            (first, first, True),
            (first, second, False),
            (first, reading, False),
            (first, one.fileno(), False),
            (one.fileno(), copy.fileno(), True),
            (one.fileno(), two.fileno(), False),
            (*events, False),
        ]
        for fd in (first, second, third, reading, *events):
            os.close(fd)


def test_same_open_file(others: list[tuple[int, int, bool]]) -> None:
    for a, b, same in others:
        assert ff.same_open_file(a, b) is same
        assert ff.same_open_file(b, a) is same


COMPARE = """
import json, sys
import pyforkfd as ff
answers = []
for a, b in json.loads(sys.argv[1]):
    try:
        answers.append(ff.same_open_file(a, b))
    except OSError as error:
        answers.append([error.errno, str(error)])
print(json.dumps(answers))
"""


@pytest.mark.parametrize("kcmp_too", [False, True], ids=["kcmp", "inodes"])
def test_same_open_file_without(kcmp_too: bool, others: list[tuple[int, int, bool]]) -> None:
    """Without F_DUPFD_QUERY, and without kcmp(2) as well."""
    refused = [KCMP] if kcmp_too else []
    seccomp = refuse_command(FCNTL, F_DUPFD_QUERY, errno.EPERM, *refused)
    with ff.spawn(
        [sys.executable, "-I", "-c", COMPARE, json.dumps([(a, b) for a, b, _ in others])],
        fds={1: ff.PIPE, **{fd: fd for a, b, _ in others for fd in (a, b)}},
        seccomp=seccomp,
        no_new_privs=True,
    ) as child:
        assert child.stdout is not None
        answers = json.loads(child.stdout.read())
    for (a, b, same), answer in zip(others, answers, strict=True):
        if isinstance(answer, bool):
            assert answer is same
        else:
            assert kcmp_too, answer
            said = f"descriptor {a} and {b}: compare: kcmp: Operation not permitted"
            assert answer == [errno.EPERM, f"[Errno {errno.EPERM}] {said}"]
    # Inodes leave open whether one was opened twice or duplicated, and nothing else here.
    unknown = [i for i, answer in enumerate(answers) if not isinstance(answer, bool)]
    assert unknown == ([0, 2, 7] if kcmp_too else [])


def test_same_open_file_of_what_is_not_open(closed: int) -> None:
    for pair in ((0, closed), (closed, 0), (closed, closed)):
        with pytest.raises(OSError, match=f"descriptor {closed}: compare: Bad file descriptor"):
            ff.same_open_file(*pair)


# inheriting().


def test_inheriting_restores_exactly_what_was(other_fd: int) -> None:
    inheritable = os.dup(other_fd)
    os.set_inheritable(inheritable, True)
    with ff.inheriting(other_fd, inheritable):
        assert not marked(other_fd) and not marked(inheritable)
    assert marked(other_fd) and not marked(inheritable)
    with pytest.raises(RuntimeError, match="of the block"), ff.inheriting(other_fd):
        raise RuntimeError("of the block")
    assert marked(other_fd)
    os.close(inheritable)


def test_inheriting_reaches_a_child(children: Children, other_fd: int) -> None:
    with ff.inheriting(other_fd):
        assert str(other_fd) in children.look(close_others=False)["fds"]
    assert str(other_fd) not in children.look(close_others=False)["fds"]


def test_inheriting_nests_and_survives_a_close() -> None:
    one, two = os.eventfd(0), os.eventfd(0)
    with ff.inheriting(one):
        with ff.inheriting(one, two):
            os.close(two)
        assert not marked(one)
    assert marked(one)
    os.close(one)


def test_inheriting_all_or_nothing(other_fd: int, closed: int) -> None:
    with (
        pytest.raises(OSError, match=f"descriptor {closed}: read close-on-exec"),
        ff.inheriting(other_fd, closed),
    ):
        pytest.fail("the block was entered")
    assert marked(other_fd)
    # The lock is free again: another thread gets it.
    thread = threading.Thread(target=lambda: ff.spawn(["true"], close_others=False).wait())
    thread.start()
    thread.join()


def test_no_other_thread_spawns_meanwhile(other_fd: int, look: Path) -> None:
    """It would pass the descriptor on; it waits for the end of the block."""
    entered, done = threading.Event(), threading.Event()
    seen: list[bytes] = []

    def spawn() -> None:
        entered.wait()
        with ff.spawn(["ls", "/proc/self/fd"], fds={1: ff.PIPE}, close_others=False) as child:
            assert child.stdout is not None
            seen.append(child.stdout.read())
        done.set()

    thread = threading.Thread(target=spawn)
    thread.start()
    with ff.inheriting(other_fd):
        entered.set()
        # A strict spawn needs no lock, nor does the thread that holds it.
        ff.spawn(["true"], close_others=False).wait()
        assert not done.wait(0.2)
    thread.join()
    assert re.search(rb"^%d$" % other_fd, seen[0], re.M) is None


def test_the_fork_lock_in_a_forked_child(other_fd: int) -> None:
    """What another thread held is free there; what the forking thread held is still its own."""
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with ff.inheriting(other_fd):
            held.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    pid = os.fork()
    if pid == 0:
        _core.lock_fork_lock(True)
        _core.unlock_fork_lock(True)
        os._exit(7)
    leave.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
