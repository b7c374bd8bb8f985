"""A worker's side: handlers, the ring, what happens when a record cannot be written."""

import json
import logging
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

import pyforkfd as ff
from pyforkfd.supervisor.logs._record_writer import RecordWriter
from pyforkfd.supervisor.logs._records import MAX_LINE, Origin, time_ns
from pyforkfd.supervisor.worker._logging import ForkfdHandler, StructlogProcessor, log_writer, obey

WEB = Origin(component="web", worker=12, generation=4)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    number = os.open(tmp_path / "log", os.O_APPEND | os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
    yield number
    os.close(number)


@pytest.fixture
def writer(fd: int) -> RecordWriter:
    return RecordWriter(fd, WEB)


@pytest.fixture
def log(writer: RecordWriter) -> Iterator[logging.Logger]:
    logger = logging.Logger("shop.cart", logging.DEBUG)
    handler = ForkfdHandler(writer)
    logger.addHandler(handler)
    yield logger
    handler.close()


def written(fd: int) -> list[dict[str, Any]]:
    data = os.pread(fd, 1 << 30, 0)
    assert not data or data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def messages(fd: int) -> list[str]:
    return [body["message"] for body in written(fd)]


def test_a_record_of_logging(fd: int, log: logging.Logger) -> None:
    before = time.time_ns()
    log.warning("paid %d\nin cash", 5, extra={"order": "A7"})
    after = time.time_ns()
    (body,) = written(fd)
    assert before <= time_ns(body.pop("time")) <= after
    assert body == {
        "seq": 0,
        "level": "WARNING",
        "component": "web",
        "worker": 12,
        "generation": 4,
        "pid": os.getpid(),
        "logger": "shop.cart",
        "message": "paid 5\nin cash",
        "order": "A7",
    }


def test_a_traceback_and_a_stack_are_in_the_record(fd: int, log: logging.Logger) -> None:
    try:
        raise KeyError("A7")
    except KeyError:
        log.exception("no such order", stack_info=True)
    (body,) = written(fd)
    assert body["exception"].startswith("Traceback") and "KeyError: 'A7'" in body["exception"]
    assert "Stack (most recent call last)" in body["exception"]


def test_what_is_wrong_with_a_record_is_loggings_to_say(
    fd: int,
    log: logging.Logger,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log.info("%d", "no number")
    assert "TypeError" in capsys.readouterr().err
    monkeypatch.setattr(logging, "raiseExceptions", False)
    log.info("%d", "no number")
    assert capsys.readouterr().err == ""
    log.info("next")
    assert messages(fd) == ["next"]


def test_structlog(fd: int, writer: RecordWriter, capsys: pytest.CaptureFixture[str]) -> None:
    log = structlog.wrap_logger(
        structlog.PrintLogger(),
        processors=[structlog.processors.add_log_level, StructlogProcessor(writer)],
    )
    log.bind(order="A7").warning("paid", amount=5)
    try:
        raise KeyError("A8")
    except KeyError:
        log.exception("no such order")
    first, second = written(fd)
    assert (first["message"], first["level"], first["order"], first["amount"]) == (
        "paid",
        "WARNING",
        "A7",
        5,
    )
    assert (first["seq"], first["component"]) == (0, "web")
    assert second["level"] == "ERROR" and second["exception"].endswith("KeyError: 'A8'")
    assert "exc_info" not in second
    assert capsys.readouterr() == ("", ""), "the event ends at the processor"


def test_structlog_errors_do_not_reach_the_application(
    fd: int, writer: RecordWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    class Wicked:
        def __repr__(self) -> str:
            raise ZeroDivisionError

    log = structlog.wrap_logger(structlog.PrintLogger(), processors=[StructlogProcessor(writer)])
    log.info("one", wicked=Wicked())
    assert "ZeroDivisionError" in capsys.readouterr().err
    log.info("two")
    assert messages(fd) == ["two"]


def test_numbers_of_threads_lie_in_the_file_in_their_order(fd: int, log: logging.Logger) -> None:
    other = logging.Logger("other")  # a handler of its own, so another lock of logging's
    other.addHandler(ForkfdHandler(log.handlers[0].writer))  # type: ignore[attr-defined]
    threads = [
        threading.Thread(target=lambda one=one: [one.info("x") for _ in range(500)])
        for one in (log, other) * 2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bodies = written(fd)
    assert [body["seq"] for body in bodies] == list(range(2000))
    times = [body["time"] for body in bodies]
    assert times == sorted(times)


def test_while_buffering_only_what_matters_is_written(fd: int, writer: RecordWriter) -> None:
    log = logging.Logger("a")
    log.addHandler(ForkfdHandler(writer))
    assert obey(writer, {"order": "buffer_logs"}) is None
    log.info("one")
    log.warning("two")
    assert messages(fd) == ["two"]
    log.error("three")
    assert messages(fd) == ["two", "one", "three"], "an error wants to know what led to it"
    log.debug("four")
    assert obey(writer, {"order": "flush_logs"}) is None
    log.info("five")
    assert messages(fd)[3:] == ["four", "five"]
    assert [b.get("buffered", False) for b in written(fd)] == [False, True, False, True, False]


def test_the_ring_is_bounded_and_says_what_fell_out(fd: int) -> None:
    writer = RecordWriter(fd, WEB, ring_bytes=2000)
    writer.buffer()
    for number in range(100):
        writer.write("INFO", f"record {number}")
    writer.buffer(False)
    writer.write("INFO", "last")
    *kept, last = written(fd)
    assert 3 < len(kept) < 20
    assert [b["message"] for b in kept] == [f"record {n}" for n in range(100 - len(kept), 100)]
    assert last["lost"] == writer.lost == 100 - len(kept)
    writer.write("INFO", "said once")
    assert "lost" not in written(fd)[-1]


def test_closing_the_handler_writes_what_is_buffered(fd: int, log: logging.Logger) -> None:
    handler = log.handlers[0]
    assert isinstance(handler, ForkfdHandler)
    handler.writer.buffer()
    log.info("one")
    handler.flush()
    assert messages(fd) == []
    handler.close()
    assert messages(fd) == ["one"]


END = """
from pyforkfd.supervisor import log_writer
assert log_writer() is log_writer()
log_writer().buffer()
log_writer().write("INFO", "last words")
"""


def test_the_end_of_the_process_writes_what_is_buffered(fd: int) -> None:
    who = "component=web worker=12 position=0 generation=4 log=7"
    env = {**os.environ, "FORKFD_WORKER": who}
    with ff.spawn([sys.executable, "-P", "-c", END], fds={7: fd}, env=env) as child:
        assert child.wait().code == 0
    assert messages(fd) == ["last words"]


CRASH = """
import sys, threading
from pyforkfd.supervisor.worker._logging import log_uncaught, log_writer
writer = log_writer()
log_uncaught(writer)
writer.buffer()
writer.write("INFO", "before")
if sys.argv[1] == "main":
    raise KeyError("A7")
thread = threading.Thread(target=lambda: {}["A7"], name="T")
thread.start()
thread.join()
"""


@pytest.mark.parametrize("where", ["main", "thread"])
def test_a_crash_writes_what_led_to_it(fd: int, where: str) -> None:
    who = "component=web worker=12 position=0 generation=4 log=7"
    with ff.spawn(
        [sys.executable, "-P", "-c", CRASH, where],
        fds={2: ff.PIPE, 7: fd},
        env={**os.environ, "FORKFD_WORKER": who},
    ) as child:
        assert child.stderr is not None
        said = child.stderr.read().decode()
    assert "KeyError: 'A7'" in said, "the hook that was there is called too"
    before, crash = written(fd)
    assert before["message"] == "before" and crash["level"] == "CRITICAL"
    assert "KeyError: 'A7'" in crash["exception"] and crash["worker"] == 12
    assert ("thread T" in crash["message"]) == (where == "thread")


def test_a_full_disk_loses_records_and_counts_them(tmp_path: Path, fd: int) -> None:
    full = os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC)
    try:
        writer = RecordWriter(full, WEB)
        for _ in range(3):
            writer.write("INFO", "lost")
        assert writer.lost == 3
        writer.replace(fd)
        writer.write("INFO", "found")
    finally:
        os.close(full)
    (body,) = written(fd)
    assert (body["message"], body["lost"], body["seq"]) == ("found", 3, 3)


def test_a_torn_line_ends_where_it_is_torn(fd: int, writer: RecordWriter) -> None:
    writer.write("INFO", "whole")
    size = os.fstat(fd).st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
    try:
        writer.write("INFO", "torn")
        writer.write("INFO", "nothing of this")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert writer.lost == 2
    writer.write("INFO", "after")
    first, torn, last = os.pread(fd, 1 << 20, 0).splitlines()
    assert json.loads(first)["message"] == "whole"
    assert len(torn) == 19, "the last byte is its newline"
    assert (json.loads(last)["message"], json.loads(last)["lost"]) == ("after", 2)


def test_a_closed_descriptor_is_the_programs_error() -> None:
    number = os.open("/dev/null", os.O_WRONLY)
    writer = RecordWriter(number, WEB)
    os.close(number)
    with pytest.raises(OSError, match="Bad file descriptor"):
        writer.write("INFO", "x")
    with pytest.raises(OSError, match="Bad file descriptor"):
        RecordWriter(number, WEB)
    with pytest.raises(ValueError, match="at least 1024"):
        RecordWriter(1, WEB, limit=5)


def test_records_on_a_pipe_are_no_longer_than_it_keeps_whole() -> None:
    read, write = os.pipe()
    try:
        writer = RecordWriter(write, WEB)
        writer.write("INFO", "x" * MAX_LINE)
        data = os.read(read, 1 << 20)
    finally:
        os.close(read)
        os.close(write)
    assert len(data) <= select.PIPE_BUF and json.loads(data)["cut"] > MAX_LINE


def test_a_pipe_without_a_reader_loses_records_and_no_more() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        writer = RecordWriter(write, WEB)
        writer.write("INFO", "x")
        assert writer.lost == 1
    finally:
        os.close(write)


def test_a_forks_child_has_its_own_numbers_and_no_buffered_records_of_its_parents(
    fd: int, writer: RecordWriter
) -> None:
    writer.write("INFO", "parent")
    writer.buffer()
    writer.write("INFO", "buffered by the parent")
    with writer._lock:  # held by whoever, as another thread would
        pid = os.fork()
        if pid == 0:
            # A thread of its own, since this one would have its own lock again.
            done = threading.Thread(target=writer.buffer, args=(False,))
            done.start()
            done.join(10)
            writer.write("INFO", "child")
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    writer.buffer(False)
    parent, child, buffered = written(fd)
    assert (parent["message"], child["message"]) == ("parent", "child")
    assert (child["pid"], child["seq"]) == (pid, 0)
    assert (buffered["pid"], buffered["seq"]) == (os.getpid(), 1)


def test_a_signal_handler_may_log_in_the_middle_of_a_record(fd: int, log: logging.Logger) -> None:
    class Late:
        def __str__(self) -> str:
            signal.raise_signal(signal.SIGUSR1)
            return "outer"

    before = signal.signal(signal.SIGUSR1, lambda *_: log.info("from the handler"))
    try:
        log.info("%s", Late())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert messages(fd) == ["from the handler", "outer"]


def test_the_order_to_change_over(tmp_path: Path, fd: int, writer: RecordWriter) -> None:
    writer.write("INFO", "old")
    with (tmp_path / "new").open("ab") as new, pytest.raises(ValueError, match="0 descriptors"):
        obey(writer, {"order": "log", "turn": 3})
    with (tmp_path / "new").open("ab") as new:
        assert obey(writer, {"order": "log", "turn": 3}, [new]) == {"event": "log", "turn": 3}
    writer.write("INFO", "new")
    assert ff.cloexec(fd)
    assert '"old"' in (tmp_path / "log").read_text()
    assert '"new"' in (tmp_path / "new").read_text()
    with pytest.raises(ValueError, match="is the descriptor that is to be replaced"):
        writer.replace(fd)
    assert obey(writer, {"order": "drain"}) is None


def test_who_a_worker_is(fd: int) -> None:
    assert log_writer({}) is None
    assert log_writer({"FORKFD_WORKER": "component=web worker=1 generation=1"}) is None
    made = log_writer({"FORKFD_WORKER": f"component=a worker=2 generation=3 log={fd}"})
    assert made is not None
    made.write("INFO", "hello")
    (body,) = written(fd)
    assert (body["component"], body["worker"], body["generation"]) == ("a", 2, 3)
    with pytest.raises(ValueError, match=r"FORKFD_WORKER='component=a log=7'.*worker"):
        log_writer({"FORKFD_WORKER": "component=a log=7"})
    with pytest.raises(OSError, match="log=999"):
        log_writer({"FORKFD_WORKER": "component=a worker=2 generation=3 log=999"})
