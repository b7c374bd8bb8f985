"""The log file, captured lines and sinks together."""

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyforkfd.supervisor.logs._capture import Capture
from pyforkfd.supervisor.logs._log_file import LogFile
from pyforkfd.supervisor.logs._logs import Logs
from pyforkfd.supervisor.logs._record_writer import RecordWriter
from pyforkfd.supervisor.logs._records import Entry, Origin, encode, time_text
from pyforkfd.supervisor.logs._sinks import RingTail, StreamSink

WEB = Origin(component="web", worker=12, generation=4)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[LogFile]:
    log = LogFile(tmp_path / "app.log", max_bytes=1000)
    yield log
    log.close()


@pytest.fixture
def logs(file: LogFile) -> Logs:
    return Logs(file, RingTail(), pid=os.getpid())


def messages(entries: list[Entry]) -> list[str]:
    return [json.loads(entry.line)["message"] for entry in entries]


def on_disk(file: LogFile) -> list[str]:
    return [json.loads(line)["message"] for line in file.path.read_bytes().splitlines()]


def test_everything_is_in_the_file_and_in_the_sinks_once(logs: Logs, file: LogFile) -> None:
    read, write = os.pipe()
    sink = StreamSink(write)
    logs.sinks.append(sink)
    RecordWriter(file.give(12), WEB).write("INFO", "record")
    capture = Capture(WEB, "stderr", logs.add)
    os.write(capture.writer.fileno(), b"captured\n")
    capture.handle()
    capture.close()
    logs.record("INFO", "event", cause="oom")
    for now in range(3):
        assert logs.poll(now) is None
    assert on_disk(file) == ["record", "captured", "event"]
    assert sorted(messages(logs.tail.tail())) == ["captured", "event", "record"]
    assert messages(logs.tail.tail(components=["web"])) == ["captured", "record"]
    sink.close()
    os.close(write)
    with open(read, "rb") as file_of_pipe:
        assert file_of_pipe.read().splitlines() == [one.line for one in logs.tail.tail()]


def test_a_malformed_line_is_published_and_counted(logs: Logs, file: LogFile) -> None:
    os.write(file.fileno(), b"print of a Go worker\n\n")
    logs.poll(0)
    (entry,) = logs.tail.tail()
    assert (entry.origin.component, logs.malformed) == ("-", 1)
    assert messages([entry]) == ["print of a Go worker"]


def test_it_is_rotated_when_it_is_due(logs: Logs, file: LogFile) -> None:
    writer = RecordWriter(os.dup(file.give(12)), WEB)
    try:
        for number in range(10):
            writer.write("INFO", f"{number} {'x' * 100}")
        switch = logs.poll(0)
        assert switch is not None and switch.workers == (12,)
        writer.replace(switch.fd)
        file.confirm(12, switch.turn)
        writer.write("INFO", "new")
        assert logs.poll(1) is None
        assert messages(logs.tail.tail())[-1] == "new" and on_disk(file) == ["new"]
    finally:
        os.close(writer.fileno())


def test_a_rotation_that_fails_is_reported_and_tried_again(logs: Logs, file: LogFile) -> None:
    blocker = Path(f"{file.path}.next")
    blocker.mkdir()
    logs.record("INFO", "x" * 1000)
    assert logs.poll(0) is None and logs.poll(1) is None
    (error,) = messages(logs.tail.tail())[1:]
    assert str(blocker) in error
    blocker.rmdir()
    logs.poll(29)
    assert file.turn == 0
    logs.poll(30)
    assert file.turn == 1


def test_reopening_waits_for_its_time(logs: Logs, file: LogFile) -> None:
    file.give(12)
    file.rotate(0)
    assert file.next_switch(0) is not None
    file.path.rename(file.path.with_suffix(".moved"))
    logs.reopen()
    assert logs.poll(1) is None, "worker 12 has not changed over yet"
    file.confirm(12, 1)
    logs.poll(2)
    switch = logs.poll(3)
    assert file.path.exists() and (switch is not None or file.turn == 2)
    assert logs.poll(4) is None and file.turn == 2


def test_a_full_disk_withholds_nothing_from_the_other_sinks(logs: Logs, file: LogFile) -> None:
    own = file._new.fileno()  # the supervisor's description
    saved = os.dup(own)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, own, inheritable=False)
    os.close(full)
    logs.record("INFO", "hello")
    os.dup2(saved, own, inheritable=False)
    os.close(saved)
    assert messages(logs.tail.tail()) == ["hello"] and file.lost == 1
    logs.record("INFO", "again")
    assert on_disk(file)[1:] == ["again"]


@pytest.mark.parametrize("stream", ["stdout", "stderr", "supervisor", 7])
def test_a_record_that_claims_to_be_published_is_published(
    logs: Logs, file: LogFile, stream: object
) -> None:
    head = {"time": time_text(1), "component": "web", "worker": 12, "stream": stream}
    os.write(file.fileno(), json.dumps({**head, "message": "hidden"}).encode() + b"\n")
    os.write(file.fileno(), encode(head, "hidden too"))
    logs.record("INFO", "ours")
    logs.poll(0)
    assert messages(logs.tail.tail(components=["web"])) == ["hidden", "hidden too"]
    for entry in logs.tail.tail(components=["web"]):
        assert (entry.stream, json.loads(entry.line)["claimed"]) == ("log", {"stream": stream})
    assert messages(logs.tail.tail(components=["supervisor"])) == ["ours"], "once"


def test_a_record_of_the_supervisor_is_written_by_the_supervisor(logs: Logs, file: LogFile) -> None:
    logs.record("INFO", "ours")
    (ours,) = logs.tail.tail()
    os.write(file.fileno(), ours.line.replace(b"ours", b"forged") + b"\n")
    logs.poll(0)
    assert messages(logs.tail.tail(components=["supervisor"])) == ["ours"]
    (forged,) = logs.tail.tail(components=["-"])
    assert json.loads(forged.line)["claimed"]["component"] == "supervisor"


def test_flags_that_a_worker_has_changed_are_restored(logs: Logs, file: LogFile) -> None:
    with os.fdopen(os.dup(file.give(12)), "wb", buffering=0) as worker:
        fcntl.fcntl(worker, fcntl.F_SETFL, os.O_NONBLOCK)  # a common slip, which clears O_APPEND
        logs.record("INFO", "not overwritten")
        logs.poll(0)
        assert fcntl.fcntl(worker, fcntl.F_GETFL) & os.O_APPEND
        RecordWriter(worker.fileno(), WEB).write("INFO", "record")
        logs.poll(1)
    first, warning, record = on_disk(file)
    assert (first, record) == ("not overwritten", "record")
    assert "O_APPEND: restored" in warning


def test_a_torn_line_does_not_hide_what_follows(logs: Logs, file: LogFile) -> None:
    os.write(file.fileno(), b"torn")
    logs.record("INFO", "ours")
    RecordWriter(file.give(12), WEB).write("INFO", "record")
    logs.poll(0)
    assert sorted(messages(logs.tail.tail())) == ["ours", "record", "torn"]


def test_without_a_file() -> None:
    logs = Logs(None, RingTail(), pid=1)
    capture = Capture(WEB, "log", logs.add)
    RecordWriter(capture.writer.fileno(), WEB).write("INFO", "hello")
    capture.handle()
    capture.close()
    assert logs.poll(0) is None
    assert messages(logs.tail.tail()) == ["hello"]
