"""Lost records: counted, reported on standard error once, and in the log when it is over."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from children import needs_root
from leaks import gone
from services import service
from small_disk import small_disk

import pyforkfd as ff
from pyforkfd.supervisor.logs._capture import Capture
from pyforkfd.supervisor.logs._log_file import LogFile
from pyforkfd.supervisor.logs._log_reader import Reader
from pyforkfd.supervisor.logs._logs import Logs
from pyforkfd.supervisor.logs._losses import Loss
from pyforkfd.supervisor.logs._record_writer import RecordWriter
from pyforkfd.supervisor.logs._records import Entry, Origin, captured
from pyforkfd.supervisor.logs._sinks import RingTail, StreamSink
from pyforkfd.supervisor.logs._torn_line import end_torn_line

WEB = Origin(component="web", worker=12, generation=4)
SIZE = 64 << 10


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, SIZE) as path:
        yield path


def line(text: str) -> Entry:
    return captured(WEB, "stdout", time.time_ns(), text.encode())


def records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file, without torn lines."""
    found = []
    for text in path.read_bytes().splitlines(keepends=True):
        if not text.endswith(b"\n"):
            continue  # torn, be it at its very end
        try:
            found.append(json.loads(text))
        except ValueError:
            pass
    return found


def messages(entries: list[Entry]) -> list[str]:
    return [json.loads(entry.line)["message"] for entry in entries]


@needs_root
def test_a_full_disk_is_reported_once_and_its_losses_when_it_is_over(
    disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = LogFile(disk / "app.log")
    logs = Logs(file, RingTail(), pid=os.getpid())
    fd = os.dup(file.give(12))
    writer = RecordWriter(fd, WEB)
    count = 0
    while file.lost < 20:
        logs.add(line(f"line {count}"))
        count += 1
        assert count < SIZE // 20, "the losses are not counted"
    writer.write("INFO", "lost by the worker")
    logs.poll(1)
    logs.poll(2)
    errors = capfd.readouterr().err
    assert re.fullmatch(f"pyforkfd: {file.path}: [^\n]*: log records are lost\n", errors)
    assert logs.lost()["file"] == 20, "a failed report is not a lost record"
    assert messages(logs.tail.tail(1)) == [f"line {count - 1}"], "sinks have them all"
    written = len(records(file.path))
    assert written + 20 == count
    os.truncate(file.path, 0)
    logs.poll(3)
    writer.write("INFO", "again")
    logs.add(line("again"))
    logs.poll(4)
    report, by_worker, again = records(file.path)
    assert (report["component"], report["level"], report["lost"]) == ("supervisor", "WARNING", 20)
    assert "No space left on device" in report["message"]
    assert (by_worker["message"], by_worker["lost"]) == ("again", 1)
    assert again["message"] == "again" and "lost" not in again
    assert logs.lost() == {"file": 21, "unread": 0}
    os.close(fd)
    file.close()


@needs_root
@pytest.mark.parametrize("torn_by", ["worker", "supervisor"])
@pytest.mark.parametrize("length", [500, 3000])
def test_a_torn_record_does_not_swallow_that_of_another_writer(
    disk: Path, torn_by: str, length: int
) -> None:
    """Who writes next has noticed nothing of the full disk."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(SIZE // 2))
    file = LogFile(disk / "app.log")
    fd = os.dup(file.give(12))
    first, other = RecordWriter(fd, WEB), RecordWriter(fd, WEB)
    count = 0
    while not (lost := first.lost if torn_by == "worker" else file.lost):
        count += 1
        assert count < SIZE // length
        if torn_by == "worker":
            first.write("INFO", "x" * length)
        else:
            file.write(line("x" * length).line)
    begun, at = file.path.read_bytes(), file.path.stat().st_size
    assert at % 4096 == 0, "it was cut at the end of a page"
    assert begun.endswith(b"\n") and not begun.endswith(b"}\n"), "and ended there"
    ballast.unlink()
    other.write("INFO", "whole")
    first.write("INFO", "whole")
    file.write(line("whole").line)
    *_, torn, by_other, by_first, by_file = file.path.read_bytes().splitlines()
    with pytest.raises(ValueError):
        json.loads(torn)
    assert lost == 1
    for record in (by_other, by_first, by_file):
        assert json.loads(record)["message"] == "whole"
    assert json.loads(by_first).get("lost", 0) == (torn_by == "worker")
    os.close(fd)
    file.close()


WHOLE = b'{"time":"2026","seq":1}\n'


@pytest.mark.parametrize(
    ("before", "begun", "after"),
    [
        (b"", b'{"time":"2026","se', b""),
        (WHOLE, b'{"time":"2026","se', b""),
        (WHOLE, b'{"time":"2026","se', WHOLE + WHOLE),
        (WHOLE, b"{", WHOLE),
        (WHOLE, WHOLE[:-1], WHOLE),
        (WHOLE, b"\n" + WHOLE[:4], WHOLE),
    ],
)
def test_a_torn_line_is_ended_where_it_is(
    tmp_path: Path, before: bytes, begun: bytes, after: bytes
) -> None:
    """And nothing else changes, whoever has written meanwhile."""
    path = tmp_path / "log"
    path.write_bytes(before + begun + after)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    assert end_torn_line(fd, begun)
    assert path.read_bytes() == before + begun[:-1] + b"\n" + after
    os.close(fd)


@pytest.mark.parametrize("content", [b"", WHOLE, WHOLE * 2, b"x" + WHOLE[:-1] + WHOLE])
def test_a_torn_line_that_is_not_found_changes_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    assert not end_torn_line(fd, WHOLE[:8])
    assert path.read_bytes() == content
    os.close(fd)


def test_a_reader_notices_a_torn_line_that_was_ended_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(WHOLE + WHOLE[:8])
    reader = Reader(os.open(path, os.O_RDONLY))
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    assert reader.lines(reader.size(), 1000) == [WHOLE[:-1]]
    assert end_torn_line(fd, WHOLE[:8])
    os.write(fd, WHOLE)
    assert reader.lines(reader.size(), 1000) == [WHOLE[:7], WHOLE[:-1]]
    os.close(fd)
    reader.close()


@needs_root
def test_what_is_lost_at_the_end_is_on_standard_error(
    disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = LogFile(disk / "app.log")
    logs = Logs(file, RingTail(), pid=os.getpid())
    for _ in range(SIZE // 100):
        logs.add(line("x" * 100))
    logs.close()
    assert re.search(
        r"app\.log: No space left on device: \d+ log records were lost", capfd.readouterr().err
    )
    file.close()


@needs_root
def test_a_worker_that_ends_reports_its_losses(disk: Path) -> None:
    code = (
        "import os, sys\n"
        "from pyforkfd.supervisor import RecordWriter, Origin\n"
        "writer = RecordWriter(1, Origin(component='web'))\n"
        "while not writer.lost: writer.write('INFO', 'x' * 500)\n"
        "os.ftruncate(1, 0)\n"
    )
    fd = os.open(disk / "app.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with ff.spawn([sys.executable, "-P", "-c", code], fds={1: fd, 2: 2}) as worker:
        os.close(fd)
        assert worker.wait(60).success
    (report,) = records(disk / "app.log")
    assert (report["lost"], report["message"]) == (1, "1 records could not be written")


@needs_root
def test_a_service_on_a_full_disk_counts_and_reports_its_losses(disk: Path, tmp_path: Path) -> None:
    loop = "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.001; done"
    config = f"""
    [components.web]
    command = ["sh", "-c", "{loop}"]
    readiness = "started"
    cgroup = "off"
    stop_timeout = 1
    [log]
    path = "{disk}/app.log"
    [metrics]
    textfile = "{tmp_path}/m.prom"
    interval = "100ms"
    """

    def lost() -> int:
        if not (tmp_path / "m.prom").exists():
            return 0
        text = (tmp_path / "m.prom").read_text()
        found = re.search(r'^forkfd_log_lost_total{sink="file"} (\S+)$', text, re.M)
        assert found, text
        return int(float(found[1]))

    log = disk / "app.log"
    with service(tmp_path, config) as running:
        assert gone(lambda: lost() > 10)
        last = numbers(log)[-1]
        os.truncate(log, 0)
        assert gone(lambda: bool(numbers(log)))
        first = numbers(log)[0]
        report = next(r for r in records(log) if "lost" in r)
        # Records of the supervisor's own may be lost as well.
        assert first - last - 1 <= report["lost"] <= first - last + 1
        assert gone(lambda: lost() >= report["lost"])
        assert running.log.text().count(": log records are lost") == 1


def numbers(log: Path) -> list[int]:
    found = (re.fullmatch(r"line (\d+)", record["message"]) for record in records(log))
    return [int(match[1]) for match in found if match]


def test_a_log_that_was_removed_is_made_again_and_nothing_of_it_is_lost(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "app.log")
    logs = Logs(file, RingTail(), pid=os.getpid())
    fd = os.dup(file.give(12))
    writer = RecordWriter(fd, WEB)
    writer.write("INFO", "before")
    logs.poll(0)
    file.path.unlink()
    writer.write("INFO", "between")
    logs.add(line("captured"))
    logs.poll(1)
    switch = logs.poll(2)
    assert switch is None and file.turn == 1, "the order was sent by the poll before"
    writer.write("INFO", "late")
    logs.poll(3)
    logs.poll(4)
    assert sorted(r["message"] for r in records(file.path)[1:]) == ["between", "captured", "late"]
    (report,) = [r for r in records(file.path) if r["component"] == "supervisor"]
    assert "app.log was removed" in report["message"]
    published = messages(logs.tail.tail(components=["web"]))
    assert sorted(published) == ["before", "between", "captured", "late"], "each once"
    os.close(fd)
    file.close()


def test_a_log_whose_directory_was_removed_comes_back_with_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    file = LogFile(directory / "app.log")
    logs = Logs(file, RingTail(), pid=os.getpid())
    file.path.unlink()
    directory.rmdir()
    fd = os.dup(file.give(12))
    writer = RecordWriter(fd, WEB)
    for now in range(3):
        logs.poll(now)
        logs.add(line(f"line {now}"))
        writer.write("INFO", f"record {now}")
    errors = capfd.readouterr().err
    assert errors.count("was removed and cannot be made again: ") == errors.count("\n") == 1
    logs.poll(3)
    assert len(messages(logs.tail.tail(components=["web"]))) == 6, "sinks have them all"
    writer.write("INFO", "late")
    directory.mkdir()
    logs.poll(4)
    logs.poll(5)
    logs.add(line("again"))
    lost, removed, *rest = records(file.path)
    assert lost["lost"] == logs.lost()["file"] == 7, "six, and that of the supervisor"
    assert "was removed" in removed["message"]
    assert [record["message"] for record in rest] == ["late", "again"]
    os.close(fd)
    file.close()


def test_a_sink_that_is_too_slow_is_reported_when_it_has_caught_up(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    read_fd, write_fd = os.pipe()
    sink = StreamSink(write_fd, max_bytes=10_000, name="stdout")
    file = LogFile(tmp_path / "app.log")
    logs = Logs(file, RingTail(), [sink], pid=os.getpid())
    for number in range(400):
        logs.add(line(f"{number} " + "x" * 500))
    logs.poll(0)
    lost = sink.dropped
    assert lost > 100 and logs.lost() == {"file": 0, "unread": 0, "stdout": lost}
    errors = capfd.readouterr().err
    assert errors == "pyforkfd: stdout: log records are dropped: the reader is slow\n"
    assert not [r for r in records(file.path) if "lost" in r], "it is not over"
    while sink.wants_write:
        os.read(read_fd, 1 << 20)
        sink.handle()
    logs.poll(1)
    logs.poll(2)
    (report,) = [r for r in records(file.path) if "lost" in r]
    assert (report["lost"], report["message"]) == (
        lost,
        f"stdout: {lost} records were dropped: the reader is slow",
    )
    sink.close()
    os.close(read_fd)
    os.close(write_fd)
    file.close()


def test_the_times_of_notices_and_reports(capfd: pytest.CaptureFixture[str]) -> None:
    loss = Loss()
    loss.notice("disk", 0)
    loss.notice("disk", 1)
    assert loss.due(0, over=True) and not loss.due(1, over=False) and loss.due(60, over=False)
    loss.report(7, 2)
    assert loss.reported == 7 and not loss.due(2, over=True)
    loss.notice("disk", 3)
    assert not loss.due(11.9, over=True) and loss.due(12, over=True)
    loss.report(9, 12)
    loss.notice("disk", 13)
    assert not loss.due(31.9, over=True) and loss.due(32, over=True), "the pause doubles"
    loss.report(10, 32)
    loss.notice("disk", 200)
    assert loss.due(200, over=True)
    loss.report(11, 200)
    loss.notice("disk", 201)
    assert loss.due(220, over=True), "and begins anew after a quiet time"
    assert capfd.readouterr().err == "pyforkfd: disk\n" * 2, "once in a minute"


def test_standard_error_that_is_full_or_closed_delays_nothing() -> None:
    saved = os.dup(2)
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    try:
        while os.write(write_fd, b"x" * 4096):
            pass
    except BlockingIOError:
        os.set_blocking(write_fd, True)
    try:
        os.dup2(write_fd, 2)
        Loss().notice("full", 0)
        os.close(read_fd)
        Loss().notice("broken", 0)
        os.close(2)
        Loss().notice("closed", 0)
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(write_fd)


def test_captured_output_alone_never_exceeds_the_bound(tmp_path: Path) -> None:
    bound, keep = 10_000, 2
    file = LogFile(tmp_path / "app.log", max_bytes=bound, keep=keep)
    logs = Logs(file, RingTail(), pid=os.getpid())
    file.give(12)  # never confirms
    capture = Capture(WEB, "stdout", logs.add)
    for number in range(200):
        os.write(capture.writer.fileno(), b"".join(b"%d-%d\n" % (number, n) for n in range(50)))
        capture.handle()
        if number % 10 == 0:
            logs.poll(number / 100)
        sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
        assert len(sizes) <= keep + 1 and max(sizes.values()) < bound + 1000, sizes
    capture.close()
    assert file.turn > 50
    assert logs.lost() == {"file": 0, "unread": 0}, "the sinks had each line at once"
    assert len(file._olds) < 20, "files of which nobody has a description are closed"
    file.close()


def test_records_that_are_written_faster_than_they_are_read_keep_the_bound(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "app.log", max_bytes=20_000, keep=1)
    logs = Logs(file, RingTail(keep=100_000, keep_bytes=1 << 30), pid=os.getpid())
    fd = os.dup(file.give(12))
    writer = RecordWriter(fd, WEB)
    count = 0
    for now in range(40):
        for _ in range(150):
            writer.write("INFO", f"record {count}")
            count += 1
        if (switch := logs.poll(now, budget=1000)) is not None:
            writer.replace(switch.fd)
            file.confirm(12, switch.turn)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 100_000
    for now in range(40, 400):
        logs.poll(now)
    published = [m for m in messages(logs.tail.tail()) if m.startswith("record")]
    assert file.unread > 0 and len(published) + file.unread == count
    reported = sum(r.get("lost", 0) for r in map(entry_body, logs.tail.tail()))
    assert reported == file.unread == logs.lost()["unread"]
    os.close(fd)
    file.close()


def entry_body(entry: Entry) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(entry.line)
    return body


def test_a_service_that_only_prints_keeps_the_bound(tmp_path: Path) -> None:
    """Print 1 MB/s, from a program without a channel and from one that never reads its channel."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "mute.py").write_text(
        "import time\n"
        "from pyforkfd.supervisor import worker\n"
        "def serve():\n"
        "    worker.current().ready()\n"
        "    while True:\n"
        "        print('\\n'.join(['x' * 200] * 50), flush=True)\n"
        "        time.sleep(0.02)\n"
    )
    loop = "while :; do printf '%0200d\\\\n' $(seq 100); sleep 0.02; done"
    config = f"""
    [components.shell]
    command = ["sh", "-c", "{loop}"]
    readiness = "started"
    cgroup = "off"
    stop_timeout = 1
    [components.python]
    command = ["{sys.executable}", "-c", "import mute; mute.serve()"]
    env = {{ PYTHONPATH = "{tmp_path}" }}
    cgroup = "off"
    stop_timeout = 1
    [log]
    path = "{tmp_path}/logs/app.log"
    max_bytes = "200K"
    keep = 2
    """
    with service(tmp_path, config, ready=2):
        most, turns, last = 0, 0, 0
        end = time.monotonic() + 60
        while turns < 12 and time.monotonic() < end:
            time.sleep(0.01)
            try:
                sizes = [p.stat().st_size for p in sorted((tmp_path / "logs").glob("app.log*"))]
            except FileNotFoundError:  # between two renames
                continue
            most = max(most, sum(sizes))
            turns += sizes[0] < last
            last = sizes[0]
        assert turns == 12, f"{turns} rotations"
        assert most < 4 * 200_000
