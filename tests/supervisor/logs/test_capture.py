"""Captured output: read by line, bounded, without waiting."""

import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import pyforkfd as ff
from pyforkfd.supervisor.logs._capture import Capture
from pyforkfd.supervisor.logs._record_writer import RecordWriter
from pyforkfd.supervisor.logs._records import Entry, Origin

WEB = Origin(component="web", worker=12, generation=4)
Make = Callable[..., tuple[Capture, list[Entry]]]


@pytest.fixture
def make() -> Iterator[Make]:
    captures: list[Capture] = []

    def one(stream: str = "stdout", **options: Any) -> tuple[Capture, list[Entry]]:
        entries: list[Entry] = []
        captures.append(Capture(WEB, stream, entries.append, **options))
        return captures[-1], entries

    yield one
    for capture in captures:
        capture.close()


def messages(entries: list[Entry]) -> list[str]:
    return [json.loads(entry.line)["message"] for entry in entries]


def drain(capture: Capture) -> None:
    while not capture.ended:
        select.select([capture], [], [], 60)
        capture.handle()


def test_output_of_a_program_by_line_with_worker_and_time(make: Make) -> None:
    (out, outs), (err, errs) = make("stdout"), make("stderr")
    before = time.time_ns()
    code = "import os; os.write(1, b'one\\ntwo\\r\\n\\nhalf'); os.write(2, b'\\xff\\n')"
    with ff.spawn([sys.executable, "-c", code], fds={1: out.writer, 2: err.writer}):
        for capture in (out, err):
            capture.writer.close()
            drain(capture)
    assert messages(outs) == ["one", "two", "", "half"]
    assert messages(errs) == ["\\xff"]
    for entry in outs + errs:
        assert entry.origin == WEB and before <= entry.time <= time.time_ns()
    body = json.loads(errs[0].line)
    del body["time"]
    assert body == {
        "component": "web",
        "worker": 12,
        "generation": 4,
        "stream": "stderr",
        "message": "\\xff",
    }
    assert (out.lines, out.cut) == (4, 0)


def test_a_line_that_comes_in_pieces_is_one(make: Make) -> None:
    capture, entries = make()
    for piece in (b"he", b"ll", b"o\nwor"):
        os.write(capture.writer.fileno(), piece)
        capture.handle()
    assert messages(entries) == ["hello"]
    capture.close()
    assert messages(entries) == ["hello", "wor"]


def test_handle_never_waits(make: Make) -> None:
    capture, _ = make()
    assert capture.handle() == 0 and not capture.ended
    assert os.get_blocking(capture.writer.fileno()), "the worker's end is as any program expects"


def test_a_long_line_is_cut_and_marked_and_takes_no_memory(make: Make) -> None:
    capture, entries = make(max_line=100)
    for _ in range(50):
        os.write(capture.writer.fileno(), b"x" * 10_000)
        capture.handle()
        assert len(capture._part) <= 100
    os.write(capture.writer.fileno(), b"\nnext\n")
    capture.handle()
    assert messages(entries) == ["x" * 100, "next"]
    assert json.loads(entries[0].line)["cut"] == 500_000
    assert capture.cut == 1


def test_a_flood_gets_a_share_and_no_more(make: Make) -> None:
    capture, entries = make(budget=10_000)
    flood, quiet, line = capture, make()[0], "y" * 99
    with ff.spawn(["yes", line], fds={1: flood.writer}) as child:
        flood.writer.close()
        try:
            for _ in range(50):
                select.select([flood], [], [], 60)
                assert flood.handle() < 10_000
                os.write(quiet.writer.fileno(), b"alive\n")
                assert quiet.handle() == 6
        finally:
            child.kill()
    drain(flood)
    assert set(messages(entries)[:-1]) == {line}


@pytest.mark.parametrize("floods", [False, True])
def test_a_grandchild_does_not_keep_the_stream_for_ever(make: Make, floods: bool) -> None:
    capture, entries = make()
    reader_fd, writer_fd = os.pipe()
    tail = "yes" if floods else "cat"
    script = f"echo hello; {tail} <&5 & exit 0"
    # The grandchild holds the pipe; the end of descriptor 5 is for the test to end it.
    with ff.spawn(["/bin/sh", "-c", script], fds={1: capture.writer, 5: reader_fd}) as child:
        capture.writer.close()
        os.close(reader_fd)
        child.wait()
    now = 100.0
    capture.worker_gone(now, grace=1.0)
    select.select([capture], [], [], 60)
    capture.handle(now + 0.5)
    assert not capture.ended and not capture.overdue(now + 0.5)
    read_on = 0
    while capture.overdue(now + 1.0):
        read_on += capture.handle(now + 1.0)
    assert capture.ended and read_on <= capture.pipe_size + 4096
    assert messages(entries)[0] == "hello"
    os.close(writer_fd)  # cat ends at the end of its input, yes of EPIPE


def test_a_writer_that_is_faster_than_we_read_is_cut_off_all_the_same(make: Make) -> None:
    capture, entries = make(budget=10_000)
    writer_fd = capture.writer.fileno()
    os.set_blocking(writer_fd, False)

    def fill() -> None:
        try:
            while os.write(writer_fd, b"x" * 4095 + b"\n"):
                pass
        except BlockingIOError:
            pass

    os.write(writer_fd, b"last words\n")
    capture.worker_gone(0.0, grace=1.0)
    read_on = 0
    while capture.overdue(1.0):
        fill()
        read_on += capture.handle(1.0)
        assert read_on < 2 * capture.pipe_size
    assert capture.ended and messages(entries)[0] == "last words"
    assert read_on >= capture.pipe_size, "what the pipe held in time is read"


def test_records_on_a_pipe(make: Make) -> None:
    capture, entries = make("log")
    writer = RecordWriter(capture.writer.fileno(), WEB)
    writer.write("WARNING", "hello")
    os.write(capture.writer.fileno(), b"no record\n\n")
    capture.handle()
    assert [entry.level for entry in entries] == ["WARNING", ""]
    assert messages(entries) == ["hello", "no record"]
    assert {entry.stream for entry in entries} == {"log"}


def test_the_pipe_gets_the_size_that_is_allowed(make: Make) -> None:
    with open("/proc/sys/fs/pipe-max-size") as file:
        most = int(file.read())
    assert make(pipe_size=131072)[0].pipe_size == 131072
    plain = make(pipe_size=None)[0].pipe_size
    assert most // 2 <= make(pipe_size=most)[0].pipe_size <= most
    assert plain <= 65536


def test_a_pipe_beyond_the_users_limit_gets_the_largest_allowed_size() -> None:
    code = (
        "from pyforkfd.supervisor.logs._capture import Capture\n"
        "from pyforkfd.supervisor.logs._records import Origin\n"
        "c = Capture(Origin(component='a'), 'stdout', print, pipe_size=1 << 30)\n"
        "print(c.pipe_size)\nc.close()\n"
    )
    # The limit does not hold for those who have CAP_SYS_RESOURCE.
    none = ff.Capabilities(bounding=[]) if os.geteuid() == 0 else None
    with ff.spawn([sys.executable, "-P", "-c", code], fds={1: ff.PIPE}, capabilities=none) as child:
        assert child.stdout is not None
        assert 4096 <= int(child.stdout.read()) < 1 << 30
    assert child.returncode == 0


def test_bounds_are_checked() -> None:
    with pytest.raises(ValueError, match="max_line=0"):
        Capture(WEB, "stdout", lambda entry: None, max_line=0)
