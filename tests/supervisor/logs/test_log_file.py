"""The log file: processes write to it while it is rotated."""

import collections
import json
import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import HELPERS

import pyforkfd as ff
from pyforkfd.supervisor.logs._log_file import LogFile, Switch
from pyforkfd.supervisor.logs._log_reader import Reader
from pyforkfd.supervisor.worker._messages import SwitchLog
from pyforkfd.supervisor.worker._protocol import encode_order

WORKER = HELPERS / "log_worker.py"
BUDGET = 1 << 30


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LogFile]:
    file = LogFile(tmp_path / "app.log", max_bytes=10, keep=3, patience=30)
    yield file
    file.close()


def write(fd: int, *lines: str) -> None:
    for line in lines:
        os.writev(fd, [line.encode() + b"\n"])


def order(log: LogFile, now: float) -> Switch:
    switch = log.next_switch(now)
    assert switch is not None
    return switch


def files(log: LogFile) -> dict[str, str]:
    return {p.name: p.read_text() for p in log.path.parent.iterdir()}


def test_no_record_is_lost_torn_or_out_of_order_over_rotations(tmp_path: Path) -> None:
    rotations, count, least = 50, 4, 25_000
    log = LogFile(tmp_path / "app.log", keep=rotations)
    channels: dict[int, ff.FdChannel] = {}
    processes: list[ff.Process] = []
    seen: list[bytes] = []
    wrote: dict[int, int] = {}
    poll = select.epoll()
    now = 0.0
    try:
        for worker in range(count):
            ours, theirs = ff.FdChannel.pair()
            channels[worker] = ours
            poll.register(ours.fileno(), select.EPOLLIN)
            identity = f"component=web worker={worker} position=0 generation=1 channel=6 log=7"
            with theirs:
                processes.append(
                    ff.spawn(
                        [sys.executable, WORKER, str(least), str(rotations)],
                        fds={6: theirs, 7: log.give(worker)},
                        env={**os.environ, "FORKFD_WORKER": identity},
                    )
                )
        by_fd = {channel.fileno(): worker for worker, channel in channels.items()}
        while len(wrote) < count:
            if log.turn < rotations and log.settled(now) and os.fstat(log.fileno()).st_size:
                log.rotate(now)
                switch = order(log, now)
                for worker in switch.workers:
                    text = encode_order(SwitchLog(switch.turn), ["log"])
                    channels[worker].send(text, [switch.fd])
            for fd, _ in poll.poll(0.01):
                with channels[by_fd[fd]].recv() as received:
                    message = json.loads(received.data or b'{"wrote": -1}')
                if "wrote" in message:
                    wrote[by_fd[fd]] = message["wrote"]
                    poll.unregister(fd)
                else:
                    log.confirm(by_fd[fd], message["turn"])
            seen += log.read(BUDGET, now)
        assert [process.wait().code for process in processes] == [0] * count
        while lines := log.read(BUDGET, now):
            seen += lines
    finally:
        poll.close()
        log.close()
        for channel in channels.values():
            channel.close()
        for process in processes:
            process.kill() if process.poll() is None else None
            process.wait()
            process.close()

    names = [f"app.log.{n}" for n in range(rotations, 0, -1)] + ["app.log"]
    assert sorted(names) == sorted(p.name for p in tmp_path.iterdir())
    on_disk = [line for name in names for line in (tmp_path / name).read_bytes().splitlines()]
    assert sum(wrote.values()) >= count * least
    for lines in (on_disk, seen):
        sequences = collections.defaultdict(list)
        for body in map(json.loads, lines):
            assert body["message"].splitlines()[0] == f"record {body['seq']}"
            sequences[body["worker"]].append(body["seq"])
        assert sequences == {w: list(range(n)) for w, n in wrote.items()}


def test_the_old_file_is_read_until_the_last_worker_has_changed_over(log: LogFile) -> None:
    worker_fd = os.dup(log.give(1))  # as the worker has it
    try:
        write(worker_fd, "old")
        assert not log.due()
        log.rotate(0)
        switch = order(log, 0)
        assert (switch.turn, switch.workers) == (1, (1,))
        assert log.next_switch(1) is None, "one order at a time"
        write(log.fileno(), "new 0123456789")
        assert log.behind() == (1,)
        write(worker_fd, "late")
        os.dup2(switch.fd, worker_fd)
        for nonsense in (7, -1, "1", None, [1]):
            log.confirm(1, nonsense)
        assert log.behind() == (1,)
        log.confirm(1, 1)
        assert log.behind() == () and not log.settled(1), "the worker's records are not read yet"
        assert log.read(BUDGET, 1) == [b"old", b"late", b"new 0123456789"]
        assert log.due()
        log.rotate(1)
    finally:
        os.close(worker_fd)
    assert files(log) == {
        "app.log": "",
        "app.log.1": "new 0123456789\n",
        "app.log.2": "old\nlate\n",
    }


def test_a_rotation_waits_for_no_worker_and_late_records_are_written_again(log: LogFile) -> None:
    slow, dead = os.dup(log.give(1)), os.dup(log.give(2))
    got = []
    try:
        for number in range(5):
            write(slow, f"late {number}")
            write(log.fileno(), f"turn {number}")
            log.rotate(number)
            if number == 0:
                assert order(log, 0).workers == (1, 2)
            assert log.next_switch(number) is None, "neither has confirmed"
            got.append(b" ".join(log.read(BUDGET, number)))
        # With keep=3 the file of the first turn has lost its name in the fourth.
        assert got[:3] == [b"late 0 turn 0", b"late 1 turn 1", b"late 2 turn 2"]
        assert got[3:] == [b"turn 3", b"late 3 turn 4"]
        write(slow, "late 5")
        assert log.read(BUDGET, 6) + log.read(BUDGET, 6) == [b"late 4", b"late 5"]
        assert files(log)["app.log"] == "late 4\nlate 5\n"
        os.dup2(log.fileno(), slow)
        log.confirm(1, log.turn)
        assert [old.turn for old in log._olds] == [0, 1], "worker 2 may have confirmed the first"
        log.read(BUDGET, 31)
        assert log._olds == [], "the time of worker 2 is over"
        assert log.unread == 0
    finally:
        os.close(slow)
        os.close(dead)


def test_a_worker_that_changes_over_while_we_read_is_read_in_its_order(
    log: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = os.dup(log.give(1))
    real = Reader.pending

    def pending(self: Reader) -> bool:
        result = real(self)
        monkeypatch.undo()
        # The old file is read to its end, the new one is next: now the worker is faster.
        write(worker, "old, late")
        os.dup2(log.fileno(), worker)
        write(worker, "new")
        return result

    try:
        write(worker, "old")
        log.rotate(0)
        monkeypatch.setattr(Reader, "pending", pending)
        lines = log.read(BUDGET, 1)
        lines += log.read(BUDGET, 1)
        assert lines == [b"old", b"old, late", b"new"]
    finally:
        os.close(worker)


def test_a_worker_that_has_ended_or_never_confirms_delays_nothing(log: LogFile) -> None:
    log.give(1), log.give(2)
    log.rotate(0)
    log.forget(1)
    assert log.behind() == order(log, 0).workers == (2,)
    assert log.read(BUDGET, 29.9) == [] and not log.settled(29.9)
    assert log.settled(30)
    log.rotate(30)
    again = order(log, 30)  # the order is sent again
    assert (again.workers, again.turn) == ((2,), 2)


def test_an_adopted_worker_may_have_any_description(log: LogFile) -> None:
    log.adopt(7, 0)
    switch = order(log, 0)
    assert log.behind() == switch.workers == (7,)
    assert not log.settled(1) and log.settled(30)
    log.confirm(7, switch.turn)
    assert log.behind() == () and log.settled(1)


def test_a_description_is_in_use_from_the_spawn_on(log: LogFile) -> None:
    log.rotate(0)
    log.read(BUDGET, 0)
    log.give(5)
    assert log.behind() == ()
    log.rotate(0)
    assert order(log, 0).workers == (5,)


def test_the_wanted_number_of_old_files_is_retained(log: LogFile) -> None:
    for number in range(6):
        write(log.fileno(), str(number))
        log.rotate(0)
        log.read(BUDGET, 0)
    retained = {"app.log": "", "app.log.1": "5\n", "app.log.2": "4\n", "app.log.3": "3\n"}
    assert files(log) == retained


def test_external_rotation(log: LogFile) -> None:
    assert not log.reopen(0)
    write(log.fileno(), "before")
    log.path.rename(log.path.with_suffix(".moved"))
    write(log.fileno(), "between")
    assert log.reopen(0) and log.turn == 1
    write(log.fileno(), "after")
    assert log.read(BUDGET, 0) == [b"before", b"between", b"after"]
    assert files(log) == {"app.log": "after\n", "app.moved": "before\nbetween\n"}


def test_a_failed_rotation_changes_nothing(log: LogFile) -> None:
    write(log.fileno(), "here")
    before = log.fileno()
    blocker = Path(f"{log.path}.next")
    blocker.mkdir()
    with pytest.raises(OSError) as caught:
        log.rotate(0)
    assert caught.value.filename is not None
    blocker.rmdir()
    assert (log.fileno(), log.turn) == (before, 0)
    assert files(log) == {"app.log": "here\n"}


def test_what_a_dead_supervisor_left_is_no_obstacle(log: LogFile) -> None:
    Path(f"{log.path}.next").write_text("stale")
    write(log.fileno(), "here")
    log.rotate(0)
    assert files(log) == {"app.log": "", "app.log.1": "here\n"}


def test_the_budget_bounds_one_read_and_nothing_is_lost_by_it(log: LogFile) -> None:
    wanted = [f"line {n}".encode() for n in range(1000)]
    write(log.fileno(), *[line.decode() for line in wanted])
    log.rotate(0)
    write(log.fileno(), "last")
    got, calls = [], 0
    while lines := log.read(100, 0):
        assert sum(map(len, lines)) <= 200
        got += lines
        calls += 1
    assert got == [*wanted, b"last"]
    assert calls > 50


def test_a_line_without_an_end_is_held_back_and_an_endless_one_skipped(log: LogFile) -> None:
    os.write(log.fileno(), b"half")
    assert log.read(BUDGET, 0) == []
    write(log.fileno(), " whole", "x" * 1_000_000, "next")
    assert log.read(BUDGET, 0) == [b"half whole", b"next"]


def test_only_new_lines_are_read_and_a_truncated_file_from_its_start(log: LogFile) -> None:
    write(log.fileno(), "one", "two")
    with_history = LogFile(log.path)
    try:
        assert with_history.read(BUDGET, 0) == []
        write(log.fileno(), "three")
        assert with_history.read(BUDGET, 0) == [b"three"]
        os.truncate(log.path, 0)
        write(log.fileno(), "4")
        assert with_history.read(BUDGET, 0) == [b"4"]
    finally:
        with_history.close()


def test_the_flags_and_the_mode_of_the_file(tmp_path: Path) -> None:
    import fcntl

    log = LogFile(tmp_path / "app.log", mode=0o600, o_dsync=True)
    try:
        flags = fcntl.fcntl(log.fileno(), fcntl.F_GETFL)
        assert flags & os.O_APPEND and flags & os.O_DSYNC
        assert flags & os.O_ACCMODE == os.O_WRONLY, "a worker must not read others' records"
        assert ff.cloexec(log.fileno())
        assert log.path.stat().st_mode & 0o777 == 0o600
    finally:
        log.close()


def test_a_path_that_cannot_be_a_log_is_refused_by_name(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(OSError, match=r"regular file.*fifo"):
        LogFile(fifo)
    with pytest.raises(FileNotFoundError, match="missing"):
        LogFile(tmp_path / "missing" / "app.log")
    for keep, max_bytes, patience in ((0, 1, 0.0), (1, 0, 0.0), (1, 1, -1.0)):
        with pytest.raises(ValueError, match="at least 1"):
            LogFile(tmp_path / "app.log", keep=keep, max_bytes=max_bytes, patience=patience)
    assert [p.name for p in tmp_path.iterdir()] == ["fifo"]
