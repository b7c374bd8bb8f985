"""Descriptors that are something else for a moment, and who does not see it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import pytest
from forks import CLOSED, INHERITABLE, OPEN, beside_threads, os_fork, our_fork, state
from leaks import gone

import pyforkfd as ff

FREE = 40
MODES: tuple[Literal["both", "parent", "child"], ...] = ("both", "parent", "child")


def name(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}").removeprefix("/memfd:").removesuffix(" (deleted)")


def table() -> dict[int, tuple[str, int]]:
    """Number -> what is there and whether it is close-on-exec."""
    return {fd: (row.target, state(fd)) for fd, row in ff.fd_table().items()}


@pytest.fixture
def a() -> Iterator[int]:
    fd = os.memfd_create("a")
    yield fd
    os.close(fd)


@pytest.fixture
def b() -> Iterator[int]:
    fd = os.memfd_create("b")
    yield fd
    os.close(fd)


def elsewhere(work: Callable[[], object]) -> None:
    """Runs it in another thread."""
    failed: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def asleep(thread: threading.Thread) -> bool:
    """In the kernel, waiting for the lock; with a time limit, so it wakes now and then."""
    stat = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
    return stat.rpartition(") ")[2].startswith("S")


@pytest.mark.parametrize("in_", ["both", "parent", "child"])
@pytest.mark.parametrize("fork", [our_fork, os_fork])
def test_redirected(
    in_: Literal["both", "parent", "child"],
    fork: Callable[[Callable[[], object]], int],
    a: int,
    b: int,
) -> None:
    os.set_inheritable(b, True)
    before = table()

    def as_before() -> bool:
        return name(a) == "a" and name(b) == "b" and state(FREE) == CLOSED and state(a) == OPEN

    def changed() -> bool:
        swapped = name(a) == "b" and name(b) == "a" and name(FREE) == "a"
        return swapped and state(a) == state(b) == state(FREE) == INHERITABLE

    with ff.redirected({a: b, b: a, FREE: a}, in_=in_):
        assert as_before() if in_ == "child" else changed()
        assert fork(lambda: 0 if (as_before() if in_ == "parent" else changed()) else 1) == 0
        # Nobody else's children see it.
        elsewhere(lambda: os_fork(lambda: 0 if as_before() else 1) == 0 or pytest.fail("seen"))
        assert as_before() if in_ == "child" else changed()
    assert table() == before


def test_the_end_of_the_block_in_the_child(a: int) -> None:
    before = table()
    with beside_threads():
        for in_ in MODES:
            with ff.redirected({FREE: a, 2: a}, in_=in_):
                child = ff.fork()
            if child is None:
                os._exit(0 if table() == before else 1)
            child_code = child.wait().code
            child.close()
            assert child_code == 0, in_
    assert table() == before


def test_it_ends_by_an_exception_and_what_was_done_in_the_block(a: int, b: int) -> None:
    def work() -> None:
        with ff.redirected({a: b, FREE: b}):
            os.close(FREE)
            os.dup2(2, a)
            raise ZeroDivisionError

    before = table()
    with pytest.raises(ZeroDivisionError):
        work()
    assert table() == before
    os.set_inheritable(a, True)
    with ff.redirected({a: a}):
        assert name(a) == "a"
    assert state(a) == INHERITABLE
    with ff.redirected({}):
        pass


def test_the_source_may_be_closed_in_the_block(a: int) -> None:
    source = os.memfd_create("source")
    with ff.redirected({FREE: source}, in_="child"):
        os.close(source)
        assert our_fork(lambda: name(FREE) != "source") == 0


def test_nested(a: int, b: int) -> None:
    before = table()
    with ff.redirected({FREE: a}):
        with ff.redirected({FREE: b}), ff.inheriting(a):
            assert name(FREE) == "b"
            elsewhere(lambda: os_fork(lambda: table() != before) == 0 or pytest.fail("seen"))
        assert name(FREE) == "a" and state(a) == OPEN
    assert table() == before


def test_what_redirected_refuses(a: int) -> None:
    before = table()
    for fds, kind in (({a: 999}, errno.EBADF), ({1 << 30: a}, errno.EBADF)):
        for in_ in MODES:
            with pytest.raises(OSError) as caught, ff.redirected({FREE: a, **fds}, in_=in_):
                pytest.fail("entered")
            assert caught.value.errno == kind
    with (
        pytest.raises(ValueError, match="redirected: -1 is not a descriptor"),
        ff.redirected({-1: a}),
    ):
        pytest.fail("entered")
    with (
        pytest.raises(ValueError, match="in_='here' is none of"),
        ff.redirected({1: a}, in_="here"),  # type: ignore[arg-type]
    ):
        pytest.fail("entered")
    assert table() == before
    with ff.inheriting():  # and the lock is free
        pass


def test_a_duplicate_that_somebody_closed(a: int, b: int) -> None:
    """What cannot be restored is said; the rest is restored."""

    def close_everything_else() -> None:
        with ff.redirected({a: b, FREE: b}):
            for fd in table().keys() - {0, 1, 2, a, b, FREE}:
                os.close(fd)

    def work() -> None:
        with pytest.raises(OSError, match=f"descriptor {a}: restore: Bad file descriptor"):
            close_everything_else()
        assert state(FREE) == CLOSED and name(a) == "b"

    assert our_fork(work) == 0


def test_output_of_c_code_goes_where_it_is_sent(tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb") as file, ff.redirected({1: file}):
        subprocess.run(["echo", "said"], check=True)
    assert (tmp_path / "out").read_bytes() == b"said\n"


def test_inheriting_is_not_seen_by_children_of_others(a: int) -> None:
    with ff.inheriting(a):
        assert state(a) == INHERITABLE
        assert our_fork(lambda: state(a)) == INHERITABLE
        elsewhere(lambda: os_fork(lambda: state(a)) == OPEN or pytest.fail("seen"))
        os.set_inheritable(a, False)
    assert state(a) == OPEN


@pytest.mark.parametrize("section", [ff.inheriting, lambda: ff.redirected({}), ff.no_forks])
def test_our_forks_in_other_threads_wait(
    section: Callable[[], AbstractContextManager[None]],
) -> None:
    codes: list[int] = []
    with section():
        thread = threading.Thread(target=lambda: codes.append(our_fork(lambda: 3)))
        thread.start()
        assert gone(lambda: asleep(thread))
        assert codes == []
        with ff.spawn(["true"]) as strict:  # waits for nobody
            strict.wait()
    thread.join()
    assert codes == [3]


def test_spawns_that_pass_on_descriptors_wait_too(a: int) -> None:
    codes: list[int | None] = []

    def work() -> None:
        with ff.spawn(["test", "-e", f"/proc/self/fd/{a}"], close_others=False) as child:
            codes.append(child.wait().code)

    thread = threading.Thread(target=work)
    with ff.inheriting(a):
        work()
        thread.start()
        assert gone(lambda: asleep(thread))
    thread.join()
    assert codes == [0, 1]


def test_many_may_keep_forks_out() -> None:
    with ff.no_forks(), ff.no_forks():

        def another() -> None:
            with ff.no_forks():
                pass

        elsewhere(another)
        with ff.spawn(["true"], close_others=False) as child:
            child.wait()
        for refused in (ff.fork, ff.inheriting(1).__enter__, ff.redirected({}).__enter__):
            with beside_threads(), pytest.raises(OSError) as caught:
                refused()
            assert caught.value.errno == errno.EDEADLK
        assert os_fork(lambda: our_fork(lambda: 4)) == 4  # nobody is there to be kept out
    assert our_fork(lambda: 0) == 0


def test_a_child_finds_the_lock_free(a: int) -> None:
    """Whoever held it in the parent is not there."""
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with ff.inheriting(a):
            entered.set()
            leave.wait()

    def work() -> int:
        with ff.inheriting(a), ff.spawn(["true"], close_others=False) as child:
            child.wait()
        return our_fork(lambda: state(a))

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    try:
        assert os_fork(work) == OPEN
    finally:
        leave.set()
        thread.join()


def test_ctrl_c_ends_the_wait() -> None:
    """In a process of its own: the main thread waits for the lock, a thread holds it."""
    script = (
        "import os, signal, threading, pyforkfd as ff\n"
        "entered, leave = threading.Event(), threading.Event()\n"
        "def hold():\n"
        "    with ff.no_forks():\n"
        "        entered.set()\n"
        "        leave.wait()\n"
        "thread = threading.Thread(target=hold); thread.start(); entered.wait()\n"
        "signal.signal(signal.SIGALRM, lambda *_: 1 / 0)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.2)\n"
        "try:\n"
        "    with ff.inheriting(1): print('entered')\n"
        "except ZeroDivisionError: print('interrupted')\n"
        "leave.set(); thread.join()\n"
        "with ff.inheriting(1): print('free')\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "interrupted\nfree\n"
