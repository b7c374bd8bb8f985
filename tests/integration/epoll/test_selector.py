"""ForkSafeSelector and the set below it, on real descriptors, across real forks."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import os
import resource
import select
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE

import pytest
from forked import holding, in_child

import pyforkfd as ff
from pyforkfd import _core

BOTH = EVENT_READ | EVENT_WRITE
libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


@pytest.fixture
def selector(stack: ExitStack) -> ff.ForkSafeSelector:
    return stack.enter_context(ff.ForkSafeSelector())


def pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    one, other = socket.socketpair()
    return stack.enter_context(one), stack.enter_context(other)


def ready(selector: ff.ForkSafeSelector, timeout: float = 0) -> dict[int, int]:
    return {key.fd: events for key, events in selector.select(timeout)}


def watched(selector: ff.ForkSafeSelector) -> dict[int, int]:
    mask = select.EPOLLIN | select.EPOLLOUT
    return {w.number: w.events & mask for w in ff.epoll_entries(selector)}


def waits_in_epoll(thread: threading.Thread) -> None:
    """Return once it sleeps in the kernel with an epoll's number as first argument."""
    task = Path(f"/proc/self/task/{thread.native_id}")
    while True:
        call = (task / "syscall").read_text().split()
        if call[0] in ("232", "281", "22"):  # epoll_wait, epoll_pwait; aarch64's
            return
        os.sched_yield()


# As the standard selectors are.


def test_readers_writers_and_what_is_both(selector: ff.ForkSafeSelector, stack: ExitStack) -> None:
    one, other = pair(stack)
    selector.register(one, BOTH, "data")
    assert ready(selector) == {one.fileno(): EVENT_WRITE}
    other.send(b"x")
    assert ready(selector) == {one.fileno(): BOTH}
    selector.modify(one, EVENT_READ)
    assert ready(selector) == {one.fileno(): EVENT_READ}
    assert selector.get_key(one).data is None
    one.recv(1)
    assert ready(selector) == {}


def test_a_hang_up_is_for_whoever_waits(selector: ff.ForkSafeSelector) -> None:
    reader, writer = os.pipe()
    selector.register(writer, EVENT_WRITE)
    os.close(reader)
    assert ready(selector) == {writer: EVENT_WRITE}
    selector.unregister(writer)
    os.close(writer)


def test_closed_is_closed(stack: ExitStack) -> None:
    one, _ = pair(stack)
    selector = ff.ForkSafeSelector()
    selector.close()
    selector.close()
    for call in (
        lambda: selector.register(one, EVENT_READ),
        lambda: selector.select(0),
        selector.fileno,
    ):
        with pytest.raises(ValueError, match="the selector is closed"):
            call()
    with pytest.raises(RuntimeError):
        selector.get_key(one)
    with pytest.raises(ValueError):
        ff.audit(selector)


def test_one_that_is_forgotten_leaves_nothing(stack: ExitStack) -> None:
    one, _ = pair(stack)
    selector = ff.ForkSafeSelector()
    selector.register(one, EVENT_READ)
    number = selector.fileno()
    del selector
    gc.collect()
    with pytest.raises(OSError):
        os.fstat(number)


def test_what_the_kernel_refuses_is_told_and_forgotten(
    selector: ff.ForkSafeSelector, stack: ExitStack, other_fd: int
) -> None:
    with pytest.raises(PermissionError, match=f"register descriptor {other_fd}: "):
        selector.register(other_fd, EVENT_READ)  # a regular file
    assert not selector.get_map()
    one, other = pair(stack)
    number = one.fileno()
    selector.register(one, EVENT_READ)
    os.dup2(other.fileno(), number)
    inode = os.fstat(number).st_ino
    said = f"modify descriptor {number}, registered as .* and now inode {inode}"
    with pytest.raises(FileNotFoundError, match=said):
        selector.modify(one, EVENT_WRITE)
    assert not selector.get_map() and not watched(selector)


def test_signals_are_handled_and_the_rest_of_the_time_is_waited_for(
    selector: ff.ForkSafeSelector, stack: ExitStack
) -> None:
    one, other = pair(stack)
    selector.register(one, EVENT_READ)
    seen: list[int] = []

    def handler(number: int, _: object) -> None:
        seen.append(number)
        other.send(b"x")

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        main = threading.main_thread().ident
        assert main is not None
        sender = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGUSR1))
        sender.start()
        assert ready(selector, 60) == {one.fileno(): EVENT_READ}
        sender.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [signal.SIGUSR1]


def test_another_thread_registers_while_one_waits(
    selector: ff.ForkSafeSelector, stack: ExitStack
) -> None:
    one, other = pair(stack)
    other.send(b"x")
    waiting = threading.Event()
    found: list[dict[int, int]] = []

    def wait() -> None:
        waiting.set()
        found.append(ready(selector, 60))

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    selector.register(one, EVENT_READ)  # the GIL is not held by the one that waits
    thread.join()
    assert found == [{one.fileno(): EVENT_READ}]


def test_edge_triggered_tells_once(stack: ExitStack) -> None:
    selector = stack.enter_context(ff.ForkSafeSelector(edge=True))
    one, other = pair(stack)
    selector.register(one, EVENT_READ)
    other.send(b"x")
    assert ready(selector) == {one.fileno(): EVENT_READ}
    assert ready(selector) == {}
    other.send(b"y")
    assert ready(selector) == {one.fileno(): EVENT_READ}


def test_exclusive_is_what_the_kernel_has(stack: ExitStack) -> None:
    selector = stack.enter_context(ff.ForkSafeSelector(exclusive=True))
    one, _ = pair(stack)
    selector.register(one, EVENT_READ)
    selector.modify(one, BOTH)  # EPOLL_CTL_MOD would not take it
    assert ff.epoll_entries(selector)[0].events & select.EPOLLEXCLUSIVE
    assert ready(selector) == {one.fileno(): EVENT_WRITE}
    assert in_child(lambda: ff.epoll_entries(selector)[0].events & select.EPOLLEXCLUSIVE)
    assert ff.audit(selector) == []


# Across forks.


def test_a_child_has_the_same_on_its_own(selector: ff.ForkSafeSelector, stack: ExitStack) -> None:
    one, other = pair(stack)
    selector.register(one, EVENT_READ, "reader")
    selector.register(other, EVENT_WRITE, "writer")
    here = watched(selector)
    other.send(b"x")

    def child() -> tuple[object, ...]:
        seen = watched(selector), ready(selector), ff.audit(selector), selector.rebuilds
        selector.unregister(one)
        selector.unregister(other)
        return *seen, fcntl.fcntl(selector.fileno(), fcntl.F_GETFD)

    both = {one.fileno(): EVENT_READ, other.fileno(): EVENT_WRITE}
    assert in_child(child) == (here, both, [], 1, fcntl.FD_CLOEXEC)
    assert (watched(selector), ready(selector), selector.rebuilds) == (here, both, 0)


def test_grandchildren_too(selector: ff.ForkSafeSelector, stack: ExitStack) -> None:
    one, _ = pair(stack)
    selector.register(one, EVENT_WRITE)

    def child() -> tuple[int, list[ff.Drift]]:
        return in_child(lambda: (selector.rebuilds, ff.audit(selector)))

    assert in_child(child) == (2, [])


def test_a_mark_that_was_cleared_stays_so(selector: ff.ForkSafeSelector) -> None:
    ff.set_cloexec(selector, False)
    assert in_child(lambda: ff.cloexec(selector)) is False


def test_a_fork_by_c_code_without_the_interpreters_hooks(
    selector: ff.ForkSafeSelector, stack: ExitStack
) -> None:
    one, _ = pair(stack)
    selector.register(one, EVENT_READ)
    pid = libc.fork()  # by ctypes: without the GIL
    if pid == 0:
        # Only what needs no other thread; the set is the core's.
        entries = _core.epoll_entries(selector._set.fileno())
        inherited = _core.is_parents(selector._set.fileno())
        os._exit(len(entries) if inherited is not True else 99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def test_a_selector_that_watches_another(stack: ExitStack) -> None:
    one, other = pair(stack)
    outer = stack.enter_context(ff.ForkSafeSelector())
    inner = stack.enter_context(ff.ForkSafeSelector())
    # Whichever was made first, the outer one watches the inner one's new instance.
    for above, below in ((outer, inner), (inner, outer)):
        below.register(one, EVENT_READ)
        above.register(below, EVENT_READ)

        def child(above: ff.ForkSafeSelector = above) -> tuple[object, ...]:
            calm = ready(above)
            other.send(b"x")
            return calm, ready(above), ff.audit(above)

        assert in_child(child) == ({}, {below.fileno(): EVENT_READ}, [])
        one.recv(1)
        above.unregister(below)
        below.unregister(one)


def test_closed_numbers_are_not_taken_for_what_they_were(
    selector: ff.ForkSafeSelector, stack: ExitStack
) -> None:
    one, other = pair(stack)
    number, gone = one.fileno(), fcntl.fcntl(other, fcntl.F_DUPFD_CLOEXEC, 500)
    selector.register(one, EVENT_READ)
    selector.register(gone, EVENT_READ)
    os.dup2(other.fileno(), number)
    os.close(gone)

    def child() -> tuple[object, ...]:
        return watched(selector), {(d.kind, d.number) for d in ff.audit(selector)}

    assert in_child(child) == ({}, {("replaced", number), ("unregistered", gone)})


def test_a_number_that_is_no_epoll_any_more_is_left_alone(stack: ExitStack) -> None:
    one, other = pair(stack)
    selector = ff.ForkSafeSelector()
    number = selector.fileno()
    os.dup2(one.fileno(), number)  # behind its back

    def child() -> bytes:
        other.send(b"x")
        with pytest.raises(OSError, match="could not be made anew after a fork"):
            selector.select(0)
        selector.close()
        return os.read(number, 1)

    assert in_child(child) == b"x"
    selector.close()


def test_where_no_number_is_free(selector: ff.ForkSafeSelector, stack: ExitStack) -> None:
    one, other = pair(stack)
    selector.register(one, EVENT_READ)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def full() -> tuple[object, ...]:
        # A child whose every number is taken forks again; a pipe made before tells of it.
        reader, writer = os.pipe()
        resource.setrlimit(resource.RLIMIT_NOFILE, (writer + 40, hard))
        taken = []
        try:
            while True:
                taken.append(os.dup(0))
        except OSError as error:
            assert error.errno == errno.EMFILE
        pid = os.fork()
        if pid == 0:
            try:
                other.send(b"x")
                seen = ready(selector) == {one.fileno(): EVENT_READ}
                mark = fcntl.fcntl(selector.fileno(), fcntl.F_GETFD) == fcntl.FD_CLOEXEC
                for fd in taken:
                    os.close(fd)
                os.write(writer, repr((seen, mark, ff.audit(selector))).encode())
            finally:
                os._exit(0)
        os.close(writer)
        os.waitpid(pid, 0)
        for fd in taken:
            os.close(fd)
        return os.read(reader, 1000).decode(), ready(selector)

    assert in_child(full) == ("(True, True, [])", {one.fileno(): EVENT_READ})
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)


def test_where_no_instance_can_be_made_the_parents_is_not_used(
    selector: ff.ForkSafeSelector, stack: ExitStack
) -> None:
    one, other = pair(stack)
    selector.register(one, EVENT_READ)
    number = selector.fileno()

    def limited() -> tuple[object, ...]:
        reader, writer = os.pipe()
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        pid = os.fork()
        if pid == 0:
            said = "nothing"
            try:
                selector.select(0)
            except OSError as error:
                said = f"{errno.errorcode[error.errno or 0]} {error}"
            try:
                selector.unregister(one)
            except OSError:
                said += "; not unregistered"
            os.write(writer, said.encode())
            os._exit(0)
        os.waitpid(pid, 0)
        other.send(b"x")
        return os.read(reader, 1000).decode(), ready(selector)

    said, heard = in_child(limited)
    what = f"EMFILE [Errno {errno.EMFILE}] epoll {number}: wait, whose instance could not be made "
    assert str(said).startswith(what) and str(said).endswith("not unregistered")
    assert heard == {one.fileno(): EVENT_READ}


def test_forks_while_another_thread_changes(
    selector: ff.ForkSafeSelector, stack: ExitStack
) -> None:
    """In each child map, set and keys are of one moment, and of no half-made change."""
    sockets = [one for _ in range(4) for one in pair(stack)]
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for one in sockets:
                selector.register(one, EVENT_READ)
            for one in sockets:
                selector.modify(one, EVENT_WRITE)
            for one in sockets:
                selector.unregister(one)

    threads = [threading.Thread(target=change)]
    for thread in threads:
        thread.start()
    sizes = set()
    try:
        for _ in range(60):

            def child() -> tuple[int, list[ff.Drift], bool]:
                known = {key.fd: key.events for key in selector.get_map().values()}
                bits = {1: select.EPOLLIN, 2: select.EPOLLOUT}
                same = watched(selector) == {n: bits[e] for n, e in known.items()}
                return len(known), ff.audit(selector), same

            size, drift, same = in_child(child)
            assert drift == [] and same
            sizes.add(size)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(sizes) > 1, "the forks fell between different changes"
    assert ff.audit(selector) == [] and not selector.get_map()


# Closed files that somebody still has.


def test_an_entry_without_a_number_is_left_behind(
    selector: ff.ForkSafeSelector, stack: ExitStack
) -> None:
    one, other = pair(stack)
    held, _ = pair(stack)
    selector.register(one, EVENT_READ)
    selector.register(held, EVENT_WRITE)
    with holding():
        held.close()
        assert [d.kind for d in ff.audit(selector)] == ["closed"]
        selector.unregister(held)
        assert (ff.audit(selector), selector.rebuilds) == ([], 1)
        other.send(b"x")
        assert ready(selector) == {one.fileno(): EVENT_READ}


def test_events_of_what_nobody_registered_do_not_wake(
    selector: ff.ForkSafeSelector, stack: ExitStack
) -> None:
    one, other = pair(stack)
    selector.register(one, EVENT_READ)
    stranger = stack.enter_context(closing(select.epoll.fromfd(os.dup(selector.fileno()))))
    stranger.register(other, select.EPOLLOUT)
    assert [d.kind for d in ff.audit(selector)] == ["unknown"]
    assert ready(selector, 0.01) == {}
    assert (ff.audit(selector), selector.rebuilds) == ([], 1)
    other.send(b"x")
    assert ready(selector) == {one.fileno(): EVENT_READ}


def test_one_that_waits_meanwhile_is_not_left_behind(
    selector: ff.ForkSafeSelector, stack: ExitStack
) -> None:
    one, _ = pair(stack)
    held, _ = pair(stack)
    late, wakes = pair(stack)
    selector.register(one, EVENT_READ)
    selector.register(held, EVENT_READ)
    begun = threading.Event()
    found: list[dict[int, int]] = []

    def wait() -> None:
        begun.set()
        found.append(ready(selector, 60))

    with holding():
        held.close()
        thread = threading.Thread(target=wait)
        thread.start()
        begun.wait()
        waits_in_epoll(thread)
        selector.unregister(held)
        selector.register(late, EVENT_READ)
        wakes.send(b"x")
        thread.join()
        assert found == [{late.fileno(): EVENT_READ}]
        assert ready(selector) == found[0]
        assert ff.audit(selector) == []


def test_a_set_follows_the_kernel_where_a_number_is_another_file(stack: ExitStack) -> None:
    one, other = pair(stack)
    epoll = _core.EpollSet()
    number = one.fileno()
    epoll.add(number, select.EPOLLIN)
    with pytest.raises(FileExistsError):
        epoll.add(number, select.EPOLLIN)
    with holding():
        os.dup2(other.fileno(), number)
        epoll.add(number, select.EPOLLOUT)
        (entry,) = _core.epoll_entries(epoll.fileno())
        assert entry["inode"] == os.fstat(number).st_ino
        assert epoll.wait(0, 4) == [(number, select.EPOLLOUT)]
    with pytest.raises(FileNotFoundError):
        epoll.remove(other.fileno())
    epoll.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        epoll.wait(0, 4)
