"""Sinks of entries: memory, and streams whose readers may be slow or have closed."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator

import pytest

from pyforkfd.supervisor.logs._records import Entry, Origin, captured, decode, encode, time_text
from pyforkfd.supervisor.logs._sinks import RingTail, StreamSink, as_text

NOW = 1_700_000_000_123_456_789


def entry(text: str, component: str = "web", worker: int = 1) -> Entry:
    origin = Origin(component=component, worker=worker, generation=1)
    return captured(origin, "stdout", NOW, text.encode())


def lines(entries: list[Entry]) -> list[bytes]:
    return [one.line for one in entries]


def test_the_tail_is_the_last_of_each_component_in_their_order() -> None:
    tail = RingTail(keep=3)
    quiet = entry("quiet", "db")
    tail.add(quiet)
    many = [entry(str(n)) for n in range(10)]
    for one in many:
        tail.add(one)
    last = entry("last", "db")
    tail.add(last)
    assert tail.tail() == [quiet, *many[-3:], last], "a flood of one leaves the others alone"
    assert tail.tail(2) == [many[-1], last]
    assert tail.tail(0) == [] and len(tail.tail(100)) == 5
    assert tail.tail(components=["db", "unknown"]) == [quiet, last]
    tail.forget("db")
    assert tail.tail(components=["db"]) == []


def test_the_tail_is_bounded_in_bytes_too() -> None:
    tail = RingTail(keep=1000, keep_bytes=5000)
    for _ in range(100):
        tail.add(entry("x" * 1000))
    assert 3 <= len(tail.tail()) <= 5
    tail.add(entry("x" * 100_000))
    assert len(tail.tail()) == 1, "the last one is always retained"
    with pytest.raises(ValueError, match="keep=0"):
        RingTail(keep=0)


def test_followers() -> None:
    tail = RingTail()
    seen: list[Entry] = []
    tail.add(entry("before"))
    handle = tail.follow(seen.append)

    def broken(one: Entry) -> None:
        raise BrokenPipeError

    tail.follow(broken)
    one, two = entry("one"), entry("two")
    tail.add(one)
    tail.add(two)
    assert seen == [one, two]
    tail.unfollow(handle)
    tail.unfollow(handle)
    tail.add(entry("after"))
    assert seen == [one, two]


@pytest.fixture(params=["pipe", "borrowed pipe", "socket"])
def ends(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[int, int]]:
    if request.param == "socket":
        a, b = socket.socketpair()
        pair = a.detach(), b.detach()
    else:
        pair = os.pipe()
    if request.param == "borrowed pipe":
        real = os.open

        def refused(path: str, *rest: int) -> int:
            if path.startswith("/proc/self/fd/"):
                raise PermissionError(13, "another user's", path)
            return real(path, *rest)

        monkeypatch.setattr(os, "open", refused)
    yield pair
    for fd in pair:
        try:
            os.close(fd)
        except OSError:
            pass


def read_all(fd: int) -> bytes:
    os.set_blocking(fd, False)
    data = b""
    try:
        while piece := os.read(fd, 1 << 20):
            data += piece
    except BlockingIOError:
        pass
    return data


def test_a_slow_reader_blocks_nothing(ends: tuple[int, int]) -> None:
    read, write = ends
    flags = fcntl.fcntl(write, fcntl.F_GETFL)
    sink = StreamSink(write, max_bytes=50_000)
    # Longer than PIPE_BUF, so that a write may end in the middle of one.
    sent = [entry(f"{n} " + "x" * 9000) for n in range(200)]
    for one in sent:
        sink.add(one)
    assert sink.wants_write and sink.dropped > 0
    assert fcntl.fcntl(write, fcntl.F_GETFL) == flags, "others have this description too"
    data = b""
    while sink.wants_write:
        data += read_all(read)
        sink.handle()
    data += read_all(read)
    got = data.split(b"\n")[:-1]
    assert len(got) == sink.written == len(sent) - sink.dropped
    assert [line for line in lines(sent) if line in set(got)] == got, "whole lines, in order"
    assert got[-1] == sent[-1].line, "the oldest are dropped, not the newest"
    sink.close()


def test_a_reader_that_has_closed(ends: tuple[int, int]) -> None:
    read, write = ends
    sink = StreamSink(write)
    os.close(read)
    sink.add(entry("x"))
    sink.add(entry("y"))
    assert sink.closed and not sink.wants_write and sink.dropped == 2
    sink.close()


def test_a_full_disk_is_not_permanent() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        sink = StreamSink(full)
        sink.add(entry("x"))
        assert sink.dropped == 1 and not sink.closed and not sink.wants_write
        sink.close()
    finally:
        os.close(full)


def test_lines_for_people() -> None:
    head = {"time": time_text(NOW), "seq": 3, "level": "ERROR", "component": "web", "worker": 12}
    line = encode(
        {**head, "generation": 4, "pid": 7, "logger": "shop"},
        "two\nlines \x1b[2J",
        exception="Traceback\nKeyError: 5",
        extra={"order": "A7"},
    )
    one = decode(line.rstrip())
    assert one is not None
    assert as_text(one).decode() == (
        "2023-11-14T22:13:20.123456789Z web/12 ERROR shop: two\n"
        "    lines \\x1b[2J order='A7'\n"
        "    Traceback\n"
        "    KeyError: 5"
    )
    assert as_text(entry("hello")) == b"2023-11-14T22:13:20.123456789Z web/1 stdout: hello"


def test_text_to_a_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with (tmp_path / "out").open("wb") as file:
        sink = StreamSink(file, text=True)
        before = time.monotonic()
        sink.add(entry("hello"))
        assert not sink.wants_write and time.monotonic() - before < 10
        sink.close()
    assert (tmp_path / "out").read_bytes() == as_text(entry("hello")) + b"\n"
