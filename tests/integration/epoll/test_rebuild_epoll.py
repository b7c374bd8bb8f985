"""atfork.in_child(rebuild_epoll=): an epoll of anybody's, that parent and child do not share."""

from __future__ import annotations

import ctypes
import os
import resource
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked import in_child
from forks import CLOSED, OPEN, build_library, state
from lines import parse_all

import pyforkfd as ff

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(scope="module")
def library(programs: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(build_library(programs)))


@pytest.fixture
def epoll() -> Iterator[select.epoll]:
    with select.epoll() as epoll:
        yield epoll


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The first is ready to be read."""
    one, other = socket.socketpair()
    with one, other:
        other.send(b"ready")
        yield one, other


def test_neither_disturbs_the_other(epoll: select.epoll, pair: Pair) -> None:
    number = pair[0].fileno()
    epoll.register(number, select.EPOLLIN | select.EPOLLET)
    entries = ff.epoll_entries(epoll)

    def child() -> list[object]:
        seen: list[object] = [epoll.fileno(), state(epoll.fileno()), ff.epoll_entries(epoll)]
        seen.append(epoll.poll(0))
        epoll.unregister(number)
        return seen

    with ff.atfork.in_child(rebuild_epoll=[epoll]):
        assert in_child(child) == [epoll.fileno(), OPEN, entries, [(number, select.EPOLLIN)]]
        assert ff.epoll_entries(epoll) == entries
        assert in_child(epoll.close) is None
    assert epoll.poll(0) == [(number, select.EPOLLIN)]  # once, as EPOLLET has it
    in_child(lambda: epoll.unregister(number))
    assert ff.epoll_entries(epoll) == (), "without it they share"


def test_of_a_fork_in_c(library: ctypes.CDLL, epoll: select.epoll, pair: Pair) -> None:
    number = pair[0].fileno()
    epoll.register(number, select.EPOLLIN)
    with ff.atfork.in_child(rebuild_epoll=[epoll.fileno()]):
        assert library.fork_and_unwatch(epoll.fileno(), number) == 0
    assert epoll.poll(0) == [(number, select.EPOLLIN)]
    assert library.fork_and_unwatch(epoll.fileno(), number) == 0
    assert epoll.poll(0) == []


def test_what_the_child_has_not_is_left_out(epoll: select.epoll, pair: Pair) -> None:
    """A number that the child closes, one that is another socket there, one that is none."""
    one, other = pair
    third, fourth = socket.socketpair()
    with third, fourth:
        for sock in (one, other, third):
            epoll.register(sock, select.EPOLLIN)
        with ff.atfork.in_child(
            close=[one], redirect={other.fileno(): fourth}, rebuild_epoll=[epoll]
        ):
            seen = in_child(lambda: [entry.number for entry in ff.epoll_entries(epoll)])
        assert seen == [third.fileno()]
        assert len(ff.epoll_entries(epoll)) == 3


def test_more_than_one_read_of_the_kernels_text(epoll: select.epoll) -> None:
    readers: list[int] = []
    writers: list[int] = []
    try:
        for _ in range(150):
            reader, writer = os.pipe()
            readers.append(reader)
            writers.append(writer)
            epoll.register(reader, select.EPOLLIN)
        assert len(Path(f"/proc/self/fdinfo/{epoll.fileno()}").read_text()) > 2 * 4096
        with ff.atfork.in_child(rebuild_epoll=[epoll]):
            seen = in_child(lambda: sorted(entry.number for entry in ff.epoll_entries(epoll)))
        assert seen == sorted(readers)
    finally:
        for fd in readers + writers:
            os.close(fd)


def test_without_a_free_number_it_is_new_and_empty(
    library: ctypes.CDLL, epoll: select.epoll, pair: Pair
) -> None:
    epoll.register(pair[0], select.EPOLLIN)

    def child() -> tuple[list[int], int]:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1, limits[1]))
        code = library.fork_and_unwatch(epoll.fileno(), pair[0].fileno())
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        return [entry.number for entry in ff.epoll_entries(epoll)], code

    with ff.atfork.in_child(rebuild_epoll=[epoll]):
        entries, code = in_child(child)
    assert entries == [pair[0].fileno()]
    assert code != 0, "the grandchild did not get at its parent's"


def test_a_number_that_is_no_epoll_any_more_is_passed_over(pair: Pair) -> None:
    epoll = select.epoll()
    number = epoll.fileno()
    with ff.atfork.in_child(rebuild_epoll=[epoll]):
        epoll.close()
        assert in_child(lambda: state(number)) in (OPEN, CLOSED)  # OPEN: in_child's own pipe
        os.dup2(pair[0].fileno(), number)
        try:
            assert in_child(lambda: os.path.sameopenfile(number, pair[0].fileno()))
        finally:
            os.close(number)


def test_what_cannot_be_asked_for(epoll: select.epoll) -> None:
    with open(os.devnull) as file:
        with pytest.raises(OSError, match=rf"epoll {file.fileno()}: not an epoll"):
            ff.atfork.in_child(rebuild_epoll=[file])
        number = file.fileno()
    with pytest.raises(OSError, match=rf"epoll {number}"):
        ff.atfork.in_child(rebuild_epoll=[number])
    fd = epoll.fileno()
    with pytest.raises(ValueError, match=f"{fd} is both rebuilt and closed"):
        ff.atfork.in_child(rebuild_epoll=[epoll], close=[fd])
    with pytest.raises(ValueError, match=f"{fd} is both rebuilt and redirected"):
        ff.atfork.in_child(rebuild_epoll=[epoll], redirect={fd: 0})


def test_a_line_and_a_statistic(epoll: select.epoll, pair: Pair, tmp_path: Path) -> None:
    epoll.register(pair[0], select.EPOLLIN)
    ff.debug(f"epoll=1,file={tmp_path / 'log'}")
    try:
        with ff.atfork.in_child(rebuild_epoll=[epoll], name="theirs"):
            found = in_child(lambda: [(s.name, s.after_in_child) for s in ff.atfork.stats()])
    finally:
        ff.debug("")
    ((name, phase),) = found
    assert (name, phase.calls, phase.failures) == ("theirs", 1, 0)
    (line,) = parse_all((tmp_path / "log").read_text(), "epoll")
    assert (line["stage"], line["entries"], line["left_out"]) == ("rebuilt", "1", "0")
    assert line["pid"] != str(os.getpid()) and int(line["us"]) >= 0
