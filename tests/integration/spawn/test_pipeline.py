"""a | b | c: each status known, one process group, and all or nothing."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from children import Children

import pyforkfd as ff


def sh(script: str, **fds: ff.FdSource) -> ff.Command:
    return ff.Command(["sh", "-c", script], fds={int(n[1:]): source for n, source in fds.items()})


def test_each_reads_what_the_one_before_writes() -> None:
    line = sh("seq 10000", _1=ff.PIPE).args  # a Command is not changed by being piped
    pipeline = sh("seq 100000") | sh("grep 9") | sh("wc -l", _1=ff.PIPE)
    for _ in range(2):
        with pipeline.spawn() as running:
            assert running.stdout is not None
            assert running.stdout.read().strip() == b"40951"
            assert {os.getpgid(p.pid) for p in running.processes} == {running.process_group}
        assert [status.code for status in running.wait()] == [0, 0, 0]
    assert line[0] == "sh"


def test_each_status_is_known() -> None:
    with (sh("exit 3") | sh("cat; exit 4") | sh("cat; kill -9 $$")).spawn() as running:
        ends = running.wait(timeout=60)
    assert [(s.code, s.signal) for s in ends] == [(3, None), (4, None), (None, 9)]


def test_a_reader_that_ends_ends_the_writer() -> None:
    with (ff.Command(["yes"]) | ff.Command(["head", "-n1"], fds={1: ff.DEVNULL})).spawn() as both:
        assert [s.signal for s in both.wait()] == [signal.SIGPIPE, None]


def test_pipelines_join() -> None:
    def rot(n: int) -> ff.Command:
        return ff.Command(["tr", "0-9", "".join(str((i + n) % 10) for i in range(10))])

    first, second = rot(1) | rot(2), sh("cat") | rot(3)
    whole = sh("cat", _0=ff.PIPE) | (first | second) | sh("cat", _1=ff.PIPE)
    assert len(whole.commands) == 6
    with whole.spawn() as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(b"0123")
        running.stdin.close()
        assert running.stdout.read() == b"6789"


def test_a_signal_reaches_all_and_what_they_started() -> None:
    with (sh("sleep 1000 & wait") | sh("sleep 1000")).spawn() as running:
        with pytest.raises(TimeoutError):
            running.wait(timeout=0)
        running.terminate()
        assert {s.signal for s in running.wait()} == {signal.SIGTERM}
        running.kill()  # does nothing


def test_on_asyncio() -> None:
    async def main() -> list[int | None]:
        running = (sh("exit 1") | sh("exit 2")).spawn()
        try:
            return [status.code for status in await running.wait_async()]
        finally:
            running.close()

    assert asyncio.run(main()) == [1, 2]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_that_cannot_start_leaves_nothing(place: int) -> None:
    commands = [sh("sleep 1000"), sh("sleep 1000"), sh("sleep 1000")]
    commands[place] = ff.Command(["/nowhere/program"])
    with pytest.raises(FileNotFoundError):  # and the guards see what is left
        ff.Pipeline(tuple(commands)).spawn()


def test_every_back_end(children: Children) -> None:
    pipeline = sh("echo through") | sh("cat", _1=ff.PIPE)
    with pipeline.spawn() as running:
        assert running.stdout is not None
        assert running.stdout.read() == b"through\n"
        assert {p.backend for p in running.processes} == {children.backend}


def test_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="two commands"):
        ff.Pipeline((sh("true"),))
    with pytest.raises(ValueError, match="fds of command 0"):
        sh("true", _1=ff.DEVNULL) | sh("true")
    with pytest.raises(ValueError, match="fds of command 1"):
        sh("true") | sh("true", _0=ff.DEVNULL)
    for wrong in (
        ff.Command(["true"], new_session=True),
        ff.Command(["true"], process_group=0),
    ):
        with pytest.raises(ValueError, match="session or a process group"):
            sh("true") | wrong
